"""Which parts of a memory become data segments: pure functions of its bytes.

wasmtime maps a module's initial memory copy-on-write only if that holds for all of its memories:
each image (from the first to the last byte that data segments give) is smaller than 16 MiB, or more
than half of it is given; all lies within the memory's minimum, at constant addresses; and no memory
has pages smaller than the machine's. Otherwise every instance copies every segment: 4 to 8 ms
instead of 40 µs for Ruby. So where an image is too sparse, zeros are added, in the smallest gaps
first, until it is dense; they cost next to nothing once compressed.
Source: wasmtime 50, ModuleTranslation::try_static_init.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final, NamedTuple

from .binary import Span

GAP_BYTES_MIN: Final = 128
"""Fewer zeros between two runs are written out. A segment costs 6 to 14 bytes that do not compress,
and time: a table of 50,000 allocated strings has 50,000 segments with 32 (0.6 s to write, 715 KB
compressed) and 8 with 128 (20 ms, 666 KB; uncompressed 3.4 instead of 2.1 MB)."""
SEGMENTS_MAX: Final = 50_000
"""Of one snapshot; engines take 100,000."""
SEGMENT_HEAD_BYTES: Final = 20
"""At most, of memory, address and length."""
SPANS_MAX: Final = 200_000
"""Looked at in one memory: 0.2 s and 30 MB. A hostile GiB could have 8 million."""
IMAGE_BYTES_ALWAYS: Final = 16 * 1024 * 1024
"""wasmtime's memory_guaranteed_dense_image_size."""
HOST_PAGE_BITS: Final = 12
_CHUNK_BYTES: Final = 64 * 1024
_ZEROS: Final = bytes(_CHUNK_BYTES)
_STEPS: Final = (bytes(4096), bytes(256))
_NOT_ZERO: Final = re.compile(rb"[^\x00]")


class Layout(NamedTuple):
    """Of one memory."""

    spans: list[Span]
    padding_bytes: int
    mapped: bool

    @property
    def captured_bytes(self) -> int:
        return sum(span.end - span.start for span in self.spans)


def find_spans(memory: memoryview) -> list[Span]:
    """All that is not zero, with gaps of less than GAP_BYTES_MIN; with larger ones, where there
    would be more spans than are looked at."""
    for gap_bytes in (GAP_BYTES_MIN, 16 * GAP_BYTES_MIN):
        spans = _scan(memory, gap_bytes, SPANS_MAX)
        if len(spans) <= SPANS_MAX:
            return spans
    return _scan(memory, _CHUNK_BYTES, len(memory))


def _scan(memory: memoryview, gap_bytes: int, spans_max: int) -> list[Span]:
    """Stops once there are more than `spans_max`."""
    spans: list[Span] = []
    gap = bytes(gap_bytes)
    for begin in range(0, len(memory), _CHUNK_BYTES):
        chunk = bytes(memory[begin : begin + _CHUNK_BYTES])
        if chunk == _ZEROS:
            continue
        if len(spans) > spans_max:
            break
        start = _after_zeros(chunk, 0)
        while start < len(chunk):
            at = chunk.find(gap, start)
            end = len(chunk.rstrip(b"\0")) if at < 0 else at
            if spans and begin + start - spans[-1].end < gap_bytes:
                spans[-1] = Span(spans[-1].start, begin + end)
            else:
                spans.append(Span(begin + start, begin + end))
            if at < 0:
                break
            start = _after_zeros(chunk, at)
    return spans


def _after_zeros(chunk: bytes, at: int) -> int:
    """Where the zeros that begin at `at` end. A search takes 8 ns a byte, comparing 0.1."""
    for zeros in _STEPS:
        while chunk.startswith(zeros, at):
            at += len(zeros)
    found = _NOT_ZERO.search(chunk, at)
    return found.start() if found else len(chunk)


def lay_out(
    found: list[list[Span]], page_bits: list[int], *, segments_max: int, padding_bytes_max: int
) -> list[Layout]:
    """Of each memory's `found` spans; at most `segments_max` in all."""
    excess = sum(map(len, found)) - segments_max
    if excess > 0:
        # Each memory's share of what is too much, rounded up; one span is left of each at least.
        total = sum(map(len, found))
        found = [_join(spans, -(-excess * len(spans) // total)) for spans in found]
    dense = [_densify(spans) for spans in found]
    padding = [_bytes(new) - _bytes(old) for new, old in zip(dense, found, strict=True)]
    mappable = all(
        bits >= HOST_PAGE_BITS or not spans for bits, spans in zip(page_bits, found, strict=True)
    )
    if mappable and sum(padding) <= padding_bytes_max:
        return [Layout(spans, pad, True) for spans, pad in zip(dense, padding, strict=True)]
    return [Layout(spans, 0, False) for spans in found]


def is_mapped(spans: list[Span]) -> bool:
    """wasmtime's rule for one memory."""
    if not spans:
        return True
    image = spans[-1].end - spans[0].start
    return image < 2 * _bytes(spans) or image < IMAGE_BYTES_ALWAYS


def _bytes(spans: list[Span]) -> int:
    return sum(span.end - span.start for span in spans)


def _densify(spans: list[Span]) -> list[Span]:
    """With the smallest gaps filled until the memory can be mapped."""
    if is_mapped(spans):
        return spans
    missing = (spans[-1].end - spans[0].start) // 2 + 1 - _bytes(spans)
    filled = 0
    for gap in sorted(after.start - before.end for before, after in pairwise(spans)):
        missing -= gap
        filled += 1
        if missing <= 0:
            break
    return _join(spans, filled)


def _join(spans: list[Span], count: int) -> list[Span]:
    """With the `count` smallest gaps filled, the earlier of equals first."""
    gaps = [(after.start - before.end, index) for index, (before, after) in
            enumerate(pairwise(spans), start=1)]  # fmt: skip
    filled = {index for _size, index in sorted(gaps)[:count]}
    joined: list[Span] = []
    for index, span in enumerate(spans):
        if index in filled:
            joined[-1] = Span(joined[-1].start, span.end)
        else:
            joined.append(span)
    return joined
