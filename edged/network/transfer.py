"""One fetch: drives a protocol.exchange.Fetch over connections into a partial blob.

One task owns the machine and the partial. One more task per connection reads and hands over one
reply at a time, so what was received and is not on disk yet is two segments at most.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from protocol.exchange import Fetch
from protocol.exchange_events import (
    Close,
    Completed,
    Dial,
    Failed,
    FetchConfig,
    HoldersWanted,
    ManifestVerified,
    SegmentVerified,
    Send,
    SourceBanned,
    SourceLost,
    Transmit,
)
from protocol.exchange_events import Event as FetchEvent
from protocol.ids import Digest, NodeId
from protocol.manifest import Manifest
from protocol.streams import GetManifest, GetSegment, Reply

from ..errors import DigestMismatch, EdgedError, NoHolder, PeerError
from ..interfaces import BlobInfo, PartialBlob, Peer
from ..telemetry import Log, Metrics
from .streams import Connection

DialPeer = Callable[[Peer], Awaitable[Connection[Reply]]]
"""Raises PeerError."""
FindHolders = Callable[[Digest], Sequence[Peer]]
"""Nearest first, without this node."""


@dataclass(eq=False, slots=True)
class _Link:
    peer: Peer
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    connection: Connection[Reply] | None = None


@dataclass(frozen=True, slots=True)
class _Lost:
    reason: str


_News = Connection[Reply] | tuple[Reply, bytes] | _Lost


class Transfer:
    """Use once. `run` leaves the partial on disk whenever it does not return."""

    def __init__(
        self,
        blob: Digest,
        manifest_digest: Digest,
        *,
        begin_partial: Callable[[Manifest], Awaitable[PartialBlob]],
        holders: FindHolders,
        dial: DialPeer,
        progress: Callable[[int, int], None],
        metrics: Metrics,
        log: Log,
        config: FetchConfig,
    ) -> None:
        self._blob = blob
        self._begin_partial = begin_partial
        self._holders = holders
        self._dial = dial
        self._progress = progress
        self._metrics = metrics
        self._log = log.bind(blob=blob)
        self._config = config
        self._peers: dict[NodeId, Peer] = {}
        self._links: dict[NodeId, _Link] = {}
        self._partial: PartialBlob | None = None
        self._done_bytes = 0
        self._inbox_send, self._inbox = trio.open_memory_channel[tuple[_Link, _News]](0)
        now = trio.current_time()
        self._fetch = Fetch(blob, manifest_digest, config=config, now=now)

    async def run(self) -> BlobInfo:
        """Raises NoHolder, DiskFull, StoreError, PeerError (the record itself is wrong)."""
        async with trio.open_nursery() as readers:
            try:
                outcome: BlobInfo | EdgedError = await self._drive(readers)
            except EdgedError as error:  # would leave the nursery in a group
                outcome = error
            readers.cancel_scope.cancel()
        if isinstance(outcome, EdgedError):
            raise outcome
        return outcome

    async def _drive(self, readers: trio.Nursery) -> BlobInfo:
        while True:
            while (event := self._fetch.poll_event()) is not None:
                info = await self._on_event(event)
                if info is not None:
                    return info
            transmit = self._fetch.poll_transmit()
            if transmit is not None:
                await self._on_transmit(transmit, readers)
            else:
                await self._wait()

    async def _wait(self) -> None:
        """For news or the deadline, whichever; news that is there already comes first."""
        deadline = self._fetch.next_deadline()
        try:
            link, news = self._inbox.receive_nowait()
        except trio.WouldBlock:
            with trio.move_on_at(math.inf if deadline is None else deadline) as scope:
                link, news = await self._inbox.receive()
            if scope.cancelled_caught:
                for peer, link in self._links.items():
                    if link.connection is not None:
                        self._fetch.heard(peer, link.connection.heard_at)
                self._fetch.on_timer(trio.current_time())
                return
        peer = link.peer.node_id
        if self._links.get(peer) is not link:
            return
        now = trio.current_time()
        if isinstance(news, _Lost):
            self._fetch.failed(peer, news.reason, now)
        elif isinstance(news, Connection):
            link.connection = news
            self._fetch.connected(peer, now)
        else:
            self._fetch.receive(*news, peer, now)

    async def _on_event(self, event: FetchEvent) -> BlobInfo | None:
        match event:
            case ManifestVerified():
                self._partial = await self._begin_partial(event.manifest)
                present = self._partial.present
                self._count(sum(event.manifest.wire_lengths[index] for index in present))
                self._fetch.resume(present, trio.current_time())
            case SegmentVerified():
                assert self._partial is not None
                await self._partial.write(event.index, event.wire)
                self._metrics.fetched_bytes.inc(len(event.wire))
                self._count(len(event.wire))
                self._was_busy()
            case SourceLost():
                self._log.info("holder lost", peer=event.peer, reason=event.reason)
            case SourceBanned():
                self._log.warning("holder serves wrong bytes", peer=event.peer, why=event.reason)
                self._metrics.errors.labels("peer-bytes").inc()
            case HoldersWanted():
                self._fetch.offer(self._find(), trio.current_time())
            case Completed():
                return await self._finish()
            case Failed():
                raise self._failure(event)
        return None

    async def _on_transmit(self, transmit: Transmit, readers: trio.Nursery) -> None:
        match transmit:
            case Dial(peer):
                link = self._links[peer] = _Link(self._peers[peer])
                readers.start_soon(self._read, link)
            case Close(peer):
                self._links.pop(peer).scope.cancel()
            case Send(peer, message):
                await self._send(self._links[peer], message)

    async def _send(self, link: _Link, message: GetManifest | GetSegment) -> None:
        """Requests are small: only a peer that reads nothing at all makes this wait."""
        assert link.connection is not None
        peer = link.peer.node_id
        try:
            with trio.move_on_after(self._config.progress_timeout_s) as scope:
                await link.connection.send(message)
        except PeerError as error:
            self._fetch.failed(peer, f"{error} ({error.private})", trio.current_time())
        else:
            if scope.cancelled_caught:
                self._fetch.failed(peer, "takes no requests", trio.current_time())

    async def _read(self, link: _Link) -> None:
        """Connects, then reads until the peer or the machine ends it."""
        reason = "closed the connection"
        connection: Connection[Reply] | None = None
        try:
            with link.scope:
                connection = await self._dial(link.peer)
                await self._inbox_send.send((link, connection))
                while (frame := await connection.receive()) is not None:
                    await self._inbox_send.send((link, frame))
        except PeerError as error:
            reason = f"{error} ({error.private})" if error.private else str(error)
        finally:
            if connection is not None:
                await connection.aclose()
        if not link.scope.cancel_called:
            await self._inbox_send.send((link, _Lost(reason)))

    async def _finish(self) -> BlobInfo:
        assert self._partial is not None
        try:
            return await self._partial.finish()
        except DigestMismatch as error:
            raise PeerError(
                f"the manifest of blob {self._blob} does not describe it", private=str(error)
            ) from error

    def _failure(self, event: Failed) -> EdgedError:
        reasons = "; ".join(
            f"{self._peers[peer].name if peer else 'record'}: {reason}"
            for peer, reason in event.reasons
        )
        if any(peer is None for peer, _ in event.reasons):
            return PeerError(f"the record of blob {self._blob} is wrong", private=reasons)
        return NoHolder(
            f"no reachable peer holds blob {self._blob}",
            private=reasons or "no holder is known",
            digest=self._blob,
        )

    def _find(self) -> list[NodeId]:
        found = self._holders(self._blob)
        for peer in found:
            self._peers.setdefault(peer.node_id, peer)
        return [peer.node_id for peer in found]

    def _count(self, wire_bytes: int) -> None:
        assert self._fetch.manifest is not None
        self._done_bytes += wire_bytes
        self._progress(self._done_bytes, self._fetch.manifest.wire_bytes)

    def _was_busy(self) -> None:
        """While this node wrote to its disk nobody read: no peer is late for that."""
        now = trio.current_time()
        for peer in self._links:
            self._fetch.heard(peer, now)
