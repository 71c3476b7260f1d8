"""When this node asks for a sync, and with whom: what differs, the backstop, the return. SPEC §7.2.

Owns the policy, what is agreed with others, and the timers "backstop", "return" and "agreement".
Emits SyncWanted and AgreementMoved.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .continuity import WAIT_S, Continuity
from .events import AgreementMoved, Event, SyncWanted
from .ids import NodeId
from .presets import Knobs
from .rng import Rng
from .sync import Sync
from .syncpolicy import Pair, SyncPolicy
from .timers import Timers

TIMERS: Final = frozenset({"backstop", "return", "agreement"})
AGREEMENT_S: Final = 5.0
"""From a new agreement to the word to save it: a burst of changes is one save."""
RETURN_S: Final = 1.0
"""Between two attempts of a returning node to find a witness."""


class Wishes:
    def __init__(
        self,
        sync: Sync,
        knobs: Knobs,
        rng: Rng,
        timers: Timers,
        events: deque[Event],
        now: float,
    ) -> None:
        self.policy: Final = SyncPolicy(knobs, now)
        self.continuity: Final = Continuity()
        self.wanted = 0
        self._rng = rng
        self._timers = timers
        self._table = sync.table
        self._catalog = sync.catalog
        self._events = events
        self._backstop_s = knobs.sync_backstop_s
        self._in_company_since_s: float | None = None
        self._set_backstop(now)

    def want(self, node_id: NodeId, now: float, *, forced: bool = False) -> None:
        peer = self._table.get(node_id)
        if peer is None or peer.is_self or not peer.reachable:
            return
        if self.policy.allow(node_id, now, forced=forced):
            self.wanted += 1
            self._events.append(SyncWanted(peer.view()))

    def compare(self, pair: Pair, peer: NodeId, now: float, wall_ms: int) -> None:
        """This node's state digest and the one that `peer` just told."""
        if pair[0] != pair[1]:
            if self.policy.mismatch(now, peer=peer, pair=pair):
                self.want(peer, now)
            return
        self.policy.equal()
        self.continuity.agree(wall_ms, self._catalog.last_hlc)
        self._watch_return(now)
        if self.continuity.unsaved:
            self._timers.set_earlier(("agreement", 0), now + AGREEMENT_S)

    def resume(self, saved: bytes, now: float, wall_ms: int) -> None:
        """Raises RemoteProtocolError("continuity")."""
        self.continuity.resume(saved, wall_ms)
        self._watch_return(now)

    def look(self, now: float, wall_ms: int) -> None:
        """Now and then: has this node been cut off for too long?"""
        self.continuity.look(wall_ms)
        self._watch_return(now)
        self._tell_agreement()

    def on_timer(self, name: str, now: float) -> None:
        if name == "backstop":
            self._set_backstop(now)
            self._with_anyone(now)
        elif name == "return":
            self._return(now)
        else:
            self._tell_agreement()

    def _set_backstop(self, now: float) -> None:
        self._timers.set(("backstop", 0), now + (0.5 + self._rng.random()) * self._backstop_s)

    def _with_anyone(self, now: float) -> None:
        others = self._table.others()
        if others:
            self.want(self._rng.sample(others, 1)[0].node_id, now, forced=True)

    def _watch_return(self, now: float) -> None:
        if self.continuity.returning and self._timers.at(("return", 0)) is None:
            self._timers.set(("return", 0), now + RETURN_S)

    def _return(self, now: float) -> None:
        """Looks for somebody who stayed; after WAIT_S in company there is nobody."""
        if not self.continuity.returning:
            self._in_company_since_s = None
            return
        self._timers.set(("return", 0), now + RETURN_S)
        if not self._table.others():
            return
        if self._in_company_since_s is None:
            self._in_company_since_s = now
        if now - self._in_company_since_s > WAIT_S:
            self.continuity.keep()
        else:
            self._with_anyone(now)

    def witnessed(self, now: float) -> None:
        """Somebody stayed, and is telling: however long that takes, it is waited for."""
        if self._in_company_since_s is not None:
            self._in_company_since_s = now

    def _tell_agreement(self) -> None:
        saved = self.continuity.take_unsaved()
        if saved is not None:
            self._events.append(AgreementMoved(saved))
