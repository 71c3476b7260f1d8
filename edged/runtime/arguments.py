"""Arguments of host-driven calls: from a plan's numbers and texts to raw WebAssembly values."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Final

from edged.errors import CannotSnapshot
from edged.interfaces import InitCall

from .ffi import VAL_RAW_BYTES

_FORMATS: Final = {"i32": "<i", "i64": "<q", "f32": "<f", "f64": "<d"}
_BITS: Final = {"i32": 32, "i64": 64}

Store = Callable[[bytes, int], int]
"""Puts bytes into the guest's memory with an alignment, and says where."""


def flatten(call: InitCall, params: tuple[str, ...], store: Store) -> list[int | float]:
    """One number per parameter. Raises CannotSnapshot("bad-arguments")."""
    width = sum(1 if isinstance(each, int | float) else 2 for each in call.args)
    if width != len(params):
        takes = ", ".join(params) or "nothing"
        raise _bad(call.export, f"takes {len(params)} parameters ({takes}), given {width}")
    flat: list[int | float] = []
    for each in call.args:
        if isinstance(each, int | float):
            flat.append(each)
            continue
        if params[len(flat) : len(flat) + 2] != ("i32", "i32"):
            raise _bad(call.export, f"parameter {len(flat) + 1} takes no text")
        flat.extend(lower(each, store))
    return flat


def lower(argument: str | tuple[str, ...], store: Store) -> tuple[int, int]:
    """Address and length of a text, or of a list of texts, as the canonical ABI passes them."""
    if isinstance(argument, str):
        data = argument.encode()
        return store(data, 1), len(data)
    items = b"".join(
        address.to_bytes(4, "little") + length.to_bytes(4, "little")
        for address, length in (lower(each, store) for each in argument)
    )
    return store(items, 4), len(argument)


def pack(name: str, params: tuple[str, ...], flat: Sequence[int | float], results: int) -> bytes:
    """Room for parameters and results alike. Raises CannotSnapshot("bad-arguments")."""
    values = bytearray(VAL_RAW_BYTES * max(len(params), results, 1))
    for index, (kind, value) in enumerate(zip(params, flat, strict=True)):
        if kind not in _FORMATS:
            raise _bad(name, f"parameter {index + 1} is no number")
        struct.pack_into(
            _FORMATS[kind], values, VAL_RAW_BYTES * index, _number(name, index, kind, value)
        )
    return bytes(values)


def _number(name: str, index: int, kind: str, value: float) -> int | float:
    if kind not in _BITS:
        if kind == "f32" and math.isfinite(value):
            try:
                struct.pack("<f", value)
            except OverflowError:
                raise _bad(name, f"parameter {index + 1} does not fit f32") from None
        return float(value)
    bits = _BITS[kind]
    if not isinstance(value, int) or not -(1 << (bits - 1)) <= value < 1 << bits:
        raise _bad(name, f"parameter {index + 1} is no {kind}")
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def _bad(name: str, detail: str) -> CannotSnapshot:
    thing = f"export {name}"
    return CannotSnapshot("bad-arguments", f"{thing}: {detail}", thing=thing)
