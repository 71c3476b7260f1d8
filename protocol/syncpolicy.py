"""When a stream sync is worth asking for: bounded per peer and in all. SPEC §7.3."""

from __future__ import annotations

from collections import deque
from typing import Final

from .ids import Digest, NodeId, digest_of
from .presets import Knobs

PER_INTERVAL_MAX: Final = 4
"""Syncs wanted in all per interval: a digest differs from everyone's at once."""
IMPATIENCE: Final = 5
"""After so many quiet times of mismatch, changes in flight are no excuse any more."""
_REMEMBERED_MAX: Final = 1024


class SyncPolicy:
    def __init__(self, knobs: Knobs, now: float) -> None:
        self._quiet_s = knobs.sync_quiet_s
        self._interval_s = knobs.sync_interval_s
        self._at_s: dict[NodeId, float] = {}
        self._cut: dict[NodeId, Digest] = {}
        self._recent: deque[float] = deque(maxlen=PER_INTERVAL_MAX)
        self._changed_at_s = now
        self._mismatch_since_s: float | None = None

    def changed(self, now: float) -> None:
        """This node's state moved: mismatches are natural for a while."""
        self._changed_at_s = now

    def mismatch(self, equal: bool, now: float) -> bool:
        """A peer told its digest. Whether the difference is old enough to act on."""
        if equal:
            self._mismatch_since_s = None
            return False
        if self._mismatch_since_s is None:
            self._mismatch_since_s = now
        return (
            now - self._changed_at_s >= self._quiet_s
            or now - self._mismatch_since_s >= IMPATIENCE * self._quiet_s
        )

    def allow(self, peer: NodeId, now: float, *, forced: bool) -> bool:
        """Takes a turn, if there is one. Forced ones (join, continuation) always have one."""
        if not forced:
            last = self._at_s.get(peer)
            if last is not None and now - last < self._interval_s:
                return False
            if len(self._recent) == PER_INTERVAL_MAX and now - self._recent[0] < self._interval_s:
                return False
        self._recent.append(now)
        self._at_s[peer] = now
        if len(self._at_s) > _REMEMBERED_MAX:
            self._at_s = {
                node: at for node, at in self._at_s.items() if now - at < self._interval_s
            }
        return True

    def proceeds(self, peer: NodeId, answer: bytes) -> bool:
        """Whether a sync with `peer` goes on at once: its answer was cut (b"": it was not) and is
        not the very one before. Then somebody refuses what the other sends first; the rest waits
        for the next ordinary sync instead of going round in circles."""
        before = self._cut.pop(peer, None)
        if not answer:
            return False
        if len(self._cut) >= _REMEMBERED_MAX:
            self._cut.pop(next(iter(self._cut)))
        self._cut[peer] = digest_of(answer)
        return self._cut[peer] != before
