"""The query of GET …/explain: what_if=bandwidth=1mbit,rate=10/s, in units as people write them."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from edged.errors import BadRequest
from edged.planwords import UNITS
from edged.quantities import parse_quantity

TEXT_MAX: Final = 1024


def what_if(request: Request) -> dict[str, float]:
    """By input, in its own unit. Raises BadRequest naming what is wrong, and how it is written."""
    text = request.query_params.get("what_if", "")
    if len(text) > TEXT_MAX:
        raise BadRequest(f"what_if: at most {TEXT_MAX} characters")
    found: dict[str, float] = {}
    for part in text.split(",") if text else ():
        word, equals, value = part.partition("=")
        name = _input(word)
        if not equals:
            raise BadRequest(f"what_if {part[:80]!r}: write INPUT=VALUE, as in bandwidth=1mbit")
        if name in found:
            raise BadRequest(f"what_if: {name} is given twice")
        try:
            found[name] = parse_quantity(value, UNITS[name])
        except BadRequest as error:
            raise BadRequest(f"what_if: {name} {error}") from error
    return found


def _input(word: str) -> str:
    """As inputs are called; init_s and make_snapshot_s will do too."""
    name = word.strip().lower().replace("_", "-")
    for known in (name, name.removesuffix("-s")):
        if known in UNITS:
            return known
    raise BadRequest(
        f"what_if: there is no input {word.strip()[:40]!r}; there are {', '.join(UNITS)}",
        known=tuple(UNITS),
    )
