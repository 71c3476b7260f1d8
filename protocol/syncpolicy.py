"""When a stream sync is worth asking for: bounded per peer and in all, and ever rarer while syncs
change nothing. SPEC §7.2.

What two nodes disagree on and neither takes (a record from a clock that is ahead, a full catalog)
keeps their digests apart for good. So a sync without effect is remembered with the two digests it
was to bring together: the same pair is tried again after twice the time, with whomever. Another
pair may have a cause that a sync does cure, and waits little.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from .ids import NodeId
from .presets import Knobs

PER_INTERVAL_MAX: Final = 4
"""Syncs wanted in all per interval: a digest differs from everyone's at once."""
IMPATIENCE: Final = 5
"""After so many quiet times of mismatch, changes in flight are no excuse any more."""
DOUBLINGS_MAX: Final = 6
"""64 intervals between two syncs over the same difference, or with a peer that is out of reach."""
STREAK_MAX: Final = 3
"""8 intervals between any two while none has an effect."""
BULK_S: Final = 5.0
"""A transfer of records in bulk that has not moved for so long has ended."""
PAIRS_MAX: Final = 256
_REMEMBERED_MAX: Final = 1024

Pair = tuple[int, int]
"""Own digest and a peer's."""


class SyncPolicy:
    def __init__(self, knobs: Knobs, now: float) -> None:
        self._quiet_s = knobs.sync_quiet_s
        self._interval_s = knobs.sync_interval_s
        self._at_s: dict[NodeId, float] = {}
        self._failures: dict[NodeId, int] = {}
        self._told: dict[NodeId, Pair] = {}
        """Last mismatch with each peer."""
        self._futile: OrderedDict[Pair, tuple[int, float]] = OrderedDict()
        """Syncs in a row without effect over this pair, and when the last one ended."""
        self._recent: deque[float] = deque(maxlen=PER_INTERVAL_MAX)
        self._changed_at_s = now
        self._mismatch_since_s: float | None = None
        self._streak = 0
        self._bulk: tuple[NodeId, float] | None = None

    def changed(self, now: float) -> None:
        """This node's state moved: mismatches are natural for a while."""
        self._changed_at_s = now

    def equal(self) -> None:
        """A peer told the very digest that is this node's."""
        self._mismatch_since_s = None
        self._streak = 0

    def mismatch(self, now: float, *, peer: NodeId | None = None, pair: Pair = (0, 0)) -> bool:
        """A peer told another digest. Whether the difference is old enough to act on."""
        if peer is not None:
            if len(self._told) >= _REMEMBERED_MAX:
                self._told.pop(next(iter(self._told)))
            self._told[peer] = pair
        if self._mismatch_since_s is None:
            self._mismatch_since_s = now
        return (
            now - self._changed_at_s >= self._quiet_s
            or now - self._mismatch_since_s >= IMPATIENCE * self._quiet_s
        )

    def allow(self, peer: NodeId, now: float, *, forced: bool) -> bool:
        """Takes a turn, if there is one. Forced ones (join, backstop) always have one."""
        if not forced and not self._has_turn(peer, now):
            return False
        self._recent.append(now)
        self._at_s[peer] = now
        if len(self._at_s) > _REMEMBERED_MAX:
            self._at_s = {
                node: at for node, at in self._at_s.items() if now - at < self._interval_s
            }
        return True

    def _has_turn(self, peer: NodeId, now: float) -> bool:
        interval_s, recent = self._interval_s, self._recent
        if self._bulk is not None and now - self._bulk[1] < BULK_S:
            return False
        last = self._at_s.get(peer)
        if last is not None and now - last < interval_s * (1 << self._failures.get(peer, 0)):
            return False
        if len(recent) == PER_INTERVAL_MAX and now - recent[0] < interval_s:
            return False
        if recent and now - recent[-1] < interval_s * ((1 << self._streak) - 1):
            return False
        pair = self._told.get(peer)
        if pair is not None and pair in self._futile:
            times, at = self._futile[pair]
            return now - at >= interval_s * (1 << times)
        return True

    # ------------------------------------------------------------ how syncs went
    def may_carry_bulk(self, peer: NodeId, now: float) -> bool:
        """Records in bulk come from one peer at a time, else each would send the same. Takes the
        place if it is free."""
        if self._bulk is not None and self._bulk[0] != peer and now - self._bulk[1] < BULK_S:
            return False
        self._bulk = (peer, now)
        return True

    def ended(self, peer: NodeId, now: float, *, news: int) -> None:
        """A sync with `peer` ended as both wanted; `news` items changed something."""
        self._release(peer)
        self._failures.pop(peer, None)
        pair = self._told.pop(peer, None)
        if news:
            self._streak = 0
            if pair is not None:
                self._futile.pop(pair, None)
            return
        self._streak = min(self._streak + 1, STREAK_MAX)
        if pair is None:
            return
        times = self._futile.pop(pair, (0, 0.0))[0]
        self._futile[pair] = (min(times + 1, DOUBLINGS_MAX), now)
        if len(self._futile) > PAIRS_MAX:
            self._futile.popitem(last=False)

    def failed(self, peer: NodeId) -> None:
        """A sync with `peer` did not come to its end."""
        self._release(peer)
        if len(self._failures) >= _REMEMBERED_MAX:
            self._failures.pop(next(iter(self._failures)))
        self._failures[peer] = min(self._failures.get(peer, 0) + 1, DOUBLINGS_MAX)

    def _release(self, peer: NodeId) -> None:
        if self._bulk is not None and self._bulk[0] == peer:
            self._bulk = None
