"""Suspicions, from the first accusation to acquittal or verdict. SPEC §5.4.

Owned by Membership, which hears the words; this decides what they mean for a suspect and says what
shall be sent. A node is never declared down by one silent observer alone before the longest
suspicion has passed, and never without a last look; while that, or another observer's, finds the
process merely stopped, it is given time.
"""

from __future__ import annotations

from typing import Literal

from .broadcasts import Broadcasts
from .codec import encode_message
from .events import Event, MemberDown, MemberSuspect, Reason, StreamOutcome
from .ids import NodeId
from .messages import Alive, Down, Finding, Left, Suspect
from .presets import Knobs
from .probing import Prober, Send
from .streamprobes import StreamProbes
from .suspicion import Evidence, Suspicion, verifier_points
from .table import Peer, Table, closer
from .timers import Timers


class Judge:
    def __init__(
        self,
        *,
        own: Peer,
        table: Table,
        prober: Prober,
        streams: StreamProbes,
        knobs: Knobs,
        timers: Timers,
        broadcasts: Broadcasts,
        sends: list[Send],
        events: list[Event],
    ) -> None:
        self.muted = False
        """While old news in bulk (a whole table at join) comes in: it is not passed on."""
        self._own = own
        self._table = table
        self._prober = prober
        self._streams = streams
        self._knobs = knobs
        self._timers = timers
        self._broadcasts = broadcasts
        self._sends = sends
        self._events = events
        self._counts = prober.counts
        self._suspects: dict[NodeId, Peer] = {}

    def __len__(self) -> int:
        """Members under suspicion."""
        return len(self._suspects)

    # ------------------------------------------------------------ accusation
    def accuse(
        self,
        peer: Peer,
        accuser: NodeId,
        finding: Finding,
        *,
        now: float,
        first_hand: bool = False,
        told_down: bool = False,
        evidence: Evidence | None = None,
    ) -> None:
        """`first_hand`: the accuser told this node itself. `told_down`: it holds the member down.
        `evidence`: of this node's own probe."""
        own = accuser == self._own.node_id
        suspicion = peer.suspicion
        fresh = suspicion is None
        chosen = False
        if suspicion is None:
            chosen = self._is_verifier(peer)
            suspicion = self._open(peer, verifier=chosen, now=now)
            self._counts.suspicions_raised += own
        if evidence is not None:
            suspicion.evidence = evidence
        suspicion.told_down |= told_down
        news = suspicion.accuse(accuser, finding)
        if fresh:
            self._events.append(MemberSuspect(peer.view(), self.reason(peer, now)))
        if evidence is not None and suspicion.told_down and not suspicion.looking:
            self._timers.set(("suspect", peer.node_id), now)
        if not news:
            return
        self._pass_on(peer, suspicion, accuser, finding)
        if self._is_proven(suspicion):
            self.declare_down(peer, self._own.raw, now, final=True)
            return
        if not suspicion.looking and not (suspicion.told_down and suspicion.evidence):
            self._timers.set(("suspect", peer.node_id), suspicion.deadline())
        refused = finding is Finding.REFUSED
        if not own and (chosen or told_down or (refused and first_hand)):
            self._verify(peer, suspicion, refused=refused or told_down, now=now)

    def _pass_on(self, peer: Peer, suspicion: Suspicion, accuser: NodeId, finding: Finding) -> None:
        """In place of what the accuser said before; nobody is un-refused."""
        if accuser in suspicion.refused:
            finding = Finding.REFUSED
        word = Suspect(peer.raw, peer.generation, peer.incarnation, bytes.fromhex(accuser), finding)
        self._broadcasts.put(f"s/{peer.node_id}/{accuser}", encode_message(word))

    def probe_failed(self, peer: Peer, evidence: Evidence, now: float) -> None:
        """By all its paths; what the look over TCP has found until now is told with it."""
        stalled = self._streams.outcome(peer.node_id) == "stalled"
        finding = Finding.STALLED if stalled else Finding.SILENT
        self.accuse(peer, self._own.node_id, finding, now=now, evidence=evidence)

    def _is_proven(self, suspicion: Suspicion) -> bool:
        """Two witnesses to whom its host refused (or all there are), or this node and a peer who
        holds it down."""
        refusals = len(suspicion.refused)
        told = suspicion.told_down and self._own.node_id in suspicion.refused
        return told or refusals >= min(2, self._table.reachable)

    def _open(self, peer: Peer, *, verifier: bool, now: float) -> Suspicion:
        suspicion = peer.suspicion = Suspicion(
            self._knobs, now=now, others=self._table.reachable - 1, verifier=verifier
        )
        self._suspects[peer.node_id] = peer
        self._set_state(peer, "suspect", now)
        self._counts.suspicions += 1
        return suspicion

    def _verify(self, peer: Peer, suspicion: Suspicion, *, refused: bool, now: float) -> None:
        """Looks for itself at once. Where a refusal is claimed, by both ways a host can refuse: its
        second witness makes the verdict, milliseconds after the first."""
        sends = self._prober.start(peer, now)
        if refused and self._own.node_id not in suspicion.refused:
            if not sends:  # a probe runs, whose ping may have been sent before the crash
                ping = self._prober.ping_message()
                sends = [Send(peer.address, peer.node_id, (ping,))]
            if self._knobs.stream_probe:
                self._streams.start(peer, now)
        self._sends += sends

    def _is_verifier(self, peer: Peer) -> bool:
        count = self._knobs.verifiers
        own = self._own.node_id
        if self._table.reachable <= count:
            return True
        chosen: dict[NodeId, None] = {}
        for point in verifier_points(peer.node_id, peer.generation, peer.incarnation, count):
            other = self._table.after(point, but=peer.node_id)
            if other is None or closer(point, own, other) == own:
                return True
            chosen[other] = None
            if len(chosen) == count:
                break
        return False

    # ------------------------------------------------------------ last look
    def on_deadline(self, node_id: NodeId, now: float) -> None:
        """A last look before the verdict, by all paths; in the end only by those that no other
        member could feign."""
        peer = self._suspects.get(node_id)
        if peer is None or peer.suspicion is None:
            return
        if not self._knobs.last_look:
            self.declare_down(peer, self._own.raw, now, final=False)
            return
        peer.suspicion.looking = True
        self._prober.forget(node_id)
        room = not self._knobs.stream_probe or self._streams.start(peer, now)
        helped = now < self._patience_s(peer.suspicion)
        sends = self._prober.start(peer, now, last_look=True, helped=helped) if room else []
        if not sends:  # too many looks are under way: again when some have ended
            self._timers.set(("suspect", node_id), now + self._knobs.probe_window_s)
        self._sends += sends

    def look_failed(self, peer: Peer, now: float) -> None:
        """No ack. A process that is there and does not run is given until stall_patience_s, and
        this node's look over TCP until it found something, unless enough others have looked."""
        suspicion = peer.suspicion
        if suspicion is None:
            return
        again_at_s = self._patience_s(suspicion)
        final = now >= again_at_s
        if self._seems_stopped(peer, suspicion, now):
            self._counts.stalls_spared += 1
            again_at_s = min(now + self._knobs.stall_look_s, again_at_s)
        elif (until_s := self._blind_until_s(peer, suspicion)) > now and not final:
            suspicion.undecided = True
            again_at_s = min(until_s, again_at_s)
        else:
            self.declare_down(peer, self._own.raw, now, final=final)
            return
        suspicion.looking = False
        self._timers.set(("suspect", peer.node_id), again_at_s)

    def _patience_s(self, suspicion: Suspicion) -> float:
        return suspicion.started_at_s + self._knobs.stall_patience_s

    def _seems_stopped(self, peer: Peer, suspicion: Suspicion, now: float) -> bool:
        """To this node or to another who said so, and not for too long."""
        stalled = suspicion.stalled or self._streams.outcome(peer.node_id) == "stalled"
        return bool(stalled) and now < self._patience_s(suspicion)

    def _blind_until_s(self, peer: Peer, suspicion: Suspicion) -> float:
        others = len(suspicion.accusers) - (self._own.node_id in suspicion.accusers)
        if others >= max(1, self._knobs.confirmations):
            return 0.0  # one to whom it seemed stopped would have said so
        return self._streams.blind_until_s(peer.node_id)

    def looked(self, peer: Peer, outcome: StreamOutcome, now: float) -> None:
        """Over TCP. That it is stalled others shall know, whose SYNs may be lost; a verdict may
        have waited for silence."""
        suspicion = peer.suspicion
        if suspicion is None:
            return
        if outcome == "pong":
            self.look_answered(peer, now)
        elif outcome == "stalled" and self._own.node_id in suspicion.accusers:
            self.accuse(peer, self._own.node_id, Finding.STALLED, now=now)
        elif outcome == "silent" and suspicion.undecided:
            suspicion.undecided = False
            self._timers.set(("suspect", peer.node_id), now)

    def look_answered(self, peer: Peer, now: float) -> None:
        """It lives; it will refute, as each datagram tells it what is said of it."""
        suspicion = peer.suspicion
        if suspicion is not None and suspicion.looking:
            suspicion.looking = False
            self._timers.set(("suspect", peer.node_id), now + self._knobs.suspicion_min_s)

    def on_stall(self, lag_s: float, now: float) -> None:
        """This process was stopped: time did not pass for suspicions, and looks begin anew."""
        for peer in self._suspects.values():
            suspicion = peer.suspicion
            if suspicion is not None:
                # One that began with what was read since is no older than now.
                suspicion.started_at_s = min(now, suspicion.started_at_s + lag_s)
                if suspicion.looking:
                    suspicion.looking = False
                    self._prober.forget(peer.node_id)
                    again_at = now + self._knobs.direct_timeout_max_s
                    self._timers.set(("suspect", peer.node_id), again_at)

    # ------------------------------------------------------------ the end of it
    def hear_down(self, peer: Peer, word: Down, now: float) -> None:
        """Another's verdict, taken over unless this node knows better: that the process seems
        merely stopped."""
        suspicion = peer.suspicion
        if word.final or suspicion is None or not self._seems_stopped(peer, suspicion, now):
            self.declare_down(peer, word.accuser, now, final=word.final)
            return
        accuser = NodeId(word.accuser.hex())
        self.accuse(peer, accuser, Finding.SILENT, told_down=True, now=now)

    def declare_down(self, peer: Peer, accuser: bytes, now: float, *, final: bool) -> None:
        """`accuser`: who says so first, this node or the one whose Down was heard."""
        reason = self.reason(peer, now, accuser=NodeId(accuser.hex()))
        self.acquit(peer)
        self._set_state(peer, "down", now)
        self._counts.deaths += 1
        self.announce(peer, Down(peer.raw, peer.generation, peer.incarnation, accuser, final))
        self._events.append(MemberDown(peer.view(), reason))

    def acquit(self, peer: Peer) -> None:
        """Ends suspicion, probes and looks of `peer`, and what was being said about it."""
        suspicion = peer.suspicion
        self._prober.forget(peer.node_id)
        self._streams.end(peer.node_id)
        if suspicion is not None:
            peer.suspicion = None
            del self._suspects[peer.node_id]
            self._timers.cancel(("suspect", peer.node_id))
            for accuser in (*suspicion.accusers, *suspicion.refused):
                self._broadcasts.drop(f"s/{peer.node_id}/{accuser}")

    def close(self) -> None:
        """This node leaves and judges nobody any more."""
        for peer in list(self._suspects.values()):
            self.acquit(peer)

    def reason(self, peer: Peer, now: float, *, accuser: NodeId | None = None) -> Reason:
        suspicion = peer.suspicion
        stream: StreamOutcome | None = self._streams.outcome(peer.node_id)
        if suspicion is None:
            return Reason(accuser=self.name(accuser), accusers=1, refusals=0, stream=stream)
        first = next(iter(suspicion.accusers), accuser)
        evidence = suspicion.evidence
        return Reason(
            accuser=self.name(first),
            accusers=len(suspicion.accusers),
            refusals=len(suspicion.refused),
            stalls=len(suspicion.stalled),
            direct_ms=evidence.direct_ms if evidence else None,
            helpers=evidence.helpers if evidence else 0,
            nacks=evidence.nacks if evidence else 0,
            stream=stream,
            suspected_ms=round(1000 * (now - suspicion.started_at_s)),
        )

    def name(self, node_id: NodeId | None) -> str:
        """The member's name, or its id if it is not known."""
        peer = self._table.get(node_id) if node_id is not None else None
        return peer.metadata.name if peer is not None else str(node_id or "")

    def announce(self, peer: Peer, word: Alive | Down | Left) -> None:
        if not self.muted or peer.is_self:
            self._broadcasts.put(f"m/{peer.node_id}", encode_message(word))

    def _set_state(self, peer: Peer, state: Literal["suspect", "down"], now: float) -> None:
        self._table.update(
            peer, generation=peer.generation, incarnation=peer.incarnation, state=state, now=now
        )
