"""Values with units, as people write them and read them: 1mbit, 20 mbit/s, 5 MB/s, 250 ms, 10/s.

A value is kept in one unit, a key of `EXAMPLES`; what is written may be in any of its relatives.
Where a bare number could mean two things it is refused.
"""

from __future__ import annotations

import math
import re
from typing import Final

from .errors import BadRequest

TEXT_MAX: Final = 32
VALUE_MAX: Final = 1e15
_NUMBER: Final = re.compile(r"(?a:(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d{1,2})?)\s*(.*)\Z", re.IGNORECASE)
_BITS: Final = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BYTES: Final = {
    "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9,
    "KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3,
}  # fmt: skip
_SECONDS: Final = {
    "": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "h": 3600.0, "d": 86_400.0,
}  # fmt: skip
EXAMPLES: Final = {
    "s": "3 s, 250 ms or 5min",
    "bytes/s": "20mbit, 1 gbit/s or 5 MB/s",
    "1/s": "10/s, 3/min or 0.5",
    "": "a whole number",
    "s/GiB": "2 or 0.5 s/GiB",
}
"""Of what may be written, by unit: all units there are."""


def parse_quantity(text: str, unit: str) -> float:
    """Not negative, finite. Raises BadRequest: what is wrong, and how it is written."""
    found = _NUMBER.match(text.strip()) if len(text) <= TEXT_MAX else None
    if found is None:
        raise BadRequest(f"{text[:TEXT_MAX]!r}: write {EXAMPLES[unit]}")
    factor = _factor(found[3].strip(), unit)
    if factor is None:
        raise BadRequest(f"{text!r}: write {EXAMPLES[unit]}")
    value = float(found[1] + (found[2] or "")) * factor
    if not value <= VALUE_MAX:
        raise BadRequest(f"{text!r}: too large")
    if not unit and not value.is_integer():
        raise BadRequest(f"{text!r}: write {EXAMPLES[unit]}")
    return value


def _factor(word: str, unit: str) -> float | None:
    """What one of `word` is in `unit`; None: nothing of the kind."""
    match unit:
        case "s":
            return _SECONDS.get(word)
        case "bytes/s":
            amount = word.removesuffix("/s")
            bits = _BITS.get(amount.lower())
            return _BYTES.get(amount) if bits is None else bits / 8
        case "1/s":
            if not word:
                return 1.0
            seconds = _SECONDS.get(word[1:]) if word[0] == "/" and len(word) > 1 else None
            return None if seconds is None else 1 / seconds
        case "s/GiB":
            return 1.0 if word in ("", "s/GiB") else None
        case _:
            return 1.0 if not word else None


def show_quantity(value: float, unit: str, *, bits: bool = False) -> str:
    """`bits`: of a link, which is sold by them. What it shows, `parse_quantity` reads."""
    if not math.isfinite(value):
        return "unbounded"
    match unit:
        case "s":
            return show_seconds(value)
        case "bytes/s" if bits:
            return _scaled(value * 8, _BITS) + "/s"
        case "bytes/s":
            return _scaled(value, {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}) + "/s"
        case "1/s":
            return _per(value)
        case _:
            return f"{digits(value)} {unit}".rstrip()


def show_seconds(value: float) -> str:
    if not math.isfinite(value):
        return "never"
    if value == 0:
        return "0 s"
    for factor, word in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= factor * 0.9995 or word == "µs":
            break
    if value >= 119.5:
        factor, word = (60.0, "min") if value < 7170 else (3600.0, "h")
    return f"{digits(value / factor)} {word}"


def _per(value: float) -> str:
    for factor, word in ((1.0, "s"), (60.0, "min"), (3600.0, "h")):
        if value * factor >= 0.0995 or word == "h":
            return f"{digits(value * factor)}/{word}"
    raise AssertionError("unreachable")


def _scaled(value: float, units: dict[str, float]) -> str:
    word = next((w for w, factor in reversed(units.items()) if value >= factor * 0.9995), "")
    word = word or next(iter(units))
    return f"{digits(value / units[word])} {word}"


def digits(value: float) -> str:
    """Three that count, never an exponent where it can be avoided."""
    return f"{value:.0f}" if 999.5 <= value < 1e7 else f"{value:.3g}"
