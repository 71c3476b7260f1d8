"""SWIM with Lifeguard: who is a member, who is suspected, who is gone. SPEC §5.

Owns the member table, probes and suspicions of one node. Inputs are decoded messages and fired
timers; outputs pile up in `sends`, `events`, `broadcasts` and `syncs`, which the facade drains
after each input. A node is never declared down by one silent observer alone before the longest
suspicion has passed, and never without a last look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

from .broadcasts import Broadcasts
from .codec import encode_message
from .errors import RemoteProtocolError
from .events import (
    Event,
    IdentityClash,
    MemberDown,
    MemberLeft,
    MemberSuspect,
    MemberUp,
    MemberUpdated,
)
from .ids import NodeId
from .member import Address, Metadata
from .messages import (
    Ack,
    Alive,
    Down,
    Left,
    MemberRow,
    Message,
    Ping,
    PingReq,
    Suspect,
    Word,
)
from .presets import Knobs
from .probing import Probe, Prober, Send
from .rng import Rng
from .suspicion import Suspicion, verifiers
from .table import Peer, Table, word_order
from .timers import Timers

SEEDS_MAX: Final = 64
LEAVE_FANOUT: Final = 8
STALLED: Final = frozenset({"probe", "suspect", "relay"})
"""Timers whose verdicts are put off when this process was stopped."""


class Membership:
    def __init__(
        self,
        *,
        node_id: NodeId,
        generation: int,
        metadata: Metadata,
        knobs: Knobs,
        rng: Rng,
        timers: Timers,
        broadcasts: Broadcasts,
        ack: Callable[[int], Ack],
        now: float,
    ) -> None:
        self.table = Table()
        self.sends: list[Send] = []
        self.events: list[Event] = []
        self.syncs: list[NodeId] = []
        """Members a sync with whom is due now, whatever the digests say."""
        self.has_left = False
        self.muted = False
        """While old news in bulk (a whole table at join) comes in: it is not passed on."""
        self.false_suspicions = 0
        self.prober = Prober(knobs, rng, timers, self.table, ack)
        self._knobs = knobs
        self._rng = rng
        self._timers = timers
        self._broadcasts = broadcasts
        self._ack = ack
        self._seeds: tuple[Address, ...] = ()
        self._joining: dict[int, None] = {}
        self._raw = bytes.fromhex(node_id)
        own = self.table.add(node_id, self._raw, metadata, is_self=True, now=now)
        assert own is not None
        self.own: Final = own
        self.table.update(
            own, generation=generation, incarnation=0, state="alive", now=now, metadata=metadata
        )
        timers.set(("round", 0), now + rng.random() * knobs.probe_interval_s)
        timers.set(("reconnect", 0), now + (0.5 + rng.random()) * knobs.reconnect_s)

    # ------------------------------------------------------------ the driver's verbs
    def join(self, addresses: Sequence[Address], now: float) -> None:
        self._seeds = tuple(addresses[:SEEDS_MAX])
        self._knock(now)

    def _knock(self, now: float) -> None:
        """Pings every seed, and again until somebody answers; a seed may be this node itself."""
        if not self._seeds or self.table.others() or self.has_left:
            return
        if len(self._joining) > 4 * SEEDS_MAX:
            self._joining = {}
        for address in self._seeds:
            if address == self.own.address:
                continue
            seq = self._rng.getrandbits(32)
            self._joining[seq] = None
            self.sends.append(Send(address, None, (Ping(seq), self.own.alive_message())))
        self._timers.set(("join", 0), now + self._knobs.join_retry_s)

    def leave(self, now: float) -> None:
        """Says goodbye to some at once; gossip does the rest while the driver lingers."""
        if self.has_left:
            return
        self.has_left = True
        own = self.own
        self.table.update(
            own, generation=own.generation, incarnation=own.incarnation, state="left", now=now
        )
        word = Left(own.raw, own.generation, own.incarnation)
        self._announce(own, word)
        others = self.table.others()
        for peer in self._rng.sample(others, min(LEAVE_FANOUT, len(others))):
            self.sends.append(Send(peer.address, peer.node_id, (word,)))
        for peer in others:
            self._acquit(peer)

    def set_metadata(self, metadata: Metadata, now: float) -> None:
        self._reassert(self.own.incarnation + 1, now, metadata)

    def note_refused(self, address: Address, now: float) -> None:
        """A host's word that nobody listens at `address`. Forgeable, so only a vote: two members
        (or all there are) must hold one before it is believed."""
        peer = self.table.at_address(address)
        if peer is not None and peer.reachable and not peer.is_self and not self.has_left:
            self._accuse(peer, self.own.node_id, refused=True, now=now)

    # ------------------------------------------------------------ timers
    def on_stall(self, lag_s: float) -> None:
        """This process was stopped: answers may lie unread, so no verdict is drawn until there was
        time to read them."""
        self._timers.delay(STALLED, lag_s + self._knobs.direct_timeout_max_s)
        self.prober.health.change(1)

    def on_deadline(self, name: str, subject: int | str, now: float) -> None:
        if self.has_left:
            return
        if name == "round":
            self._timers.set(
                ("round", 0), now + self._knobs.probe_interval_s * self.prober.health.scale
            )
            target = self.prober.next_target()
            if target is not None:
                self.sends += self.prober.start(target, now)
        elif name == "probe":
            sends, failed = self.prober.on_deadline(int(subject))
            self.sends += sends
            if failed is not None:
                self._probe_failed(failed, now)
        elif name == "relay":
            self.sends += self.prober.on_relay_deadline(int(subject), now)
        elif name == "suspect":
            self._suspicion_ends(NodeId(str(subject)), now)
        elif name == "join":
            self._knock(now)
        elif name == "reconnect":
            self._reconnect(now)

    def _reconnect(self, now: float) -> None:
        """Keeps knocking at members believed down, so that healed partitions meet."""
        self._timers.set(("reconnect", 0), now + self._knobs.reconnect_s)
        gone = [peer for peer in self.table.peers() if peer.state == "down"]
        total = len(self.table)
        chance = max(0.1, len(gone) / total, 4 / total)
        if gone and self._rng.random() < chance:
            peer = self._rng.sample(gone, 1)[0]
            self.sends.append(Send(peer.address, peer.node_id, (self.prober.ping_message(),)))
        self._knock(now)

    def reap(self, now: float) -> None:
        """Forgets members that have been gone for long."""
        gone = [
            peer
            for peer in self.table.peers()
            if not peer.is_self
            and not peer.reachable
            and now - peer.changed_at_s
            > (self._knobs.reap_down_s if peer.state == "down" else self._knobs.reap_left_s)
        ]
        for peer in gone:
            self.table.remove(peer)

    # ------------------------------------------------------------ probing
    def on_ping(self, ping: Ping, sender: NodeId, source: Address, *, introduce: bool) -> None:
        """`introduce`: the sender may not know this node."""
        ack: list[Message] = [self._ack(ping.seq)]
        if introduce or self.table.get(sender) is None:
            ack.append(self.own.alive_message())
        self.sends.append(Send(source, sender, tuple(ack)))

    def on_ack(self, ack: Ack, sender: NodeId, now: float) -> None:
        peer = self.table.get(sender)
        if peer is not None:
            peer.load = ack.load
        if ack.seq in self._joining:
            self._joining = {}
            self._timers.cancel(("join", 0))
            self.syncs.append(sender)
            return
        probe = self.prober.on_ack(ack.seq, sender, now)
        if probe is not None:
            suspicion = probe.target.suspicion
            if probe.last_look and suspicion is not None:
                # It lives; it will refute, as each ping tells it what is said of it.
                suspicion.looking = False
                self._timers.set(
                    ("suspect", probe.target.node_id), now + self._knobs.suspicion_min_s
                )
            return
        self.sends += self.prober.on_relayed_ack(ack.seq, sender)

    def on_ping_req(self, request: PingReq, sender: NodeId, source: Address, now: float) -> None:
        if request.target == self._raw:
            raise RemoteProtocolError("ping-req", "asks for a probe of this node itself")
        self.sends += self.prober.relay(request, sender, source, now)

    def _probe_failed(self, probe: Probe, now: float) -> None:
        peer = probe.target
        current = self.table.get(peer.node_id)
        if current is not peer or not peer.reachable:
            return
        if probe.last_look:
            self._declare_down(peer, self._raw, now)
            return
        self.prober.blame(probe)
        self._accuse(peer, self.own.node_id, refused=False, now=now)

    # ------------------------------------------------------------ suspicion
    def _accuse(self, peer: Peer, accuser: NodeId, *, refused: bool, now: float) -> None:
        others = len(self.table.others()) - 1
        suspicion = peer.suspicion
        if suspicion is None:
            chosen = self._is_verifier(peer)
            suspicion = peer.suspicion = Suspicion(
                self._knobs, now=now, others=others, verifier=chosen
            )
            self._set_state(peer, "suspect", now)
            self.events.append(MemberSuspect(peer.view()))
            if chosen and accuser != self.own.node_id:
                self.sends += self.prober.start(peer, now)
        if not suspicion.accuse(accuser, refused=refused):
            return
        word = Suspect(peer.raw, peer.generation, peer.incarnation, bytes.fromhex(accuser), refused)
        self._broadcasts.put(f"s/{peer.node_id}/{accuser}", encode_message(word))
        if len(suspicion.refused) >= min(2, others + 1):
            self._declare_down(peer, self._raw, now)
        elif not suspicion.looking:
            self._timers.set(("suspect", peer.node_id), suspicion.deadline())

    def _is_verifier(self, peer: Peer) -> bool:
        nodes = [other.node_id for other in self.table.others()]
        if len(nodes) <= self._knobs.verifiers:
            return True
        nodes.append(self.own.node_id)
        chosen = verifiers(
            peer.node_id, peer.generation, peer.incarnation, nodes, self._knobs.verifiers
        )
        return self.own.node_id in chosen

    def _suspicion_ends(self, node_id: NodeId, now: float) -> None:
        """A last look before the verdict. A probe that is under way already is that look."""
        peer = self.table.get(node_id)
        if peer is None or peer.suspicion is None:
            return
        peer.suspicion.looking = True
        self.prober.forget(node_id)
        sends = self.prober.start(peer, now, last_look=True)
        if not sends:  # too many probes run: try again when some have ended
            self._timers.set(("suspect", node_id), now + self._knobs.probe_window_s)
        self.sends += sends

    def _declare_down(self, peer: Peer, accuser: bytes, now: float) -> None:
        self._acquit(peer)
        self._set_state(peer, "down", now)
        self._announce(peer, Down(peer.raw, peer.generation, peer.incarnation, accuser))
        self.events.append(MemberDown(peer.view()))

    def _acquit(self, peer: Peer) -> None:
        """Ends suspicion and probes of `peer`, and what was being said about it."""
        suspicion = peer.suspicion
        self.prober.forget(peer.node_id)
        if suspicion is not None:
            peer.suspicion = None
            self._timers.cancel(("suspect", peer.node_id))
            for accuser in (*suspicion.accusers, *suspicion.refused):
                self._broadcasts.drop(f"s/{peer.node_id}/{accuser}")

    def _set_state(self, peer: Peer, state: Literal["suspect", "down"], now: float) -> None:
        self.table.update(
            peer, generation=peer.generation, incarnation=peer.incarnation, state=state, now=now
        )

    def _announce(self, peer: Peer, word: Alive | Down | Left) -> None:
        if self.muted and not peer.is_self:
            return
        self._broadcasts.put(f"m/{peer.node_id}", encode_message(word))

    # ------------------------------------------------------------ words about members
    def on_word(self, word: Word, now: float) -> bool:
        """Whether this node is behind: the word is about a generation or incarnation whose
        metadata it has not got. Raises RemoteProtocolError("members-full")."""
        if word.node == self._raw:
            self._on_word_about_self(word, now)
            return False
        node_id = NodeId(word.node.hex())
        peer = self.table.get(node_id)
        if isinstance(word, Alive):
            self._on_alive(word, node_id, peer, now)
            return False
        if peer is None:
            return False
        if isinstance(word, Left):
            return self._on_left(word, peer, now)
        theirs, ours = (word.generation, word.incarnation), (peer.generation, peer.incarnation)
        if theirs != ours or not peer.reachable:
            return theirs > ours and peer.state != "left"
        if isinstance(word, Suspect):
            self._accuse(peer, NodeId(word.accuser.hex()), refused=word.refused, now=now)
        else:
            self._declare_down(peer, word.accuser, now)
        return False

    def _on_alive(self, word: Alive, node_id: NodeId, peer: Peer | None, now: float) -> None:
        if peer is None:
            peer = self.table.add(node_id, word.node, word.metadata, is_self=False, now=now)
            if peer is None:
                raise RemoteProtocolError("members-full", f"{len(self.table)} reachable members")
            was, back = "down", True
        else:
            if word_order(word.generation, word.incarnation, "alive") <= peer.order():
                return
            was, back = peer.state, word.generation != peer.generation
        if peer.suspicion is not None:
            self.false_suspicions += 1
        self._acquit(peer)
        self.table.update(
            peer,
            generation=word.generation,
            incarnation=word.incarnation,
            state="alive",
            now=now,
            metadata=word.metadata,
        )
        self._announce(peer, word)
        if back or was in ("down", "left"):
            self.prober.include(node_id)
            self.events.append(MemberUp(peer.view()))
        else:
            self.events.append(MemberUpdated(peer.view()))

    def _on_left(self, word: Left, peer: Peer, now: float) -> bool:
        if word.generation != peer.generation or peer.state == "left":
            return word.generation > peer.generation
        self._acquit(peer)
        self.table.update(
            peer,
            generation=peer.generation,
            incarnation=max(word.incarnation, peer.incarnation),
            state="left",
            now=now,
        )
        self._announce(peer, word)
        self.events.append(MemberLeft(peer.view()))
        return False

    def _on_word_about_self(self, word: Word, now: float) -> None:
        own = self.own
        if word.generation > own.generation:
            self.events.append(IdentityClash(word.generation))
            return
        if self.has_left or word.generation < own.generation:
            return
        if isinstance(word, Alive):
            if word.incarnation > own.incarnation:
                self._reassert(word.incarnation + 1, now)
        elif word.incarnation >= own.incarnation:
            self.prober.health.change(1)
            self._reassert(word.incarnation + 1, now)

    def _reassert(self, incarnation: int, now: float, metadata: Metadata | None = None) -> None:
        own = self.own
        self.table.update(
            own,
            generation=own.generation,
            incarnation=min(incarnation, 0xFFFFFFFF),
            state=own.state,
            now=now,
            metadata=metadata,
        )
        self._announce(own, own.alive_message())

    # ------------------------------------------------------------ sync
    def on_row(self, row: MemberRow, peer_id: NodeId, now: float) -> None:
        """A row of a peer's table. Its `down` is a suspicion here where this node believes
        otherwise: after a partition both sides hold each other down, and all shall be heard.

        Raises RemoteProtocolError("members-full")."""
        word = row.alive
        known = self.table.get(NodeId(word.node.hex()))
        if row.state == "left":
            self.on_word(Left(word.node, word.generation, word.incarnation), now)
        elif row.state != "down":
            self.on_word(word, now)
        elif known is not None and known.state == "down":
            if word_order(word.generation, word.incarnation, "down") > known.order():
                self.table.update(
                    known,
                    generation=word.generation,
                    incarnation=word.incarnation,
                    state="down",
                    now=now,
                    metadata=word.metadata,
                )
        elif known is not None:
            if not known.is_self:
                self.on_word(word, now)
            accuser = bytes.fromhex(peer_id)
            self.on_word(Suspect(word.node, word.generation, word.incarnation, accuser, False), now)
