"""Virtual time: one heap of actions, ties broken by order of scheduling, and a trace of what
happened, so that two runs of one seed can be compared. Everything random comes from named streams
of the one seed: a fault more does not change what the network draws."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from blake3 import blake3

START_S = 1000.0
WALL_START_MS = 1_800_000_000_000

Action = Callable[..., None]


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = START_S
        self.trace = blake3()
        self.actions = 0
        self._heap: list[tuple[float, int, Action, tuple[object, ...]]] = []
        self._order = 0

    @property
    def elapsed_s(self) -> float:
        return self.now - START_S

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{purpose}")

    def at(self, at_s: float, action: Action, *arguments: object) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, action, arguments))

    def run(self, for_s: float) -> None:
        until_s = self.now + for_s
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            at_s, _, action, arguments = heapq.heappop(heap)
            if at_s > self.now:
                self.now = at_s
            self.actions += 1
            action(*arguments)
        self.now = until_s

    def pending(self) -> int:
        return len(self._heap)

    def note(self, kind: str, index: int, data: bytes) -> None:
        self.trace.update(f"{self.now!r} {kind} {index} {len(data)} ".encode() + data)
