"""Probes under way: direct, then through helpers; and the probes made for others. SPEC §5.3.

Owned by Membership, which hears of results. Bounds: PROBES_MAX own probes, RELAYS_MAX for others.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Final

import msgspec

from .ids import NodeId
from .member import Address
from .messages import Ack, Message, Nack, Ping, PingReq
from .presets import Knobs
from .rng import Rng
from .statistics import ProbeCounts
from .suspicion import Evidence
from .table import Peer, Table
from .timers import Timers

PROBES_MAX: Final = 64
RELAYS_MAX: Final = 256
NEWCOMERS_MAX: Final = 64
NEIGHBOURS_MAX: Final = 16
"""Suspects in a row on the ring that are passed over."""
GAP_MAX: Final = 8
"""Silent neighbours in a row that are looked beyond before anybody is suspected. Of members of
whom 30 % die, one in 15,000 has more dead before it."""
NACK_SHARE: Final = 0.6
"""Of a helper's time until it sends its Nack, which must arrive in time (Lifeguard: 80 %)."""
_SEQ_MASK: Final = 0xFFFFFFFF


class Send(msgspec.Struct, frozen=True):
    """Messages for one datagram; pending updates fill the rest of it."""

    address: Address
    to: NodeId | None
    """None where nobody known is meant (seeds)."""
    messages: tuple[Message, ...]
    generation: int = 0
    """Of `to`, by the datagram that this answers; else the table knows it."""
    bytes_max: int = 0
    """The length of the datagram that this answers, if that may have been a recording."""


class Probe:
    __slots__ = (
        "asked",
        "deadline_s",
        "direct_s",
        "gap",
        "helpers",
        "last_look",
        "nacks",
        "sent_at_s",
        "target",
    )

    def __init__(
        self,
        target: Peer,
        *,
        now: float,
        direct_s: float,
        deadline_s: float,
        last_look: bool,
        gap: int | None,
    ) -> None:
        self.target = target
        self.sent_at_s = now
        self.direct_s = direct_s
        self.deadline_s = deadline_s
        self.last_look = last_look
        self.gap = gap
        """Where the target is the neighbour on the ring: how many before it do not answer."""
        self.helpers: dict[NodeId, None] = {}
        self.nacks: dict[NodeId, None] = {}
        self.asked = False

    def evidence(self) -> Evidence:
        return Evidence(round(1000 * self.direct_s), len(self.helpers), len(self.nacks))


class _Relay:
    __slots__ = ("address", "nacked", "origin", "seq", "target")

    def __init__(self, origin: NodeId, address: Address, seq: int, target: NodeId) -> None:
        self.origin = origin
        self.address = address
        self.seq = seq
        self.target = target
        self.nacked = False


class Health:
    """Lifeguard's local health: how far this node doubts itself; 0 is well. §IV-A."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.score = 0

    def change(self, by: int) -> None:
        self.score = min(max(self.score + by, 0), self._limit)

    @property
    def scale(self) -> int:
        return self.score + 1


class Prober:
    def __init__(
        self,
        own: NodeId,
        knobs: Knobs,
        rng: Rng,
        timers: Timers,
        table: Table,
        ack: Callable[[int], Ack],
        doubt: Callable[[bytes], None],
    ) -> None:
        self._own = own
        self._knobs = knobs
        self._rng = rng
        self._timers = timers
        self._table = table
        self._ack = ack
        """Makes the Ack of a seq, with this node's digest and load."""
        self._doubt = doubt
        """Tells the seal that a member may have restarted: what is bound to the generation we know
        would not reach it."""
        self.health = Health(knobs.health_max)
        self.counts = ProbeCounts()
        self._seq = rng.getrandbits(32)
        self._probes: dict[int, Probe] = {}
        self._targets: dict[NodeId, int] = {}
        self._relays: dict[int, _Relay] = {}
        self._turn = False
        self._size = self._left = self._slot = 0
        """Of the round: slots in all, those left, and where it is."""
        self._stride = 1
        self._newcomers: list[tuple[float, NodeId]] = []
        """Members that joined since the round began: (minus how many slots are left when their
        turn comes, id)."""

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & _SEQ_MASK
        return self._seq

    def include(self, node_id: NodeId) -> None:
        """A new member joins the round at a random place (SWIM §4.3), lest all who hear of it
        probe it at once. Beyond NEWCOMERS_MAX it waits for the next round; where the members have
        doubled, that begins now."""
        if self._table.slots > 2 * self._size:
            self._left = 0
            self._newcomers.clear()
        elif len(self._newcomers) < NEWCOMERS_MAX:
            heapq.heappush(self._newcomers, (-self._left * self._rng.random(), node_id))

    def probe_next(self, now: float) -> list[Send]:
        """By turns the next on the ring and the next of the round; [] if nobody needs a probe."""
        self._turn = not self._turn
        if self._turn and self._knobs.neighbour_probes:
            peer = self._neighbour(self._own)
            if peer is not None and peer.node_id not in self._targets:
                return self.start(peer, now, gap=0)
        peer = self._next_of_round()
        return self.start(peer, now) if peer is not None else []

    def probe_beyond(self, probe: Probe, now: float) -> list[Send]:
        """Whoever gets no answer from its neighbour is, for all it knows, the next one's
        neighbour: members that die beside each other are found as fast as one alone."""
        if probe.gap is None or probe.gap >= GAP_MAX:
            return []
        peer = self._neighbour(probe.target.node_id)
        if peer is None or peer.node_id in self._targets:
            return []
        return self.start(peer, now, gap=probe.gap + 1)

    def _neighbour(self, node_id: NodeId | None) -> Peer | None:
        """The next on the ring; suspects, who have their verifiers, are passed over."""
        for _ in range(NEIGHBOURS_MAX):
            node_id = self._table.after(node_id) if node_id is not None else None
            peer = self._table.get(node_id) if node_id is not None else None
            if peer is None or peer.state == "alive":
                return peer
        return None

    def _next_of_round(self) -> Peer | None:
        """Everyone once, in an order drawn anew each round: from a random place with a random
        stride that shares no divisor with the number of slots."""
        for _ in range(2):
            while self._newcomers and self._left <= -self._newcomers[0][0]:
                peer = self._table.get(heapq.heappop(self._newcomers)[1])
                if peer is not None and self._needs_probe(peer):
                    return peer
            while self._left:
                self._left -= 1
                self._slot = (self._slot + self._stride) % self._size
                peer = self._table.at_slot(self._slot)
                if peer is not None and self._needs_probe(peer):
                    return self._table.get(peer.node_id)
            self._size = self._left = self._table.slots
            if self._size:
                self._slot = int(self._rng.random() * self._size)
                self._stride = 1 + int(self._rng.random() * self._size)
                while math.gcd(self._stride, self._size) > 1:
                    self._stride += 1
        return None

    def _needs_probe(self, peer: Peer) -> bool:
        """Suspects have their verifiers."""
        return peer.state == "alive" and peer.node_id not in self._targets

    # ------------------------------------------------------------ own probes
    def ping_message(self) -> Ping:
        """One that nobody waits for."""
        return Ping(self._next_seq())

    def start(
        self,
        peer: Peer,
        now: float,
        *,
        last_look: bool = False,
        helped: bool = False,
        gap: int | None = None,
    ) -> list[Send]:
        """[] if the peer is being probed already or PROBES_MAX probes run. A last look is patient,
        and where it is `helped` takes all paths at once."""
        if peer.node_id in self._targets or len(self._probes) >= PROBES_MAX:
            return []
        knobs = self._knobs
        scale = self.health.scale
        direct_s = scale * (
            knobs.direct_timeout_max_s
            if last_look
            else peer.rtt.timeout_s(knobs.direct_timeout_min_s, knobs.direct_timeout_max_s)
        )
        window_s = direct_s if last_look else knobs.probe_window_s * scale
        ping = self.ping_message()
        probe = self._probes[ping.seq] = Probe(
            peer,
            now=now,
            direct_s=direct_s,
            deadline_s=now + window_s,
            last_look=last_look,
            gap=gap,
        )
        self.counts.probes += 1
        self._targets[peer.node_id] = ping.seq
        self._timers.set(("probe", ping.seq), now + direct_s)
        sends = [Send(peer.address, peer.node_id, (ping,))]
        return sends + self._ask(probe, ping.seq) if helped else sends

    def _ask(self, probe: Probe, seq: int) -> list[Send]:
        target = probe.target
        helpers = self._table.sample(
            self._rng, self._knobs.indirect_probes, but=target.node_id, alive=True
        )
        probe.helpers = {peer.node_id: None for peer in helpers}
        request = PingReq(seq, target.raw, target.address)
        return [Send(peer.address, peer.node_id, (request,)) for peer in helpers]

    def on_deadline(self, seq: int) -> tuple[list[Send], Probe, bool]:
        """(indirect probes to send, the probe, whether it has failed); else its direct ping has,
        and it goes on by other paths."""
        probe = self._probes[seq]
        if probe.last_look or probe.asked:
            self._end(seq)
            self.counts.probes_failed += 1
            return [], probe, True
        probe.asked = True
        self._doubt(probe.target.raw)
        self._timers.set(("probe", seq), probe.deadline_s)
        return self._ask(probe, seq), probe, False

    def _end(self, seq: int) -> None:
        probe = self._probes.pop(seq)
        del self._targets[probe.target.node_id]
        self._timers.cancel(("probe", seq))

    def on_ack(self, seq: int, sender: NodeId, now: float) -> Probe | None:
        """The probe that this ack ends; None if it is unknown, late, or from a stranger."""
        probe = self._probes.get(seq)
        if probe is None:
            return None
        direct = sender == probe.target.node_id
        if not direct and sender not in probe.helpers:
            return None
        self._end(seq)
        self.health.change(-1)
        if direct:
            probe.target.rtt.add(max(0.0, now - probe.sent_at_s))
            self.counts.acks_direct += 1
        else:
            self.counts.acks_indirect += 1
        return probe

    def on_nack(self, seq: int, sender: NodeId) -> None:
        probe = self._probes.get(seq)
        if probe is not None and sender in probe.helpers and sender not in probe.nacks:
            probe.nacks[sender] = None
            self.counts.nacks += 1

    def blame(self, probe: Probe) -> None:
        """A helper that sent not even a Nack speaks against this node's own connection (Lifeguard
        §IV-A)."""
        if len(probe.nacks) < len(probe.helpers):
            self.health.change(1)

    def forget(self, node_id: NodeId) -> bool:
        """No verdict on this member any more: it is down, left, gone, or was heard by another way.
        Whether it was being probed."""
        seq = self._targets.get(node_id)
        if seq is not None:
            self._end(seq)
        return seq is not None

    def abandon(self) -> None:
        """No verdict on anybody: this process was stopped for longer than a probe lasts."""
        for seq in list(self._probes):
            self._end(seq)

    def __len__(self) -> int:
        """Own probes under way."""
        return len(self._probes)

    # ------------------------------------------------------------ for others
    def relay(self, request: PingReq, origin: NodeId, source: Address, now: float) -> list[Send]:
        """Pings on behalf of `origin`. At RELAYS_MAX the request is ignored: no Nack, and the
        origin rightly doubts the two of us."""
        if len(self._relays) >= RELAYS_MAX:
            return []
        target = NodeId(request.target.hex())
        seq = self._next_seq()
        self._relays[seq] = _Relay(origin, source, request.seq, target)
        self._timers.set(("relay", seq), now + NACK_SHARE * self._relay_s())
        return [Send(request.address, target, (Ping(seq),))]

    def _relay_s(self) -> float:
        """What the origin's window leaves for its helpers."""
        return self._knobs.probe_window_s - self._knobs.direct_timeout_max_s

    def on_relay_deadline(self, seq: int, now: float) -> list[Send]:
        """First a Nack; the relay lives on until the origin's window is over, as a late ack is
        still worth passing on."""
        relay = self._relays[seq]
        if relay.nacked:
            del self._relays[seq]
            return []
        relay.nacked = True
        self._timers.set(("relay", seq), now + (1 - NACK_SHARE) * self._relay_s())
        return [Send(relay.address, relay.origin, (Nack(relay.seq),))]

    def on_relayed_ack(self, seq: int, sender: NodeId) -> list[Send]:
        relay = self._relays.get(seq)
        if relay is None or relay.target != sender:
            return []
        del self._relays[seq]
        self._timers.cancel(("relay", seq))
        return [Send(relay.address, relay.origin, (self._ack(relay.seq),))]
