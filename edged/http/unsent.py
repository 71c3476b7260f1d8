"""The budget of unsent answers: what slow readers of one listener may hold in memory. No I/O.

An answer counts whole until its last byte is with the kernel, as its memory is not freed before.
When there is no room those go that are nearest to being cut anyway: whoever is furthest behind the
minimum rate, or has stood still for longest.
"""

from __future__ import annotations

from typing import Protocol


class Writer(Protocol):
    """A connection that waits for its client."""

    write_deadline: float

    def cut_write(self) -> None:
        """Makes the waiting write raise, soon."""
        ...


class UnsentBudget:
    """Owned by one listener."""

    def __init__(self, bytes_max: int) -> None:
        self._max = bytes_max
        self._held: dict[Writer, int] = {}
        self.bytes = 0

    def hold(self, writer: Writer, size_bytes: int) -> bool:
        """Counts an answer, at the others' expense; False: it is larger than all there is."""
        if size_bytes > self._max:
            return False
        while self.bytes + size_bytes > self._max:
            slowest = min(self._held, key=_deadline_of)
            self.release(slowest)
            slowest.cut_write()
        self._held[writer] = size_bytes
        self.bytes += size_bytes
        return True

    def release(self, writer: Writer) -> None:
        """`writer` needs no memory any longer; no error if it holds none."""
        self.bytes -= self._held.pop(writer, 0)


def _deadline_of(writer: Writer) -> float:
    return writer.write_deadline
