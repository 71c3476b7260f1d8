"""The parts that keep a node's disk in order, wired together: pins, collector, scrubber, and what
an operator is told of them. `assembly` makes it; the node runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import trio

from protocol.catalog import Catalog
from protocol.ids import ArtifactKey, Digest

from .activation import Activation
from .clock import Clock
from .collector import Collector
from .config import StoreSection
from .eventlog import EventLog
from .interfaces import NodeState
from .lookup import code_of
from .network import ExchangeService, StreamServer
from .pins import Pins
from .scrubber import Scrubber
from .snapshots import SnapshotService
from .store import BlobStore
from .telemetry import Log, Metrics
from .upkeep import UpkeepService
from .views import Views


class BlobNeeds:
    """Implements collector.Needs and scrubber.Repairs from the node's parts."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        pins: Pins,
        activation: Activation,
        exchange: ExchangeService,
        streams: StreamServer,
        keys: Iterable[ArtifactKey],
        snapshots: SnapshotService,
        members: Callable[[], dict[str, int]],
        announce: Callable[[Digest], None],
        promised: Callable[[Digest], bool],
        absent: Callable[[], list[Digest]],
    ) -> None:
        """`members`: count by state, this node among the alive."""
        self._catalog = catalog
        self._pins = pins
        self._activation = activation
        self._exchange = exchange
        self._streams = streams
        self._keys = frozenset(keys)
        self._keeps = snapshots.keeps
        self.remake = snapshots.remake
        self._members = members
        self.announce = announce
        self._promised = promised
        self.absent = absent

    def is_wanted(self, module: Digest) -> bool:
        return self._catalog.modules.get(module) is not None or self._keeps(module)

    def is_named(self, module: Digest) -> bool:
        named = self._catalog.modules.get(module) is not None
        return named or module in self._catalog.snapshots

    def manifest(self, module: Digest) -> Digest | None:
        wanted = self._catalog.modules.get(module)
        if wanted is not None:
            return wanted.manifests[0]
        stated = self._catalog.snapshots.get(module)
        return stated[0].manifest if stated and self._keeps(module) else None

    def manifests(self) -> frozenset[Digest]:
        modules, snapshots = self._catalog.modules, self._catalog.snapshots
        named = (modules.get(module) for module in modules)
        found = {one for wanted in named if wanted for one in wanted.manifests}
        return frozenset(
            found.union(one.manifest for each in snapshots for one in snapshots.get(each))
        )

    def pinned(self) -> frozenset[Digest]:
        return self._pins.covered()

    def runs_here(self, key: ArtifactKey) -> bool:
        return key in self._keys

    def in_use(self, digest: Digest) -> bool:
        return self._promised(digest) or self._moves(digest)

    def _moves(self, digest: Digest) -> bool:
        return (
            self._activation.is_busy(digest)
            or self._exchange.is_fetching(digest)
            or self._streams.is_serving(digest)
        )

    def has_use_for(self, module: Digest) -> bool:
        """Somebody uses it here, or an operator wants it to stay."""
        return (
            self._moves(module)
            or self._activation.is_mapped(module)
            or self._pins.is_pinned(module)
        )

    def release(self, module: Digest) -> None:
        self._activation.unmap(module)

    def unmap(self, module: Digest) -> None:
        self._activation.unmap(module)

    def alone(self) -> bool:
        counts = self._members()
        known = sum(counts.values()) - counts["left"]
        return known > 1 and counts["alive"] <= 1


class Housekeeping:
    def __init__(
        self,
        config: StoreSection,
        *,
        node: str,
        store: BlobStore,
        catalog: Catalog,
        activation: Activation,
        exchange: ExchangeService,
        streams: StreamServer,
        keys: Iterable[ArtifactKey],
        snapshots: SnapshotService,
        views: Views,
        announce: Callable[[Digest], None],
        promised: Callable[[Digest], bool],
        absent: Callable[[], list[Digest]],
        events: EventLog,
        state: Callable[[], NodeState],
        clock: Clock,
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`keys`: of the code that engines here load; `promised`: peers rely on the copy here;
        `absent`: modules that belong here and are not on disk."""
        self.pins = Pins(store, modules=partial(code_of, catalog), log=log)
        needs = self._needs = BlobNeeds(
            catalog=catalog,
            pins=self.pins,
            activation=activation,
            exchange=exchange,
            streams=streams,
            keys=keys,
            snapshots=snapshots,
            members=views.member_counts,
            announce=announce,
            promised=promised,
            absent=absent,
        )
        self.collector = Collector(
            store,
            needs,
            node=node,
            grace_s=config.gc_grace_s,
            interval_s=config.gc_interval_s,
            on_gone=announce,
            note=events.add,
            metrics=metrics,
            log=log,
        )
        self.scrubber = self._make_scrubber(
            config, node, store, exchange, events, clock, metrics, log
        )
        self.upkeep = UpkeepService(
            node=node,
            store=store,
            catalog=catalog,
            activation=activation,
            collector=self.collector,
            scrubber=self.scrubber,
            pins=self.pins,
            exchange=exchange,
            streams=streams,
            holders=views.holders,
            holder_count=views.holder_count,
            member_name=views.member_name,
            state=state,
            clock=clock,
        )

    def _make_scrubber(
        self,
        config: StoreSection,
        node: str,
        store: BlobStore,
        exchange: ExchangeService,
        events: EventLog,
        clock: Clock,
        metrics: Metrics,
        log: Log,
    ) -> Scrubber:
        return Scrubber(
            store,
            exchange,
            self._needs,
            node=node,
            interval_days=config.verify_interval_days,
            bytes_per_s=config.verify_bytes_per_s,
            note=events.add,
            metrics=metrics,
            log=log,
            wall_s=clock.now_s,
        )

    def has_use_for(self, module: Digest) -> bool:
        return self._needs.has_use_for(module)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.collector.run)
            await nursery.start(self.scrubber.run)
            task_status.started()
