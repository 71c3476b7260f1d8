"""Replicate, Records and Confirm over real streams: answered, refused, broken. SPEC §11."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from network_support import EchoSync, GossipNode, MakeTrust, MemorySource, gossiping, wall_ms

from edged.errors import DiskFull, PeerError, PeerRefused
from edged.interfaces import Peer
from edged.network import Line, StreamServer
from edged.network.pool import ConnectionPool
from edged.telemetry import Log, Metrics
from edged.trust import Trust
from protocol.function import FunctionSpec, encode_spec
from protocol.ids import Digest, NodeId, digest_of
from protocol.records import BUNDLE_RECORDS_MAX, encode_bundles, encode_record

BLOB, MANIFEST = digest_of(b"blob"), digest_of(b"manifest")
SPEC = encode_spec(FunctionSpec("raw", BLOB, 100, MANIFEST))


class Keeper:
    """A server.ReplicaKeeper with one blob and a full disk."""

    def __init__(self) -> None:
        self.asked: list[tuple[NodeId, Digest, Digest]] = []

    async def replicate(self, peer: NodeId, blob: Digest, manifest: Digest) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append((peer, blob, manifest))
        if blob != BLOB:
            raise DiskFull("no space left")

    async def confirm(self, blob: Digest) -> bool:
        await trio.lowlevel.checkpoint()
        return blob == BLOB


def line_to(asker: Trust, trust: Trust, address: tuple[str, int]) -> Line:
    peer = Peer(trust.node_id, trust.name, "eu", address, address, "", None)
    return Line(peer, ConnectionPool(asker))


@asynccontextmanager
async def keeping(make: MakeTrust, log: Log, keeper: Keeper | None) -> AsyncIterator[Line]:
    trust = make("keeper")
    server = StreamServer(
        trust=trust,
        source=MemorySource(),
        sync=EchoSync(),
        replicas=keeper,
        metrics=Metrics(),
        log=log,
    )
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, listeners)
        line = line_to(make("asker"), trust, address)
        yield line
        await line.aclose()
        nursery.cancel_scope.cancel()


async def test_one_connection_answers_many_requests(make_trust: MakeTrust, log: Log) -> None:
    keeper = Keeper()
    async with keeping(make_trust, log, keeper) as line:
        await line.replicate(BLOB, MANIFEST)
        assert keeper.asked == [(make_trust("asker").node_id, BLOB, MANIFEST)]
        assert await line.confirm(BLOB) is True
        assert await line.confirm(MANIFEST) is False
        with pytest.raises(PeerRefused, match="disk-full: no space left") as caught:
            await line.replicate(MANIFEST, MANIFEST)
        assert caught.value.code == "disk-full"
        assert await line.confirm(BLOB) is True, "a refusal does not end it"


async def test_a_node_without_replicas_says_so(make_trust: MakeTrust, log: Log) -> None:
    async with keeping(make_trust, log, None) as line:
        with pytest.raises(PeerRefused, match="keeps no replicas"):
            await line.replicate(BLOB, MANIFEST)
        with pytest.raises(PeerRefused, match="keeps no records"):
            await line.store_records(encode_bundles([b"record"])[0])


async def test_a_change_gives_its_connection_back(make_trust: MakeTrust, log: Log) -> None:
    """The next one needs no handshake; a connection with an answer due is not lent again."""
    trust = make_trust("keeper")
    server = StreamServer(
        trust=trust,
        source=MemorySource(),
        sync=EchoSync(),
        replicas=Keeper(),
        metrics=Metrics(),
        log=log,
    )
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()
    peer = Peer(trust.node_id, trust.name, "eu", address, address, "", None)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, listeners)
        pool = ConnectionPool(make_trust("asker"))
        await nursery.start(pool.run)
        gone = msgspec.structs.replace(peer, stream_address=("127.0.0.1", 1))
        lines = [Line(peer, pool), Line(gone, pool), Line(gone, pool)]
        assert await lines[0].confirm(BLOB)
        await lines[0].aclose()
        assert pool.idle == 1
        assert await lines[1].confirm(BLOB)
        with trio.CancelScope() as scope:
            scope.cancel()
            await lines[1].confirm(BLOB)
        await lines[1].aclose()
        assert pool.idle == 0
        with pytest.raises(PeerError):
            await lines[2].confirm(BLOB)
        nursery.cancel_scope.cancel()


async def test_nobody_there(make_trust: MakeTrust, log: Log) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()
    await listeners[0].aclose()
    line = line_to(make_trust("asker"), make_trust("keeper"), address)
    for _ in range(2):
        with pytest.raises(PeerError):
            await line.confirm(BLOB)
    await line.aclose()


def records_of(node: GossipNode, name: str) -> list[bytes]:
    """Of a deploy that this node prepares and tells nobody of."""
    made = node.gossip.catalog.prepare_deploy(name, SPEC, wall_ms=wall_ms())
    return [encode_record(record) for record in made]


async def test_records_are_on_disk_and_in_force_when_they_are_answered(
    make_trust: MakeTrust, log: Log
) -> None:
    async with gossiping(log, make_trust("a"), make_trust("b")) as (a, b):
        line = line_to(a.trust, b.trust, b.sockets.address)
        encoded = records_of(a, "f")
        await line.store_records(encode_bundles(encoded)[0])
        assert sorted(b.saved.values()) == sorted(encoded)
        assert b.gossip.catalog.lookup("f") is not None
        await line.store_records(encode_bundles(encoded)[0])
        assert len(b.saved) == 2, "again is fine"
        b.fail_saves = True
        with pytest.raises(PeerRefused) as caught:
            await line.store_records(encode_bundles(records_of(a, "g"))[0])
        assert caught.value.code == "disk-full"
        await line.aclose()


async def test_who_is_later_than_the_asker_says_so(make_trust: MakeTrust, log: Log) -> None:
    """As where the asker's clock is behind, and it takes nothing that is dated after it."""
    async with gossiping(log, make_trust("a"), make_trust("b")) as (a, b):
        line = line_to(a.trust, b.trust, b.sockets.address)
        hour_ms = 3600_000
        early = a.gossip.catalog.prepare_deploy("f", SPEC, wall_ms=wall_ms() - hour_ms)
        other = SPEC.replace(b"raw", b"cgi")
        b.publish(b.gossip.catalog.prepare_deploy("f", other, wall_ms=wall_ms()))
        in_force = b.gossip.catalog.encoded("a/f")
        with pytest.raises(PeerRefused, match="f: b changed it at a later time") as caught:
            await line.store_records(encode_bundles([encode_record(row) for row in early])[0])
        assert caught.value.code == "outdone"
        assert b.gossip.catalog.encoded("a/f") == in_force == b.saved["a/f"]
        same = a.gossip.catalog.prepare_deploy("f", other, wall_ms=wall_ms() - hour_ms)
        await line.store_records(encode_bundles([encode_record(row) for row in same])[0])
        assert b.gossip.catalog.encoded("a/f") == in_force, "which says what was wanted"
        await line.aclose()


async def test_records_that_are_forged_or_malformed_change_nothing(
    make_trust: MakeTrust, log: Log
) -> None:
    async with gossiping(log, make_trust("a"), make_trust("b")) as (a, b):
        line = line_to(a.trust, b.trust, b.sockets.address)
        made = a.gossip.catalog.prepare_deploy("f", SPEC, wall_ms=wall_ms())
        forged = encode_record(msgspec.structs.replace(made[0], hlc=made[0].hlc + 1))
        empty, many = msgspec.msgpack.encode([]), [b"x"] * (BUNDLE_RECORDS_MAX + 1)
        for bundle in (
            encode_bundles([forged])[0],
            encode_bundles([b"no record"])[0],
            empty,
            msgspec.msgpack.encode(many),
            b"\xff" * 100,
            b"",
        ):
            with pytest.raises(PeerRefused, match="record refused"):
                await line.store_records(bundle)
        assert b.saved == {}
        assert b.gossip.catalog.lookup("f") is None
        await line.aclose()
