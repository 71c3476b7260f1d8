"""SWIM with Lifeguard: who is a member, who is suspected, who is gone. SPEC §5.

Owns the member table, probes and suspicions of one node. Inputs are decoded messages, fired timers
and what the driver saw over TCP; outputs pile up in `sends`, `events`, `broadcasts` and `syncs`,
which the facade drains after each input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from .broadcasts import Broadcasts
from .errors import RemoteProtocolError
from .events import (
    Accused,
    Event,
    IdentityClash,
    MemberLeft,
    MemberRefuted,
    MemberUp,
    MemberUpdated,
    StreamOutcome,
)
from .ids import NodeId
from .joining import Contacts
from .judging import Judge
from .member import Address, Metadata
from .messages import (
    Ack,
    Alive,
    Down,
    Finding,
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
from .roster import Roster
from .streamprobes import StreamProbes
from .table import Peer, Table, word_order
from .timers import Timers

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
        doubt: Callable[[bytes], None],
        roster: Roster,
        now: float,
    ) -> None:
        self.table = Table(roster=roster, now=now)
        self.sends: list[Send] = []
        self.events: list[Event] = []
        self.syncs: list[NodeId] = []
        """Members a sync with whom is due now, whatever the digests say."""
        self.has_left = False
        self._knobs = knobs
        self._rng = rng
        self._timers = timers
        self._ack = ack
        self._raw = bytes.fromhex(node_id)
        own = self.table.add(node_id, self._raw, metadata, is_self=True, now=now)
        assert own is not None
        self.own: Final = own
        self.table.update(
            own, generation=generation, incarnation=0, state="alive", now=now, metadata=metadata
        )
        timers.set(("round", 0), now + rng.random() * knobs.probe_interval_s)
        self.prober = Prober(node_id, knobs, rng, timers, self.table, ack, doubt)
        self.counts = self.prober.counts
        self.streams = StreamProbes(self.events)
        self._contacts = Contacts(
            own=own,
            table=self.table,
            prober=self.prober,
            knobs=knobs,
            rng=rng,
            timers=timers,
            sends=self.sends,
            events=self.events,
            now=now,
        )
        self.judge = Judge(
            own=own,
            table=self.table,
            prober=self.prober,
            streams=self.streams,
            knobs=knobs,
            timers=timers,
            broadcasts=broadcasts,
            sends=self.sends,
            events=self.events,
        )

    # ------------------------------------------------------------ the driver's verbs
    def join(self, seeds: Sequence[Address], known: Sequence[Address], now: float) -> None:
        if not self.has_left:
            self._contacts.join(seeds, known, now)

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
        self.judge.announce(own, word)
        for peer in self.table.sample(self._rng, LEAVE_FANOUT):
            self.sends.append(Send(peer.address, peer.node_id, (word,)))
        self.judge.close()

    def set_metadata(self, metadata: Metadata, now: float) -> None:
        self._reassert(self.own.incarnation + 1, now, metadata)

    def note_refused(self, address: Address, now: float) -> None:
        """A host's word that nobody listens at `address`. Forgeable, so only a vote: two members
        (or all there are) must hold one before it is believed."""
        peer = self.table.at_address(address)
        if peer is not None:
            self._note_refused(peer, now)

    def _note_refused(self, peer: Peer, now: float) -> None:
        if peer.reachable and not peer.is_self and not self.has_left:
            self.judge.accuse(peer, self.own.node_id, Finding.REFUSED, now=now)

    def on_stream_probe(self, probe_id: int, outcome: StreamOutcome, now: float) -> None:
        node_id = self.streams.report(probe_id, outcome)
        peer = self.table.get(node_id) if node_id is not None else None
        if peer is None or self.has_left:
            return
        if outcome == "refused":
            self._note_refused(peer, now)
            return
        if outcome == "pong":
            self.counts.acks_stream += self.prober.forget(peer.node_id)
        self.judge.looked(peer, outcome, now)

    def on_generation_known(self, generation: int) -> None:
        if generation > self.own.generation and not self.has_left:
            self.events.append(IdentityClash(generation, shunned=not self.table.reachable))

    # ------------------------------------------------------------ timers
    def on_stall(self, lag_s: float, now: float) -> None:
        """This process was stopped: answers may lie unread, so no verdict is drawn until there was
        time to read them."""
        self.counts.stalls += 1
        self._timers.delay(STALLED, lag_s + self._knobs.direct_timeout_max_s)
        if lag_s > self._knobs.probe_window_s:
            self.prober.abandon()
        self.judge.on_stall(lag_s, now)
        self.prober.health.change(1)

    def on_deadline(self, name: str, subject: int | str, now: float) -> None:
        if self.has_left:
            return
        if name == "round":
            self._timers.set(
                ("round", 0), now + self._knobs.probe_interval_s * self.prober.health.scale
            )
            self.sends += self.prober.probe_next(now)
        elif name == "probe":
            self._probe_late(int(subject), now)
        elif name == "relay":
            self.sends += self.prober.on_relay_deadline(int(subject), now)
        elif name == "suspect":
            self.judge.on_deadline(NodeId(str(subject)), now)
        elif name == "join":
            self._contacts.knock(now)
        elif name == "reconnect":
            self._contacts.reconnect(now)

    def reap(self, now: float) -> None:
        """Forgets members that have been gone for long."""
        knobs = self._knobs
        for peer in self.table.gone():
            kept_s = knobs.reap_down_s if peer.state == "down" else knobs.reap_left_s
            if now - peer.changed_at_s > kept_s:
                self.table.remove(peer)

    # ------------------------------------------------------------ probing
    def on_ping(
        self, ping: Ping, sender: NodeId, source: Address, *, generation: int, bytes_max: int
    ) -> None:
        """From this generation of the sender. `bytes_max`: 0, or the length of the datagram if it
        was for any generation of this node: then the sender may not know this one."""
        ack: list[Message] = [self._ack(ping.seq)]
        known = self.table.get(sender)
        if bytes_max or known is None or known.generation != generation:
            ack.append(self.own.alive_message())
        self.sends.append(Send(source, sender, tuple(ack), generation, bytes_max))

    def on_ack(self, ack: Ack, sender: NodeId, now: float) -> None:
        peer = self.table.get(sender)
        if peer is not None:
            peer.load = ack.load
        if self._contacts.answered(ack.seq):
            self.judge.announce(self.own, self.own.alive_message())
            self.syncs.append(sender)
            return
        probe = self.prober.on_ack(ack.seq, sender, now)
        if probe is not None:
            if probe.target.suspicion is None:
                self.streams.end(probe.target.node_id)
            if probe.last_look:
                self.judge.look_answered(probe.target, now)
            return
        self.sends += self.prober.on_relayed_ack(ack.seq, sender)

    def on_ping_req(self, request: PingReq, sender: NodeId, source: Address, now: float) -> None:
        if request.target == self._raw:
            raise RemoteProtocolError("ping-req", "asks for a probe of this node itself")
        self.sends += self.prober.relay(request, sender, source, now)

    def _probe_late(self, seq: int, now: float) -> None:
        sends, probe, failed = self.prober.on_deadline(seq)
        self.sends += sends
        peer = probe.target
        if self.table.get(peer.node_id) is not peer or not peer.reachable:
            return
        if not failed:
            if self._knobs.stream_probe:
                self.streams.start(peer, now)
            self.sends += self.prober.probe_beyond(probe, now)
        elif probe.last_look:
            self.judge.look_failed(peer, now)
        else:
            self._probe_failed(probe, now)

    def _probe_failed(self, probe: Probe, now: float) -> None:
        self.prober.blame(probe)
        self.judge.probe_failed(probe.target, probe.evidence(), now)

    # ------------------------------------------------------------ words about members
    def on_word(self, word: Word, sender: NodeId, now: float) -> bool:
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
            accuser = NodeId(word.accuser.hex())
            first_hand = accuser == sender
            self.judge.accuse(peer, accuser, word.finding, now=now, first_hand=first_hand)
        else:
            self.judge.hear_down(peer, word, now)
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
        if was == "down" and not back:
            self.counts.false_deaths += 1
        refuted = self.judge.reason(peer, now) if peer.suspicion is not None else None
        self.judge.acquit(peer)
        changed = word.metadata != peer.metadata
        self.table.update(
            peer,
            generation=word.generation,
            incarnation=word.incarnation,
            state="alive",
            now=now,
            metadata=word.metadata,
        )
        self.judge.announce(peer, word)
        if back or was in ("down", "left"):
            self.prober.include(node_id)
            self.events.append(MemberUp(peer.view()))
            return
        if refuted is not None:
            self.counts.suspicions_refuted += 1
            self.events.append(MemberRefuted(peer.view(), refuted))
        if changed:
            self.events.append(MemberUpdated(peer.view()))

    def _on_left(self, word: Left, peer: Peer, now: float) -> bool:
        if word.generation != peer.generation or peer.state == "left":
            return word.generation > peer.generation
        self.judge.acquit(peer)
        self.table.update(
            peer,
            generation=peer.generation,
            incarnation=max(word.incarnation, peer.incarnation),
            state="left",
            now=now,
        )
        self.judge.announce(peer, word)
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
            self.counts.refutations += 1
            self.events.append(_accused(word, self.judge))
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
        self.judge.announce(own, own.alive_message())

    # ------------------------------------------------------------ sync
    def on_row(self, row: MemberRow, peer_id: NodeId, now: float) -> None:
        """A row of a peer's table. Its `down` is a suspicion here where this node believes
        otherwise: after a partition both sides hold each other down, and all shall be heard.

        Raises RemoteProtocolError("members-full")."""
        word = row.alive
        known = self.table.get(NodeId(word.node.hex()))
        if row.state == "left":
            self.on_word(Left(word.node, word.generation, word.incarnation), peer_id, now)
        elif row.state != "down":
            self.on_word(word, peer_id, now)
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
                self.on_word(word, peer_id, now)
            accuser = bytes.fromhex(peer_id)
            at = (word.generation, word.incarnation)
            suspect = Suspect(word.node, *at, accuser, Finding.SILENT)
            if known.order()[:3] == word_order(word.generation, word.incarnation, "down")[:3] and (
                known.reachable and not known.is_self
            ):
                self.judge.accuse(known, peer_id, Finding.SILENT, told_down=True, now=now)
            else:
                self.on_word(suspect, peer_id, now)


def _accused(word: Suspect | Down | Left, judge: Judge) -> Accused:
    match word:
        case Suspect():
            return Accused(judge.name(NodeId(word.accuser.hex())), "suspect")
        case Down():
            return Accused(judge.name(NodeId(word.accuser.hex())), "down")
        case Left():
            return Accused("", "left")
