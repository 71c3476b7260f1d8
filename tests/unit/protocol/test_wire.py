"""What is said to whom on the wire: versions, recordings, answers, budgets. SPEC §4.3–§4.6."""

from __future__ import annotations

import msgspec
import pytest
from protocol_support import (
    CLUSTER_KEY,
    WALL_MS,
    Wire,
    address_of,
    alias_record,
    make_gossip,
    metadata_of,
    node_id,
    spec_bytes,
    version_record,
)

from protocol import messages as messages_module
from protocol.codec import encode_message, join_messages
from protocol.errors import RemoteProtocolError
from protocol.events import MemberDown, MemberSuspect
from protocol.function import version_of
from protocol.gossip import Gossip
from protocol.member import Metadata
from protocol.messages import (
    ACCUSATION_BYTES_MAX,
    ACK_BYTES_MAX,
    ALIVE_BYTES_MAX,
    Ack,
    Alive,
    Down,
    Finding,
    Left,
    Message,
    Pad,
    Ping,
    Suspect,
)
from protocol.seal import SHORT_KIND, Keyring, Seal
from protocol.traffic import ENVELOPE

RAW = [bytes.fromhex(node_id(f"n{i}")) for i in range(4)]


def sent(machine: Gossip) -> list[bytes]:
    found = []
    while (datagram := machine.poll_transmit()) is not None:
        found.append(datagram.data)
    return found


def packed(*messages: Message) -> bytes:
    return join_messages([encode_message(message) for message in messages])


def knows(machine: Gossip) -> set[str]:
    return {member.name for member in machine.members()}


def test_the_longest_messages_are_as_long_as_said() -> None:
    long = ("l" * 63, 65535)
    metadata = Metadata(
        "n" * 63,
        ("h." * 31 + "h", 65535),
        long,
        gateway_url="u" * 128,
        region="r" * 64,
        target="t" * 64,
        artifact_key="a" * 64,
        keyring="0" * 64,
        wire=127,
    )
    top32, top63 = (1 << 32) - 1, (1 << 63) - 1
    assert len(encode_message(Alive(RAW[0], top63, top32, metadata))) <= ALIVE_BYTES_MAX
    assert len(encode_message(Ack(top32, top32, 255))) == ACK_BYTES_MAX
    accusation = Suspect(RAW[0], top63, top32, RAW[1], Finding.REFUSED)
    assert len(encode_message(accusation)) == ACCUSATION_BYTES_MAX
    assert len(encode_message(Ping(top32))) == 7


@pytest.mark.parametrize("wires", [(1,), (2,), (1, 2), (2, 1, 1)])
def test_versions_mix(wires: tuple[int, ...]) -> None:
    wire = Wire(6, wires=wires)
    wire.join_all()
    spec = spec_bytes("mixed")
    version = version_of(spec)
    records = [version_record("f", spec), alias_record("f", version)]
    wire.machines[address_of(5)].publish(records, wire.now)
    wire.run(10)
    everyone = {f"n{i}": "alive" for i in range(6)}
    assert all(wire.states(index) == everyone for index in range(6))
    assert all(machine.catalog.lookup("f") is not None for machine in wire.machines.values())
    assert not any(isinstance(event, (MemberSuspect, MemberDown)) for _, event in wire.events)
    assert wire.errors == []
    speaks = {address_of(i): wires[i % len(wires)] for i in range(6)}
    for address, datagram in wire.tape:
        if datagram.data[0] == SHORT_KIND:
            assert speaks[address] == speaks[datagram.address] == 2
    if wires == (2,):
        late = [datagram.data[0] for _, datagram in wire.tape[-50:]]
        assert late == [SHORT_KIND] * 50, "short headers are what is used"
    assert {member.metadata.wire for member in wire[0].members()} == set(wires)


def test_a_later_versions_message_is_not_sent_to_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if records came with version 2: those who do not know them learn them by sync only."""
    monkeypatch.setitem(messages_module.SINCE, 9, 2)
    wire = Wire(4, wires=(1, 2))
    wire.join_all()
    before = [machine.statistics() for machine in wire.machines.values()]
    wire[1].publish([alias_record("f", None)], wire.now)
    wire.run(5)
    for index, machine in enumerate(wire.machines.values()):
        heard = machine.statistics().messages_received.get("record-update", 0)
        assert (heard > 0) == (index == 3), "0 and 2 speak version 1, 1 told it"
    assert before[0].messages_received.get("record-update", 0) == 0
    assert wire[1].statistics().updates_queued == 0, "it is given up like any other"


def test_a_recording_changes_nothing() -> None:
    """Everything that ran over the wire, from any source, to a restarted receiver and a new one."""
    wire = Wire(5)
    wire.join_all()
    spec = spec_bytes("r")
    wire[2].publish([version_record("f", spec), alias_record("f", version_of(spec))], wire.now)
    wire.run(5)
    wire[4].leave(wire.now)
    wire.run(1)
    wire.cut = {address_of(3)}
    wire.run(20)
    wire.cut = set()
    wire.run(15)
    everything = list(wire.tape)
    assert len(everything) > 500
    knocks = 0
    for receiver in (make_gossip(0, generation=2), make_gossip(9)):
        sent(receiver)
        before = receiver.members(), receiver.state_digest()
        for source in (address_of(7), address_of(1)):
            for _, datagram in everything:
                try:
                    receiver.receive_datagram(datagram.data, source, 1.0, WALL_MS)
                except RemoteProtocolError:
                    assert sent(receiver) == [], "what does not open is not answered"
                else:
                    knocks += 1
                    answers = sent(receiver)
                    assert sum(map(len, answers)) <= len(datagram.data)
        after = receiver.members(), receiver.state_digest()
        assert after == before
        assert receiver.poll_event() is None
    assert knocks > 2, "knocks open anywhere, once"


def test_a_recording_changes_nothing_in_a_running_node() -> None:
    wire = Wire(4)
    wire.join_all()
    wire.run(5)
    victim, digest = wire[0], wire[0].state_digest()
    before = victim.members()
    sent(victim)
    for _, datagram in list(wire.tape):
        try:
            victim.receive_datagram(datagram.data, address_of(8), wire.now, wire.wall_ms)
        except RemoteProtocolError:
            assert sent(victim) == []
        else:
            assert sum(map(len, sent(victim))) <= len(datagram.data)
    assert (victim.members(), victim.state_digest()) == (before, digest)


def test_a_knock_may_say_nothing_but_that() -> None:
    machine, seal = make_gossip(0), Seal(Keyring([CLUSTER_KEY]), node_id("n1"), 1)
    stranger = Alive(RAW[2], 1, 0, metadata_of("n2", address_of(2)))
    own = machine.members()[0]
    said = [
        Alive(RAW[1], 1, 0, metadata_of("n1", address_of(1))),
        stranger,
        Left(RAW[0], own.generation, 0),
        Down(RAW[2], 1, 0, RAW[1], False),
        Ack(1, 0, 0),
    ]
    for receiver in (b"", RAW[0]):
        data = seal.seal(packed(*said), receiver)
        machine.receive_datagram(data, address_of(1), 0.0, WALL_MS)
    assert machine.statistics().refused == {"unbound": 2 * len(said)}
    assert knows(machine) == {"n0"}
    assert machine.poll_transmit() is None
    accused = seal.seal(packed(Down(RAW[0], own.generation, 0, RAW[1], False)), RAW[0])
    machine.receive_datagram(accused, address_of(1), 0.0, WALL_MS)
    assert machine.members()[0].incarnation == 1, "refuted"
    again = seal.seal(packed(Down(RAW[0], own.generation, 0, RAW[1], False)), RAW[0])
    machine.receive_datagram(again, address_of(1), 0.0, WALL_MS)
    assert machine.members()[0].incarnation == 1, "once"


@pytest.mark.parametrize("pad", [0, 7, 20, 300, 700])
def test_the_answer_to_a_knock_is_no_longer_than_it(pad: int) -> None:
    machine, seal = make_gossip(0), Seal(Keyring([CLUSTER_KEY]), node_id("n1"), 1)
    machine.publish([alias_record("pending", None)], 0.0)
    knock = seal.seal(packed(Ping(5), Pad(bytes(pad))))
    machine.receive_datagram(knock, address_of(1), 0.0, WALL_MS)
    answers = sent(machine)
    assert sum(map(len, answers)) <= len(knock)
    if pad == 0:
        assert answers == []
        return
    opened = Seal(Keyring([CLUSTER_KEY]), node_id("n1"), 1).open(answers[0])
    assert opened.bound
    kinds = [message[0] for message in msgspec.msgpack.decode(opened.payload)]
    assert kinds == ([2, 5] if pad >= 300 else [2])
    with pytest.raises(RemoteProtocolError):
        Seal(Keyring([CLUSTER_KEY]), node_id("n1"), 2).open(answers[0])


def test_a_restarted_member_answers_and_is_known_again() -> None:
    """Nobody told n0 that n1 restarted, and n1 knows nobody: pings bound to its former generation
    do not reach it, the next one does."""
    wire = Wire(2)
    wire.join_all()
    wire.run(3)
    wire.machines[address_of(1)] = make_gossip(1, generation=2, now=wire.now)
    wire.run(6)
    member = wire[0].member(node_id("n1"))
    assert member is not None
    assert (member.state, member.generation) == ("alive", 2)
    assert not wire.seen("n0", MemberDown)
    assert wire.states(1) == {"n1": "alive", "n0": "alive"}


def test_a_message_is_counted_by_type() -> None:
    wire = Wire(3)
    wire.join_all()
    wire.run(5)
    for machine in wire.machines.values():
        statistics = machine.statistics()
        for counts, sizes, total in (
            (statistics.messages_sent, statistics.message_bytes_sent, statistics.bytes_sent),
            (
                statistics.messages_received,
                statistics.message_bytes_received,
                statistics.bytes_received,
            ),
        ):
            assert {"ping", "ack", "alive"} <= set(counts)
            assert set(sizes) == {*counts, ENVELOPE}
            assert sum(sizes.values()) == total
        assert statistics.transmits_queued == 0
    everyone = [machine.statistics() for machine in wire.machines.values()]
    for kind in ("ping", "ack", "alive", "pad"):
        out = sum(one.messages_sent.get(kind, 0) for one in everyone)
        seeds_own = sum(one.messages_received.get(kind, 0) for one in everyone)
        assert out == seeds_own, kind


def test_flapping_metadata_is_told_rarely_and_the_last_word_counts() -> None:
    wire = Wire(3)
    wire.join_all()
    wire.run(3)
    machine = wire[0]
    before = machine.statistics()
    changes = 1000
    for step in range(changes):
        region = f"r{step}"
        changed = msgspec.structs.replace(metadata_of("n0", address_of(0)), region=region)
        machine.set_metadata(changed, wire.now)
        wire.run(0.1)
    told = machine.members()[0].incarnation
    assert 5 < told < 130, "a reserve of some, then one in several tenths"
    after = machine.statistics()
    spent = after.message_bytes_sent["alive"] - before.message_bytes_sent["alive"]
    assert spent < 16 * 1024 + 100 * 256 + 1000
    wire.run(30)
    member = wire[2].member(machine.node_id)
    assert member is not None
    assert member.metadata.region == f"r{changes - 1}"
    assert wire.states(2) == {f"n{i}": "alive" for i in range(3)}
