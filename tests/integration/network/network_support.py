"""Blobs in memory and a running stream server, for the network tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
import zstandard

from edged.errors import BlobNotFound, PeerError
from edged.interfaces import BlobSource
from edged.network.server import StreamLimits, StreamServer
from edged.telemetry import Log, Metrics
from edged.trust import Trust
from protocol.ids import Digest, NodeId, digest_of
from protocol.manifest import Manifest, build_manifest, segment_bytes_for

MakeTrust = Callable[..., Trust]


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

    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        manifest = await self.manifest(digest)
        if index >= manifest.segments:
            raise BlobNotFound(f"blob {digest} has no segment {index}", digest=digest)
        self.served.append(index)
        return self.blobs[digest][1][index]


class EchoSync:
    """Answers a sync with what it got, or refuses round 9."""

    async def answer_sync(self, peer: NodeId, round_: int, body: bytes) -> bytes:
        if round_ == 9:
            raise PeerError("no such round")
        return body


class Served:
    def __init__(self, server: StreamServer, metrics: Metrics, address: tuple[str, int]) -> None:
        self.server = server
        self.metrics = metrics
        self.address = address

    def refused(self, reason: str) -> float:
        return (
            self.metrics.registry.get_sample_value(
                "edged_streams_refused_total", {"reason": reason}
            )
            or 0.0
        )

    async def wait_refused(self, reason: str, count: float = 1) -> None:
        while self.refused(reason) < count:  # noqa: ASYNC110 - a counter has no event
            await trio.sleep(0.005)


@asynccontextmanager
async def serving(
    trust: Trust, source: BlobSource, log: Log, limits: StreamLimits | None = None
) -> AsyncIterator[Served]:
    metrics = Metrics()
    server = StreamServer(
        trust=trust, source=source, sync=EchoSync(), metrics=metrics, log=log, limits=limits
    )
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listeners[0].socket.getsockname()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, listeners)
        yield Served(server, metrics, (host, port))
        nursery.cancel_scope.cancel()
