"""Laws of the gossip core that no single example can show. SPEC §4–§7."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_support import (
    CLUSTER_KEY,
    WALL_MS,
    address_of,
    alias_record,
    anchor,
    carry_sync,
    init_spec_bytes,
    make_catalog,
    make_gossip,
    metadata_of,
    node_id,
    spec_bytes,
    statement_of,
    tell,
    version_record,
)

from protocol.artifact import decode_attestations
from protocol.buckets import GROUPS, PLACES
from protocol.catalog import Catalog, SavedRecord
from protocol.codec import (
    decode_packet,
    decode_sync_reply,
    decode_sync_request,
    encode_message,
    encode_sync,
    join_messages,
)
from protocol.errors import RemoteProtocolError
from protocol.function import decode_spec, version_of
from protocol.holdings import Holdings
from protocol.ids import Digest
from protocol.manifest import decode_manifest
from protocol.member import Metadata
from protocol.messages import (
    Ack,
    Alive,
    Down,
    Finding,
    HoldingsUpdate,
    Left,
    MemberRow,
    Message,
    Nack,
    Pad,
    Ping,
    PingReq,
    RecordHint,
    RecordUpdate,
    Suspect,
)
from protocol.records import decode_record, verify_record
from protocol.replay import WINDOW_BITS
from protocol.seal import Keyring, Seal
from protocol.syncmessages import (
    HoldingsSet,
    Outline,
    SyncDelivery,
    SyncExchange,
    SyncList,
    SyncOpen,
    SyncOutline,
    SyncReply,
    SyncRequest,
)
from protocol.table import RANK

u32 = st.integers(0, (1 << 32) - 1)
u63 = st.integers(0, (1 << 63) - 1)
raw_ids = st.binary(min_size=16, max_size=16)
raw_digests = st.binary(min_size=32, max_size=32)
addresses = st.tuples(
    st.sampled_from(["127.0.0.1", "::1", "host.example", "fe80::1%eth0"]), st.integers(1, 65535)
)
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=64)
metadatas = st.builds(
    Metadata,
    name=st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True),
    gossip_address=addresses,
    stream_address=addresses,
    gateway_url=st.just("http://127.0.0.1:80"),
    region=texts,
    target=texts,
    artifact_key=st.text("0123456789abcdef", max_size=64),
    keyring=st.sampled_from(["", "00ff00ff", "0123456789abcdef"]),
    wire=st.integers(1, 127),
)
alives = st.builds(Alive, raw_ids, u63, u32, metadatas)
forms = st.sampled_from(["module", "running", "building", "ready", "artifact"])
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ping, u32),
    st.builds(Ack, u32, u32, st.integers(0, 255)),
    st.builds(Pad, st.binary(max_size=300)),
    st.builds(PingReq, u32, raw_ids, addresses),
    st.builds(Nack, u32),
    alives,
    st.builds(Suspect, raw_ids, u63, u32, raw_ids, st.sampled_from(Finding)),
    st.builds(Down, raw_ids, u63, u32, raw_ids, st.booleans()),
    st.builds(Left, raw_ids, u63, u32),
    st.builds(RecordUpdate, st.binary(min_size=1, max_size=300)),
    st.builds(RecordHint, st.text(min_size=3, max_size=40), u63),
    st.builds(
        HoldingsUpdate,
        raw_ids,
        u63,
        u63,
        u63,
        st.lists(st.tuples(raw_digests, forms | st.just("")), max_size=5).map(tuple),
    ),
)
sets = st.builds(
    HoldingsSet,
    raw_ids,
    u63,
    u63,
    u63,
    st.lists(st.tuples(raw_digests, forms | st.just("")), max_size=5).map(tuple),
)
rows = st.builds(MemberRow, st.sampled_from(sorted(RANK)), alives)
bulk = (
    st.lists(rows, max_size=4).map(tuple),
    st.lists(st.binary(min_size=1, max_size=99), max_size=4).map(tuple),
    st.lists(sets, max_size=4).map(tuple),
)
blobs = st.binary(max_size=99)
digests = st.binary(min_size=512, max_size=512)
outlines = st.builds(
    Outline,
    st.lists(st.tuples(st.integers(0, PLACES - 1), blobs), max_size=4).map(tuple),
    st.lists(st.tuples(st.integers(0, GROUPS - 1), digests), max_size=2).map(tuple),
)
requests = st.one_of(
    st.builds(SyncOpen, alives, digests, digests),
    st.builds(SyncList, blobs, blobs),
    st.builds(SyncExchange, blobs, blobs, blobs, *bulk),
)
replies = st.one_of(
    st.builds(SyncOutline, alives, outlines, outlines),
    st.builds(SyncDelivery, *bulk, st.tuples(u32, u32, u32), u32),
)


def test_the_strategy_knows_every_message() -> None:
    assert len(get_args(Message)) == 12


@given(st.lists(messages, min_size=1, max_size=3))
def test_packets_round_trip(several: list[Message]) -> None:
    assert decode_packet(join_messages([encode_message(one) for one in several])) == tuple(several)


@given(requests, replies)
def test_syncs_round_trip(request: SyncRequest, reply: SyncReply) -> None:
    assert decode_sync_request(encode_sync(request)) == request
    assert decode_sync_reply(encode_sync(reply)) == reply


def only_refused(call: Callable[[], object]) -> None:
    """Anything but success or this error is a bug by definition."""
    with contextlib.suppress(RemoteProtocolError):
        call()


# Bytes that start like the real thing reach deeper than uniform noise.
junk = st.one_of(
    st.binary(max_size=300),
    (requests | replies)
    .map(encode_sync)
    .flatmap(
        lambda data: st.tuples(st.integers(0, len(data)), st.binary(max_size=4)).map(
            lambda cut: data[: cut[0]] + cut[1] + data[cut[0] + len(cut[1]) :]
        )
    ),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(0, (1 << 64) - 1)
        | st.binary(max_size=9)
        | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=9,
    ).map(msgspec.msgpack.encode),
)


@given(junk)
def test_arbitrary_bytes_are_refused_and_nothing_worse(data: bytes) -> None:
    for decode in (decode_packet, decode_record, decode_spec, decode_manifest, decode_attestations):
        only_refused(lambda decode=decode: decode(data))  # type: ignore[misc]
    for decode in (decode_sync_request, decode_sync_reply):
        only_refused(lambda decode=decode: decode(data))  # type: ignore[misc]


MACHINE = make_gossip(0)
OTHER = make_gossip(1)


@given(junk)
def test_a_machine_takes_arbitrary_datagrams_and_syncs(data: bytes) -> None:
    before = MACHINE.state_digest()
    only_refused(lambda: MACHINE.receive_datagram(data, address_of(3), 0.0, WALL_MS))
    assert MACHINE.state_digest() == before
    peer = OTHER.node_id
    only_refused(lambda: OTHER.sync_answer(data, MACHINE.node_id, 0.0, WALL_MS))
    MACHINE.sync_begin(peer, 0.0)
    only_refused(lambda: MACHINE.sync_next(data, peer, 0.0, WALL_MS))
    MACHINE.sync_failed(peer)


@settings(max_examples=50)
@given(st.lists(requests, max_size=3), st.lists(replies, max_size=3))
def test_a_machine_takes_any_well_formed_sync_of_an_insider(
    asked: list[SyncRequest], answered: list[SyncReply]
) -> None:
    """Whatever it says, in whatever order: refused or taken in, and the sync ends."""
    machine, peer = make_gossip(0), node_id("n1")
    hello = Alive(bytes.fromhex(peer), 1, 0, metadata_of("n1", address_of(1)))
    for request in asked:
        if isinstance(request, SyncOpen):
            request = msgspec.structs.replace(request, sender=hello)
        only_refused(lambda: machine.sync_answer(encode_sync(request), peer, 0.0, WALL_MS))  # noqa: B023
    for reply in answered:
        if isinstance(reply, SyncOutline):
            reply = msgspec.structs.replace(reply, sender=hello)
        machine.sync_begin(peer, 0.0)
        only_refused(lambda: machine.sync_next(encode_sync(reply), peer, 0.0, WALL_MS))  # noqa: B023
    own = machine.members()[0]
    assert (own.is_self, own.state, own.name) == (True, "alive", "n0")


@settings(max_examples=50)
@given(st.lists(messages, min_size=1, max_size=3), st.integers(0, 1 << 30))
def test_a_machine_takes_any_well_formed_words_of_an_insider(
    several: list[Message], seed: int
) -> None:
    machine = make_gossip(0)
    seal = Seal(Keyring([CLUSTER_KEY]), node_id("n1"), 1)
    hello = Alive(bytes.fromhex(node_id("n1")), 1, 0, metadata_of("n1", address_of(1)))
    now = 0.0
    for batch in ([hello], several, several):
        now += random.Random(seed).random()
        data = seal.seal(
            join_messages([encode_message(message) for message in batch]),
            bytes.fromhex(machine.node_id),
            1,
        )
        machine.receive_datagram(data, address_of(1), now, WALL_MS)
        machine.on_timer(now)
        while (datagram := machine.poll_transmit()) is not None:
            assert len(datagram.data) <= 1200
    own = machine.members()[0]
    assert (own.is_self, own.state, own.name) == (True, "alive", "n0")


# ------------------------------------------------------------ replay window against a model
@given(st.lists(st.integers(0, 3 * WINDOW_BITS), max_size=60))
def test_the_replay_window_is_its_model(counters: list[int]) -> None:
    sender = Seal(Keyring([CLUSTER_KEY]), node_id("n1"), 1)
    receiver = Seal(Keyring([CLUSTER_KEY]), node_id("n0"), 1)
    seen: set[int] = set()
    for counter in counters:
        sender._counter = counter
        data = sender.seal(b"")
        fresh = counter not in seen and counter > max(seen, default=-1) - WINDOW_BITS
        if fresh:
            receiver.commit(receiver.open(data))
            seen.add(counter)
        else:
            with pytest.raises(RemoteProtocolError, match="seal-replay"):
                receiver.open(data)


# ------------------------------------------------------------ catalog laws
SPECS = [spec_bytes("0"), spec_bytes("1"), init_spec_bytes("2")]
STATED = statement_of(SPECS[2])
ANCHOR = anchor()
POOL = [
    verify_record(record, ANCHOR, wall_ms=WALL_MS)
    for hlc in (WALL_MS << 16, (WALL_MS << 16) + 1)
    for by in ("n0", "n1")
    for name in ("a", "b")
    for record in [
        alias_record(name, None, hlc=hlc, by=by),
        *(alias_record(name, version_of(spec), hlc=hlc, by=by) for spec in SPECS),
        *(version_record(name, spec, hlc=hlc, by=by) for spec in SPECS),
        version_record(name, SPECS[0], hlc=hlc, by=by, tombstone=True),
        version_record(name, SPECS[2], hlc=hlc, by=by, snapshot=STATED),
    ]
]
picks = st.lists(st.integers(0, len(POOL) - 1), max_size=12)


def merged(*orders: list[int]) -> Catalog:
    catalog = make_catalog()
    for order in orders:
        for index in order:
            catalog.merge(POOL[index])
    return catalog


def content(catalog: Catalog) -> object:
    """What lasts: all records. (What a name means while its version is missing may differ.)"""
    records = sorted((entry.key, entry.encoded) for entry in catalog.entries())
    return records, catalog.state_digest(), catalog.digests.groups()


@given(picks, picks, st.randoms(use_true_random=False))
def test_merging_commutes_associates_and_is_idempotent(
    one: list[int], two: list[int], shuffler: random.Random
) -> None:
    expected = content(merged(one, two))
    assert content(merged(two, one)) == expected
    assert content(merged(one, two, one, two)) == expected
    mixed = one + two
    shuffler.shuffle(mixed)
    assert content(merged(mixed)) == expected


@given(picks, st.randoms(use_true_random=False))
def test_complete_catalogs_mean_the_same(order: list[int], shuffler: random.Random) -> None:
    """With every version present, look-ups do not depend on the order of arrival either."""
    everything = list(range(len(POOL)))
    shuffler.shuffle(everything)
    one, two = merged(order, everything), merged(everything)
    assert one.functions() == two.functions()
    for name in ("a", "b"):
        assert one.versions(name) == two.versions(name)
    assert shown_snapshots(one) == shown_snapshots(two)


@given(picks)
def test_snapshots_are_known_by_the_records_that_name_them(order: list[int]) -> None:
    catalog = merged(order)
    stated = {
        entry.key
        for entry in catalog.entries()
        if entry.kind == "version" and entry.live and entry.version().snapshot is not None
    }
    assert shown_snapshots(catalog) == ({STATED.snapshot: sorted(stated)} if stated else {})
    for name, current in catalog.functions():
        at = catalog.snapshots.at(f"v/{name}/{current.version}")
        assert current.snapshot == at
        assert [row.snapshot for row in catalog.versions(name) if row.current] == [at]


def shown_snapshots(catalog: Catalog) -> dict[Digest, list[str]]:
    return {one: sorted(catalog.snapshots.keys(one)) for one in catalog.snapshots}


@given(picks, picks)
def test_one_sync_makes_two_catalogs_equal(one: list[int], two: list[int]) -> None:
    left, right = make_gossip(0), make_gossip(1)
    for machine, order in ((left, one), (right, two)):
        for index in order:
            machine.catalog.merge(POOL[index])
    carry_sync(left, right, 0.0, WALL_MS)
    assert content(left.catalog) == content(right.catalog)
    sizes = carry_sync(left, right, 1.0, WALL_MS)
    assert len(sizes) == 2, "nothing to list, nothing to exchange"


deeds = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["deploy", "deploy", "roll back", "remove", "tell"]),
        st.sampled_from(SPECS),
        st.integers(0, 3),
    ),
    max_size=14,
)


@given(deeds)
def test_the_latest_change_is_in_force_whole_once_all_have_met(
    done: list[tuple[int, str, bytes, int]],
) -> None:
    """Whoever knew what of whom: nothing acknowledged is half undone."""
    catalogs = [make_catalog(f"n{index}") for index in range(3)]
    wall_ms, latest = WALL_MS, (0, "", "")
    for index, deed, spec, later_ms in done:
        catalog, version = catalogs[index], version_of(spec)
        wall_ms += later_ms
        if deed == "tell":
            tell(catalog, catalogs[(index + 1 + later_ms % 2) % 3], wall_ms)
            continue
        if deed == "deploy":
            records = catalog.prepare_deploy("f", spec, wall_ms=wall_ms)
        elif deed == "remove":
            records = catalog.prepare_remove("f", wall_ms=wall_ms)
        elif catalog.spec("f", version) is not None:
            records = catalog.prepare_alias("f", version, wall_ms=wall_ms)
        else:
            continue
        catalog.apply(records)
        if records and records[-1].kind == "alias":
            meant = "" if deed == "remove" else version
            latest = max(latest, (records[-1].hlc, records[-1].signer, meant))
    for _ in range(2):
        for one in catalogs:
            for two in catalogs:
                tell(one, two, wall_ms)
    for catalog in catalogs:
        current = catalog.lookup("f")
        assert (current.version if current is not None else "") == latest[2]


@given(picks)
def test_what_is_stored_loads_again(order: list[int]) -> None:
    catalog = merged(order)
    for proven in (False, True):
        rows = [SavedRecord(entry.key, entry.encoded, proven) for entry in catalog.entries()]
        again = make_catalog("n1")
        assert again.load(rows) == ((), ())
        assert content(again) == content(catalog)


# ------------------------------------------------------------ membership and holdings
words = st.lists(
    st.tuples(
        st.sampled_from(["alive", "suspect", "down", "left"]),
        st.integers(1, 3),
        st.integers(0, 2),
    ),
    max_size=12,
)


@given(words)
def test_no_word_brings_back_an_older_generation(said: list[tuple[str, int, int]]) -> None:
    machine = make_gossip(0)
    subject = bytes.fromhex(node_id("n2"))
    accuser = bytes.fromhex(node_id("n1"))
    metadata = metadata_of("n2", address_of(2))
    seal = Seal(Keyring([CLUSTER_KEY]), node_id("n1"), 1)
    newest, left = 0, False
    for state, generation, incarnation in said:
        word: Message
        if state == "alive":
            word = Alive(subject, generation, incarnation, metadata)
        elif state == "suspect":
            word = Suspect(subject, generation, incarnation, accuser, Finding.SILENT)
        elif state == "down":
            word = Down(subject, generation, incarnation, accuser, False)
        else:
            word = Left(subject, generation, incarnation)
        payload = join_messages([encode_message(word)])
        data = seal.seal(payload, bytes.fromhex(machine.node_id), 1)
        machine.receive_datagram(data, address_of(1), 0.0, WALL_MS)
        member = machine.member(node_id("n2"))
        now = member.generation if member is not None else 0
        assert now >= newest
        if left and now == newest:
            assert member is not None
            assert member.state == "left", "left is final for its generation"
        newest, left = now, member is not None and member.state == "left"


changes = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["module", "artifact", ""]), st.booleans()),
    max_size=40,
)


@given(changes)
def test_holdings_follow_their_owner_through_loss(steps: list[tuple[int, str, bool]]) -> None:
    owner, other = Holdings(node_id("n0"), 1), Holdings(node_id("n1"), 1)
    other.show(node_id("n0"), 1)
    for number, form, lost in steps:
        digest = Digest(f"{number:064x}")
        owner.set_local(digest, bool(form), form or "module")  # type: ignore[arg-type]
        if lost:
            continue
        if other.merge_update(owner.delta()) == "gap":
            news = owner.export(node_id("n0"), *other.version(node_id("n0")))
            assert news is not None
            assert other.merge_set(news)
        assert other.held(node_id("n0")) == owner.held(node_id("n0"))
        assert other.version(node_id("n0")) == owner.version(node_id("n0"))
