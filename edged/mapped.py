"""The code that is in memory: which, how it came here, and what goes when there is too much of it.

Bounded by bytes and number. What goes is what is worth least: uses, each counting half after a
half-life, by the seconds that mapping it again takes, per byte (GreedyDual-Size-Frequency, as in
protocol.caching); never what somebody runs in. A use is counted by one addition, as it happens for
each invocation; what uses are worth is worked out when there is to be room. Owned by the node's
event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from protocol.ids import Digest

from .interfaces import ArtifactRow, LoadedModule, Phases, StartType

HALF_LIFE_S: Final = 2 * 3600.0
"""Of a use: long against the time between two of what is worth keeping, short against fashions."""
LOAD_S: Final = 1e-3
"""Of what was not measured."""


class Mapped:
    """A mapped module and how it came here. `users` keeps it from being unmapped."""

    def __init__(
        self, module: LoadedModule, start: StartType, phases: Phases, row: ArtifactRow
    ) -> None:
        """`row`: as it was when its code was opened."""
        self.module = module
        self.start: StartType = start
        self.phases = phases
        self.row = row
        self.size_bytes = row.size_bytes
        self.users = 0
        self.uses = 0
        self._scored = 0
        """Of these, how many are in `score`."""
        self.score = -math.inf
        """log2 of all uses before, as if each half-life were worth a doubling forward instead of a
        halving back: so it stays as it is while time goes on."""
        self.last: tuple[float, float, float] | None = None
        """Of the newest invocation: seconds of instantiating, of init, of running."""

    def settle(self, now: float) -> None:
        """Dates the uses since the last time."""
        if self.uses > self._scored:
            at = now / HALF_LIFE_S + math.log2(self.uses - self._scored)
            low, high = sorted((self.score, at))
            self.score, self._scored = high + math.log2(1 + 2 ** (low - high)), self.uses

    def worth(self) -> float:
        """log2 of uses × seconds / bytes."""
        load_s = self.phases.load_s or LOAD_S
        return self.score + math.log2(load_s / max(self.size_bytes, 1))

    def follow(self, other: Mapped) -> None:
        """Is used as that one was."""
        self.uses, self._scored, self.score = other.uses, other._scored, other.score


class MappedTable:
    def __init__(
        self, *, bytes_max: int, number_max: int, now: Callable[[], float] = trio.current_time
    ) -> None:
        self._bytes_max = bytes_max
        self._number_max = number_max
        self._now = now
        self.mapped: Final[dict[Digest, Mapped]] = {}
        """Read by whoever uses it, who counts that in `uses`; changed here only."""
        self._bytes = 0

    def __contains__(self, digest: Digest) -> bool:
        return digest in self.mapped

    def get(self, digest: Digest) -> Mapped | None:
        """Just to look."""
        return self.mapped.get(digest)

    def all(self) -> list[Mapped]:
        return list(self.mapped.values())

    def settle(self) -> None:
        """Dates all uses since the last time: to be called now and then, long before they fade."""
        now = self._now()
        for mapped in self.mapped.values():
            mapped.settle(now)

    def admit(self, digest: Digest, mapped: Mapped) -> None:
        mapped.uses += 1  # whoever waits for it
        self.mapped[digest] = mapped
        self._bytes += mapped.size_bytes
        self._make_room(digest)

    def replace(self, digest: Digest, old: Mapped, new: Mapped) -> None:
        """Whoever still runs in the old code holds it: it goes with the last of them."""
        new.follow(old)
        self.mapped[digest] = new
        self._bytes += new.size_bytes - old.size_bytes
        self._make_room(digest)
        if old.users == 0:
            old.module.close()

    def unmap(self, digest: Digest) -> None:
        """Drops it from memory; invocations that run in it finish."""
        mapped = self.mapped.pop(digest, None)
        if mapped is not None:
            self._bytes -= mapped.size_bytes
            mapped.module.close()

    def close(self) -> None:
        for mapped in self.mapped.values():
            mapped.module.close()
        self.mapped.clear()
        self._bytes = 0

    def _make_room(self, newest: Digest) -> None:
        """Unmaps others than `newest`, the least worth first, while there is too much."""
        if not self._is_too_much():
            return
        self.settle()
        worths = [(mapped.worth(), digest) for digest, mapped in self.mapped.items()]
        for _, other in sorted(worths):
            if other != newest and self.mapped[other].users == 0:
                self.unmap(other)
                if not self._is_too_much():
                    return

    def _is_too_much(self) -> bool:
        return self._bytes > self._bytes_max or len(self.mapped) > self._number_max
