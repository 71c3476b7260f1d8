"""Range requests of one representation (RFC 9110 §13, §14): what of it is to be sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers

_RANGE: Final = re.compile(r"bytes\s*=\s*([0-9]*)\s*-\s*([0-9]*)\s*\Z", re.IGNORECASE)
DIGITS_MAX: Final = 19
"""A number of more is beyond any file, and Python would take its time with very many."""
BEYOND: Final = 10**DIGITS_MAX


@dataclass(frozen=True, slots=True)
class Part:
    status: int
    """200 (all), 206 (a part), 304 (the client has it), 412 (it wants another) or 416 (no such
    part)."""
    first: int
    length: int


def choose(headers: Headers, *, etag: str, size_bytes: int, method: str = "GET") -> Part:
    """Preconditions before ranges (§13.2.2). A Range that is malformed, of another unit or of
    several parts is ignored, as §14.2 lets a server: then all is sent. Ranges are of GET only."""
    if "if-match" in headers and not _matches(headers.getlist("if-match"), etag, weak=False):
        return Part(412, 0, 0)
    if _matches(headers.getlist("if-none-match"), etag, weak=True):
        return Part(304, 0, 0)
    whole = Part(200, 0, size_bytes)
    ranges = headers.getlist("range") if method == "GET" else []
    condition = headers.get("if-range")
    if len(ranges) != 1 or (condition is not None and condition.strip() != etag):
        return whole
    found = _RANGE.match(ranges[0].strip())
    if found is None:
        return whole
    first, last = found.groups()
    if not (first or last):
        return whole
    if not first:
        length = min(_number(last), size_bytes)
        return Part(206, size_bytes - length, length) if length else Part(416, 0, 0)
    begin = _number(first)
    end = min(_number(last), size_bytes - 1) if last else size_bytes - 1
    if last and _is_less(last, first):
        return whole  # invalid, §14.1.1
    return Part(206, begin, end - begin + 1) if begin < size_bytes else Part(416, 0, 0)


def _number(digits: str) -> int:
    """What is beyond any file is all the same."""
    significant = digits.lstrip("0")
    return BEYOND if len(significant) > DIGITS_MAX else int(significant or "0")


def _is_less(left: str, right: str) -> bool:
    """Of numbers with any number of digits."""
    left, right = left.lstrip("0"), right.lstrip("0")
    return (len(left), left) < (len(right), right)


def _matches(values: list[str], etag: str, *, weak: bool) -> bool:
    """By weak or by strong comparison (§8.8.3.2); the blob's own tag is strong."""
    tags = [tag.strip() for value in values for tag in value.split(",")]
    return any(tag in ("*", etag) or (weak and tag == f"W/{etag}") for tag in tags)
