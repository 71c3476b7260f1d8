"""How fast a transfer goes, for whoever watches. Bounded, no tasks."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

import trio

from protocol.ids import Digest, NodeId

WINDOW_S: Final = 3.0
MARK_S: Final = 0.25
MARKS_MAX: Final = 1 + int(WINDOW_S / MARK_S)


class Pace:
    """Bytes so far, and the rate over the last WINDOW_S."""

    def __init__(self) -> None:
        self._started_at = trio.current_time()
        self.done_bytes = 0
        self.moved_at = -math.inf
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS_MAX)

    def age_s(self) -> float:
        return trio.current_time() - self._started_at

    def reach(self, done_bytes: int) -> None:
        now = self.moved_at = trio.current_time()
        if not self._marks:
            # What was there before, from an earlier transfer, was not moved by this one.
            self._marks.append((now, done_bytes))
        elif now - self._marks[-1][0] >= MARK_S:
            self._marks.append((now, self.done_bytes))
        self.done_bytes = done_bytes

    def add(self, count: int) -> None:
        if not self._marks:
            self._marks.append((trio.current_time(), 0))
        self.reach(self.done_bytes + count)

    def rate_bytes_s(self) -> float:
        """0 until something moved, and again when nothing has for WINDOW_S."""
        now = trio.current_time()
        while len(self._marks) > 1 and now - self._marks[0][0] > WINDOW_S:
            self._marks.popleft()
        if not self._marks:
            return 0.0
        since, before = self._marks[0]
        if now - since > 2 * WINDOW_S:
            self._marks[0] = (now, self.done_bytes)
            return 0.0
        return (self.done_bytes - before) / max(now - since, MARK_S)


@dataclass(frozen=True, slots=True)
class Moving:
    """A transfer under way."""

    direction: Literal["fetch", "upload"]
    digest: Digest
    state: Literal["queued", "running"]
    urgent: bool
    done_bytes: int
    total_bytes: int | None
    rate_bytes_s: float
    peers: tuple[NodeId, ...]
    age_s: float
    """Since it was begun."""

    @property
    def eta_s(self) -> float | None:
        if self.total_bytes is None or self.rate_bytes_s <= 0:
            return None
        return round(max(0, self.total_bytes - self.done_bytes) / self.rate_bytes_s, 1)
