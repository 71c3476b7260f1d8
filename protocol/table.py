"""The member table: what is known of each node, and which word about it wins. SPEC §5.2.

Order of words about one node: generation, then `left`, then incarnation, then alive < suspect <
down. The table applies what it is told; membership decides. The state digest covers reachable
members only, so nodes that reaped a dead one and nodes that did not still agree.

A table may start from a shared Roster: then it keeps rows of its own only for members that changed
or were asked for. Updates, random draws and the neighbour on the ring of node ids cost O(1) or
O(log N), not O(N).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Final

from .ids import NodeId
from .member import Address, Member, MemberState, Metadata
from .messages import LOAD_FULL, Alive, Down, Finding, Suspect
from .rng import Rng
from .roster import EMPTY, Roster, contribution_of
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
        "at",
        "changed_at_s",
        "contribution",
        "generation",
        "incarnation",
        "is_self",
        "load",
        "metadata",
        "node_id",
        "place",
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
        self.at = -1
        """Its row in the roster, or -1."""
        self.place = -1
        """In the table's list of reachable members beside the roster, or -1."""
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
            return Suspect(self.raw, self.generation, self.incarnation, accuser, Finding.SILENT)
        if self.state == "down":
            return Down(self.raw, self.generation, self.incarnation, accuser, final=False)
        return None


class Table:
    def __init__(
        self, members_max: int = MEMBERS_MAX, *, roster: Roster = EMPTY, now: float = 0.0
    ) -> None:
        self._members_max = members_max
        self._roster = roster
        self._started_s = now
        self._rows: dict[NodeId, Peer] = {}
        """Own rows: of members beside the roster, and of those in it that differ or were used."""
        self._by_address: dict[Address, NodeId] = {}
        """Of own rows."""
        self._hidden: dict[int, None] = {}
        """Roster rows that are not reachable others (this node's own, too)."""
        self._forgotten: dict[int, None] = {}
        """Roster rows that were removed."""
        self._live: list[Peer] = []
        """Reachable others beside the roster, in no order."""
        self._ring: list[NodeId] = []
        """Their ids, sorted."""
        self._gone: dict[NodeId, Peer] = {}
        """Down or left."""
        self._beside = 0
        """Own rows that are not in the roster."""
        self._own: Peer | None = None
        self._states: dict[MemberState, int] = dict.fromkeys(RANK, 0)
        self._states["alive"] = len(roster.rows)
        self._digest = roster.digest

    def __len__(self) -> int:
        return len(self._roster.rows) - len(self._forgotten) + self._beside

    @property
    def reachable(self) -> int:
        """How many others are."""
        return len(self._roster.rows) - len(self._hidden) + len(self._live)

    def states(self) -> dict[MemberState, int]:
        """How many members are in each state, this node included."""
        return {state: count for state, count in self._states.items() if count}

    # ------------------------------------------------------------ looking up
    def get(self, node_id: NodeId) -> Peer | None:
        known = self._rows.get(node_id)
        if known is not None:
            return known
        at = self._roster.index.get(node_id)
        if at is None or at in self._forgotten:
            return None
        peer = self._rows[node_id] = self._copy(at)
        self._by_address[peer.address] = node_id
        return peer

    def _copy(self, at: int) -> Peer:
        row = self._roster.rows[at]
        peer = Peer(
            self._roster.ids[at], row.node, row.metadata, is_self=False, now=self._started_s
        )
        peer.generation, peer.incarnation = row.generation, row.incarnation
        peer.contribution = self._roster.contributions[at]
        peer.at = at
        return peer

    def _peek(self, at: int) -> Peer:
        """A roster's row to be read and not kept."""
        known = self._rows.get(self._roster.ids[at])
        return known if known is not None else self._copy(at)

    def at_address(self, address: Address) -> Peer | None:
        node_id = self._by_address.get(address) or self._roster.addresses.get(address)
        peer = self.get(node_id) if node_id is not None else None
        return peer if peer is not None and peer.address == address else None

    def peers(self) -> list[Peer]:
        """All rows, to be read only: this node's first, then the roster's, then in order of
        arrival."""
        own = self._own
        listed = [
            self._peek(at)
            for at in range(len(self._roster.rows))
            if at not in self._forgotten and (own is None or at != own.at)
        ]
        beside = [peer for peer in self._rows.values() if peer.at < 0 and peer is not own]
        return ([] if own is None else [own]) + listed + beside

    def others(self) -> list[Peer]:
        """All reachable members but this node, to be read only."""
        listed = [self._peek(at) for at in range(len(self._roster.rows)) if at not in self._hidden]
        return listed + self._live

    def gone(self) -> list[Peer]:
        """Members that are down or left, in the order in which they were first."""
        return list(self._gone.values())

    def state_digest(self) -> int:
        return self._digest

    # ------------------------------------------------------------ choosing
    @property
    def slots(self) -> int:
        """Of `at_slot`."""
        return len(self._roster.rows) + len(self._live)

    def at_slot(self, slot: int) -> Peer | None:
        """Some reachable other, to be read only; every one has a slot, some slots have none."""
        size = len(self._roster.rows)
        if slot < size:
            return self._peek(slot) if slot not in self._hidden else None
        return self._live[slot - size] if slot - size < len(self._live) else None

    def sample(
        self, rng: Rng, count: int, *, but: NodeId | None = None, alive: bool = False
    ) -> list[Peer]:
        """Up to `count` reachable others, `alive` ones only where wanted, to be read only. Drawn
        until enough are found; only where most draws miss all are listed."""
        found: dict[NodeId, Peer] = {}

        def able(peer: Peer) -> bool:
            return peer.node_id != but and (not alive or peer.state == "alive")

        if self.reachable > 2 * count:
            for _ in range(8 * count + 16):
                peer = self.at_slot(int(rng.random() * self.slots))
                if peer is not None and able(peer):
                    found[peer.node_id] = peer
                    if len(found) == count:
                        return list(found.values())
        rest = [peer for peer in self.others() if able(peer)]
        return rng.sample(rest, min(count, len(rest)))

    def after(self, point: NodeId, *, but: NodeId | None = None) -> NodeId | None:
        """The first reachable other after `point` on the ring of node ids."""
        found: NodeId | None = None
        ids = self._roster.ids
        start = bisect_right(ids, point)
        for step in range(len(ids)):
            at = (start + step) % len(ids)
            if at not in self._hidden and ids[at] != but:
                found = ids[at]
                break
        start = bisect_right(self._ring, point)
        for step in range(min(2, len(self._ring))):
            node_id = self._ring[(start + step) % len(self._ring)]
            if node_id != but:
                return node_id if found is None else closer(point, node_id, found)
        return found

    # ------------------------------------------------------------ changing
    def add(
        self, node_id: NodeId, raw: bytes, metadata: Metadata, *, is_self: bool, now: float
    ) -> Peer | None:
        """A row to be updated next; None if the table is full of reachable members.
        A full table gives up the member that has been gone longest."""
        if len(self) >= self._members_max:
            if not self._gone:
                return None
            gone = self._gone.values()
            self.remove(min(gone, key=lambda peer: (peer.changed_at_s, peer.node_id)))
        peer = Peer(node_id, raw, metadata, is_self=is_self, now=now)
        at = self._roster.index.get(node_id, -1)
        if at >= 0 and at not in self._forgotten:  # this node itself
            peer.at = at
            peer.contribution = self._roster.contributions[at]
            self._hidden[at] = None
        else:
            self._beside += 1
            self._states["alive"] += 1
        self._rows[node_id] = peer
        if is_self:
            self._own = peer
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
        """`peer`: as `get` or `add` returned it."""
        if metadata is not None:
            if self._by_address.get(peer.address) == peer.node_id:
                del self._by_address[peer.address]
            peer.metadata = metadata
            self._by_address[metadata.gossip_address] = peer.node_id
        if state != peer.state or generation != peer.generation:
            peer.changed_at_s = now
        self._states[peer.state] -= 1
        self._states[state] += 1
        peer.generation, peer.incarnation, peer.state = generation, incarnation, state
        if not peer.is_self:
            self._place(peer)
        self._digest ^= peer.contribution
        peer.contribution = (
            contribution_of(peer.node_id, generation, incarnation) if peer.reachable else 0
        )
        self._digest ^= peer.contribution

    def _place(self, peer: Peer) -> None:
        """Where those who choose look for it."""
        if not peer.reachable:
            self._gone.setdefault(peer.node_id, peer)
            self._withdraw(peer)
            return
        self._gone.pop(peer.node_id, None)
        if peer.at >= 0:
            self._hidden.pop(peer.at, None)
        elif peer.place < 0:
            peer.place = len(self._live)
            self._live.append(peer)
            insort(self._ring, peer.node_id)

    def _withdraw(self, peer: Peer) -> None:
        if peer.at >= 0:
            self._hidden[peer.at] = None
        elif peer.place >= 0:
            last = self._live.pop()
            if last is not peer:
                self._live[peer.place] = last
                last.place = peer.place
            peer.place = -1
            del self._ring[bisect_left(self._ring, peer.node_id)]

    def remove(self, peer: Peer) -> None:
        self._withdraw(peer)
        self._gone.pop(peer.node_id, None)
        del self._rows[peer.node_id]
        if peer.at >= 0:
            self._forgotten[peer.at] = None
        else:
            self._beside -= 1
        self._states[peer.state] -= 1
        if self._by_address.get(peer.address) == peer.node_id:
            del self._by_address[peer.address]
        self._digest ^= peer.contribution


def closer(point: NodeId, one: NodeId, other: NodeId) -> NodeId:
    """Which of two comes first after `point` on the ring."""
    return min(one, other, key=lambda node_id: (node_id <= point, node_id))
