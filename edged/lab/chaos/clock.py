"""The run's own time: zero is when the load begins, and everything before is zero too."""

from __future__ import annotations

import trio


class RunClock:
    def __init__(self) -> None:
        self._zero_s: float | None = None

    def start(self) -> None:
        self._zero_s = trio.current_time()

    def now(self) -> float:
        """Whole microseconds are more than anybody reads."""
        if self._zero_s is None:
            return 0.0
        return round(trio.current_time() - self._zero_s, 6)

    def at(self, t_s: float) -> float:
        """That instant on trio's clock. After `start`."""
        assert self._zero_s is not None
        return self._zero_s + t_s

    async def until(self, t_s: float) -> None:
        await trio.sleep_until(self.at(t_s))
