"""Machines on an in-memory wire: join, detect, refute, leave, restart, merge. SPEC §5."""

from __future__ import annotations

import msgspec
import pytest
from protocol_support import (
    CLUSTER_KEY,
    WALL_MS,
    Wire,
    address_of,
    make_gossip,
    metadata_of,
    node_id,
)

from protocol import joining as joining_module
from protocol import outbox as outbox_module
from protocol import probing as probing_module
from protocol.codec import encode_message, encode_sync, join_messages
from protocol.errors import LocalProtocolError
from protocol.events import (
    IdentityClash,
    MemberDown,
    MemberLeft,
    MemberSuspect,
    MemberUp,
    MemberUpdated,
)
from protocol.gossip import Gossip
from protocol.messages import (
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
)
from protocol.presets import LAN, LOCAL
from protocol.seal import Keyring, Seal
from protocol.syncmessages import SyncExchange


class Insider:
    """A member's voice without its machine: whatever it is told to say, sealed."""

    def __init__(self, index: int, *, generation: int = 1) -> None:
        self.node = node_id(f"n{index}")
        self.raw = bytes.fromhex(self.node)
        self.address = address_of(index)
        self.alive = Alive(self.raw, generation, 0, metadata_of(f"n{index}", self.address))
        self._seal = Seal(Keyring([CLUSTER_KEY]), self.node, generation)

    def say(self, machine: Gossip, *messages: Message, now: float = 0.0) -> None:
        payload = join_messages([encode_message(message) for message in messages])
        own = machine.members()[0]
        receiver = bytes.fromhex(own.node_id)
        sealed = self._seal.seal(payload, receiver, own.generation, known=True)
        machine.receive_datagram(sealed, self.address, now, WALL_MS + int(now * 1000))

    def knock(self, machine: Gossip, *messages: Message, now: float = 0.0) -> int:
        """As `say`, bound to nobody; its length."""
        payload = join_messages([encode_message(message) for message in messages])
        data = self._seal.seal(payload)
        machine.receive_datagram(data, self.address, now, WALL_MS + int(now * 1000))
        return len(data)


def states(machine: Gossip) -> dict[str, str]:
    return {member.name: member.state for member in machine.members()}


def incarnation(machine: Gossip) -> int:
    return next(member.incarnation for member in machine.members() if member.is_self)


def events(machine: Gossip) -> list[object]:
    found = []
    while (event := machine.poll_event()) is not None:
        found.append(event)
    return found


def word(kind: type, insider_raw: bytes, *, generation: int = 1, incarnation: int = 0) -> Message:
    accuser = bytes.fromhex(node_id("n7"))
    if kind is Suspect:
        return Suspect(insider_raw, generation, incarnation, accuser, Finding.SILENT)
    if kind is Down:
        return Down(insider_raw, generation, incarnation, accuser, False)
    return Left(insider_raw, generation, incarnation)


def test_all_see_all_and_measure_rtt() -> None:
    wire = Wire(5)
    wire.join_all()
    for index in range(5):
        assert wire.states(index) == {f"n{i}": "alive" for i in range(5)}
    wire.run(5)
    assert all(member.rtt_s is not None for member in wire[0].members() if not member.is_self)
    assert len({machine.state_digest() for machine in wire.machines.values()}) == 1
    assert wire.errors == []
    own = next(member for member in wire[0].members() if member.is_self)
    assert own.name == "n0"
    assert own.reachable
    assert wire[0].member(node_id("n99")) is None


def test_joining_retries_until_a_seed_answers() -> None:
    wire = Wire(2)
    late = wire.machines.pop(address_of(0))
    wire[1].join([address_of(0), address_of(1)], 0.0)
    wire.run(10)
    assert wire.states(1) == {"n1": "alive"}
    wire.machines[address_of(0)] = late
    wire.run(2)
    assert wire.states(1) == {"n1": "alive", "n0": "alive"}


def test_two_clusters_become_one_when_a_member_is_told_to_join() -> None:
    """Although it knows others. Knocking in vain is not repeated, as it is not alone."""
    wire = Wire(4)
    wire[1].join([address_of(0)], 0.0)
    wire[3].join([address_of(2)], 0.0)
    wire.run(2)
    assert wire.states(0) == {"n0": "alive", "n1": "alive"}
    wire[0].join([("10.9.9.9", 1), address_of(3)], wire.now)
    wire.run(2)
    for index in range(4):
        assert wire.states(index) == {f"n{i}": "alive" for i in range(4)}


def test_a_silent_death_is_suspected_confirmed_and_declared() -> None:
    wire = Wire(5)
    wire.join_all()
    del wire.machines[address_of(4)]
    wire.run(6)
    for index in range(4):
        assert wire.states(index)["n4"] == "down"
        assert len(wire.seen(f"n{index}", MemberSuspect)) == 1
        assert len(wire.seen(f"n{index}", MemberDown)) == 1


def test_refusals_of_two_are_believed_at_once() -> None:
    wire = Wire(5)
    wire.join_all()
    wire.refuse = True
    wire.run(1)
    del wire.machines[address_of(4)]
    wire.run(2.1)  # a whole round of everyone's
    assert [wire.states(index)["n4"] for index in range(4)] == ["down"] * 4


def test_one_forged_refusal_kills_nobody() -> None:
    wire = Wire(4)
    wire.join_all()
    for _ in range(5):
        wire[0].note_refused(address_of(3), wire.now)
        wire[0].note_refused(("10.9.9.9", 1), wire.now)
        wire.run(1)
    assert all(wire.states(index)["n3"] == "alive" for index in range(4))
    assert not any(isinstance(event, MemberDown) for _, event in wire.events)


def test_a_restarted_node_overrides_its_old_self() -> None:
    wire = Wire(3)
    wire.join_all()
    del wire.machines[address_of(2)]
    moved = ("10.0.9.9", 7946)
    reborn = make_gossip(2, generation=2, now=wire.now, address=moved)
    wire.machines[moved] = reborn
    reborn.join([address_of(0)], wire.now)
    wire.run(1)
    for index in (0, 1):
        member = wire[index].member(node_id("n2"))
        assert member is not None
        assert (member.state, member.generation) == ("alive", 2)
        assert member.metadata.gossip_address == moved
        ups = wire.seen(f"n{index}", MemberUp)
        assert [up.member.generation for up in ups if up.member.name == "n2"] == [1, 2]


def test_leaving_is_not_dying() -> None:
    wire = Wire(4)
    wire.join_all()
    wire[2].leave(wire.now)
    wire[2].leave(wire.now)
    wire.run(1)
    del wire.machines[address_of(2)]
    wire.run(20)
    for index in (0, 1, 3):
        assert wire.states(index)["n2"] == "left"
        assert len(wire.seen(f"n{index}", MemberLeft)) == 1
    assert not any(isinstance(event, MemberDown) for _, event in wire.events)


def test_who_left_falls_silent() -> None:
    machine, other = make_gossip(0), Insider(1)
    other.say(machine, other.alive)
    machine.leave(0.0)
    while machine.poll_transmit() is not None:
        pass
    other.say(machine, Ping(1), now=1.0)
    assert machine.poll_transmit() is None
    for step in range(200):
        machine.on_timer(1.0 + step)
    assert machine.poll_transmit() is None or machine.statistics().updates_queued == 0
    machine.note_refused(other.address, 300.0)
    assert states(machine)["n1"] == "alive"


def test_metadata_spreads_as_a_new_incarnation() -> None:
    wire = Wire(3)
    wire.join_all()
    changed = msgspec.structs.replace(
        metadata_of("n1", address_of(1)), gateway_url="http://127.0.0.1:9"
    )
    wire[1].set_metadata(changed, wire.now)
    wire.run(1)
    member = wire[0].member(node_id("n1"))
    assert member is not None
    keyring = "".join(wire[1].keyring_ids)
    assert member.metadata == msgspec.structs.replace(changed, keyring=keyring, wire=2)
    assert member.incarnation == 1
    assert wire.seen("n0", MemberUpdated)
    with pytest.raises(LocalProtocolError):
        wire[1].set_metadata(metadata_of("n2", address_of(1)), wire.now)


def test_a_partition_heals_without_restarts() -> None:
    wire = Wire(4, knobs=LOCAL)
    wire.join_all()
    wire.cut = {address_of(3)}
    wire.run(30)
    assert wire.states(3) == {"n0": "down", "n1": "down", "n2": "down", "n3": "alive"}
    assert wire.states(0)["n3"] == "down"
    wire.cut = set()
    wire.run(20)
    for index in range(4):
        assert wire.states(index) == {f"n{i}": "alive" for i in range(4)}
    downs = wire.seen("n0", MemberDown)
    assert {event.member.name for event in downs} == {"n3"}, "the far side's views are not facts"


@pytest.mark.parametrize("kind", [Suspect, Down, Left])
def test_claims_about_this_node_are_refuted(kind: type) -> None:
    machine, other = make_gossip(0), Insider(1)
    own = bytes.fromhex(machine.node_id)
    other.say(machine, other.alive)
    other.say(machine, word(kind, own, incarnation=4))
    assert incarnation(machine) == 5
    assert states(machine)["n0"] == "alive"
    other.say(machine, word(kind, own, incarnation=2))
    assert incarnation(machine) == 5, "old news"
    other.say(machine, word(kind, own, generation=0, incarnation=9))
    assert incarnation(machine) == 5, "about a former self"


def test_a_stranger_with_this_identity_is_reported() -> None:
    machine, other = make_gossip(0), Insider(1)
    own = bytes.fromhex(machine.node_id)
    other.say(machine, Alive(own, 9, 0, metadata_of("n0", address_of(0))))
    assert IdentityClash(9) in events(machine)
    other.say(machine, Alive(own, 1, 7, metadata_of("evil", address_of(5))))
    assert incarnation(machine) == 8
    assert machine.members()[0].name == "n0"


def test_words_about_unknown_or_newer_selves_change_nothing() -> None:
    machine, other = make_gossip(0), Insider(1)
    third = Insider(2)
    other.say(machine, other.alive, third.alive)
    for kind in (Suspect, Down, Left):
        other.say(machine, word(kind, bytes(16)))
        other.say(machine, word(kind, third.raw, generation=5))
    assert states(machine) == {"n0": "alive", "n1": "alive", "n2": "alive"}
    other.say(machine, word(Down, third.raw))
    assert states(machine)["n2"] == "down"
    other.say(machine, third.alive, word(Suspect, third.raw))
    assert states(machine)["n2"] == "down", "the same incarnation does not rise again"
    other.say(machine, msgspec.structs.replace(third.alive, incarnation=1))
    assert states(machine)["n2"] == "alive"
    other.say(machine, word(Left, third.raw, incarnation=1))
    other.say(machine, msgspec.structs.replace(third.alive, incarnation=9))
    assert states(machine)["n2"] == "left", "left is final for the generation"
    other.say(machine, msgspec.structs.replace(third.alive, generation=2))
    assert states(machine)["n2"] == "alive"
    other.say(machine, word(Down, third.raw, generation=1, incarnation=99))
    assert states(machine)["n2"] == "alive", "an older generation says nothing about this one"


def test_a_request_to_probe_oneself_is_refused() -> None:
    machine, other = make_gossip(0), Insider(1)
    other.say(machine, other.alive)
    events(machine)
    while machine.poll_transmit() is not None:
        pass
    other.say(machine, PingReq(1, bytes.fromhex(machine.node_id), address_of(0)), now=0.001)
    assert machine.poll_transmit() is None
    assert machine.statistics().refused == {"ping-req": 1}


def test_indirect_probes_save_a_node_behind_a_broken_link() -> None:
    """n0 cannot hear n3 directly; helpers can."""
    wire = Wire(4)
    wire.join_all()
    drain = wire._drain

    def filtered(address: tuple[str, int]) -> bool:
        far = {address_of(0), address_of(3)}
        wire.cut = far if address in far else set()
        machine = wire.machines[address]
        busy, kept = False, []
        while (datagram := machine.poll_transmit()) is not None:
            busy = True
            if {address, datagram.address} != far:
                kept.append(datagram)
        wire.cut = set()
        for datagram in kept:
            wire.machines[datagram.address].receive_datagram(
                datagram.data, address, wire.now, wire.wall_ms
            )
        return drain(address) or busy

    wire._drain = filtered  # type: ignore[method-assign]
    wire.run(30)
    assert all(wire.states(index)["n3"] == "alive" for index in range(4))
    assert not wire.seen("n0", MemberDown)


def test_a_stopped_process_draws_no_verdict() -> None:
    machine, other = make_gossip(0), Insider(1)
    other.say(machine, other.alive)
    while machine.statistics().probing.probes == 0:
        deadline = machine.next_deadline()
        assert deadline is not None
        machine.on_timer(deadline)
    assert machine.poll_transmit() is not None
    for _ in range(3):
        at = machine.next_deadline()
        assert at is not None
        machine.on_timer(at + LAN.stall_s + 30.0)
    assert states(machine)["n1"] == "alive"
    assert machine.statistics().health > 0


def test_the_gone_are_reaped_in_the_end() -> None:
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive, word(Left, third.raw))
    other.say(machine, word(Down, other.raw))
    assert states(machine) == {"n0": "alive", "n1": "down", "n2": "left"}
    now = LAN.reap_left_s + 120
    machine.on_timer(now)
    assert states(machine) == {"n0": "alive", "n1": "down"}
    machine.on_timer(LAN.reap_down_s + 240)
    assert states(machine) == {"n0": "alive"}


def pushed(*rows: MemberRow) -> bytes:
    return encode_sync(SyncExchange(b"", b"", b"", rows, (), ()))


def test_rows_of_a_sync_are_heard_but_death_is_not_taken_on_trust() -> None:
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    push = pushed(
        MemberRow("down", third.alive),
        MemberRow("down", Insider(5).alive),
        MemberRow("left", Insider(6).alive),
        MemberRow("suspect", Insider(3).alive),
    )
    machine.sync_answer(push, other.node, 1.0, WALL_MS)
    assert states(machine) == {"n0": "alive", "n1": "alive", "n2": "suspect", "n3": "alive"}
    other.say(machine, word(Down, third.raw), now=1.1)
    newer = MemberRow("down", msgspec.structs.replace(third.alive, incarnation=3))
    own = MemberRow("down", Alive(bytes.fromhex(machine.node_id), 1, 0, third.alive.metadata))
    for _ in range(2):
        machine.sync_answer(pushed(newer, own), other.node, 1.2, WALL_MS)
    member = machine.member(third.node)
    assert member is not None
    assert (member.state, member.incarnation) == ("down", 3)
    assert incarnation(machine) == 1, "refuted"


def test_acks_tell_the_suspected_and_strangers_are_introduced() -> None:
    machine, other = make_gossip(0), Insider(1)
    other.say(machine, Ping(9))
    answer = machine.poll_transmit()
    assert answer is not None
    opened = Seal(Keyring([CLUSTER_KEY]), other.node, 1).open(answer.data)
    kinds = [message[0] for message in msgspec.msgpack.decode(opened.payload)]
    assert kinds == [2, 5], "an ack and this node's introduction"
    other.say(machine, other.alive)
    other.say(machine, word(Suspect, other.raw))
    while machine.poll_transmit() is not None:
        pass
    other.say(machine, Ping(10))
    answer = machine.poll_transmit()
    assert answer is not None
    opened = Seal(Keyring([CLUSTER_KEY]), other.node, 1).open(answer.data)
    kinds = [message[0] for message in msgspec.msgpack.decode(opened.payload)]
    assert 6 in kinds, "it hears that it is suspected"
    other.say(machine, Ack(12345, 0, 0))


def test_datagrams_waiting_for_the_driver_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "TRANSMITS_MAX", 2)
    machine, other = make_gossip(0), Insider(1)
    for seq in range(5):
        other.say(machine, Ping(seq))
    assert machine.statistics().transmits_lost == 3
    assert machine.poll_transmit() is not None
    assert machine.poll_transmit() is not None
    assert machine.poll_transmit() is None


def test_knocks_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining_module, "SEEDS_MAX", 1)
    monkeypatch.setattr(joining_module, "KNOWN_AT_ONCE", 0)
    machine = make_gossip(0)
    machine.join([address_of(1), address_of(2)], 0.0)
    for step in range(60):
        machine.on_timer(float(step))
    sent = []
    while (datagram := machine.poll_transmit()) is not None:
        sent.append(datagram.address)
    assert set(sent) == {address_of(1)}
    assert len(machine._membership._contacts._joining) <= 5


def test_more_members_than_the_table_holds_are_refused() -> None:
    machine, other = make_gossip(0), Insider(1)
    machine._table._members_max = 2
    other.say(machine, other.alive, Insider(2).alive)
    assert states(machine) == {"n0": "alive", "n1": "alive"}
    assert machine.statistics().refused == {"members-full": 1}


def test_the_last_look_waits_for_a_free_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, other = make_gossip(0), Insider(1)
    other.say(machine, other.alive)
    other.say(machine, word(Suspect, other.raw))
    monkeypatch.setattr(probing_module, "PROBES_MAX", 0)
    at = 0.0
    for _ in range(100):
        deadline = machine.next_deadline()
        assert deadline is not None
        at = deadline
        machine.on_timer(at)
    assert at > 10
    assert states(machine)["n1"] == "suspect", "nobody is condemned unseen"
    monkeypatch.undo()
    for _ in range(20):
        deadline = machine.next_deadline()
        assert deadline is not None
        machine.on_timer(deadline)
    assert states(machine)["n1"] == "down"


def test_an_answer_to_the_last_look_buys_time() -> None:
    """The suspect answers but never refutes: it is looked at again and again, not condemned."""
    machine, other = make_gossip(0), Insider(1)
    other.say(machine, other.alive)
    other.say(machine, word(Suspect, other.raw))
    opener = Seal(Keyring([CLUSTER_KEY]), other.node, 1)
    at = 0.0
    while at < 20:
        deadline = machine.next_deadline()
        assert deadline is not None
        at = deadline
        machine.on_timer(at)
        while (datagram := machine.poll_transmit()) is not None:
            for message in msgspec.msgpack.decode(opener.open(datagram.data).payload):
                if message[0] == 1:
                    other.say(machine, Ack(message[1], 0, 0), now=at + 0.001)
    assert states(machine)["n1"] == "suspect"
    assert machine.statistics().members == {"alive": 1, "suspect": 1}
