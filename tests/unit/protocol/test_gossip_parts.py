"""The small parts: timers, broadcasts, suspicion, table, probes, policy, codec. SPEC §4, §5."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from protocol_support import address_of, metadata_of, node_id

from protocol import probing
from protocol.broadcasts import KNOWING_MAX, Broadcasts
from protocol.codec import (
    decode_packet,
    decode_sync_reply,
    decode_sync_request,
    encode_message,
    encode_sync,
    join_messages,
)
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.ids import NodeId
from protocol.messages import (
    Ack,
    Finding,
    Nack,
    PingReq,
)
from protocol.presets import LAN, PRESETS, without_lifeguard
from protocol.probing import Health, Prober
from protocol.suspicion import Evidence, Suspicion, retransmit_limit, timeout_s, verifier_points
from protocol.syncmessages import SYNC_BYTES_MAX, SyncExchange
from protocol.syncpolicy import BULK_S, IMPATIENCE, PER_INTERVAL_MAX, SyncPolicy
from protocol.table import Peer, RttEstimate, Table
from protocol.timers import Timers

NODES = [node_id(f"n{i}") for i in range(10)]


def add(table: Table, index: int, *, state="alive", generation=1, now=0.0) -> Peer:
    node = NODES[index]
    metadata = metadata_of(f"n{index}", address_of(index))
    peer = table.add(node, bytes.fromhex(node), metadata, is_self=index == 0, now=now)
    assert peer is not None
    table.update(
        peer, generation=generation, incarnation=0, state=state, now=now, metadata=metadata
    )
    return peer


def test_timers_fire_in_order_and_ties_in_order_of_setting() -> None:
    timers = Timers()
    timers.set(("b", 1), 2.0)
    timers.set(("a", 1), 2.0)
    timers.set(("c", 1), 1.0)
    timers.set(("b", 1), 2.0)
    timers.set_earlier(("c", 1), 5.0)
    assert timers.at(("c", 1)) == 1.0
    timers.cancel(("missing", 0))
    assert timers.pop_due(0.5) is None
    assert [timers.pop_due(2.0) for _ in range(4)] == [("c", 1), ("a", 1), ("b", 1), None]
    assert timers.next() is None
    assert timers.at(("c", 1)) is None


def test_timers_do_not_grow_with_resetting() -> None:
    timers = Timers()
    for number in range(10_000):
        timers.set(("x", 0), float(number))
    assert len(timers._heap) < 200
    assert timers.next() == 9999.0
    timers.set(("y", 0), 10_000.0)
    timers.delay(frozenset({"x"}), 5.0)
    assert timers.pop_due(1e9) == ("y", 0)
    assert timers.next() == 10_004.0


def test_broadcasts_go_out_least_sent_first_and_end() -> None:
    queue = Broadcasts()
    queue.put("a", b"aaaa")
    queue.put("b", b"bb")
    assert queue.take(5, 9, limit=2, wire=2) == [b"aaaa"]
    assert queue.take(9, 9, limit=2, wire=2) == [b"bb", b"aaaa"]
    assert queue.take(9, 9, limit=2, wire=2) == [b"bb"]
    assert queue.take(9, 9, limit=2, wire=2) == []
    assert len(queue) == 0
    queue.put("a", b"old")
    queue.put("a", b"new")
    assert queue.take(99, 9, limit=1, wire=2) == [b"new"]
    queue.drop("a")


def test_broadcasts_are_bounded_and_the_most_sent_goes() -> None:
    queue = Broadcasts(items_max=2)
    queue.put("a", b"aa")
    queue.take(9, 9, limit=9, wire=2)
    queue.put("b", b"bb")
    queue.put("c", b"cc")
    assert queue.dropped == 1
    assert queue.take(9, 9, limit=9, wire=2) == [b"bb", b"cc"]
    assert queue.take(9, 1, limit=9, wire=2) == [b"bb"]


def test_an_update_is_not_sent_to_those_it_came_from() -> None:
    queue = Broadcasts()
    assert not queue.heard(b"aaaa", b"x"), "not under way"
    queue.put("a", b"aaaa")
    queue.put("b", b"bb")
    assert queue.heard(b"aaaa", b"x")
    assert queue.heard(b"aaaa", b"y")
    # What is left out needs no room, and counts as sent.
    assert queue.take(2, 9, limit=2, wire=2, receiver=b"x") == [b"bb"]
    assert queue.take(9, 9, limit=2, wire=2, receiver=b"y") == [b"bb"]
    assert len(queue) == 0
    assert not queue.heard(b"aaaa", b"x"), "its way has ended"
    queue.put("a", b"aaaa")
    queue.heard(b"aaaa", b"x")
    queue.put("a", b"newer")
    assert not queue.heard(b"aaaa", b"x")
    assert queue.take(9, 9, limit=1, wire=2, receiver=b"x") == [b"newer"]


def test_senders_of_an_update_are_remembered_up_to_a_bound() -> None:
    queue = Broadcasts()
    queue.put("a", b"aa")
    for number in range(KNOWING_MAX + 1):
        assert queue.heard(b"aa", bytes([number]))
    assert queue.take(9, 9, limit=99, wire=2, receiver=bytes([KNOWING_MAX])) == [b"aa"]
    assert queue.take(9, 9, limit=99, wire=2, receiver=bytes([KNOWING_MAX - 1])) == []


def test_big_updates_do_not_make_the_search_long() -> None:
    queue = Broadcasts()
    for number in range(500):
        queue.put(str(number), b"x" * 100)
    queue.put("small", b"s")
    assert queue.take(50, 9, limit=2, wire=2) == [], "the small one is beyond what is looked at"


def test_the_suspicion_formula() -> None:
    def at(confirmations: int, expected: int = 3) -> float:
        return timeout_s(min_s=2, max_s=10, confirmations=confirmations, expected=expected)

    assert at(0) == 10
    assert at(3) == pytest.approx(2)
    assert 2 < at(2) < at(1) < 10
    assert at(0, expected=0) == 2
    assert [retransmit_limit(4, n) for n in (0, 1, 9, 10, 99, 1000)] == [4, 4, 4, 8, 8, 16]


def test_suspicion_counts_each_accuser_once_up_to_k() -> None:
    suspicion = Suspicion(LAN, now=0.0, others=8, verifier=True)
    assert suspicion.accuse(NODES[1], Finding.SILENT)
    assert suspicion.deadline() == 10.0
    assert not suspicion.accuse(NODES[1], Finding.SILENT)
    assert suspicion.accuse(NODES[1], Finding.REFUSED), "a refusal is a word of its own"
    assert not suspicion.accuse(NODES[1], Finding.REFUSED)
    assert [suspicion.accuse(NODES[i], Finding.SILENT) for i in range(2, 6)] == [True] * 3 + [False]
    assert suspicion.deadline() == pytest.approx(2.0)
    bystander = Suspicion(LAN, now=0.0, others=0, verifier=False)
    bystander.accuse(NODES[1], Finding.SILENT)
    assert bystander.deadline() == 3.0


def test_everyone_picks_the_same_verifiers() -> None:
    points = list(verifier_points(NODES[0], 1, 2, 6))
    assert points == list(verifier_points(NODES[0], 1, 2, 6))
    assert len(set(points)) == 24
    assert all(len(point) == len(NODES[0]) for point in points)
    assert points != list(verifier_points(NODES[0], 1, 3, 6))


def test_rtt_follows_rfc_6298() -> None:
    rtt = RttEstimate()
    assert rtt.timeout_s(0.05, 0.2) == 0.2
    rtt.add(0.02)
    assert (rtt.srtt_s, rtt.rttvar_s) == (0.02, 0.01)
    assert rtt.timeout_s(0.05, 0.2) == pytest.approx(0.06)
    rtt.add(0.1)
    assert rtt.srtt_s == pytest.approx(0.03)
    assert rtt.timeout_s(0.05, 0.1) == 0.1
    for _ in range(100):
        rtt.add(0.001)
    assert rtt.timeout_s(0.05, 0.2) == 0.05


def test_local_health_stays_in_its_bounds() -> None:
    health = Health(2)
    health.change(-1)
    assert health.scale == 1
    health.change(5)
    assert health.scale == 3


def test_the_table_digest_is_of_reachable_members() -> None:
    table = Table()
    add(table, 0)
    before = table.state_digest()
    peer = add(table, 1)
    with_peer = table.state_digest()
    assert with_peer != before
    table.update(peer, generation=1, incarnation=0, state="suspect", now=1.0)
    assert table.state_digest() == with_peer
    table.update(peer, generation=1, incarnation=0, state="down", now=2.0)
    assert table.state_digest() == before
    assert table.others() == []
    table.remove(peer)
    assert table.at_address(address_of(1)) is None
    assert len(table) == 1


def test_addresses_change_hands() -> None:
    table = Table()
    old, new = add(table, 1), add(table, 2)
    table.update(new, generation=1, incarnation=1, state="alive", now=1.0, metadata=old.metadata)
    assert table.at_address(address_of(1)) is new
    assert table.at_address(address_of(2)) is None
    table.remove(old)
    assert table.at_address(address_of(1)) is new


def test_a_full_table_gives_up_who_is_gone_longest() -> None:
    table = Table(members_max=3)
    add(table, 0)
    add(table, 1, state="down", now=5.0)
    add(table, 2, state="left", now=4.0)
    add(table, 3)
    assert table.get(NODES[2]) is None
    add(table, 4)
    metadata = metadata_of("n5", address_of(5))
    assert table.add(NODES[5], bytes.fromhex(NODES[5]), metadata, is_self=False, now=6.0) is None


def prober(members: int) -> tuple[Prober, Table, Timers]:
    table, timers = Table(), Timers()
    for index in range(members):
        add(table, index)
    probes = Prober(
        NODES[0],
        LAN,
        random.Random(1),
        timers,
        table,
        lambda seq: Ack(seq, 7, 9),
        lambda raw: None,
    )
    return probes, table, timers


def probed(probes: Prober, turns: int) -> list[str]:
    """Whom it probes, each probe over before the next."""
    found: list[str] = []
    for _ in range(turns):
        for send in probes.probe_next(0.0):
            assert send.to is not None
            found.append(send.to)
            probes.forget(send.to)
    return found


def test_each_round_visits_everyone_once() -> None:
    probes, table, _ = prober(6)
    seen = probed(probes, 20)
    neighbours, rounds = seen[::2], seen[1::2]
    assert neighbours == [table.after(NODES[0])] * 10
    assert sorted(rounds[:5]) == sorted(rounds[5:]) == sorted(NODES[1:6])
    for peer in table.others():
        table.update(peer, generation=1, incarnation=0, state="down", now=0.0)
    assert probes.probe_next(0.0) == []


def silent_ring(members: int) -> tuple[Prober, Table, list[str]]:
    """And the others, in the order of the ring after this node."""
    probes, table, _ = prober(members)
    ring = sorted(NODES[1:members], key=lambda node_id: (node_id < NODES[0], node_id))
    return probes, table, ring


def silences(probes: Prober) -> list[str]:
    """From a turn that is the neighbour's, with direct timeouts as they follow."""
    found: list[str] = []
    sends = probes.probe_next(0.0)
    while sends:
        found.append(sends[0].to or "")
        _, probe, _ = probes.on_deadline(sends[0].messages[0].seq)  # type: ignore[union-attr]
        sends = probes.probe_beyond(probe, 0.1 * len(found))
    return found


def test_a_gap_in_the_ring_is_walked_at_once_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    probes, table, ring = silent_ring(10)
    suspect = table.get(ring[1])
    assert suspect is not None
    table.update(suspect, generation=1, incarnation=0, state="suspect", now=0.0)
    assert silences(probes) == [ring[0], *ring[2:]], "until the ring is round"
    monkeypatch.setattr(probing, "GAP_MAX", 3)
    wide, _, ring = silent_ring(10)
    assert silences(wide) == ring[:4]


def test_probes_of_the_round_look_beyond_nobody() -> None:
    probes, _, _ = silent_ring(10)
    probed(probes, 1)
    (send,) = probes.probe_next(0.0)
    _, probe, failed = probes.on_deadline(send.messages[0].seq)  # type: ignore[union-attr]
    assert not failed
    assert probes.probe_beyond(probe, 0.1) == []


def test_newcomers_join_the_round_under_way() -> None:
    probes, table, _ = prober(9)
    first = probed(probes, 4)[1::2]
    add(table, 9)
    for _ in range(100):
        probes.include(NODES[9])
    assert len(probes._newcomers) == probing.NEWCOMERS_MAX
    rest = probed(probes, 200)[1::2]
    assert sorted({*first, *rest[: rest.index(NODES[9]) + 80]}) == sorted(NODES[1:])
    assert rest.count(NODES[9]) > probing.NEWCOMERS_MAX, "each time, and by rounds since"


def test_a_probe_asks_helpers_and_then_fails() -> None:
    probes, table, timers = prober(6)
    target = table.get(NODES[1])
    assert target is not None
    (send,) = probes.start(target, 10.0)
    assert probes.start(target, 10.0) == [], "one probe per member"
    seq = send.messages[0].seq  # type: ignore[union-attr]
    assert timers.at(("probe", seq)) == pytest.approx(10.2)
    asked, probe, failed = probes.on_deadline(seq)
    assert not failed
    assert probe.target is target
    assert len(asked) == 3
    assert all(isinstance(s.messages[0], PingReq) and s.to != NODES[1] for s in asked)
    assert timers.at(("probe", seq)) == 10.5
    helper = asked[0].to
    assert helper is not None
    probes.on_nack(seq, helper)
    probes.on_nack(seq, NODES[1])
    probes.on_nack(seq + 1, helper)
    assert probes.on_ack(seq, NODES[9], 10.3) is None, "a stranger's ack"
    _, probe, failed = probes.on_deadline(seq)
    assert failed
    assert probe.evidence() == Evidence(direct_ms=200, helpers=3, nacks=1)
    probes.blame(probe)
    assert probes.health.score == 1, "two of three helpers were silent"
    assert probes.on_ack(seq, NODES[1], 10.6) is None, "late"


def test_an_indirect_ack_proves_life_but_measures_nothing() -> None:
    probes, table, _ = prober(3)
    target = table.get(NODES[1])
    assert target is not None
    (send,) = probes.start(target, 10.0)
    seq = send.messages[0].seq  # type: ignore[union-attr]
    probes.on_deadline(seq)
    assert probes.on_ack(seq, NODES[2], 10.3) is not None
    assert target.rtt.srtt_s is None


def test_relays_answer_once_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    probes, _, timers = prober(3)
    request = PingReq(5, bytes.fromhex(NODES[1]), address_of(1))
    (send,) = probes.relay(request, NODES[2], address_of(2), 0.0)
    seq = send.messages[0].seq  # type: ignore[union-attr]
    assert probes.on_relayed_ack(seq, NODES[2]) == [], "not from the target"
    (nack,) = probes.on_relay_deadline(seq, 0.2)
    assert nack.messages == (Nack(5),)
    (ack,) = probes.on_relayed_ack(seq, NODES[1])
    assert (ack.address, ack.messages) == (address_of(2), (Ack(5, 7, 9),))
    assert probes.on_relayed_ack(seq, NODES[1]) == []
    assert timers.next() is None
    monkeypatch.setattr(probing, "RELAYS_MAX", 1)
    (send,) = probes.relay(request, NODES[2], address_of(2), 0.0)
    assert probes.relay(request, NODES[2], address_of(2), 0.0) == []
    seq = send.messages[0].seq  # type: ignore[union-attr]
    probes.on_relay_deadline(seq, 0.2)
    assert probes.on_relay_deadline(seq, 0.3) == []
    assert probes.on_relayed_ack(seq, NODES[1]) == []


def test_syncs_are_asked_for_when_quiet_and_rarely() -> None:
    policy = SyncPolicy(LAN, 0.0)
    policy.changed(10.0)
    assert not policy.mismatch(10.1)
    policy.equal()
    assert policy.mismatch(10.6)
    for step in range(60):
        policy.changed(20 + step * 0.1)
    policy.equal()
    assert not policy.mismatch(23.0)
    assert policy.mismatch(23.0 + IMPATIENCE * LAN.sync_quiet_s)
    assert policy.allow(NODES[0], 30.0, forced=False)
    assert not policy.allow(NODES[0], 30.5, forced=False)
    assert policy.allow(NODES[0], 30.5, forced=True)
    rest = [policy.allow(NODES[i], 30.6, forced=False) for i in range(1, 6)]
    assert rest.count(True) == PER_INTERVAL_MAX - 2
    for number in range(1100):
        policy.allow(f"{number}", 100.0 + number * 2, forced=False)  # type: ignore[arg-type]
    assert len(policy._at_s) < 1100


def turns(
    policy: SyncPolicy, pair: tuple[int, int], *, from_s: int, for_s: int, news: int = 0
) -> list[int]:
    """Seconds at which a node whose peers' acks all show `pair` syncs, each peer in turn."""
    taken = []
    for now in range(from_s, from_s + for_s):
        peer = NODES[now % 5]
        policy.mismatch(now, peer=peer, pair=pair)
        if policy.allow(peer, now, forced=False):
            policy.ended(peer, now, news=news)
            taken.append(now)
    return taken


def test_syncs_without_effect_become_rare_and_others_do_not() -> None:
    policy = SyncPolicy(LAN, 0.0)
    taken = turns(policy, (1, 2), from_s=0, for_s=600)
    gaps = [b - a for a, b in itertools.pairwise(taken)]
    assert gaps[:6] == [2, 4, 8, 16, 32, 64]
    assert set(gaps[6:]) == {64}
    other = turns(policy, (1, 3), from_s=600, for_s=5)
    assert other[0] == 600, "another difference may have a cause that a sync cures"
    assert len(turns(SyncPolicy(LAN, 0.0), (1, 2), from_s=0, for_s=60, news=1)) == 60
    policy.equal()
    assert turns(policy, (1, 2), from_s=601, for_s=3) == [], "others being equal cures nothing"
    assert turns(policy, (4, 2), from_s=700, for_s=3) == [700, 702]
    for number in range(2000):
        policy.mismatch(0.0, peer=NodeId(f"{number}"), pair=(number, 0))
        policy.ended(NodeId(f"{number}"), 0.0, news=0)
        policy.mismatch(0.0, peer=NodeId(f"x{number}"), pair=(number, 0))
        policy.failed(NodeId(f"{number}"))
    assert max(map(len, (policy._told, policy._futile, policy._failures))) <= 1024


def test_a_peer_that_cannot_be_reached_is_asked_ever_more_rarely() -> None:
    policy = SyncPolicy(LAN, 0.0)
    taken = []
    for now in range(600):
        if policy.allow(NODES[0], now, forced=False):
            policy.failed(NODES[0])
            taken.append(now)
    assert [b - a for a, b in itertools.pairwise(taken)][:7] == [2, 4, 8, 16, 32, 64, 64]
    assert policy.allow(NODES[1], 600.0, forced=False)


def test_records_in_bulk_come_from_one_peer_at_a_time() -> None:
    policy = SyncPolicy(LAN, 0.0)
    assert policy.may_carry_bulk(NODES[0], 1.0)
    assert not policy.may_carry_bulk(NODES[1], 1.5)
    assert policy.may_carry_bulk(NODES[0], 2.0)
    assert not policy.allow(NODES[2], 3.0, forced=False)
    assert policy.may_carry_bulk(NODES[1], 2.0 + BULK_S), "the first has not moved since"
    policy.failed(NODES[1])
    assert policy.allow(NODES[2], 8.0, forced=False)


def test_payload_limits() -> None:
    one = encode_message(Nack(1))
    assert decode_packet(join_messages([one, one])) == (Nack(1), Nack(1))
    for parts in ([one] * 129, [b"\xc0" * 1200]):
        with pytest.raises(LocalProtocolError):
            join_messages(parts)
    for payload in (
        b"",
        b"\xdc\x00\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\x91\x91\x63",
        one,
        msgspec.msgpack.encode([(4, 1)] * 129),
        msgspec.msgpack.encode([(4, -1)]),
        msgspec.msgpack.encode([(4, 1 << 32)]),
        msgspec.msgpack.encode([(4, 1, 2)]),
        msgspec.msgpack.encode([(3, 1, b"short", ("h", 1))]),
    ):
        with pytest.raises(RemoteProtocolError, match="codec"):
            decode_packet(payload)


def test_sync_payload_limits() -> None:
    exchange = SyncExchange(b"", b"", b"", (), (), ())
    assert decode_sync_request(encode_sync(exchange)) == exchange
    with pytest.raises(LocalProtocolError):
        encode_sync(msgspec.structs.replace(exchange, records=(b"x" * SYNC_BYTES_MAX,)))
    for data in (b"", b"\xdd\xff\xff\xff\xff", bytes(SYNC_BYTES_MAX + 1), encode_sync(exchange)):
        with pytest.raises(RemoteProtocolError, match="sync"):
            decode_sync_reply(data)


def test_presets_keep_their_own_rules() -> None:
    for name, knobs in PRESETS.items():
        assert knobs.direct_timeout_min_s < knobs.direct_timeout_max_s, name
        assert knobs.direct_timeout_max_s < knobs.probe_window_s <= knobs.probe_interval_s
        assert knobs.suspicion_min_s > knobs.probe_window_s
        assert knobs.stall_s < knobs.probe_window_s


def test_plain_swim_keeps_one_fixed_suspicion_and_nothing_else() -> None:
    plain = without_lifeguard(LAN)
    suspicion = Suspicion(plain, now=0.0, others=20, verifier=False)
    assert suspicion.accuse(NODES[1], Finding.SILENT)
    assert not suspicion.accuse(NODES[2], Finding.SILENT)
    assert suspicion.deadline() == LAN.suspicion_min_s
    health = Health(plain.health_max)
    health.change(5)
    assert health.scale == 1
