"""The facade: records and holdings reach everyone, syncs are bounded, hostile input is refused."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from protocol_support import (
    WALL_MS,
    Wire,
    address_of,
    alias_record,
    anchor,
    carry_sync,
    credential_of,
    key_of,
    make_gossip,
    metadata_of,
    node_id,
    spec_bytes,
    version_record,
)
from test_membership_wire import Insider, events

from protocol import asking as asking_module
from protocol import catalog as catalog_module
from protocol import records as records_module
from protocol import sync as sync_module
from protocol.clock import SKEW_MS_MAX
from protocol.codec import encode_sync
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.events import HoldingsChanged, RecordsAccepted, RecordsPurged, SyncWanted
from protocol.function import version_of
from protocol.gossip import HOUSEKEEPING_S, Gossip, GossipConfig
from protocol.identity import TrustAnchor
from protocol.ids import digest_of
from protocol.messages import (
    HoldingsUpdate,
    MemberRow,
    RecordHint,
    RecordUpdate,
)
from protocol.presets import LAN
from protocol.records import Record, encode_record, prove_records, record_key, verify_record
from protocol.rng import Rng
from protocol.seal import Keyring, key_id
from protocol.syncing import ASKING_MAX
from protocol.syncmessages import (
    SYNC_RECORDS_MAX,
    Outline,
    SyncDelivery,
    SyncExchange,
    SyncList,
    SyncOutline,
)

SPEC = spec_bytes("one")


def deploy(wire: Wire, index: int, name: str, spec: bytes) -> None:
    catalog = wire[index].catalog
    wire[index].publish(catalog.prepare_deploy(name, spec, wall_ms=wire.wall_ms), wire.now)


def refusal(machine: Gossip, data: bytes) -> str:
    before = machine.statistics()
    with pytest.raises(RemoteProtocolError) as caught:
        machine.receive_datagram(data, address_of(9), 1.0, WALL_MS)
    assert machine.statistics() == before
    assert machine.poll_transmit() is None, "nothing is answered"
    return caught.value.code


def test_a_deployment_reaches_everyone_and_is_persisted() -> None:
    wire = Wire(5)
    wire.join_all()
    deploy(wire, 3, "hello", SPEC)
    wire.run(0.5)
    for index in range(5):
        current = wire[index].catalog.lookup("hello")
        assert current is not None
        assert current.version == version_of(SPEC)
        accepted = wire.seen(f"n{index}", RecordsAccepted)
        keys = [key for event in accepted for key, _ in event.records]
        assert len(keys) == (0 if index == 3 else 2), "each record is reported once"


def test_a_record_over_the_datagram_budget_comes_by_sync() -> None:
    wire = Wire(4)
    wire.join_all()
    deploy(wire, 0, "big", spec_bytes("big", args_bytes=15_000))
    wire.run(1.0)
    assert all(wire[index].catalog.lookup("big") for index in range(4))


def test_holdings_reach_everyone() -> None:
    wire = Wire(4)
    wire.join_all()
    digest = digest_of(b"blob")
    assert wire[2].announce(digest, True, wire.now, "artifact")
    wire.run(0.3)
    assert all(wire[i].holdings.holders(digest) == [node_id("n2")] for i in range(4))
    assert wire.seen("n0", HoldingsChanged) == [HoldingsChanged(node_id("n2"))]
    wire[2].holdings.set_local(digest, False)
    wire.run(2.0)
    assert all(wire[i].holdings.holders(digest) == [] for i in range(4))
    for number in range(40):
        wire[1].holdings.set_local(digest_of(b"%d" % number), True)
    wire.run(5.0)
    assert all(len(wire[i].holdings.held(node_id("n1"))) == 40 for i in range(4))


def test_a_late_joiner_gets_it_all_and_lost_updates_are_found() -> None:
    wire = Wire(3)
    late = wire.machines.pop(address_of(2))
    wire.join_all()
    for number in range(40):
        deploy(wire, 0, f"f{number}", spec_bytes(str(number)))
    wire.run(1)
    wire.machines[address_of(2)] = late
    late.join([address_of(0)], wire.now)
    wire.run(0.5)
    assert len(late.catalog.functions()) == 40
    wire.cut = {address_of(2)}
    deploy(wire, 0, "missed", SPEC)
    wire.run(0.45)
    wire.cut = set()
    wire.run(5)
    assert late.catalog.lookup("missed") is not None
    assert len({machine.state_digest() for machine in wire.machines.values()}) == 1


def test_what_exceeds_a_payload_comes_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "SYNC_BYTES_MAX", 40_000)
    monkeypatch.setattr(asking_module, "_PUSH_BYTES_MAX", 30_000)
    monkeypatch.setattr(sync_module, "OUTLINE_BYTES_MAX", 600)
    one, two = make_gossip(0), make_gossip(1)
    for machine, names in ((one, "a"), (two, "b")):
        for number in range(30):
            spec = spec_bytes(f"{names}{number}", args_bytes=2500)
            records = machine.catalog.prepare_deploy(f"{names}{number}", spec, wall_ms=WALL_MS)
            machine.publish(records, 0.0)
    sizes = carry_sync(two, one, 0.0, WALL_MS)
    assert len(one.catalog.functions()) == len(two.catalog.functions()) == 60
    assert max(sizes) <= 40_000
    assert len(sizes) > 2 * (1 + 60 * 2600 // 30_000), "places were listed in parts too"
    assert len(carry_sync(two, one, 1.0, WALL_MS)) == 2


def test_a_round_brings_no_more_records_than_can_be_checked_at_once() -> None:
    one, two = make_gossip(0), make_gossip(1)
    for machine, letter in ((one, "a"), (two, "b")):
        for number in range(200):
            deploy_quietly(machine, f"{letter}{number}")
    counts = []
    request: bytes | None = two.sync_begin(one.node_id, 0.0)
    while request is not None:
        counts.append(len(two._syncing.records_in(request, reply=False)))
        reply = one.sync_answer(request, two.node_id, 0.0, WALL_MS)
        counts.append(len(one._syncing.records_in(reply, reply=True)))
        request = two.sync_next(reply, one.node_id, 0.0, WALL_MS)
    assert [count for count in counts if count] == [256, 256, 144, 144]
    assert len(one.catalog) == len(two.catalog) == 800
    assert one.state_digest() == two.state_digest()


def deploy_quietly(machine: Gossip, name: str) -> None:
    machine.catalog.apply(machine.catalog.prepare_deploy(name, SPEC, wall_ms=WALL_MS))


def test_a_sync_that_is_refused_ends() -> None:
    one, two = make_gossip(0), make_gossip(1)
    for number in range(SYNC_RECORDS_MAX):
        deploy_quietly(one, f"f{number}")
    behind_ms = WALL_MS - 2 * SKEW_MS_MAX
    sizes = carry_sync(two, one, 0.0, behind_ms)
    assert len(sizes) == 2 * (1 + 2), "everything is offered once"
    assert len(two.catalog) == 0
    assert two.statistics().refused == {"record-future": 2 * SYNC_RECORDS_MAX}
    assert two.statistics().syncs_futile == 0, "it told of a member"
    carry_sync(two, one, 1.0, behind_ms)
    assert two.statistics().syncs_futile == 1


def test_signatures_may_be_checked_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = make_gossip(0), make_gossip(1)
    for name in "abc":
        deploy_quietly(one, name)
    forged = msgspec.structs.replace(version_record("d", SPEC), signature=bytes(64))
    verified = verify_record(version_record("d", SPEC), anchor(), wall_ms=WALL_MS)
    one.catalog.merge(
        msgspec.structs.replace(verified, record=forged, encoded=encode_record(forged))
    )
    refused: list[bytes] = []
    request: bytes | None = two.sync_begin(one.node_id, 0.0)
    while request is not None:
        reply = one.sync_answer(request, two.node_id, 0.0, WALL_MS)
        rows = two.sync_unproven(reply, reply=True)
        proofs = prove_records(anchor().ca_public_key, rows)
        assert len(rows) == len(proofs.held) + len(proofs.refused)
        refused += proofs.refused
        assert two.sync_unproven(b"junk", reply=True) == []
        with monkeypatch.context() as patch:
            calls: list[object] = []
            patch.setattr(records_module, "prove_record", _recording(calls))
            request = two.sync_next(reply, one.node_id, 0.0, WALL_MS, proofs)
        assert calls == [], "nothing is checked again in the loop, a forged one neither"
    assert refused == [encode_record(forged)]
    assert len(two.catalog) == 6
    assert two.statistics().refused == {"signature": 1}
    assert two.sync_unproven(reply, reply=True)[0][0] == encode_record(forged)


def _recording(calls: list[object]) -> Callable[[Record, TrustAnchor], None]:
    prove = records_module.prove_record

    def recording(record: Record, trusted: TrustAnchor) -> None:
        calls.append(record)
        prove(record, trusted)

    return recording


def test_a_removal_of_what_the_other_never_knew_shows_in_digests() -> None:
    wire = Wire(2)
    wire.join_all()
    wire.run(2)
    gone = wire[0].catalog
    gone.merge(verify_record(alias_record("gone", None), anchor(), wall_ms=WALL_MS))
    wire.run(9)
    assert len(wire[1].catalog) == 1


def test_equal_nodes_sync_now_and_then() -> None:
    wire = Wire(2, knobs=msgspec.structs.replace(LAN, sync_backstop_s=20.0))
    wire.join_all()
    wire.run(60)
    wanted = len(wire.seen("n0", SyncWanted)) + len(wire.seen("n1", SyncWanted))
    wire.run(200)
    more = len(wire.seen("n0", SyncWanted)) + len(wire.seen("n1", SyncWanted)) - wanted
    assert 14 <= more <= 40


def test_what_the_catalog_forgets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "TOMBSTONES_MAX", 1)
    machine = make_gossip(0)
    deploy_quietly(machine, "f")
    machine.publish(machine.catalog.prepare_remove("f", wall_ms=WALL_MS), 0.0)
    machine.on_timer(HOUSEKEEPING_S)
    machine.on_timer(2 * HOUSEKEEPING_S)
    (purged,) = (event for event in events(machine) if isinstance(event, RecordsPurged))
    assert purged.keys == (f"v/f/{version_of(SPEC)}",)


def test_hostile_datagrams_are_refused_and_change_nothing() -> None:
    machine, other = make_gossip(0), Insider(1)
    good = other._seal.seal(b"\xdc\x00\x01\x92\x04\x01")
    assert refusal(machine, b"") == "seal-short"
    assert refusal(machine, b"\x00" * 1300) == "seal-long"
    assert refusal(machine, good[:-1]) == "seal-open"
    assert refusal(machine, other._seal.seal(b"junk")) == "codec"
    foreign = make_gossip(1, key=b"f" * 32)
    foreign.join([address_of(0)], 0.0)
    datagram = foreign.poll_transmit()
    assert datagram is not None
    assert refusal(machine, datagram.data) == "seal-key"
    machine.receive_datagram(good, address_of(1), 1.0, WALL_MS)
    assert refusal(machine, good) == "seal-replay"
    machine.join([address_of(5)], 1.0)
    own = machine.poll_transmit()
    assert own is not None
    assert refusal(machine, own.data) == "own-datagram"


def test_a_former_self_of_a_member_is_refused() -> None:
    machine = make_gossip(0)
    Insider(1).say(machine, Insider(2, generation=5).alive)
    while machine.poll_transmit() is not None:
        pass
    with pytest.raises(RemoteProtocolError, match="stale-generation"):
        Insider(2, generation=4).say(machine, Insider(2).alive)


def test_bad_records_are_counted_and_the_rest_is_used() -> None:
    machine, other = make_gossip(0), Insider(1)
    good = encode_record(version_record("hello", SPEC))
    altered = encode_record(
        msgspec.structs.replace(version_record("other", SPEC), signature=bytes(64))
    )
    future = encode_record(alias_record("later", None, hlc=(WALL_MS + SKEW_MS_MAX + 5000) << 16))
    by_serve = msgspec.structs.replace(
        version_record("x", SPEC), credential=credential_of("n0", roles=("serve",))
    )
    for record in (altered, future, encode_record(by_serve), b"junk"):
        other.say(machine, RecordUpdate(record))
    other.say(machine, other.alive, RecordUpdate(good))
    assert machine.catalog.encoded(f"v/hello/{version_of(SPEC)}") == good
    assert len(machine.catalog) == 1
    assert machine.statistics().refused == {
        "signature": 1,
        "record-future": 1,
        "credential-role": 1,
        "record": 1,
    }


def test_hints_ask_for_a_sync_once() -> None:
    machine, other = make_gossip(0), Insider(1)
    hint = RecordHint("v/big/x", 5)
    other.say(machine, hint)
    assert not events(machine), "whom to ask is not known"
    other.say(machine, other.alive)
    events(machine)
    other.say(machine, hint, hint)
    other.say(machine, hint)
    wanted = [event for event in events(machine) if isinstance(event, SyncWanted)]
    assert [event.peer.node_id for event in wanted] == [other.node]
    record = alias_record("hello", None)
    machine.publish([record], 5.0)
    other.say(machine, RecordHint(record_key(record), record.hlc), now=9.0)
    assert not [event for event in events(machine) if isinstance(event, SyncWanted)]


def test_holdings_gaps_and_overflow() -> None:
    machine, other = make_gossip(0), Insider(1)
    other.say(machine, other.alive)
    events(machine)
    gap = HoldingsUpdate(other.raw, 1, 50, 51, ())
    other.say(machine, gap, now=0.1)
    other.say(machine, gap, now=9.0)
    assert [type(event) for event in events(machine)] == [SyncWanted]


def test_syncs_are_bound_to_the_authenticated_peer() -> None:
    one, two = make_gossip(0), make_gossip(1)
    request = one.sync_begin(two.node_id, 0.0)
    with pytest.raises(RemoteProtocolError, match="sync-peer"):
        two.sync_answer(request, node_id("n2"), 0.0, WALL_MS)
    assert two.member(one.node_id) is None
    reply = two.sync_answer(request, one.node_id, 0.0, WALL_MS)
    one.sync_begin(node_id("n2"), 0.0)
    with pytest.raises(RemoteProtocolError, match="sync-peer"):
        one.sync_next(reply, node_id("n2"), 0.0, WALL_MS)
    for junk in (b"", b"\xff", reply):
        with pytest.raises(RemoteProtocolError, match="sync"):
            two.sync_answer(junk, one.node_id, 0.0, WALL_MS)
    with pytest.raises(RemoteProtocolError, match="sync"):
        one.sync_next(request, two.node_id, 0.0, WALL_MS)
    assert one.sync_next(reply, two.node_id, 0.0, WALL_MS) is not None, (
        "its row of the asker is old"
    )
    one.sync_failed(two.node_id)
    one.sync_failed(two.node_id)
    with pytest.raises(LocalProtocolError, match="no sync"):
        one.sync_next(reply, two.node_id, 0.0, WALL_MS)
    assert one.member(two.node_id) is not None
    assert two.member(one.node_id) is not None
    for number in range(2 * ASKING_MAX):
        one.sync_begin(node_id(f"n{number}"), 0.0)
    assert len(one._syncing._asking) == ASKING_MAX


@pytest.mark.parametrize(
    "message",
    [
        SyncList(b"x", b""),
        SyncList(b"", b"\xff\xff"),
        SyncExchange(b"x", b"", b"", (), (), ()),
        SyncExchange(b"", b"x", b"", (), (), ()),
        SyncExchange(b"", b"", b"x", (), (), ()),
    ],
)
def test_malformed_requests_are_refused_and_change_nothing(
    message: SyncList | SyncExchange,
) -> None:
    machine, peer = make_gossip(0), Insider(1)
    if isinstance(message, SyncExchange):
        message = msgspec.structs.replace(message, members=(MemberRow("alive", peer.alive),))
    with pytest.raises(RemoteProtocolError, match="sync"):
        machine.sync_answer(encode_sync(message), peer.node, 0.0, WALL_MS)
    assert machine.member(peer.node) is None


NOTHING = Outline((), ())
DIFFERENT = Outline((), ((0, bytes(7) + b"\x01" + bytes(504)),))
"""In the first bucket."""
NO_STATE = bytes(28) + b"\x09" + bytes(8)


@pytest.mark.parametrize(
    "replies",
    [
        [SyncOutline(Insider(1).alive, Outline(((0, b"x"),), ()), NOTHING)],
        [
            SyncOutline(
                Insider(1).alive,
                Outline(((0, bytes(28) + b"\x09" + bytes(8)),), ()),
                NOTHING,
            )
        ],
        [SyncOutline(Insider(1).alive, NOTHING, Outline(((0, b"x"),), ()))],
        [SyncDelivery((), (), (), (1, 0, 0), 0)],
        [
            SyncOutline(Insider(1).alive, NOTHING, Outline(((0, bytes(20)),), ())),
            SyncDelivery((), (), (), (0, 0, 0), 0),
        ],
        *(
            [SyncOutline(Insider(1).alive, NOTHING, DIFFERENT), again]
            for again in (
                SyncOutline(Insider(1).alive, NOTHING, NOTHING),
                SyncOutline(Insider(1).alive, NOTHING, DIFFERENT),
                SyncOutline(Insider(1).alive, NOTHING, Outline(((1, b""),), ())),
                SyncOutline(Insider(1).alive, Outline(((0, b""),), ()), NOTHING),
            )
        ),
    ],
)
def test_malformed_replies_are_refused(replies: list[SyncOutline | SyncDelivery]) -> None:
    machine, peer = make_gossip(0), Insider(1)
    machine.sync_begin(peer.node, 0.0)
    *good, bad = map(encode_sync, replies)
    for reply in good:
        assert machine.sync_next(reply, peer.node, 0.0, WALL_MS) is not None
    with pytest.raises(RemoteProtocolError, match="sync"):
        machine.sync_next(bad, peer.node, 0.0, WALL_MS)


def test_who_left_takes_nothing_in() -> None:
    one, two = make_gossip(0), make_gossip(1)
    one.leave(0.0)
    carry_sync(one, two, 0.0, WALL_MS)
    assert one.member(two.node_id) is None


def test_configuration_is_checked() -> None:
    def make(name: str, generation: int) -> Gossip:
        rng: Rng = __import__("random").Random(1)
        return Gossip(
            GossipConfig(metadata=metadata_of(name, address_of(0)), generation=generation),
            Keyring([bytes(32)]),
            anchor(),
            key_of("n0"),
            credential_of("n0"),
            rng,
            now=0.0,
            wall_ms=WALL_MS,
        )

    for name, generation in (("n1", 1), ("n0", 0), ("n0", 1 << 63)):
        with pytest.raises(LocalProtocolError):
            make(name, generation)
    assert make("n0", 1).next_deadline() is not None


def test_the_keyring_changes_live() -> None:
    wire = Wire(2)
    wire.join_all()
    new = b"n" * 32
    ring = Keyring([new, bytes(range(32))])
    wire[0].set_keyring(ring, wire.now)
    assert wire[0].keyring_ids == tuple(key_id(key).hex() for key in (new, bytes(range(32))))
    wire.run(2)
    assert "seal-key" in wire.errors
    wire[1].set_keyring(ring, wire.now)
    wire.errors.clear()
    wire.run(5)
    assert wire.errors == []
    member = wire[1].member(wire[0].node_id)
    assert member is not None
    assert member.metadata.keyring == "".join(wire[0].keyring_ids)
    assert wire.states(0) == wire.states(1) == {"n0": "alive", "n1": "alive"}
    statistics = wire[0].statistics()
    assert statistics.datagrams_sent > 0
    assert statistics.bytes_received > 0
    assert statistics.members == {"alive": 2}


def test_load_travels_in_acks_and_costs_nothing_else() -> None:
    wire = Wire(2)
    wire.join_all()
    wire.run(3)
    before = wire[0].statistics().datagrams_sent
    wire.run(10)
    quiet = wire[0].statistics().datagrams_sent - before
    for share, heard in ((0.5, 128 / 255), (7.0, 1.0), (-1.0, 0.0)):
        before = wire[0].statistics().datagrams_sent
        for _ in range(100):
            wire[0].set_load(share)
        wire.run(10)
        assert wire[0].statistics().datagrams_sent - before <= quiet + 2
        member = wire[1].member(wire[0].node_id)
        assert member is not None
        assert member.load == heard
        assert member.incarnation == 0
