"""Which counters of one sender have been received: a sliding window. SPEC §4.4; RFC 6479.

Owned by Seal, which keeps one per sender and replaces it when the sender's generation grows.
"""

from __future__ import annotations

from typing import Final

WINDOW_BITS: Final = 1024
"""Larger than RFC 6479's usual 64: a burst to one peer may overtake by hundreds on a bad link."""
LOW_BITS: Final = 32
"""Of a counter that a short header carries."""


class Window:
    """Top counter, and a bitmap of the WINDOW_BITS counters below it (bit 0 is the top)."""

    __slots__ = ("bitmap", "generation", "top")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.top = -1
        self.bitmap = 0

    def fresh(self, counter: int) -> bool:
        if counter > self.top:
            return True
        age = self.top - counter
        return age < WINDOW_BITS and not self.bitmap >> age & 1

    def mark(self, counter: int) -> None:
        if counter > self.top:
            shift = counter - self.top
            kept = self.bitmap << shift if shift < WINDOW_BITS else 0
            self.bitmap = (kept | 1) & ((1 << WINDOW_BITS) - 1)
            self.top = counter
        else:
            self.bitmap |= 1 << (self.top - counter)


def rebuild(top: int, low: int) -> int:
    """The counter nearest to top + 1 whose low bits are `low` (RFC 9000 appendix A.3)."""
    span = 1 << LOW_BITS
    expected = top + 1
    counter = (expected & -span) | low
    if counter <= expected - span // 2 and counter + span < 1 << 64:
        return counter + span
    if counter > expected + span // 2 and counter >= span:
        return counter - span
    return counter
