"""What is to happen at an instant: one heap, one task, one timer for all of it."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from contextlib import closing
from typing import Final

import trio

from .finetimer import FineTimer

EARLY_S: Final = 0.00035
"""From the timer's end until this process has woken, sent, and the peer's has woken too: 0.2 to 0.5
ms (scripts/bench/links), which is as long as some links."""
TOGETHER_S: Final = 0.0001
"""What is due so soon after is done at once: a wake-up costs as much."""
BATCH: Final = 256
"""Done in one go before other tasks get their turn."""


class Departures:
    """All state belongs to the event loop; acts are quick and do not raise."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._number = itertools.count()
        """Of two at the same instant the one added first goes first."""
        self._waiting = trio.CancelScope()
        self._next = math.inf
        """What is waited for."""

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, instant: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (instant, next(self._number), act))
        if instant < self._next:
            self._next = instant
            self._waiting.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; what is not due by then never happens."""
        with closing(FineTimer()) as timer:
            task_status.started()
            while True:
                self._act()
                self._next = self._heap[0][0] if self._heap else math.inf
                until = self._next - EARLY_S
                # The deadline is for a clock that jumps: on a real one the timer is earlier.
                with trio.CancelScope(deadline=until) as self._waiting:
                    await timer.wait(until - trio.current_time())

    def _act(self) -> None:
        until = trio.current_time() + EARLY_S + TOGETHER_S
        for _ in range(BATCH):
            if not self._heap or self._heap[0][0] > until:
                return
            heapq.heappop(self._heap)[2]()
