"""What hostile and careless senders may cost, and whom they may not silence. SPEC §4.8."""

from __future__ import annotations

import random

import pytest
from protocol_support import CLUSTER_KEY, WALL_MS, Wire, address_of, make_gossip, node_id

from protocol import sources as sources_module
from protocol.codec import encode_message, join_messages
from protocol.errors import RemoteProtocolError
from protocol.events import MemberSuspect
from protocol.gossip import Gossip
from protocol.member import Address
from protocol.messages import Nack, Pad, Ping
from protocol.seal import LONG_BYTES, Keyring, Seal
from protocol.sources import (
    BLOCK_S,
    REFUSED_BURST,
    SENDER_BURST,
    STRANGERS_BLOCK_S,
    STRANGERS_BURST,
    Sources,
)

RNG = random.Random(8)


def forged(size: int = 60) -> bytes:
    """What passes the kernel's filter and does not open."""
    genuine = Seal(Keyring([CLUSTER_KEY]), node_id("n8"), 1).seal(bytes(size))
    return genuine[:8] + RNG.randbytes(len(genuine) - 8)


def code_of(machine: Gossip, data: bytes, source: Address, now: float) -> str:
    try:
        machine.receive_datagram(data, source, now, WALL_MS)
    except RemoteProtocolError as error:
        return error.code
    return ""


def knock() -> bytes:
    seal = Seal(Keyring([CLUSTER_KEY]), node_id("n9"), 1)
    return seal.seal(join_messages([encode_message(Ping(1)), encode_message(Pad(bytes(700)))]))


def test_a_source_of_forgeries_is_dropped_unread_for_a_while() -> None:
    machine, bad, good = make_gossip(0), ("10.9.9.9", 1), ("10.9.9.8", 1)
    codes = [code_of(machine, forged(), bad, 0.0) for _ in range(100)]
    assert codes.count("seal-open") == REFUSED_BURST + 1
    assert codes[-1] == "source-limit"
    assert machine.statistics().sources_blocked == 1
    assert machine.blocked_sources(0.0) == (bad,)
    assert machine.blocked_sources(BLOCK_S) == ()
    assert code_of(machine, knock(), bad, 0.1) == "source-limit"
    assert code_of(machine, knock(), good, 0.1) == "", "others are not concerned"
    assert code_of(machine, forged(), bad, BLOCK_S + 0.1) == "seal-open"


def test_a_flood_in_a_members_name_does_not_silence_it() -> None:
    wire = Wire(3)
    wire.join_all()
    wire.run(3)
    for _ in range(100):
        for victim in (1, 2):
            for _ in range(30):
                with pytest.raises(RemoteProtocolError) as caught:
                    wire[0].receive_datagram(forged(), address_of(victim), wire.now, wire.wall_ms)
                assert caught.value.code == "seal-open"
        wire.run(0.1)
    assert not any(isinstance(event, MemberSuspect) for _, event in wire.events)
    assert wire.errors == []
    assert wire[0].statistics().sources_blocked == 0


def test_where_a_member_really_speaks_from_is_exempt_too() -> None:
    """Behind NAT its source is not the address it calls its own."""
    wire = Wire(2)
    wire.join_all()
    wire.run(2)
    source = ("192.0.2.7", 4001)
    own = wire[0].members()[0]
    seal = Seal(Keyring([CLUSTER_KEY]), node_id("n7"), 1)
    said = join_messages([encode_message(Nack(1))])
    bound = seal.seal(said, bytes.fromhex(own.node_id), own.generation)
    assert code_of(wire[0], bound, source, wire.now) == ""
    codes = {code_of(wire[0], forged(), source, wire.now) for _ in range(200)}
    assert codes == {"seal-open"}
    unproven = ("192.0.2.8", 4001)
    assert code_of(wire[0], knock(), unproven, wire.now) == ""
    codes = {code_of(wire[0], forged(), unproven, wire.now) for _ in range(200)}
    assert "source-limit" in codes, "a knock may be a recording and proves nothing"


def test_a_flood_from_ever_new_addresses_leaves_members_alone() -> None:
    wire = Wire(3)
    wire.join_all()
    wire.run(3)
    codes = [
        code_of(wire[0], forged(), (f"10.7.{i >> 8}.{i & 255}", 9), wire.now) for i in range(5000)
    ]
    assert codes.count("seal-open") == STRANGERS_BURST + 1
    assert codes[-1] == "source-limit"
    wire.run(10)
    assert not any(isinstance(event, MemberSuspect) for _, event in wire.events)
    wire.run(STRANGERS_BLOCK_S)
    assert code_of(wire[0], knock(), ("10.8.0.1", 9), wire.now) == ""


def test_a_member_that_sends_without_end_is_heard_in_part() -> None:
    machine = make_gossip(0)
    own = machine.members()[0]
    seal = Seal(Keyring([CLUSTER_KEY]), node_id("n7"), 1)
    said = join_messages([encode_message(Nack(1))])
    codes = [
        code_of(
            machine,
            seal.seal(said, bytes.fromhex(own.node_id), own.generation),
            address_of(7),
            0.0,
        )
        for _ in range(int(SENDER_BURST) + 50)
    ]
    assert codes.count("") == SENDER_BURST
    assert codes.count("sender-limit") == 50
    later = seal.seal(said, bytes.fromhex(own.node_id), own.generation)
    assert code_of(machine, later, address_of(7), 1.0) == ""


def test_what_is_remembered_of_sources_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("SOURCES_MAX", 10),
        ("PROVEN_MAX", 10),
        ("SENDERS_MAX", 10),
        ("REFUSED_BURST", 1.0),
        ("STRANGERS_BURST", 1e9),
    ):
        monkeypatch.setattr(sources_module, name, value)
    sources = Sources(lambda _: False, 0.0)
    for index in range(100):
        source = (f"10.0.0.{index}", 1)
        for _ in range(3):
            sources.refused(source, index * 0.001)
        proven = (f"10.0.1.{index}", 1)
        sources.opened(proven, node_id(f"n{index}"), index * 0.001, bound=True)
    held = (sources._refused, sources._blocked, sources._proven, sources._senders)
    assert [len(each) for each in held] == [10] * 4
    sources.refused(("10.0.2.1", 1), 100.0)
    assert len(sources) == 0, "bans end"
    sources.admit(("10.0.0.99", 1), 100.0)


def test_forgeries_leave_no_trace() -> None:
    machine = make_gossip(0)
    for index in range(500):
        size = RNG.randrange(0, 300)
        data = forged(size)[: RNG.randrange(LONG_BYTES, LONG_BYTES + size + 16)]
        code_of(machine, data, (f"10.1.{index >> 8}.{index & 255}", 1), index * 0.01)
    seal = machine._seal
    assert len(seal._windows) == len(seal._ciphers) == len(seal.links) == 0
