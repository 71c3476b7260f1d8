"""Wires what concerns code that is derived, native code and snapshots: whose word counts, where it
comes from, making it, auditing it. Starts nothing; only `assembly` uses it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from protocol.catalog import Catalog
from protocol.costs import Prices
from protocol.ids import ArtifactKey, Digest, NodeId
from protocol.snapshots import SnapshotFacts

from .acceptance import Acceptance
from .acquisition import Acquisition
from .activation import Activation
from .artifacts import Artifacts
from .audit import Auditor
from .builders import Builders
from .clock import Clock
from .config import Config, PlannerSection
from .distrust import Distrust
from .inits import Inits, worth_keeping
from .interfaces import ArtifactRow, EventKind, Fetcher, Peer, Runtime, Snapshots, Store
from .making import Making
from .mapped import MappedTable
from .network import Shaper, ask_attestations
from .obtaining import Obtainer
from .rates import Rates
from .snapshots import SnapshotService
from .supply import Rivals, Supply
from .telemetry import Log, Metrics
from .trust import Trust
from .whatif import GIBIBYTE


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the node has already. `peers`, `bases` and `rivals` as Acquisition and Supply want them;
    `is_idle` is about guests only; `keeping`, `remove` and `delta_bytes` as Inits wants them;
    `nodes`: how many can be reached, this one among them."""

    trust: Trust
    store: Store
    runtime: Runtime
    snapshotter: Snapshots
    catalog: Catalog
    fetcher: Fetcher
    announce: Callable[[Digest], None]
    on_held: Callable[[Digest], None]
    peers: Callable[[Digest], Sequence[Peer]]
    rivals: Callable[[Digest], Rivals]
    bases: Callable[[Digest], Sequence[Digest]]
    delta_bytes: Callable[[Digest, Digest], Awaitable[int]]
    keeping: Callable[[Digest], AbstractAsyncContextManager[None]]
    remove: Callable[[Digest], Awaitable[bool]]
    nodes: Callable[[], int]
    is_idle: Callable[[], bool]
    name_of: Callable[[NodeId], str]
    note: Callable[[EventKind, str, str], None]
    shaper: Shaper | None
    clock: Clock
    metrics: Metrics
    log: Log


class NativeParts:
    def __init__(self, config: Config, around: Surroundings) -> None:
        self._around = around
        self.rates = Rates(compiles_max=config.runtime.compiles_max)
        self._acceptance = Acceptance(
            config.artifacts.accept,
            anchor=around.trust.anchor,
            credential=around.trust.credential,
            store=around.store,
            clock=around.clock,
        )
        self._acquisition = Acquisition(
            acceptance=self._acceptance,
            fetcher=around.fetcher,
            key=around.runtime.artifact_key,
            ask=self._ask,
            peers=around.peers,
            bases=around.bases,
            note=around.note,
            rates=self.rates,
            metrics=around.metrics,
            log=around.log,
        )
        self.artifacts = self._make_artifacts()
        self.activation = self._make_activation(config)
        self._distrust = Distrust(self.artifacts, unmap=self.activation.unmap, log=around.log)
        self.making = Making(
            around.snapshotter,
            store=around.store,
            keeping=around.keeping,
            metrics=around.metrics,
            log=around.log,
        )
        self.inits = self._make_inits(config.planner)
        self.snapshots = self._obtainer.snapshots = self._make_snapshots()
        self.auditor = self._make_auditor() if config.artifacts.audit else None
        self.builders = Builders(
            self._acceptance,
            node=config.node.name,
            name_of=around.name_of,
            on_trusted=self._trusted_again,
            note=around.note,
            log=around.log,
        )

    async def _ask(self, peer: Peer, module: Digest, key: ArtifactKey) -> bytes:
        around = self._around
        return await ask_attestations(peer, around.trust, module, key, around.shaper)

    def _trusted_again(self) -> None:
        self.artifacts.judge_anew()
        self.snapshots.begin_anew()
        if self.auditor is not None:
            self.auditor.begin_anew()

    def _refused(self, row: ArtifactRow, reason: str, detail: str) -> None:
        self._acquisition.refuse(row.module, None, reason, detail)
        if reason == "engine":  # it would be so again
            self._acquisition.unfit(row.module, row.digest)

    def _make_artifacts(self) -> Artifacts:
        around = self._around
        return Artifacts(
            store=around.store,
            runtime=around.runtime,
            acceptance=self._acceptance,
            private_key=around.trust.private_key,
            credential=around.trust.credential,
            rates=self.rates,
            on_change=around.announce,
            on_refused=self._refused,
            metrics=around.metrics,
            log=around.log,
        )

    def _make_activation(self, config: Config) -> Activation:
        around = self._around
        supply = self.supply = Supply(
            node_id=around.trust.node_id,
            key=around.runtime.artifact_key,
            acceptance=self._acceptance,
            acquisition=self._acquisition,
            artifacts=self.artifacts,
            rivals=around.rivals,
            rates=self.rates,
            log=around.log,
        )
        self._obtainer = Obtainer(
            self.artifacts,
            supply,
            store=around.store,
            fetcher=around.fetcher,
            rates=self.rates,
            on_held=around.on_held,
            tiers=around.runtime.keys,
            metrics=around.metrics,
            log=around.log,
        )
        return Activation(
            self.artifacts,
            supply,
            self._obtainer,
            store=around.store,
            table=MappedTable(
                bytes_max=config.runtime.loaded_bytes_max, number_max=config.runtime.loaded_max
            ),
            eager=config.artifacts.eager,
            tiers=around.runtime.keys,
            metrics=around.metrics,
            log=around.log,
        )

    def _make_inits(self, section: PlannerSection) -> Inits:
        around = self._around
        prices = Prices(wire_s_per_byte=section.price_per_gib / GIBIBYTE)

        def worth(
            facts: SnapshotFacts, size_bytes: int, module_wire_bytes: int
        ) -> tuple[bool, str]:
            link_bytes_s = 1 / self.rates.fetch_s(1)
            return worth_keeping(
                facts,
                size_bytes,
                module_wire_bytes,
                nodes=around.nodes(),
                link_bytes_s=link_bytes_s,
                prices=prices,
            )

        return Inits(
            self.making,
            store=around.store,
            catalog=around.catalog,
            private_key=around.trust.private_key,
            credential=around.trust.credential,
            worth=worth,
            delta_bytes=around.delta_bytes,
            keeping=around.keeping,
            remove=around.remove,
            on_held=around.on_held,
            note=around.note,
            clock=around.clock,
            log=around.log,
        )

    def _make_snapshots(self) -> SnapshotService:
        around = self._around
        return SnapshotService(
            self.making,
            node_id=around.trust.node_id,
            store=around.store,
            catalog=around.catalog,
            acceptance=self._acceptance,
            have=self._obtainer.have,
            keeping=around.keeping,
            on_held=around.on_held,
            distrust=self._distrust,
            note=around.note,
            metrics=around.metrics,
            log=around.log,
        )

    def _make_auditor(self) -> Auditor:
        around, activation = self._around, self.activation
        return Auditor(
            self.artifacts,
            store=around.store,
            is_idle=lambda: around.is_idle() and not activation.busy,
            distrust=self._distrust,
            audit_snapshot=self.snapshots.audit,
            name_of=around.name_of,
            note=around.note,
            metrics=around.metrics,
            log=around.log,
        )
