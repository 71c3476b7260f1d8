"""Looks at members over TCP, which the driver makes: those open, and what they found. SPEC §5.3.

One per member. An open look is a sensor: as long as it is `stalled` the process is there and does
not run; it reports the moment that changes. Owned by Membership. Bound: OPEN_MAX open at once.
"""

from __future__ import annotations

from typing import Final

from .events import Event, StreamOutcome, StreamProbe, StreamProbeEnd
from .ids import NodeId
from .table import Peer

OPEN_MAX: Final = 64
"""As many as own probes; each may hold a descriptor for as long as a suspicion lasts."""
LOOK_S: Final = 2.0
"""The driver's time to connect, dialling again as SYNs get lost, and some more."""


class _Look:
    __slots__ = ("blind_until_s", "outcome", "probe_id")

    def __init__(self, probe_id: int, *, blind_until_s: float) -> None:
        self.probe_id = probe_id
        self.blind_until_s = blind_until_s
        self.outcome: StreamOutcome | None = None

    @property
    def open(self) -> bool:
        return self.outcome in (None, "stalled")


class StreamProbes:
    def __init__(self, events: list[Event]) -> None:
        self._events = events
        self._looks: dict[NodeId, _Look] = {}
        self._targets: dict[int, NodeId] = {}
        """Of open looks, by probe id."""
        self._next_id = 0

    def __len__(self) -> int:
        """Open ones."""
        return len(self._targets)

    def start(self, peer: Peer, now: float) -> bool:
        """An open look at `peer` goes on. False if OPEN_MAX others are open."""
        known = self._looks.get(peer.node_id)
        if known is not None and known.open:
            return True
        if len(self._targets) >= OPEN_MAX:
            return False
        self._next_id += 1
        until_s = now + LOOK_S if known is None else known.blind_until_s
        self._looks[peer.node_id] = _Look(self._next_id, blind_until_s=until_s)
        self._targets[self._next_id] = peer.node_id
        self._events.append(StreamProbe(self._next_id, peer.view()))
        return True

    def outcome(self, node_id: NodeId) -> StreamOutcome | None:
        """Of the last look at it; None: there was none, or it has found nothing yet."""
        look = self._looks.get(node_id)
        return look.outcome if look is not None else None

    def blind_until_s(self, node_id: NodeId) -> float:
        """Until then no look has had the time to find out whether its host is there."""
        look = self._looks.get(node_id)
        return look.blind_until_s if look is not None and look.outcome is None else 0.0

    def report(self, probe_id: int, outcome: StreamOutcome) -> NodeId | None:
        """Who was looked at; None if nobody waits for that any more."""
        node_id = self._targets.get(probe_id)
        if node_id is None:
            return None
        look = self._looks[node_id]
        look.outcome = outcome
        look.blind_until_s = 0.0
        if not look.open:
            del self._targets[probe_id]
        return node_id

    def end(self, node_id: NodeId) -> None:
        """What was found is forgotten."""
        look = self._looks.pop(node_id, None)
        if look is not None and look.open:
            del self._targets[look.probe_id]
            self._events.append(StreamProbeEnd(look.probe_id))
