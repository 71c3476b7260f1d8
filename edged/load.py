"""How busy this node is: what its members are told with each Ack (SPEC §5.3).

The share is the greater of the worker threads' occupancy and of the CPU this process takes of the
machine, smoothed. Sampled only while something runs; an idle node's meter sleeps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import trio

SAMPLE_S: Final = 0.5
"""As often as a LAN's members probe each other: fresher values would reach nobody."""
WEIGHT: Final = 0.4
"""Of the newest sample: 90 % of a step is seen after 5 samples, one burst's spike is not."""
IDLE_BELOW: Final = 0.01


class LoadMeter:
    def __init__(
        self,
        *,
        running: Callable[[], int],
        running_max: int,
        tell: Callable[[float], None],
        cpu_s: Callable[[], float] = time.process_time,
        cores: int | None = None,
    ) -> None:
        """`running`: invocations that run or wait for a thread."""
        self._running = running
        self._running_max = running_max
        self._tell = tell
        self._cpu_s = cpu_s
        self._cores = cores or len(os.sched_getaffinity(0))
        self._wanted = trio.Event()
        self.share = 0.0
        """Of this node's capacity, 0 to 1."""

    def wake(self) -> None:
        """Something runs now. Cheap; called for every invocation."""
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await self._sample_until_idle()

    async def _sample_until_idle(self) -> None:
        at_s, cpu_s = trio.current_time(), self._cpu_s()
        while True:
            await trio.sleep(SAMPLE_S)
            now_s, cpu_now_s = trio.current_time(), self._cpu_s()
            cpu = (cpu_now_s - cpu_s) / (now_s - at_s) / self._cores
            at_s, cpu_s = now_s, cpu_now_s
            running = self._running()
            sample = min(1.0, max(cpu, running / self._running_max))
            self.share += WEIGHT * (sample - self.share)
            idle = not running and self.share < IDLE_BELOW and not self._wanted.is_set()
            if idle:
                self.share = 0.0
            self._tell(self.share)
            if idle:
                return
            self._wanted = trio.Event()
