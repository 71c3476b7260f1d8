"""Blobs in memory, running stream servers and gossip nodes, for the network tests."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
import zstandard

from edged.clock import Clock
from edged.errors import BlobNotFound, DiskFull, PeerError
from edged.interfaces import BlobSource, DeltaSource
from edged.network.gossip import GossipService
from edged.network.server import StreamLimits, StreamServer
from edged.network.sockets import GossipSockets, bind_gossip
from edged.network.streams import Connection, accept, dial
from edged.telemetry import Log, Metrics
from edged.trust import Trust
from protocol.events import Event, RecordsAccepted
from protocol.function import FunctionSpec, encode_spec
from protocol.gossip import Gossip, GossipConfig
from protocol.ids import Digest, NodeId, digest_of
from protocol.manifest import Manifest, build_manifest, segment_bytes_for
from protocol.member import Metadata
from protocol.presets import LOCAL, Knobs
from protocol.records import Record, encoded_records
from protocol.seal import Keyring
from protocol.streams import Reply, Request

MakeTrust = Callable[..., Trust]


async def connected_pair(make_trust: MakeTrust) -> tuple[Connection[Reply], Connection[Request]]:
    """Of the fetcher, and of the holder."""
    a, b = make_trust("a"), make_trust("b")
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    accepted: list[Connection[Request]] = []

    async def take() -> None:
        taken = await accept(await listener.accept(), a)
        assert isinstance(taken, Connection)
        accepted.append(taken)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        fetcher = await dial(listener.socket.getsockname()[:2], b, expected=a.node_id)
    await listener.aclose()
    return fetcher, accepted[0]


def make_blob(data: bytes) -> tuple[Manifest, list[bytes]]:
    """Manifest and frames of `data`."""
    size = segment_bytes_for(len(data))
    compressor = zstandard.ZstdCompressor(level=1)
    frames = [compressor.compress(data[at : at + size]) for at in range(0, len(data), size)]
    return build_manifest(digest_of(data), len(data), frames), frames


class MemorySource:
    """A BlobSource in memory; `served` lists what was asked for."""

    def __init__(self, *blobs: bytes) -> None:
        self.blobs: dict[Digest, tuple[Manifest, list[bytes]]] = {}
        self.served: list[int] = []
        for data in blobs:
            self.add(data)

    def add(self, data: bytes) -> Manifest:
        manifest, frames = make_blob(data)
        self.blobs[manifest.blob] = (manifest, frames)
        return manifest

    async def manifest(self, digest: Digest) -> Manifest:
        if digest not in self.blobs:
            raise BlobNotFound(f"blob {digest} is not here", digest=digest)
        return self.blobs[digest][0]

    async def wire_segments(self, digest: Digest, indices: Sequence[int]) -> list[bytes]:
        return [await self.wire_segment(digest, index) for index in indices]

    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        manifest = await self.manifest(digest)
        if index >= manifest.segments:
            raise BlobNotFound(f"blob {digest} has no segment {index}", digest=digest)
        self.served.append(index)
        return self.blobs[digest][1][index]


class EchoSync:
    """Answers a sync with what it got, or refuses it; stores no records."""

    async def store_records(self, body: bytes) -> None:
        raise PeerError("keeps no records")

    async def answer_sync(self, peer: NodeId, body: bytes) -> bytes:
        if body == b"refuse":
            raise PeerError("not this one")
        return body


class Served:
    def __init__(self, server: StreamServer, metrics: Metrics, address: tuple[str, int]) -> None:
        self.server = server
        self.metrics = metrics
        self.address = address

    def refused(self, reason: str) -> float:
        return self.metrics.streams_refused.labels(reason).value

    async def wait_refused(self, reason: str, count: float = 1) -> None:
        while self.refused(reason) < count:
            await trio.sleep(0.005)


async def start_serving(
    nursery: trio.Nursery,
    trust: Trust,
    source: BlobSource,
    log: Log,
    limits: StreamLimits | None = None,
    generation: int = 0,
    deltas: DeltaSource | None = None,
) -> Served:
    metrics = Metrics()
    server = StreamServer(
        trust=trust,
        source=source,
        deltas=deltas,
        sync=EchoSync(),
        metrics=metrics,
        log=log,
        limits=limits,
        generation=generation,
    )
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listeners[0].socket.getsockname()
    await nursery.start(server.run, listeners)
    return Served(server, metrics, (host, port))


@asynccontextmanager
async def serving(
    trust: Trust,
    source: BlobSource,
    log: Log,
    limits: StreamLimits | None = None,
    generation: int = 0,
) -> AsyncIterator[Served]:
    async with trio.open_nursery() as nursery:
        yield await start_serving(nursery, trust, source, log, limits, generation)
        nursery.cancel_scope.cancel()


class GossipNode:
    """A gossip machine with its service, its stream server and a dict for a disk."""

    def __init__(
        self,
        trust: Trust,
        sockets: GossipSockets,
        log: Log,
        generation: int = 1,
        knobs: Knobs = LOCAL,
    ) -> None:
        self.trust = trust
        self.sockets = sockets
        self.metrics = Metrics()
        self.saved: dict[str, bytes] = {}
        self.fail_saves = False
        self.syncs_take_s = 0.0
        self.persisting = trio.Lock()
        self.events: list[Event] = []
        host, port = sockets.address
        self.seed = f"{host}:{port}"
        self.gossip = Gossip(
            GossipConfig(
                metadata=Metadata(
                    name=trust.name, gossip_address=sockets.address, stream_address=sockets.address
                ),
                generation=generation,
                knobs=knobs,
            ),
            Keyring(trust.keyring_keys),
            trust.anchor,
            trust.private_key,
            trust.credential,
            random.Random(trust.name),
            now=trio.current_time(),
            wall_ms=wall_ms(),
        )
        self.service = GossipService(
            self.gossip,
            sockets,
            trust=trust,
            save_records=self.save,
            metrics=self.metrics,
            log=log,
            on_event=self.on_event,
            persisting=self.persisting,
            drop_records=self.drop,
            clock=Clock(),
        )
        self.server = StreamServer(
            trust=trust,
            source=MemorySource(),
            sync=self,
            metrics=self.metrics,
            log=log,
            generation=generation,
        )
        self.scope = trio.CancelScope()

    async def save(self, records: Sequence[tuple[str, bytes]]) -> None:
        await trio.lowlevel.checkpoint()
        if self.fail_saves:
            raise DiskFull("no space")
        self.saved.update(records)

    async def drop(self, keys: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()
        if self.fail_saves:
            raise DiskFull("no space")
        for key in keys:
            del self.saved[key]

    async def answer_sync(self, peer: NodeId, body: bytes) -> bytes:
        await trio.sleep(self.syncs_take_s)
        return await self.service.answer_sync(peer, body)

    async def store_records(self, body: bytes) -> None:
        await self.service.store_records(body)

    async def on_event(self, event: Event) -> None:
        if isinstance(event, RecordsAccepted) and not self.fail_saves:
            assert all(
                self.saved[key] == encoded or self.gossip.catalog.encoded(key) != encoded
                for key, encoded in event.records
            ), "told before it was durable"
        self.events.append(event)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.server.run, self.sockets.listeners)
                await nursery.start(self.service.run)
                task_status.started()

    def kill(self) -> None:
        """Sockets closed, nothing said."""
        self.scope.cancel()

    def deploy(self, name: str, spec: FunctionSpec) -> None:
        catalog = self.gossip.catalog
        self.publish(catalog.prepare_deploy(name, encode_spec(spec), wall_ms=wall_ms()))

    def publish(self, records: Sequence[Record]) -> None:
        self.gossip.publish(records, trio.current_time())
        self.service.notify()

    async def commit(self, records: Sequence[Record]) -> None:
        """As a node does with own records; the caller holds `persisting`."""
        await self.save(encoded_records(records))
        self.publish(records)

    def states(self) -> dict[str, str]:
        return {member.name: member.state for member in self.gossip.members()}

    def dropped(self) -> dict[str, float]:
        return {
            labels[0][1]: child.value for labels, child in self.metrics.datagrams_dropped.children()
        }


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def gossiping(
    log: Log, *trusts: Trust, knobs: Knobs = LOCAL
) -> AsyncIterator[list[GossipNode]]:
    """Nodes that run and have not joined each other."""
    async with trio.open_nursery() as nursery:
        nodes = []
        for trust in trusts:
            node = GossipNode(trust, await bind_gossip("127.0.0.1", 0), log, knobs=knobs)
            await nursery.start(node.run)
            nodes.append(node)
        yield nodes
        nursery.cancel_scope.cancel()
