"""One fetch: drives a protocol.exchange.Fetch over connections into a partial blob.

One task per connection reads, tells the machine at once what came, does what is due by then and
sends what is asked for next; one does what needs waiting, and the timers while nothing comes; one
writes what verified, all that has gathered in one thread hop, while the next segments travel.
Received and not on disk yet is what the machine lets be asked for at once and QUEUE_BYTES_MAX at
most.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from protocol.bitsets import bits_of
from protocol.exchange import Fetch
from protocol.exchange_events import (
    Close,
    Completed,
    Dial,
    Failed,
    FetchConfig,
    FetchersNamed,
    HoldersWanted,
    ManifestVerified,
    SegmentVerified,
    Send,
    SourceBanned,
    SourceLost,
    Transmit,
)
from protocol.ids import Digest, NodeId
from protocol.manifest import Manifest
from protocol.rng import Rng
from protocol.streams import Done, Reply, encode_frame

from ..errors import DigestMismatch, EdgedError, NoHolder, PeerError
from ..interfaces import BlobInfo, PartialBlob, Peer
from ..telemetry import Log, Metrics
from .streams import Connection

DialPeer = Callable[[Peer], Awaitable[Connection[Reply]]]
"""Raises PeerError."""
GivePeer = Callable[[Connection[Reply], int], None]
"""Takes a connection that is good for others, after so many more replies."""
FindHolders = Callable[[Digest], Sequence[Peer]]
"""Nearest first, without this node."""
FindPeer = Callable[[NodeId], Peer | None]
"""A member that may be dialled; None for others and for this node."""

QUEUE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Verified and not on disk: beyond, nothing more is asked for until half of it is."""
GATHER_BYTES: Final = 1024 * 1024
GATHER_SHARE: Final = 0.02
GATHER_S_MIN: Final = 0.003
GATHER_S_MAX: Final = 0.06
"""A thread hop costs as much as a segment: with less than that verified, more is waited for, for a
share of the time the fetch has taken so far, as for its news (SPEC §10.5)."""
LATE_SHARE: Final = 0.25
LATE_S_MAX: Final = 0.02
"""A timer that ends a wait costs as much as a segment too, and none of a fetch's is urgent: so long
past its time, as a share of it, what falls due is left to the next reply's task."""
HOLD_S: Final = 0.25
"""How long the rest of a segment may take before its parts are looked at, each of which costs as
much: a part is a sign of life. 128 KiB in that time are 4 Mbit/s."""
WRITE_BYTES: Final = 4 * 1024 * 1024
"""In one thread hop."""


@dataclass(eq=False, slots=True)
class _Link:
    peer: Peer
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    connection: Connection[Reply] | None = None
    outgoing: bytearray = field(default_factory=bytearray)
    flushing: trio.CancelScope | None = None
    """While what its connection did not take at once is on its way."""
    owed: int | None = None
    """Of one that is over: what Close says."""


class FetchMeter(Protocol):
    """Hears how fast fetches went."""

    def fetched(self, sources: dict[NodeId, tuple[int, float]]) -> None:
        """Bytes that each source sent, and how many per second while it owed some."""
        ...

    def finished(self, size_bytes: int, took_s: float) -> None:
        """Of decompressing, hashing and storing."""
        ...


class Transfer:
    """Use once. `run` leaves the partial on disk whenever it does not return."""

    def __init__(
        self,
        blob: Digest,
        manifest_digest: Digest,
        *,
        begin_partial: Callable[[Manifest], Awaitable[PartialBlob]],
        holders: FindHolders,
        find_peer: FindPeer,
        dial: DialPeer,
        give: GivePeer,
        keep: Callable[[Digest, int, bytes], None],
        progress: Callable[[int, int], None],
        meter: FetchMeter | None,
        metrics: Metrics,
        log: Log,
        config: FetchConfig,
        rng: Rng,
    ) -> None:
        self._blob = blob
        self._begin_partial = begin_partial
        self._holders = holders
        self._find_peer = find_peer
        self._dial = dial
        self._give = give
        self._keep = keep
        self._progress = progress
        self._meter = meter
        self._metrics = metrics
        self._log = log.bind(blob=blob)
        self._peers: dict[NodeId, Peer] = {}
        self._links: dict[NodeId, _Link] = {}
        self._partial: PartialBlob | None = None
        self.stored = 0
        """A bit for each segment on disk: what others may be given."""
        self._done_bytes = 0
        self._verified: list[tuple[int, bytes]] = []
        self._verified_bytes = 0
        self._write_failed: EdgedError | None = None
        self._write_at = math.inf
        """When what has gathered is to be written, if not before."""
        self._wake = trio.Event()
        self._sleep: trio.CancelScope | None = None
        """The driver's."""
        self._waiting: deque[ManifestVerified | Completed | Failed] = deque()
        """Events for the driver's own task."""
        self._wake_writer = trio.Event()
        self._unverified = 0
        """Segments that have not come yet, once the manifest has."""
        self._begun_at = trio.current_time()
        self._fetch = Fetch(blob, manifest_digest, config=config, rng=rng, now=trio.current_time())

    # ------------------------------------------------------------ from other tasks
    @property
    def partial(self) -> PartialBlob | None:
        """What is there so far, once the manifest is."""
        return self._partial

    def sources(self) -> tuple[NodeId, ...]:
        """Those connected now."""
        return tuple(peer for peer, link in self._links.items() if link.connection is not None)

    def wanted_by(self, peer: Peer, bitmap: bytes) -> None:
        """A peer that fetches the blob asked this node for it."""
        self._peers.setdefault(peer.node_id, peer)
        self._fetch.wanted_by(peer.node_id, bitmap, trio.current_time())
        self._nudge()

    def announced(self, peer: NodeId, indices: Iterable[int]) -> None:
        self._fetch.have(peer, indices, trio.current_time())
        self._nudge()

    def _nudge(self) -> None:
        """Most of what others tell asks for nothing at once, and a pass for each would be dear."""
        if self._fetch.pending:
            self._wake.set()

    def rates(self) -> dict[NodeId, tuple[int, float]]:
        """As FetchMeter.fetched gets them."""
        return self._fetch.rates()

    def give_way(self, *, on: bool) -> None:
        self._fetch.give_way(on=on)

    # ------------------------------------------------------------ the driver
    async def run(self) -> BlobInfo:
        """Raises NoHolder, DiskFull, StoreError, PeerError (the record itself is wrong)."""
        outcome: BlobInfo | EdgedError
        try:
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._write)
                try:
                    outcome = await self._drive(tasks)
                except EdgedError as error:  # would leave the nursery in a group
                    outcome = error
                    await self._keep_verified()
                tasks.cancel_scope.cancel()
        finally:
            if self._partial is not None:
                with trio.CancelScope(shield=True):  # one short call on the local disk
                    await self._partial.let_go()
        self._metrics.duplicate_bytes.inc(self._fetch.wasted_bytes)
        if self._meter is not None:
            self._meter.fetched(self._fetch.rates())
        if isinstance(outcome, EdgedError):
            raise outcome
        return outcome

    async def _drive(self, tasks: trio.Nursery) -> BlobInfo:
        while True:
            self._obey(tasks)
            while self._waiting:
                if await self._on_waiting(self._waiting.popleft()):
                    return await self._finish()
                self._obey(tasks)
            if self._write_failed is not None:
                raise self._write_failed
            with trio.CancelScope(deadline=self._late(trio.current_time())) as self._sleep:
                await self._wake.wait()
            self._sleep = None
            self._wake = trio.Event()
            self._do_due(trio.current_time())

    def _due(self) -> float:
        deadline = self._fetch.next_deadline()
        return self._write_at if deadline is None else min(self._write_at, deadline)

    def _late(self, now: float) -> float:
        """When the driver does what is due, if nobody did."""
        due = self._due()
        return due + min(LATE_SHARE * max(due - now, 0.0), LATE_S_MAX)

    def _do_due(self, now: float) -> None:
        if self._due() > now:
            return
        if self._write_at <= now:
            self._wake_writer.set()
            self._write_at = math.inf
        deadline = self._fetch.next_deadline()
        if deadline is not None and deadline <= now:
            self._on_timer(now)
        self._sleep_on(now)

    def _sleep_on(self, now: float) -> None:
        """What is due next has changed."""
        if self._sleep is not None:
            self._sleep.deadline = self._late(now)

    def _on_timer(self, now: float) -> None:
        for peer, link in self._links.items():
            if link.connection is not None:
                self._fetch.heard(peer, link.connection.heard_at)
                if link.connection.heard_at + HOLD_S < now:
                    link.connection.hold_no_longer()
        self._fetch.on_timer(now)

    def _obey(self, tasks: trio.Nursery) -> None:
        """Everything the machine wants now, but what needs waiting."""
        fetch = self._fetch
        written: dict[NodeId, _Link] = {}
        while True:
            event = fetch.poll_event()
            if isinstance(event, ManifestVerified | Completed | Failed):
                self._waiting.append(event)
                self._wake.set()
            elif event is not None:
                self._on_event(event)
            else:
                transmit = fetch.poll_transmit()
                if transmit is None:
                    break
                self._on_transmit(transmit, tasks, written)
        for link in written.values():
            self._post(link, tasks)

    async def _on_waiting(self, event: ManifestVerified | Completed | Failed) -> bool:
        """Whether that was the last of the blob."""
        match event:
            case ManifestVerified():
                self._partial = await self._begin_partial(event.manifest)
                present = self._partial.present
                self.stored = bits_of(present)
                self._unverified = event.manifest.segments - len(present)
                self._count(sum(event.manifest.wire_lengths[index] for index in present))
                self._fetch.resume(present, trio.current_time())
            case Completed():
                return True
            case Failed():
                raise self._failure(event)
        return False

    def _on_event(
        self, event: SegmentVerified | SourceLost | SourceBanned | HoldersWanted | FetchersNamed
    ) -> None:
        now = trio.current_time()
        match event:
            case SegmentVerified():
                self._verified.append((event.index, event.wire))
                self._verified_bytes += len(event.wire)
                if self._verified_bytes > QUEUE_BYTES_MAX:
                    self._fetch.choke(now, on=True)
                self._unverified -= 1
                self._gather(now)
            case SourceLost():
                self._log.info("source lost", peer=event.peer, reason=event.reason)
            case SourceBanned():
                self._log.warning("source serves wrong bytes", peer=event.peer, why=event.reason)
                self._metrics.errors.labels("peer-bytes").inc()
            case HoldersWanted():
                self._fetch.offer(self._know(self._holders(self._blob)), now)
            case FetchersNamed():
                found = [self._find_peer(peer) for peer in event.peers]
                self._fetch.meet(self._know(peer for peer in found if peer is not None), now)

    def _on_transmit(
        self, transmit: Transmit, tasks: trio.Nursery, written: dict[NodeId, _Link]
    ) -> None:
        match transmit:
            case Send(peer, message, body):
                link = self._links[peer]
                link.outgoing += encode_frame(message, body)
                written[peer] = link
            case Dial(peer):
                link = self._links[peer] = _Link(self._peers[peer])
                tasks.start_soon(self._read, link, tasks)
            case Close(peer, owed):
                link = self._links.pop(peer)
                if owed is not None:
                    link.outgoing += encode_frame(Done(self._blob))
                if written.pop(peer, None) is not None or owed is not None:
                    self._post(link, tasks)
                link.owed = owed
                link.scope.cancel()
                if link.flushing is not None:
                    link.flushing.cancel()

    def _post(self, link: _Link, tasks: trio.Nursery) -> None:
        if link.connection is None:
            return
        data = bytes(link.outgoing)
        link.outgoing.clear()
        self._metrics.control_bytes.inc(len(data))
        try:
            if not link.connection.post(data) and link.flushing is None:
                link.flushing = trio.CancelScope()
                tasks.start_soon(self._flush, link, link.flushing)
        except PeerError as error:
            self._failed(link, error)

    async def _flush(self, link: _Link, scope: trio.CancelScope) -> None:
        assert link.connection is not None
        try:
            with scope:
                await link.connection.flush()
        except PeerError as error:
            self._failed(link, error)
        link.flushing = None

    async def _read(self, link: _Link, tasks: trio.Nursery) -> None:
        """Connects, then reads until the peer or the machine ends it."""
        fetch, peer = self._fetch, link.peer.node_id
        connection: Connection[Reply] | None = None
        lost = PeerError("closed the connection")
        try:
            with link.scope:
                connection = link.connection = await self._dial(link.peer)
                fetch.connected(peer, trio.current_time())
                self._obey(tasks)
                while await connection.fill(hold=True):
                    if link.scope.cancel_called:
                        break  # what came now is for the connection's next user
                    now = connection.heard_at
                    while (frame := connection.next_frame()) is not None:
                        fetch.receive(*frame, peer, now)
                    self._do_due(now)
                    self._obey(tasks)
        except PeerError as error:
            lost = error
        finally:
            if connection is not None:
                if link.owed is None:
                    await connection.aclose()
                else:
                    self._give(connection, link.owed)
        if not link.scope.cancel_called:
            self._failed(link, lost)

    def _failed(self, link: _Link, error: PeerError) -> None:
        if self._links.get(link.peer.node_id) is link:
            reason = f"{error} ({error.private})" if error.private else str(error)
            self._fetch.failed(link.peer.node_id, reason, trio.current_time())
            self._wake.set()

    def _gather(self, now: float) -> None:
        """Something verified is not on disk."""
        if self._verified_bytes >= GATHER_BYTES or not self._unverified:
            self._wake_writer.set()
        elif self._write_at == math.inf:
            share_s = GATHER_SHARE * (now - self._begun_at)
            self._write_at = now + min(max(share_s, GATHER_S_MIN), GATHER_S_MAX)
            self._sleep_on(now)

    async def _write(self) -> None:
        while True:
            await self._wake_writer.wait()
            self._wake_writer = trio.Event()
            self._write_at = math.inf
            batch = self._next_batch()
            if not batch:
                continue
            assert self._partial is not None
            try:
                await self._partial.write(batch, verified=True)
            except EdgedError as error:
                self._write_failed = error
                self._wake.set()
                return
            self._note_stored(batch)
            if self._verified:
                self._gather(trio.current_time())

    async def _keep_verified(self) -> None:
        """The next fetch goes on from what verified, whatever this one failed for."""
        while self._verified and self._write_failed is None:
            self._wake_writer.set()
            await self._wake.wait()
            self._wake = trio.Event()

    def _next_batch(self) -> list[tuple[int, bytes]]:
        count = size = 0
        for _, wire in self._verified:
            count += 1
            size += len(wire)
            if size >= WRITE_BYTES:
                break
        batch, self._verified = self._verified[:count], self._verified[count:]
        return batch

    def _note_stored(self, batch: list[tuple[int, bytes]]) -> None:
        now = trio.current_time()
        size = sum(len(wire) for _, wire in batch)
        indices = [index for index, _ in batch]
        self.stored |= bits_of(indices)
        for index, wire in batch:
            self._keep(self._blob, index, wire)
        self._verified_bytes -= size
        self._metrics.fetched_bytes.inc(size)
        self._count(size)
        if self._verified_bytes <= QUEUE_BYTES_MAX // 2:
            self._fetch.choke(now, on=False)
        self._fetch.stored(indices, now)
        self._wake.set()

    async def _finish(self) -> BlobInfo:
        assert self._partial is not None
        began_s = trio.current_time()
        try:
            info = await self._partial.finish()
        except DigestMismatch as error:
            raise PeerError(
                f"the manifest of blob {self._blob} does not describe it", private=str(error)
            ) from error
        if self._meter is not None:
            self._meter.finished(info.size_bytes, trio.current_time() - began_s)
        return info

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

    def _know(self, found: Iterable[Peer]) -> list[NodeId]:
        known = []
        for peer in found:
            self._peers.setdefault(peer.node_id, peer)
            known.append(peer.node_id)
        return known

    def _count(self, wire_bytes: int) -> None:
        assert self._fetch.manifest is not None
        self._done_bytes += wire_bytes
        self._progress(self._done_bytes, self._fetch.manifest.wire_bytes)
