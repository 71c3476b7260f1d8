"""Fetching blobs for this node: one transfer per digest, however many wait for it.

Transfers run in the service's own nursery, so that a waiter who gives up takes nobody else down;
when the last one is gone the transfer stops too, and what it fetched stays on disk to resume from.
Owned by `run`; `fetch` may be called from any task of the same trio run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from protocol.exchange_events import FetchConfig
from protocol.ids import Digest
from protocol.manifest import Manifest
from protocol.streams import Reply

from ..errors import Draining, EdgedError, Overloaded
from ..interfaces import BlobInfo, PartialBlob, Peer
from ..telemetry import Log, Metrics
from ..trust import Trust
from .streams import Connection, dial
from .transfer import FindHolders, Transfer

TRANSFERS_MAX: Final = 8
"""At once; half of what a peer grants one node (StreamLimits.per_peer_max)."""
WAITING_MAX: Final = 1024
"""Transfers begun or queued; more is Overloaded."""

Progress = Callable[[int, int], None]


class PartialStore(Protocol):
    """What a fetch needs of the store."""

    def info(self, digest: Digest) -> BlobInfo | None: ...

    async def begin_partial(self, manifest: Manifest) -> PartialBlob: ...


@dataclass(eq=False, slots=True)
class _Flight:
    digest: Digest
    manifest_digest: Digest
    waiters: list[Progress] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    landed: trio.Event = field(default_factory=trio.Event)
    outcome: BlobInfo | EdgedError | None = None
    progress: tuple[int, int] | None = None

    def report(self, done: int, total: int) -> None:
        self.progress = (done, total)
        for waiter in self.waiters:
            waiter(done, total)


class ExchangeService:
    """An interfaces.Fetcher."""

    def __init__(
        self,
        *,
        trust: Trust,
        store: PartialStore,
        holders: FindHolders,
        metrics: Metrics,
        log: Log,
        config: FetchConfig | None = None,
        transfers_max: int = TRANSFERS_MAX,
    ) -> None:
        self._trust = trust
        self._store = store
        self._holders = holders
        self._metrics = metrics
        self._log = log
        self._config = config or FetchConfig()
        self._slots = trio.CapacityLimiter(transfers_max)
        self._flights: dict[Digest, _Flight] = {}
        self._starts: trio.MemorySendChannel[_Flight] | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; whoever still waits then gets Draining."""
        self._starts, starting = trio.open_memory_channel[_Flight](WAITING_MAX)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for flight in starting:
                    nursery.start_soon(self._fly, flight)
        finally:
            self._starts = None
            for flight in list(self._flights.values()):
                self._land(flight)

    async def fetch(
        self, digest: Digest, manifest_digest: Digest, *, progress: Progress
    ) -> BlobInfo:
        """As interfaces.Fetcher.fetch; also raises Overloaded, Draining, StoreError."""
        while True:
            await trio.lowlevel.checkpoint()
            info = self._store.info(digest)
            if info is not None:
                return info
            flight = self._flights.get(digest) or self._start(digest, manifest_digest)
            await self._join(flight, progress)
            match flight.outcome:
                case BlobInfo():
                    return flight.outcome
                case EdgedError() if flight.manifest_digest == manifest_digest:
                    # Each waiter raises its own: a shared one would collect their tracebacks.
                    raise copy.copy(flight.outcome) from flight.outcome
                case None:
                    raise Draining("the node is shutting down")

    def _start(self, digest: Digest, manifest_digest: Digest) -> _Flight:
        if self._starts is None:
            raise Draining("the node is shutting down")
        flight = _Flight(digest, manifest_digest)
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
                async with self._slots:
                    flight.outcome = await self._transfer(flight).run()
        except EdgedError as error:
            self._log.info(
                "fetch failed", blob=flight.digest, reason=str(error), private=error.private
            )
            flight.outcome = error
        finally:
            self._land(flight)

    def _land(self, flight: _Flight) -> None:
        if self._flights.get(flight.digest) is flight:
            del self._flights[flight.digest]
        flight.landed.set()

    def _transfer(self, flight: _Flight) -> Transfer:
        return Transfer(
            flight.digest,
            flight.manifest_digest,
            begin_partial=self._store.begin_partial,
            holders=self._holders,
            dial=self._dial,
            progress=flight.report,
            metrics=self._metrics,
            log=self._log,
            config=self._config,
        )

    async def _dial(self, peer: Peer) -> Connection[Reply]:
        return await dial(peer.stream_address, self._trust, expected=peer.node_id)
