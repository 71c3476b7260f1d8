"""Fetching a blob as a delta against one that is here. SPEC §10.7.

Only an attempt: whatever goes wrong, the blob is fetched whole, so each step has little time. What
a holder sends is bounded by the manifest, which the record names, and proven by the blob's digest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from protocol.errors import RemoteProtocolError
from protocol.ids import Digest
from protocol.manifest import Manifest, decode_manifest
from protocol.streams import (
    DELTA_PART_BYTES,
    DeltaPart,
    ErrorReply,
    GetDelta,
    GetManifest,
    ManifestReply,
    Reply,
)

from ..errors import PeerError
from ..interfaces import Peer
from .streams import Connection

ASKED_MAX: Final = 2
"""Holders, the nearest: one that has none costs a round trip."""
OFFER_TIMEOUT_S: Final = 3.0
"""To connect, and for the holder to make the delta: 0.1 s of CPU for 30 MB, once."""
PART_TIMEOUT_S: Final = 10.0
PARTS_AHEAD: Final = 8
"""2 MiB under way, as much as a fetch asks of one source."""


class Delta(NamedTuple):
    manifest: Manifest
    base: Digest
    data: bytes


@dataclass(frozen=True, slots=True)
class DeltaFetch:
    """Of one blob."""

    blob: Digest
    manifest_digest: Digest
    bases: Sequence[Digest]
    """Held here, best first; at most streams.BASES_MAX."""
    dial: Callable[[Peer], Awaitable[Connection[Reply]]]
    give: Callable[[Connection[Reply], int], None]
    """Takes a connection that nothing is owed on."""
    progress: Callable[[int, int], None]

    async def run(self, holders: Sequence[Peer]) -> Delta | None:
        """What the nearest holder that has one gave. None: none has, or it failed."""
        for peer in holders[:ASKED_MAX]:
            try:
                delta = await self._ask(peer)
            except (PeerError, RemoteProtocolError):
                continue
            if delta is not None:
                return delta
        return None

    async def _ask(self, peer: Peer) -> Delta | None:
        with trio.move_on_after(OFFER_TIMEOUT_S) as asking:
            connection = await self.dial(peer)
            try:
                delta = await self._converse(connection, asking)
            except BaseException:
                await connection.aclose()
                raise
            self.give(connection, 0)
            return delta
        return None

    async def _converse(
        self, connection: Connection[Reply], asking: trio.CancelScope
    ) -> Delta | None:
        await connection.send(GetManifest(0, self.blob))
        await connection.send(GetDelta(1, self.blob, tuple(self.bases)))
        manifest = await self._manifest(connection)
        first, data = await self._part(connection, 1)
        if first.base not in self.bases or first.size > manifest.wire_bytes // 2:
            return None
        return await self._rest(connection, asking, manifest, first, data)

    async def _manifest(self, connection: Connection[Reply]) -> Manifest:
        reply, body = await _receive(connection)
        if not isinstance(reply, ManifestReply):
            raise PeerError("sent no manifest")
        manifest = decode_manifest(body, expected=self.manifest_digest)
        if manifest.blob != self.blob:
            raise PeerError("the manifest is another blob's")
        return manifest

    async def _rest(
        self,
        connection: Connection[Reply],
        asking: trio.CancelScope,
        manifest: Manifest,
        first: DeltaPart,
        data: bytes,
    ) -> Delta:
        """Each further part has PART_TIMEOUT_S."""
        parts = [data]
        done = len(data)
        asked = DELTA_PART_BYTES
        request_id = 1
        waiting: deque[int] = deque()
        while done < first.size:
            asking.deadline = trio.current_time() + PART_TIMEOUT_S
            while asked < first.size and len(waiting) < PARTS_AHEAD:
                request_id += 1
                waiting.append(request_id)
                await connection.send(GetDelta(request_id, self.blob, (first.base,), asked))
                asked += DELTA_PART_BYTES
            if not waiting:
                raise PeerError("sent a delta with a gap")
            part, data = await self._part(connection, waiting.popleft())
            if part.base != first.base or part.size != first.size:
                raise PeerError("changed the delta on the way")
            parts.append(data)
            done += len(data)
            self.progress(done, first.size)
        if done != first.size:
            raise PeerError("sent more of a delta than there is")
        return Delta(manifest, first.base, b"".join(parts))

    async def _part(
        self, connection: Connection[Reply], request_id: int
    ) -> tuple[DeltaPart, bytes]:
        reply, body = await _receive(connection)
        if not isinstance(reply, DeltaPart) or reply.id != request_id or not body:
            raise PeerError("sent no delta")
        return reply, body


async def _receive(connection: Connection[Reply]) -> tuple[Reply, bytes]:
    frame = await connection.receive()
    if frame is None:
        raise PeerError("closed the connection")
    if isinstance(frame[0], ErrorReply):
        raise PeerError(f"refused: {frame[0].code}")
    return frame
