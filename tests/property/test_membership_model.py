"""Arbitrary words, acks, refusals, looks, silences and stops against a simple model. SPEC §5.

One machine, five voices that say anything the cluster key lets them say. The model is a dict of
what the rules of §5.2 make of the words; time may only turn alive into suspect and suspect into
down.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from protocol_support import CLUSTER_KEY, WALL_MS, address_of, make_gossip, metadata_of, node_id

from protocol import probing, streamprobes
from protocol.broadcasts import ITEMS_MAX
from protocol.codec import encode_message, join_messages
from protocol.events import Accused, MemberDown, MemberSuspect, StreamOutcome
from protocol.ids import NodeId
from protocol.member import MemberState
from protocol.messages import Alive, Down, Finding, Left, MemberRow, Suspect, Word
from protocol.presets import LAN
from protocol.roster import contribution_of
from protocol.seal import Keyring, Seal
from protocol.table import RANK

OTHERS = range(1, 6)
NODES = {index: node_id(f"n{index}") for index in range(6)}
VOICES_GENERATION = 9
"""Above all that is said, so that nobody is taken for his own former self."""
LONGEST_S = max(LAN.stall_patience_s, LAN.suspicion_min_s * LAN.suspicion_max_factor)
SETTLED_S = LONGEST_S + 2 * LAN.verifier_grace_s + 60 * LAN.direct_timeout_max_s

others = st.sampled_from(list(OTHERS))
generations = st.integers(1, 3)
incarnations = st.integers(0, 3)
Row = tuple[MemberState, int, int]
"""State, generation, incarnation."""


def order(row: Row) -> tuple[int, bool, int, int]:
    state, generation, incarnation = row
    return generation, state == "left", incarnation, RANK[state]


class Membership(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = make_gossip(0)
        self.own = self.machine.node_id
        self.voices = {i: Seal(Keyring([CLUSTER_KEY]), NODES[i], VOICES_GENERATION) for i in OTHERS}
        self.now = 0.0
        self.model: dict[NodeId, Row] = {}
        self.accused = -1
        self.probed: dict[int, NodeId] = {}

    def rows(self) -> dict[NodeId, Row]:
        return {
            m.node_id: (m.state, m.generation, m.incarnation)
            for m in self.machine.members()
            if not m.is_self
        }

    # ------------------------------------------------------------ words
    def say(self, voice: int, word: Word) -> None:
        self.send(voice, word)
        self.hear(word)

    def send(self, voice: int, word: Word) -> None:
        payload = join_messages([encode_message(word)])
        sealed = self.voices[voice].seal(payload, bytes.fromhex(self.own), 1, known=True)
        self.machine.receive_datagram(sealed, address_of(voice), self.now, self.wall_ms)

    def hear(self, word: Word) -> None:
        """SPEC §5.2."""
        node = NodeId(word.node.hex())
        known = self.model.get(node)
        at = (word.generation, word.incarnation)
        if node == self.own:
            if not isinstance(word, Alive) and word.generation == 1:
                self.accused = max(self.accused, word.incarnation)
        elif isinstance(word, Alive):
            if known is None or order(("alive", *at)) > order(known):
                self.model[node] = ("alive", *at)
        elif isinstance(word, Left):
            if known is not None and known[1] == word.generation and known[0] != "left":
                self.model[node] = ("left", known[1], max(known[2], word.incarnation))
        elif known is not None and known[1:] == at and known[0] in ("alive", "suspect"):
            self.model[node] = ("suspect" if isinstance(word, Suspect) else "down", *at)

    @rule(voice=others, node=others, generation=generations, incarnation=incarnations)
    def alive(self, voice: int, node: int, generation: int, incarnation: int) -> None:
        metadata = metadata_of(f"n{node}", address_of(node))
        self.say(voice, Alive(bytes.fromhex(NODES[node]), generation, incarnation, metadata))

    @rule(
        voice=others,
        node=st.integers(0, 5),
        accuser=others,
        newer=st.integers(-1, 1),
        kind=st.sampled_from(["suspect", "suspect", "suspect", "down", "left"]),
    )
    def accuse(self, voice: int, node: int, accuser: int, newer: int, kind: str) -> None:
        """About what is known, or one incarnation off."""
        _, generation, incarnation = self.model.get(NODES[node], ("alive", 1, 0))
        if node == 0:
            incarnation = self.machine.members()[0].incarnation
        raw, by = bytes.fromhex(NODES[node]), bytes.fromhex(NODES[accuser])
        at = max(0, incarnation + newer)
        if kind == "suspect":
            self.say(voice, Suspect(raw, generation, at, by, Finding.SILENT))
        elif kind == "down":
            self.say(voice, Down(raw, generation, at, by, True))
        else:
            self.say(voice, Left(raw, generation, at))

    @rule(voice=others, node=others, accuser=others, finding=st.sampled_from(Finding))
    def finding_word(self, voice: int, node: int, accuser: int, finding: Finding) -> None:
        before = self.rows()
        _, generation, incarnation = self.model.get(NODES[node], ("alive", 1, 0))
        raw, by = bytes.fromhex(NODES[node]), bytes.fromhex(NODES[accuser])
        self.send(voice, Suspect(raw, generation, incarnation, by, finding))
        self.only_worse(before)

    @rule(voice=others, node=others, accuser=others)
    def hasty_down_word(self, voice: int, node: int, accuser: int) -> None:
        """Believed but for those to whom the process seems merely stopped."""
        before = self.rows()
        _, generation, incarnation = self.model.get(NODES[node], ("alive", 1, 0))
        raw, by = bytes.fromhex(NODES[node]), bytes.fromhex(NODES[accuser])
        self.send(voice, Down(raw, generation, incarnation, by, False))
        self.only_worse(before)
        peer = self.machine._table.get(NODES[node])
        if peer is not None and peer.reachable:
            assert peer.suspicion is not None
            open_look = self.machine._membership.streams.outcome(NODES[node]) == "stalled"
            assert open_look or peer.suspicion.stalled

    @rule(voice=others, node=others, state=st.sampled_from(["down", "alive", "left"]))
    def row(self, voice: int, node: int, state: MemberState) -> None:
        """Of a sync: another's view of somebody known."""
        known = self.model.get(NODES[node])
        if known is None:
            return
        metadata = metadata_of(f"n{node}", address_of(node))
        alive = Alive(bytes.fromhex(NODES[node]), known[1], known[2], metadata)
        before = self.rows()
        self.machine._membership.on_row(MemberRow(state, alive), NODES[voice], self.now)
        self.machine.on_timer(self.now)
        peer = self.machine._table.get(NODES[node])
        if state == "down" and before[NODES[node]][0] == "alive":
            assert peer is not None
            assert peer.state == "suspect", "not on trust"
        if state != "left":
            self.only_worse(before)
        self.model = self.rows()

    # ------------------------------------------------------------ what the driver sees
    @rule(node=others)
    def refused(self, node: int) -> None:
        before = self.rows()
        self.machine.note_refused(address_of(node), self.now)
        self.only_worse(before)

    @rule(
        which=st.integers(0, 9), outcome=st.sampled_from(["pong", "stalled", "refused", "silent"])
    )
    def looked(self, which: int, outcome: StreamOutcome) -> None:
        before = self.rows()
        self.machine.on_stream_probe(1 + which, outcome, self.now)
        self.only_worse(before)

    @rule(which=st.integers(0, 9))
    def ack(self, which: int) -> None:
        prober = self.machine._membership.prober
        running = sorted(prober._probes)
        if running:
            seq = running[which % len(running)]
            target = prober._probes[seq].target
            before = self.rows()
            self.machine._membership.on_ack(probing.Ack(seq, 0, 0), target.node_id, self.now)
            assert seq not in prober._probes
            assert self.rows() == before, "an ack is no word"

    @rule(for_s=st.sampled_from([0.01, 0.2, 1.0, 3.0]))
    def time_passes(self, for_s: float) -> None:
        before = self.rows()
        self.run(self.now + for_s)
        self.only_worse(before)

    @rule(for_s=st.sampled_from([0.6, 5.0, 20.0]))
    def stops(self, for_s: float) -> None:
        """SIGSTOP: the first look at the clock afterwards declares nobody."""
        self.now += for_s
        before = self.rows()
        stalls = self.machine.statistics().probing.stalls
        self.machine.on_timer(self.now)
        if self.machine.statistics().probing.stalls > stalls:
            assert self.rows() == before
        else:
            assert for_s < 20, "no timer is that far away"
            self.only_worse(before)
        self.drain()

    @property
    def wall_ms(self) -> int:
        return WALL_MS + int(self.now * 1000)

    def run(self, until_s: float) -> None:
        while (deadline := self.machine.next_deadline()) is not None and deadline <= until_s:
            self.now = max(self.now, deadline)
            self.machine.on_timer(self.now)
            self.drain()
        self.now = max(self.now, until_s)

    def drain(self) -> None:
        while (datagram := self.machine.poll_transmit()) is not None:
            assert len(datagram.data) <= 1200
        while (event := self.machine.poll_event()) is not None:
            if isinstance(event, (MemberSuspect, MemberDown)):
                assert event.reason.accusers >= 1
                assert event.reason.text.startswith("accused by ")
            if isinstance(event, Accused):
                assert self.accused >= 0

    def only_worse(self, before: dict[NodeId, Row]) -> None:
        """Nothing but a word makes anybody alive; the rest may only be suspected, then down."""
        after = self.rows()
        assert before.keys() == after.keys()
        for node, (state, generation, incarnation) in after.items():
            assert before[node][1:] == (generation, incarnation)
            was = before[node][0]
            assert state == was or (was, state) in (
                ("alive", "suspect"),
                ("alive", "down"),
                ("suspect", "down"),
            )
        self.model = after

    # ------------------------------------------------------------ invariants
    @invariant()
    def the_rules_were_kept(self) -> None:
        assert self.rows() == self.model

    @invariant()
    def this_node_lives_and_contradicts(self) -> None:
        own = self.machine.members()[0]
        assert (own.is_self, own.state, own.generation) == (True, "alive", 1)
        assert own.incarnation > self.accused or self.accused < 0

    @invariant()
    def everything_is_bounded_and_in_step(self) -> None:
        statistics = self.machine.statistics()
        assert statistics.probes_running <= probing.PROBES_MAX
        assert statistics.stream_probes_open <= streamprobes.OPEN_MAX
        assert statistics.updates_queued <= ITEMS_MAX
        suspects = [node for node, row in self.rows().items() if row[0] == "suspect"]
        assert statistics.suspects == len(suspects)
        table = self.machine._table
        digest = 0
        for member in self.machine.members():
            if member.reachable:
                digest ^= contribution_of(member.node_id, member.generation, member.incarnation)
        assert table.state_digest() == digest
        assert table.reachable == len(table.others()) == len(table._ring)
        for node in suspects:
            peer = table.get(node)
            assert peer is not None
            assert peer.suspicion is not None
            awaited = self.machine._timers.at(("suspect", node)) is not None
            assert awaited or (
                peer.suspicion.looking and node in self.machine._membership.prober._targets
            ), "a suspicion that nothing ends"

    def teardown(self) -> None:
        """Left alone, every suspicion ends: down, as nobody answers."""
        suspects = [node for node, row in self.rows().items() if row[0] == "suspect"]
        self.run(self.now + SETTLED_S)
        after = self.rows()
        assert all(after[node][0] == "down" for node in suspects)


Membership.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMembership = Membership.TestCase
