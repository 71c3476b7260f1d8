"""The member table: what is known of each node, and which word about it wins. SPEC §5.2.

Order of words about one node: generation, then `left`, then incarnation, then alive < suspect <
down. The table applies what it is told; membership decides. The state digest covers reachable
members only, so nodes that reaped a dead one and nodes that did not still agree.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

from .ids import NodeId
from .member import Address, Member, MemberState, Metadata
from .messages import LOAD_FULL, Alive, Down, Suspect
from .suspicion import Suspicion

MEMBERS_MAX: Final = 12_288
REACHABLE: Final = ("alive", "suspect")
RANK: Final[dict[MemberState, int]] = {"alive": 0, "suspect": 1, "down": 2, "left": 3}

WordOrder = tuple[int, bool, int, int]


def word_order(generation: int, incarnation: int, state: MemberState) -> WordOrder:
    return generation, state == "left", incarnation, RANK[state]


class RttEstimate:
    """RFC 6298 §2: srtt ← 7/8·srtt + 1/8·r, rttvar ← 3/4·rttvar + 1/4·|srtt − r|."""

    __slots__ = ("rttvar_s", "srtt_s")

    def __init__(self) -> None:
        self.srtt_s: float | None = None
        self.rttvar_s = 0.0

    def add(self, rtt_s: float) -> None:
        if self.srtt_s is None:
            self.srtt_s, self.rttvar_s = rtt_s, rtt_s / 2
            return
        self.rttvar_s += (abs(self.srtt_s - rtt_s) - self.rttvar_s) / 4
        self.srtt_s += (rtt_s - self.srtt_s) / 8

    def timeout_s(self, low_s: float, high_s: float) -> float:
        """clamp(srtt + 4·rttvar); `high_s` before the first measurement."""
        if self.srtt_s is None:
            return high_s
        return min(max(self.srtt_s + 4 * self.rttvar_s, low_s), high_s)


class Peer:
    """A row; only Table and Membership change it."""

    __slots__ = (
        "changed_at_s",
        "contribution",
        "generation",
        "incarnation",
        "is_self",
        "load",
        "metadata",
        "node_id",
        "raw",
        "rtt",
        "state",
        "suspicion",
    )

    def __init__(
        self, node_id: NodeId, raw: bytes, metadata: Metadata, *, is_self: bool, now: float
    ) -> None:
        self.node_id = node_id
        self.raw = raw
        self.is_self = is_self
        self.generation = 0
        self.incarnation = 0
        self.state: MemberState = "alive"
        self.metadata = metadata
        self.rtt = RttEstimate()
        self.suspicion: Suspicion | None = None
        self.contribution = 0
        self.changed_at_s = now
        self.load: int | None = None

    @property
    def address(self) -> Address:
        return self.metadata.gossip_address

    @property
    def reachable(self) -> bool:
        return self.state in REACHABLE

    def order(self) -> WordOrder:
        return word_order(self.generation, self.incarnation, self.state)

    def view(self) -> Member:
        return Member(
            self.node_id,
            self.state,
            self.generation,
            self.incarnation,
            self.metadata,
            self.rtt.srtt_s,
            self.is_self,
            self.changed_at_s,
            None if self.load is None else self.load / LOAD_FULL,
        )

    def alive_message(self) -> Alive:
        return Alive(self.raw, self.generation, self.incarnation, self.metadata)

    def accusation(self, accuser: bytes) -> Suspect | Down | None:
        """What this node should hear of itself, to refute it; None if all is well."""
        if self.state == "suspect":
            return Suspect(self.raw, self.generation, self.incarnation, accuser, False)
        if self.state == "down":
            return Down(self.raw, self.generation, self.incarnation, accuser)
        return None


def _contribution(peer: Peer) -> int:
    text = f"member\x00{peer.node_id}\x00{peer.generation}\x00{peer.incarnation}"
    return int.from_bytes(blake3(text.encode()).digest(8))


class Table:
    def __init__(self, members_max: int = MEMBERS_MAX) -> None:
        self._members_max = members_max
        self._peers: dict[NodeId, Peer] = {}
        self._by_address: dict[Address, NodeId] = {}
        self._others: list[Peer] | None = None
        self._digest = 0

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, node_id: NodeId) -> Peer | None:
        return self._peers.get(node_id)

    def peers(self) -> list[Peer]:
        """All rows in order of arrival."""
        return list(self._peers.values())

    def others(self) -> list[Peer]:
        """Reachable members but this node; a cached list that callers must not change."""
        if self._others is None:
            self._others = [
                peer for peer in self._peers.values() if peer.reachable and not peer.is_self
            ]
        return self._others

    def at_address(self, address: Address) -> Peer | None:
        node_id = self._by_address.get(address)
        return self._peers.get(node_id) if node_id is not None else None

    def state_digest(self) -> int:
        return self._digest

    def add(
        self, node_id: NodeId, raw: bytes, metadata: Metadata, *, is_self: bool, now: float
    ) -> Peer | None:
        """A row to be updated next; None if the table is full of reachable members.
        A full table gives up the member that has been gone longest."""
        if len(self._peers) >= self._members_max:
            gone = [peer for peer in self._peers.values() if not peer.reachable]
            if not gone:
                return None
            self.remove(min(gone, key=lambda peer: (peer.changed_at_s, peer.node_id)))
        peer = Peer(node_id, raw, metadata, is_self=is_self, now=now)
        self._peers[node_id] = peer
        return peer

    def update(
        self,
        peer: Peer,
        *,
        generation: int,
        incarnation: int,
        state: MemberState,
        now: float,
        metadata: Metadata | None = None,
    ) -> None:
        if metadata is not None:
            if self._by_address.get(peer.address) == peer.node_id:
                del self._by_address[peer.address]
            peer.metadata = metadata
            self._by_address[metadata.gossip_address] = peer.node_id
        if state != peer.state or generation != peer.generation:
            peer.changed_at_s = now
        peer.generation, peer.incarnation, peer.state = generation, incarnation, state
        self._others = None
        self._digest ^= peer.contribution
        peer.contribution = _contribution(peer) if peer.reachable else 0
        self._digest ^= peer.contribution

    def remove(self, peer: Peer) -> None:
        del self._peers[peer.node_id]
        if self._by_address.get(peer.address) == peer.node_id:
            del self._by_address[peer.address]
        self._digest ^= peer.contribution
        self._others = None
