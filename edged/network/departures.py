"""What is to happen at an instant: one heap, one task, one timer for all of it.

trio's timer is epoll's, whole milliseconds rounded up: half of one late on average. So whatever is
due within half a millisecond is done too, which is right on average and wakes less often.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Final

import trio

EARLY_S: Final = 0.0005
BATCH: Final = 256
"""Done in one go before other tasks get their turn."""


class Departures:
    """All state belongs to the event loop; acts are quick and do not raise."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._number = itertools.count()
        """Of two at the same instant the one added first goes first."""
        self._waiting = trio.CancelScope()

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, instant: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (instant, next(self._number), act))
        if instant - EARLY_S < self._waiting.deadline:
            self._waiting.deadline = instant - EARLY_S

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; what is not due by then never happens."""
        task_status.started()
        while True:
            with trio.CancelScope() as self._waiting:
                self._act()
                self._waiting.deadline = self._heap[0][0] - EARLY_S if self._heap else math.inf
                await trio.sleep_forever()

    def _act(self) -> None:
        until = trio.current_time() + EARLY_S
        for _ in range(BATCH):
            if not self._heap or self._heap[0][0] > until:
                return
            heapq.heappop(self._heap)[2]()
