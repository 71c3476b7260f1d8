"""Many real exchange services and stream servers on loopback, one seed: a swarm. SPEC §10."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
from network_support import EchoSync, MakeTrust, MemorySource, make_blob, start_serving

from edged.interfaces import Peer
from edged.network import ExchangeService, StreamServer
from edged.store import BlobStore, open_store
from edged.telemetry import Log, Metrics
from edged.trust import Trust
from protocol.exchange_events import FetchConfig
from protocol.ids import Digest, NodeId
from protocol.manifest import manifest_digest

DATA = b"\0asm\x01\0\0\0" + random.Random(9).randbytes(1_200_000)
MANIFEST, FRAMES = make_blob(DATA)
CONFIG = FetchConfig(connect_timeout_s=10.0, retry_delay_s=0.05)


class Node:
    """Fetches and serves at once."""

    def __init__(self, trust: Trust, store: BlobStore, log: Log, book: dict[NodeId, Peer]) -> None:
        self.trust, self.store, self.book = trust, store, book
        self.metrics = Metrics()
        self.holders: list[Peer] = []
        self.exchange = ExchangeService(
            trust=trust,
            store=store,
            holders=lambda _: list(self.holders),
            find_peer=lambda node: None if node == trust.node_id else book.get(node),
            metrics=self.metrics,
            log=log,
            config=CONFIG,
        )
        self.server = StreamServer(
            trust=trust,
            source=store,
            fetching=self.exchange,
            sync=EchoSync(),
            metrics=self.metrics,
            log=log,
        )
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.book[self.trust.node_id] = peer_of(self.trust, listeners[0].socket.getsockname())
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.exchange.run)
                await nursery.start(self.server.run, listeners)
                task_status.started()

    async def fetch(self) -> None:
        info = await self.exchange.fetch(
            MANIFEST.blob, manifest_digest(MANIFEST), progress=lambda _done, _of: None
        )
        assert info.size_bytes == len(DATA)


def peer_of(trust: Trust, address: tuple[str, int]) -> Peer:
    return Peer(trust.node_id, trust.name, "local", address, address, "", rtt_s=None)


class Cluster:
    def __init__(self, nursery: trio.Nursery, make: MakeTrust, log: Log, root: Path) -> None:
        self.nursery, self.make, self.log, self.root = nursery, make, log, root
        self.book: dict[NodeId, Peer] = {}
        self.nodes: list[Node] = []

    async def node(self, name: str) -> Node:
        store = await open_store(self.root / name, zstd_level=1, min_free_bytes=0, log=self.log)
        node = Node(self.make(name), store, self.log, self.book)
        await self.nursery.start(node.run)
        self.nodes.append(node)
        return node

    async def source(self, name: str, source: MemorySource) -> Peer:
        trust = self.make(name)
        served = await start_serving(self.nursery, trust, source, self.log)
        peer = self.book[trust.node_id] = peer_of(trust, served.address)
        return peer

    async def fetch_all(self, *nodes: Node) -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    nursery.start_soon(node.fetch)


@pytest.fixture
async def cluster(make_trust: MakeTrust, log: Log, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery, make_trust, log, tmp_path)
        yield cluster
        nursery.cancel_scope.cancel()
    for node in cluster.nodes:
        await node.store.close()


async def test_eight_nodes_get_a_blob_from_one_seed_and_each_other(cluster: Cluster) -> None:
    source = MemorySource(DATA)
    seed = await cluster.source("seed", source)
    nodes = [await cluster.node(f"n{number}") for number in range(8)]
    for node in nodes:
        node.holders = [seed]
    await cluster.fetch_all(*nodes)
    for node in nodes:
        assert await node.store.read(MANIFEST.blob) == DATA
        assert await node.store.manifest(MANIFEST.blob) == MANIFEST
    assert len(source.served) < 6 * MANIFEST.segments, "HTTP from one origin: 8"
    passed_on = sum(node.metrics.served_bytes.value for node in nodes)
    assert passed_on >= 2 * MANIFEST.wire_bytes


class Corrupt(MemorySource):
    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        wire = await super().wire_segment(digest, index)
        return wire[:-1] + bytes([wire[-1] ^ 1])


class Stalling(MemorySource):
    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        await trio.sleep_forever()
        return b""


async def test_a_corrupt_and_a_stalling_holder_among_good_ones(cluster: Cluster) -> None:
    good = await cluster.source("good", MemorySource(DATA))
    bad = await cluster.source("bad", Corrupt(DATA))
    stalling = await cluster.source("stalling", Stalling(DATA))
    nodes = [await cluster.node(f"n{number}") for number in range(3)]
    for node in nodes:
        node.holders = [bad, stalling, good]
    await cluster.fetch_all(*nodes)
    for node in nodes:
        assert await node.store.read(MANIFEST.blob) == DATA
    banned = [node.metrics.errors.labels("peer-bytes").value for node in nodes]
    assert any(banned)
    assert all(count <= 1 for count in banned), "once each, and only the corrupt one"


async def test_when_the_seed_dies_those_that_have_all_together_finish(cluster: Cluster) -> None:
    """Two fetchers, each with one half on disk, and no holder any more."""
    one, two = await cluster.node("one"), await cluster.node("two")
    half = MANIFEST.segments // 2
    for node, own in ((one, range(half)), (two, range(half, MANIFEST.segments))):
        partial = await node.store.begin_partial(MANIFEST)
        await partial.write([(index, FRAMES[index]) for index in own])
        await partial.let_go()
    # It gives the manifest and names the fetchers to each other, but sends no segment.
    dying = await cluster.source("dying", Stalling(DATA))
    for node in (one, two):
        node.holders = [dying]
    await cluster.fetch_all(one, two)
    assert await one.store.read(MANIFEST.blob) == await two.store.read(MANIFEST.blob) == DATA


async def test_a_fetch_that_nobody_waits_for_gives_way(cluster: Cluster) -> None:
    others = [b"\0asm\x01\0\0\0" + random.Random(n).randbytes(300_000) for n in range(6)]
    source = MemorySource(DATA, *others)
    seed = await cluster.source("seed", source)
    node = await cluster.node("n")
    node.holders = [seed]
    order: list[str] = []

    async def background(data: bytes) -> None:
        manifest, _ = make_blob(data)
        await node.exchange.fetch(
            manifest.blob, manifest_digest(manifest), progress=lambda *_: None, urgent=False
        )
        order.append("background")

    async def urgent() -> None:
        await node.fetch()
        order.append("urgent")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for data in others:
                nursery.start_soon(background, data)
            nursery.start_soon(urgent)
    assert order.count("background") == 6
    assert order.index("urgent") <= 5, "three of the six wait for a slot of their own"


async def test_a_seed_reads_each_segment_about_once_whoever_asks(
    make_trust: MakeTrust, log: Log, tmp_path: Path
) -> None:
    """MemorySource counts what is read."""
    source = MemorySource(DATA)
    reads = 0
    read = source.wire_segments

    async def counted(digest: Digest, indices: Sequence[int]) -> list[bytes]:
        nonlocal reads
        reads += 1
        await trio.sleep(0.001)
        return await read(digest, indices)

    source.wire_segments = counted  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        trust = make_trust("seed")
        served = await start_serving(nursery, trust, source, log)
        cluster = Cluster(nursery, make_trust, log, tmp_path)
        seed = peer_of(trust, served.address)
        nodes = [await cluster.node(f"n{number}") for number in range(4)]
        async with trio.open_nursery() as fetching:
            for node in nodes:
                node.holders = [seed]
                fetching.start_soon(node.fetch)
        hot = served.server._uploads._hot
        with trio.fail_after(5):
            while hot.size_bytes:
                await trio.sleep(0.005)  # nobody wants it any more
        nursery.cancel_scope.cancel()
    assert len(set(source.served)) == MANIFEST.segments
    assert len(source.served) < 1.5 * MANIFEST.segments
    assert reads < MANIFEST.segments / 2
