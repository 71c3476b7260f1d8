"""Fetching blobs for this node: one transfer per digest, however many wait for it.

Transfers run in the service's own nursery, so that a waiter who gives up takes nobody else down;
when the last one is gone the transfer stops too, and what it fetched stays on disk to resume from.
A transfer that somebody waits for goes before those that nobody does. Owned by `run`; `fetch` may
be called from any task of the same trio run. What transfers have so far, peers are served from it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from protocol.exchange_events import FetchConfig
from protocol.ids import Digest, NodeId
from protocol.manifest import Manifest
from protocol.rng import Rng
from protocol.streams import BASES_MAX, Reply

from ..errors import BlobCorrupt, BlobNotFound, DigestMismatch, Draining, EdgedError, Overloaded
from ..interfaces import BlobInfo, PartialBlob, Peer
from ..telemetry import Log, Metrics
from ..trust import Trust
from .deltas import DeltaFetch
from .hot import HotSegments
from .pace import Moving, Pace
from .pool import ConnectionPool
from .shaping import Shaper
from .slots import TransferSlot, TransferSlots
from .streams import Connection
from .transfer import FetchMeter, FindHolders, FindPeer, Transfer

TRANSFERS_MAX: Final = 8
"""At once; half of what a peer grants one node (StreamLimits.per_peer_max)."""
BACKGROUND_MAX: Final = 3
"""Of those, transfers nobody waits for."""
WAITING_MAX: Final = 1024
"""Transfers begun or queued; more is Overloaded."""

TOLD_MAX: Final = 16

Progress = Callable[[int, int], None]
FindBases = Callable[[Digest], Sequence[Digest]]
"""Blobs of this node that the one asked for may be like, best first."""


class PartialStore(Protocol):
    """What a fetch needs of the store."""

    def info(self, digest: Digest) -> BlobInfo | None: ...

    async def begin_partial(self, manifest: Manifest) -> PartialBlob: ...

    async def apply_delta(self, manifest: Manifest, base: Digest, delta: bytes) -> BlobInfo: ...

    async def make_manifest(
        self, digest: Digest, *, expected: Digest | None = None
    ) -> Manifest: ...


@dataclass(eq=False, slots=True)
class _Flight:
    digest: Digest
    manifest_digest: Digest
    slot: TransferSlot
    holders: FindHolders
    bases: Sequence[Digest] = ()
    wireless: bool = False
    """The blob came as a delta, so its wire form is still to be made."""
    waiters: list[Progress] = field(default_factory=list)
    told: dict[NodeId, None] = field(default_factory=dict)
    """Holders by the word of who asked for the fetch, known to gossip or not yet."""
    transfer: Transfer | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    landed: trio.Event = field(default_factory=trio.Event)
    outcome: BlobInfo | EdgedError | None = None
    progress: tuple[int, int] | None = None
    pace: Pace = field(default_factory=Pace)

    def report(self, done: int, total: int) -> None:
        self.progress = (done, total)
        self.pace.reach(done)
        for waiter in self.waiters:
            waiter(done, total)


@dataclass(frozen=True, slots=True)
class Sharing:
    """Of a blob that is being fetched."""

    partial: PartialBlob | None
    """None: not even the manifest is there."""
    stored: int
    """A bit for each segment on disk."""


class ExchangeService:
    """An interfaces.Fetcher."""

    def __init__(
        self,
        *,
        trust: Trust,
        store: PartialStore,
        holders: FindHolders,
        find_peer: FindPeer,
        bases: FindBases = lambda _digest: (),
        metrics: Metrics,
        log: Log,
        config: FetchConfig | None = None,
        transfers_max: int = TRANSFERS_MAX,
        rng: Rng | None = None,
        shaper: Shaper | None = None,
        meter: FetchMeter | None = None,
    ) -> None:
        self.pool: Final = ConnectionPool(trust, shaper)
        """Runs as long as this does."""
        self.hot: Final = HotSegments()
        """Of blobs that peers want."""
        self._store = store
        self._holders = holders
        self._meter = meter
        self._metrics = metrics
        self._log = log
        self._config = config or FetchConfig()
        self._find_peer = find_peer
        self._bases = bases
        self._rng = rng or random.SystemRandom()
        self._slots = TransferSlots(transfers_max, min(BACKGROUND_MAX, transfers_max))
        self._flights: dict[Digest, _Flight] = {}
        self._starts: trio.MemorySendChannel[_Flight] | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; whoever still waits then gets Draining."""
        self._starts, starting = trio.open_memory_channel[_Flight](WAITING_MAX)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.pool.run)
                task_status.started()
                async for flight in starting:
                    nursery.start_soon(self._fly, flight)
        finally:
            self._starts = None
            for flight in list(self._flights.values()):
                self._land(flight)

    async def fetch(
        self,
        digest: Digest,
        manifest_digest: Digest,
        *,
        progress: Progress,
        urgent: bool = True,
        bases: Sequence[Digest] | None = None,
        holder: NodeId | None = None,
        holders: FindHolders | None = None,
    ) -> BlobInfo:
        """As interfaces.Fetcher.fetch; also raises Overloaded, Draining, StoreError."""
        while True:
            await trio.lowlevel.checkpoint()
            info = self._store.info(digest)
            if info is not None:
                return info
            flight = self._flights.get(digest)
            if flight is None:
                flight = self._start(
                    digest,
                    manifest_digest,
                    urgent=urgent,
                    holders=holders or self._holders,
                    bases=self._bases(digest) if bases is None else bases,
                )
            elif urgent and not flight.slot.urgent:
                flight.slot.urgent = True
                self._slots.grant()
                self._balance()
            if holder is not None and len(flight.told) < TOLD_MAX:
                flight.told[holder] = None
            await self._join(flight, progress)
            match flight.outcome:
                case BlobInfo():
                    return flight.outcome
                case EdgedError() if flight.manifest_digest == manifest_digest:
                    # Each waiter raises its own: a shared one would collect their tracebacks.
                    raise copy.copy(flight.outcome) from flight.outcome
                case None:
                    raise Draining("the node is shutting down")

    def _start(
        self,
        digest: Digest,
        manifest_digest: Digest,
        *,
        urgent: bool,
        holders: FindHolders,
        bases: Sequence[Digest],
    ) -> _Flight:
        if self._starts is None:
            raise Draining("the node is shutting down")
        slot = TransferSlot(urgent=urgent)
        flight = _Flight(digest, manifest_digest, slot, holders, bases[:BASES_MAX])
        try:
            self._starts.send_nowait(flight)
        except trio.WouldBlock as error:
            raise Overloaded("too many blobs are waited for") from error
        self._flights[digest] = flight
        return flight

    async def _join(self, flight: _Flight, progress: Progress) -> None:
        flight.waiters.append(progress)
        try:
            if flight.progress is not None:
                progress(*flight.progress)
            await flight.landed.wait()
        finally:
            flight.waiters.remove(progress)
            if not flight.waiters and not flight.landed.is_set():
                flight.scope.cancel()
                self._land(flight)  # who comes now starts anew and takes the partial over

    async def _fly(self, flight: _Flight) -> None:
        try:
            with flight.scope:
                async with self._slots.hold(flight.slot):
                    flight.outcome = await self._fetch_delta(flight)
                    if flight.outcome is None:
                        flight.transfer = self._transfer(flight)
                        self._balance()
                        flight.outcome = await flight.transfer.run()
        except EdgedError as error:
            self._log.info(
                "fetch failed", blob=flight.digest, reason=str(error), private=error.private
            )
            flight.outcome = error
        finally:
            self._land(flight)
        if flight.wireless:
            await self._complete(flight)

    async def _fetch_delta(self, flight: _Flight) -> BlobInfo | None:
        """None: to be fetched whole. Raises StoreError, DiskFull."""
        if not flight.bases:
            return None
        fetching = DeltaFetch(
            flight.digest,
            flight.manifest_digest,
            flight.bases,
            self.pool.take,
            self._give,
            flight.report,
        )
        delta = await fetching.run(flight.holders(flight.digest))
        if delta is None:
            return None
        self._metrics.fetched_bytes.inc(len(delta.data))
        try:
            info = await self._store.apply_delta(delta.manifest, delta.base, delta.data)
        except (DigestMismatch, BlobNotFound, BlobCorrupt) as error:
            self._log.warning("delta of no use", blob=flight.digest, why=str(error))
            return None
        self._log.info(
            "blob made of a delta",
            blob=flight.digest,
            base=delta.base,
            delta_bytes=len(delta.data),
            wire_bytes=delta.manifest.wire_bytes,
        )
        flight.wireless = True
        return info

    async def _complete(self, flight: _Flight) -> None:
        """Peers are served the wire form that the record names. It is made here, or, where another
        zstd made that one, fetched after all."""
        try:
            try:
                await self._store.make_manifest(flight.digest, expected=flight.manifest_digest)
            except DigestMismatch:
                async with self._slots.hold(TransferSlot(urgent=False)):
                    await self._transfer(flight).run()
        except EdgedError as error:
            self._log.warning("no wire form", blob=flight.digest, reason=str(error))

    def _land(self, flight: _Flight) -> None:
        if self._flights.get(flight.digest) is flight:
            del self._flights[flight.digest]
        flight.transfer = None
        flight.landed.set()
        self._balance()

    def _balance(self) -> None:
        """While somebody waits for a transfer, the others take the least."""
        running = [flight for flight in self._flights.values() if flight.transfer is not None]
        waited_for = any(flight.slot.urgent for flight in running)
        for flight in running:
            if flight.transfer is not None:
                flight.transfer.give_way(on=waited_for and not flight.slot.urgent)

    def drop(self, peer: NodeId) -> None:
        """It is down or has left."""
        self.pool.drop(peer)

    # ------------------------------------------------------------ for whoever watches
    def is_fetching(self, digest: Digest) -> bool:
        return digest in self._flights

    def moving(self) -> list[Moving]:
        return [
            Moving(
                direction="fetch",
                digest=flight.digest,
                state="running" if flight.slot.granted.is_set() else "queued",
                urgent=flight.slot.urgent,
                done_bytes=flight.pace.done_bytes,
                total_bytes=flight.progress[1] if flight.progress else None,
                rate_bytes_s=flight.pace.rate_bytes_s(),
                peers=flight.transfer.sources() if flight.transfer else (),
                age_s=flight.pace.age_s(),
            )
            for flight in self._flights.values()
        ]

    def measure(self) -> None:
        """Tells the meter of the fetches under way."""
        if self._meter is not None:
            for flight in self._flights.values():
                if flight.transfer is not None:
                    self._meter.fetched(flight.transfer.rates())

    # ------------------------------------------------------------ for the stream server
    def sharing(self, blob: Digest) -> Sharing | None:
        """What there is so far of a blob that is being fetched."""
        flight = self._flights.get(blob)
        if flight is None or flight.transfer is None:
            return None
        return Sharing(flight.transfer.partial, flight.transfer.stored)

    def wanted(self, blob: Digest, peer: NodeId, bitmap: bytes) -> None:
        """A peer fetches this blob too, and has these segments: it is a source."""
        flight = self._flights.get(blob)
        found = None if flight is None else self._find_peer(peer)
        if flight is not None and flight.transfer is not None and found is not None:
            flight.transfer.wanted_by(found, bitmap)

    def announced(self, blob: Digest, peer: NodeId, indices: tuple[int, ...]) -> None:
        """A fetcher of this blob has these segments too."""
        flight = self._flights.get(blob)
        if flight is not None and flight.transfer is not None:
            flight.transfer.announced(peer, indices)

    def _transfer(self, flight: _Flight) -> Transfer:
        return Transfer(
            flight.digest,
            flight.manifest_digest,
            begin_partial=self._store.begin_partial,
            holders=lambda digest: self._all_holders(digest, flight),
            find_peer=self._find_peer,
            dial=self.pool.take,
            give=self._give,
            keep=self.hot.put,
            progress=flight.report,
            meter=self._meter,
            metrics=self._metrics,
            log=self._log,
            config=self._config,
            rng=self._rng,
        )

    def _all_holders(self, digest: Digest, flight: _Flight) -> Sequence[Peer]:
        known = flight.holders(digest)
        names = {peer.node_id for peer in known}
        told = [self._find_peer(node) for node in flight.told if node not in names]
        return [*(peer for peer in told if peer is not None), *known]

    def _give(self, connection: Connection[Reply], owed: int) -> None:
        self.pool.give(connection, owed=owed)
