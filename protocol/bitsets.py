"""Sets of segment indices as integers, one bit each, and counters of them.

A blob has at most 8,192 segments: a set is 1 KiB, and choosing among all segments at once is a few
operations on integers instead of a loop. On the wire bit n is bit n % 8 of byte n // 8 (SPEC
§10.6).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .errors import RemoteProtocolError


def bits_of(indices: Iterable[int]) -> int:
    bits = 0
    for index in indices:
        bits |= 1 << index
    return bits


def indices_of(bits: int) -> Iterator[int]:
    """In ascending order."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def first_from(bits: int, start: int) -> int:
    """The first index of a non-empty set at or after `start`, wrapping round."""
    above = bits >> start
    if above:
        return start + (above & -above).bit_length() - 1
    return (bits & -bits).bit_length() - 1


def encode_bits(bits: int, size: int) -> bytes:
    """A set of indices below `size`."""
    return bits.to_bytes((size + 7) // 8, "little")


def decode_bits(data: bytes, size: int) -> int:
    """Raises RemoteProtocolError("bitmap"): not of that size, or an index out of bounds. No bytes
    at all are the empty set: what a node knows that has no manifest yet."""
    if not data:
        return 0
    bits = int.from_bytes(data, "little")
    if len(data) != (size + 7) // 8 or bits >> size:
        raise RemoteProtocolError("bitmap", f"{len(data)} bytes for {size} segments")
    return bits


class Counts:
    """How often each index was counted; bit k of all counters is one integer."""

    def __init__(self) -> None:
        self._planes: list[int] = []

    def add(self, bits: int) -> None:
        carry = bits
        for place, plane in enumerate(self._planes):
            if not carry:
                return
            self._planes[place] = plane ^ carry
            carry &= plane
        if carry:
            self._planes.append(carry)

    def remove(self, bits: int) -> None:
        """Each of `bits` must have been added."""
        borrow = bits
        for place, plane in enumerate(self._planes):
            if not borrow:
                break
            self._planes[place] = plane ^ borrow
            borrow &= ~plane
        while self._planes and not self._planes[-1]:
            self._planes.pop()

    def counted(self) -> int:
        """Those counted at least once."""
        bits = 0
        for plane in self._planes:
            bits |= plane
        return bits

    def least(self, among: int) -> int:
        """Those of `among` that were counted least."""
        for plane in reversed(self._planes):
            lower = among & ~plane
            if lower:
                among = lower
        return among
