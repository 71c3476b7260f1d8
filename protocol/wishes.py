"""When this node asks for a sync, and with whom: what differs, the backstop. SPEC §7.2.

Owns the policy and the timer "backstop". Emits SyncWanted.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .events import Event, SyncWanted
from .ids import NodeId
from .presets import Knobs
from .rng import Rng
from .syncpolicy import Pair, SyncPolicy
from .table import Table
from .timers import Timers


class Wishes:
    def __init__(
        self,
        table: Table,
        knobs: Knobs,
        rng: Rng,
        timers: Timers,
        events: deque[Event],
        now: float,
    ) -> None:
        self.policy: Final = SyncPolicy(knobs, now)
        self.wanted = 0
        self._rng = rng
        self._timers = timers
        self._table = table
        self._events = events
        self._backstop_s = knobs.sync_backstop_s
        self._set_backstop(now)

    def want(self, node_id: NodeId, now: float, *, forced: bool = False) -> None:
        peer = self._table.get(node_id)
        if peer is None or peer.is_self or not peer.reachable:
            return
        if self.policy.allow(node_id, now, forced=forced):
            self.wanted += 1
            self._events.append(SyncWanted(peer.view()))

    def compare(self, pair: Pair, peer: NodeId, now: float) -> None:
        """This node's state digest and the one that `peer` just told."""
        if pair[0] == pair[1]:
            self.policy.equal()
        elif self.policy.mismatch(now, peer=peer, pair=pair):
            self.want(peer, now)

    def on_backstop(self, now: float) -> None:
        self._set_backstop(now)
        others = self._table.others()
        if others:
            self.want(self._rng.sample(others, 1)[0].node_id, now, forced=True)

    def _set_backstop(self, now: float) -> None:
        self._timers.set(("backstop", 0), now + (0.5 + self._rng.random()) * self._backstop_s)
