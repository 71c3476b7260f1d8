"""Histograms of constant relative error, after Gil Tene's HdrHistogram, and its file formats.

Counts are kept by slot: values below 2^11 have one each, above each power of two has 2^10 of equal
width, so that any value is known to 0.1 % (3 digits). Only slots that were hit are stored. `encode`
is the library's compressed V2 format, `log` its .hlog: its viewers and its ports read both.

Own code, as PyPI's hdrhistogram wants setuptools and pbr wherever it runs, holds 20,000 counters
per histogram and walks them all for each quantile; it is the oracle of the tests instead.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

DIGITS: Final = 3
HALF_BITS: Final = 10
HALF: Final = 1 << HALF_BITS
"""Half of the slots of one bucket: the least power of two that holds 2 · 10^DIGITS, halved."""
VALUE_MAX: Final = 2**42 - 1
"""Greater ones count as this: 50 days in microseconds."""
_COOKIE: Final = 0x1C849303 | 0x10
_COMPRESSED_COOKIE: Final = 0x1C849304 | 0x10
_HEAD: Final = struct.Struct(">iiiiqqd")
_OUTER: Final = struct.Struct(">ii")


class Interval(NamedTuple):
    """One line of a log."""

    tag: str
    start_s: float
    """Since the log's start."""
    length_s: float
    histogram: Histogram


class Histogram:
    """Of whole numbers from 0; here mostly microseconds."""

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.max = 0
        for value in values:
            self.add(value)

    def add(self, value: int, count: int = 1) -> None:
        value = min(max(value, 0), VALUE_MAX)
        slot = slot_of(value)
        self._counts[slot] = self._counts.get(slot, 0) + count
        self.count += count
        self.total += value * count
        self.max = max(self.max, value)

    def merge(self, other: Histogram) -> None:
        for slot, count in other._counts.items():
            self._counts[slot] = self._counts.get(slot, 0) + count
        self.count += other.count
        self.total += other.total
        self.max = max(self.max, other.max)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def slots(self) -> Iterator[tuple[int, int]]:
        """(greatest value of the slot, count), ascending."""
        for slot in sorted(self._counts):
            yield highest_of(slot), self._counts[slot]

    def quantile(self, share: float) -> int:
        """Least value that at least this share does not exceed, to the end of its slot; 0 if
        there is none."""
        wanted = math.ceil(share * self.count - 1e-9)  # 0.07 * 100 is a little above 7
        seen = 0
        for value, count in self.slots():
            seen += count
            if seen >= wanted:
                return min(value, self.max)
        return self.max

    # ------------------------------------------------------------ the library's formats
    def encode(self) -> bytes:
        """Compressed V2, in base64."""
        counts = bytearray()
        at = 0
        for slot in sorted(self._counts):
            if slot > at:
                counts += zigzag(at - slot)
            counts += zigzag(self._counts[slot])
            at = slot + 1
        head = _HEAD.pack(_COOKIE, len(counts), 0, DIGITS, 1, VALUE_MAX, 1.0)
        packed = zlib.compress(head + counts)
        return base64.b64encode(_OUTER.pack(_COMPRESSED_COOKIE, len(packed)) + packed)


def slot_of(value: int) -> int:
    """Index in the library's array of counts."""
    shift = max(0, value.bit_length() - HALF_BITS - 1)
    return (shift << HALF_BITS) + (value >> shift)


def highest_of(slot: int) -> int:
    """Greatest value that is counted there."""
    shift = max(0, (slot >> HALF_BITS) - 1)
    return ((slot - (shift << HALF_BITS) + 1) << shift) - 1


def zigzag(value: int) -> bytes:
    """The sign in the lowest bit, then 7 bits a byte, the rest of a ninth byte whole."""
    left = (value << 1) ^ (value >> 63)
    out = bytearray()
    while left > 0x7F and len(out) < 8:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


def log(intervals: Iterable[Interval], *, started_at_ms: int, about: str) -> str:
    """A .hlog: values in microseconds, their maxima in milliseconds, as the format's tools have
    it."""
    start_s = started_at_ms / 1000
    lines = [
        *(f"#[{line}]" for line in about.splitlines()),
        "#[Histogram log format version 1.3]",
        f"#[StartTime: {start_s:.3f} (seconds since epoch)]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for tag, begin_s, length_s, histogram in intervals:
        mark = f"Tag={_tag(tag)}," if tag else ""
        code = histogram.encode().decode("ascii")
        peak_ms = histogram.max / 1000
        lines.append(f"{mark}{begin_s:.3f},{length_s:.3f},{peak_ms:.3f},{code}")
    return "\n".join(lines) + "\n"


def _tag(text: str) -> str:
    """A tag ends at the first of these."""
    return "".join("_" if c in ", \t\r\n" or not c.isprintable() else c for c in text)
