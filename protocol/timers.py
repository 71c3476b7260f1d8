"""Named deadlines of one machine: set, cancel, the next, those due. Ties go by order of setting,
so a run replays. Cancelled entries stay in the heap until they surface; it is rebuilt when they
outnumber the live ones."""

from __future__ import annotations

import heapq
from typing import Final

Key = tuple[str, int | str]

_SLACK: Final = 64


class Timers:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._live: dict[Key, tuple[float, int]] = {}
        self._order = 0

    def set(self, key: Key, at: float) -> None:
        """Replaces the former deadline of `key`."""
        self._order += 1
        self._live[key] = (at, self._order)
        heapq.heappush(self._heap, (at, self._order, key))
        if len(self._heap) > 2 * len(self._live) + _SLACK:
            self._rebuild()

    def set_earlier(self, key: Key, at: float) -> None:
        """As set, unless an earlier deadline stands."""
        known = self._live.get(key)
        if known is None or at < known[0]:
            self.set(key, at)

    def cancel(self, key: Key) -> None:
        self._live.pop(key, None)

    def at(self, key: Key) -> float | None:
        known = self._live.get(key)
        return known[0] if known is not None else None

    def next(self) -> float | None:
        heap = self._heap
        while heap:
            at, order, key = heap[0]
            if self._live.get(key) == (at, order):
                return at
            heapq.heappop(heap)
        return None

    def pop_due(self, now: float) -> Key | None:
        """The earliest deadline that is not after `now`, removed."""
        at = self.next()
        if at is None or at > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._live[key]
        return key

    def delay(self, names: frozenset[str], by_s: float) -> None:
        """Moves every deadline with such a name."""
        for key, (at, order) in self._live.items():
            if key[0] in names:
                self._live[key] = (at + by_s, order)
        self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [(at, order, key) for key, (at, order) in self._live.items()]
        heapq.heapify(self._heap)
