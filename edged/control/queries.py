"""Query parameters of the control API, each judged when it is read."""

from __future__ import annotations

from starlette.requests import Request

from edged.errors import BadRequest


def check_query(request: Request, known: tuple[str, ...]) -> None:
    """A misspelt key must not be taken for its default. Raises BadRequest."""
    given = [key for key, _ in request.query_params.multi_items()]
    for key in given:
        if key not in known:
            takes = f"this takes {', '.join(known)}" if known else "this takes none"
            raise BadRequest(f"query key {key[:80]!r} is unknown: {takes}", known=known)
        if given.count(key) > 1:
            raise BadRequest(f"query key {key!r} is given twice")


def flag(request: Request, name: str) -> bool:
    """Raises BadRequest."""
    text = request.query_params.get(name, "0")
    if text not in ("0", "1"):
        raise BadRequest(f"{name} = {text[:80]!r}: 0 or 1")
    return text == "1"


def number(request: Request, name: str, largest: int, *, least: int = 0) -> int | None:
    """None where it is missing. Raises BadRequest."""
    text = request.query_params.get(name)
    if text is None:
        return None
    is_whole = text.isascii() and text.isdigit() and len(text) <= 16
    if not (is_whole and least <= int(text) <= largest):
        raise BadRequest(f"{name} = {text[:80]!r}: a whole number, {least} to {largest}")
    return int(text)
