"""How long peers are waited for, without a cancel scope around each wait: two of those cost as much
as the request between them.

A connection's task says until when the peer has time; one task looks at all connections a few times
within the shortest such time and wakes the tasks of those that are late, which is told by `late`.
So a timeout is kept within a quarter of itself, and within TICK_MAX_S.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import trio

TICK_MAX_S: Final = 0.5
_SHARE: Final = 0.25


class Interruptible(Protocol):
    def interrupt(self) -> None:
        """Whoever waits for the peer fails; not waiting, nobody is disturbed."""
        ...


class Watch:
    """Of one connection, for its own task."""

    def __init__(self) -> None:
        self.deadline = math.inf
        """When to stop waiting."""
        self.frame_deadline: float | None = None
        """Of the frame that has begun to come; parts of it gain no time."""
        self.waits = False
        """For a request, not for its reply to be taken."""
        self.late = False

    def until(self, deadline: float, *, waits: bool) -> None:
        """The peer has time until then."""
        self.deadline = deadline
        self.waits = waits
        self.late = False

    def rest(self) -> None:
        """Nothing is waited for."""
        self.deadline = math.inf
        self.waits = False


class Patience:
    """All state belongs to the node's event loop. Without `run` everybody has all time."""

    def __init__(self, shortest_s: float) -> None:
        self._tick_s = min(TICK_MAX_S, _SHARE * shortest_s)
        self._watches: dict[Watch, Interruptible] = {}

    @contextmanager
    def watch(self, connection: Interruptible) -> Iterator[Watch]:
        watch = Watch()
        self._watches[watch] = connection
        try:
            yield watch
        finally:
            del self._watches[watch]

    async def run(self) -> None:
        while True:
            await trio.sleep(self._tick_s)
            self._look(trio.current_time())

    def end_waits(self) -> None:
        """Nobody waits for requests any more."""
        for watch in self._watches:
            if watch.waits:
                watch.deadline = -math.inf
        self._look(trio.current_time())

    def _look(self, now: float) -> None:
        """Again at each look until the task has noticed: it may not wait for the peer just now."""
        for watch, connection in self._watches.items():
            if watch.deadline <= now:
                watch.late = True
                connection.interrupt()
