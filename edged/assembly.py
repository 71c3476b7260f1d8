"""Builds one node's parts and wires them to each other; starts nothing. Only `node` uses it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

import trio

from protocol.estimates import RATE_OFF
from protocol.events import Event, MemberUp, MemberUpdated
from protocol.gossip import Gossip, GossipConfig
from protocol.holdings import ANSWERING_FORMS, MODULE_FORMS
from protocol.ids import ArtifactKey, Digest, NodeId
from protocol.member import Metadata
from protocol.presets import PRESETS
from protocol.records import Record, encoded_records
from protocol.replication import ReplicationConfig
from protocol.seal import Keyring

from .acknowledging import Nodes
from .acquaintances import Acquaintances
from .clock import Clock
from .config import Config
from .deltas import DeltaSource
from .errors import IdentityTaken
from .eventlog import EventLog, function_of
from .evicting import Evictor
from .expiry import Expiry
from .explaining import Explaining
from .forms import held_form
from .forwarding import Forwarding
from .functions import FunctionService
from .gateway import Gateway, GatewayLimits
from .housekeeping import Housekeeping
from .intake import Intake
from .interfaces import FunctionView, NodeState, Peer, Snapshots
from .journal import Journal
from .keeping import Keeper
from .keys import KeyService
from .links import EMPTY as NO_LINKS
from .links import load_document
from .listening import Sockets
from .load import LoadMeter
from .lookup import Lookup
from .measuring import LinkPrior, Measures
from .native import NativeParts, Surroundings
from .network import (
    ExchangeService,
    GossipService,
    Line,
    Shaper,
    StreamServer,
)
from .operations import ClusterAccess, Operations
from .planwiring import MBIT_BYTES_S, PlanParts, PlanSurroundings
from .reactions import Reactions
from .replication import ReplicationService
from .runtime.runtime import WasmtimeRuntime
from .saved import SavedRecords
from .serving import WireSource
from .store import BlobStore
from .supply import Rivals
from .telemetry import Log, Metrics
from .topology import End
from .trust import Trust
from .views import Views

IDLE_LOAD: Final = 0.05
"""Below it nobody minds work that may wait."""
READY_MARGIN_S: Final = 30.0
"""The gateway's own backstop comes so much after a request's wait for its function's code."""


def make_gossip(
    config: Config,
    trust: Trust,
    runtime: WasmtimeRuntime,
    sockets: Sockets,
    generation: int,
    clock: Clock,
) -> Gossip:
    metadata = Metadata(
        name=config.node.name,
        gossip_address=sockets.gossip_address,
        stream_address=sockets.gossip_address,
        gateway_url=sockets.addresses.gateway_url,
        region=config.node.region,
        target=runtime.target,
        artifact_key=runtime.artifact_key[:16],
    )
    return Gossip(
        GossipConfig(metadata=metadata, generation=generation, knobs=PRESETS[config.gossip.preset]),
        Keyring(trust.keyring_keys),
        trust.anchor,
        trust.private_key,
        trust.credential,
        random.SystemRandom(),
        now=trio.current_time(),
        wall_ms=clock.now_ms(),
    )


class Parts:
    """A node's services. They know each other only through what is passed to them here."""

    def __init__(
        self,
        *,
        config: Config,
        trust: Trust,
        store: BlobStore,
        runtime: WasmtimeRuntime,
        snapshotter: Snapshots,
        sockets: Sockets,
        generation: int,
        state: Callable[[], NodeState],
        shunned: Callable[[IdentityTaken], None],
        clock: Clock,
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`shunned`: as Reactions."""
        self._log = log
        self._clock = clock
        self._metrics = metrics
        self._store = store
        self._runtime = runtime
        self._snapshotter = snapshotter
        self._trust = trust
        self._persisting = trio.Lock()
        """Held by whoever writes records to disk: Operations and the gossip driver."""
        self.journal = Journal(wall_s=clock.now_s)
        self.events = EventLog(node=config.node.name, generation=generation, wall_s=clock.now_s)
        self.gossip = make_gossip(config, trust, runtime, sockets, generation, clock)
        self.acquaintances = Acquaintances(store, self.gossip.members, log=log)
        self.shaper = self._make_shaper(config, sockets) if config.links.enabled else None
        self._lookup = Lookup(
            self.gossip.catalog, usable=lambda stated: self.snapshots.judge(stated) != "refuse"
        )
        self._link_bytes_s = config.planner.link_mbit * MBIT_BYTES_S
        self.measures = Measures(link=self._link_prior)
        self._saved = SavedRecords(trust)
        self._wire_peers(sockets, generation, state)
        store.on_lost = self._on_lost
        self._wire_functions(config)
        self._wire_operator(config, state)
        self._reactions = self._make_reactions(shunned)
        limits = GatewayLimits(ready_timeout_s=config.gateway.ready_timeout_s + READY_MARGIN_S)
        self.gateway = Gateway(
            self.functions,
            node_name=config.node.name,
            state=state,
            limits=limits,
            node_id=trust.node_id,
            forwarder=self.forwarding.forwarder,
            metrics=metrics,
            log=log,
        )

    async def recall(self) -> None:
        """Takes the catalog and the holdings from disk, before anything runs. Beside the event
        loop: other nodes may live in this process, and records that are not proven take their
        time. Raises StoreError."""
        store, catalog = self._store, self.gossip.catalog
        rows = self._saved.unwrap(store.load_records())
        load = partial(catalog.load, rows)
        loaded = await trio.to_thread.run_sync(load, limiter=trio.CapacityLimiter(1))
        for key, error in loaded.refused:
            self._log.error("record on disk refused", key=key, why=str(error))
        modules = [blob.digest for blob in store.blobs() if blob.kind == "module"]
        for module in dict.fromkeys([*modules, *(row.module for row in store.artifacts())]):
            form = held_form(module, store=store, artifacts=self.artifacts)
            if form is not None:
                self.gossip.holdings.set_local(module, held=True, form=form)
        await store.drop_records(loaded.drop)
        proved = [row for row in rows if not row.proven and catalog.encoded(row.key) == row.encoded]
        await self._save_records([(row.key, row.encoded) for row in proved])

    async def _save_records(self, records: Sequence[tuple[str, bytes]]) -> None:
        """Of verified records. Durable when it returns. Raises StoreError."""
        await self._store.save_records(self._saved.wrap(records))

    def _wire_peers(
        self, sockets: Sockets, generation: int, state: Callable[[], NodeState]
    ) -> None:
        trust, store, metrics, log = self._trust, self._store, self._metrics, self._log
        self.gossip_service = GossipService(
            self.gossip,
            sockets.gossip,
            trust=trust,
            save_records=self._save_records,
            metrics=metrics,
            log=log,
            on_event=self._on_event,
            observe=self._observe,
            persisting=self._persisting,
            drop_records=store.drop_records,
            clock=self._clock,
            shaper=self.shaper,
        )
        self.exchange = ExchangeService(
            trust=trust,
            store=store,
            holders=self._peers_holding,
            find_peer=self._peer,
            bases=self._bases,
            metrics=metrics,
            log=log,
            shaper=self.shaper,
            meter=self.measures,
        )
        self.deltas = DeltaSource(store)
        self.streams = StreamServer(
            trust=trust,
            source=WireSource(
                store, log, attested=self._attested, manifests=self._lookup.manifests
            ),
            deltas=self.deltas,
            fetching=self.exchange,
            sync=self.gossip_service,
            replicas=Keeper(
                store,
                self.exchange,
                on_held=self._on_placed,
                keeping=self._keeping,
                promise=lambda blob: self.replication.promise(blob),  # noqa: PLW0108 - made later
                state=state,
            ),
            is_member=lambda node_id: self._peer(node_id) is not None,
            metrics=metrics,
            log=log,
            generation=generation,
            known_generation=self._known_generation,
            shaper=self.shaper,
        )

    def _known_generation(self, node_id: NodeId) -> int:
        member = self.gossip.member(node_id)
        return 0 if member is None else member.generation

    def _make_shaper(self, config: Config, sockets: Sockets) -> Shaper:
        """Raises ConfigError."""
        section = config.links
        document = load_document(config.path(section.file)) if section.file else NO_LINKS
        shaper = Shaper(
            End(config.node.name, config.node.region),
            document,
            send=sockets.gossip.send,
            members=self.gossip.members,
            rng=random.Random(),  # noqa: S311 - chance, not secrets
            note=self.events.add,
            log=self._log,
        )
        self._metrics.registry.collect(shaper.families)
        return shaper

    def _observe(self, event: Event) -> None:
        self.events.note(event)
        if self.shaper is not None and isinstance(event, MemberUp | MemberUpdated):
            self.shaper.members_changed()

    def _wire_functions(self, config: Config) -> None:
        around = Surroundings(
            trust=self._trust,
            store=self._store,
            runtime=self._runtime,
            snapshotter=self._snapshotter,
            catalog=self.gossip.catalog,
            fetcher=self.exchange,
            announce=self._announce,
            on_held=self._on_held,
            peers=self._peers_with_artifact,
            rivals=self._rivals,
            bases=self._artifact_bases,
            delta_bytes=self.deltas.wire_bytes,
            keeping=self._keeping,
            remove=self._remove_copy,
            nodes=lambda: self.views.member_counts()["alive"],
            is_idle=lambda: not self.functions.running and self.load.share < IDLE_LOAD,
            name_of=self._name_of,
            note=self.events.add,
            shaper=self.shaper,
            clock=self._clock,
            metrics=self._metrics,
            log=self._log,
        )
        native = NativeParts(config, around)
        self.artifacts, self.activation = native.artifacts, native.activation
        self.auditor, self.builders = native.auditor, native.builders
        self.making, self.inits, self.snapshots = native.making, native.inits, native.snapshots
        self._wire_plans(config, native)
        self.load = LoadMeter(
            running=lambda: self.functions.running,
            running_max=config.gateway.invocations_max,
            tell=self.gossip.set_load,
        )
        self.functions = FunctionService(
            lookup=self._lookup.current,
            version=self._lookup.version,
            codes=self.choices,
            journal=self.journal,
            limits=config.gateway,
            on_run=self.load.wake,
        )

    def _wire_plans(self, config: Config, native: NativeParts) -> None:
        holdings = self.gossip.holdings
        parts = PlanParts(
            config.planner,
            PlanSurroundings(
                node=config.node.name,
                store=self._store,
                artifacts=self.artifacts,
                activation=self.activation,
                supply=native.supply,
                rates=native.rates,
                measures=self.measures,
                tiers=self._runtime.keys,
                forwards=config.gateway.forward,
                stated=self.gossip.catalog.snapshots.get,
                unproven=native.snapshots.unproven,
                lookup=self._lookup.current,
                holders=self._peers_holding,
                ready=self._peers_ready,
                form=holdings.form,
                served=lambda: self.gateway.served(),  # noqa: PLW0108 - made later
                measure_fetches=self.exchange.measure,
                room=lambda: self.evictor.room,
                note=self.events.planned,
                wall_s=self._clock.now_s,
                metrics=self._metrics,
                log=self._log,
            ),
        )
        self._plan_parts, self.choices, self.planning = parts, parts.choices, parts.planning

    def _link_prior(self, peer: NodeId) -> LinkPrior:
        if self.shaper is None:
            return LinkPrior(self._link_bytes_s, RATE_OFF)
        return LinkPrior(self.shaper.bandwidth_from(peer) or self._link_bytes_s, 0.0)

    def _wire_operator(self, config: Config, state: Callable[[], NodeState]) -> None:
        started_s = trio.current_time()
        self.views = Views(
            gossip=self.gossip,
            store=self._store,
            runtime=self._runtime,
            functions=self.functions,
            state=state,
            uptime_s=lambda: trio.current_time() - started_s,
            metrics=self._metrics,
            load=lambda: self.load.share,
            replication=lambda: self.replication.view(),  # noqa: PLW0108 - made later
            reason=self.events.reason,
            trust_expires_s=self._trust.expires_s,
            clock=self._clock,
        )
        self.expiry = Expiry(
            self._trust, note=self.events.add, log=self._log, wall_s=self._clock.now_s
        )
        self.housekeeping = Housekeeping(
            config.store,
            node=config.node.name,
            store=self._store,
            catalog=self.gossip.catalog,
            activation=self.activation,
            exchange=self.exchange,
            streams=self.streams,
            keys=self._runtime.keys.values(),
            snapshots=self.snapshots,
            views=self.views,
            announce=self._announce,
            promised=lambda module: self.replication.promised(module),  # noqa: PLW0108 - made later
            absent=lambda: self.replication.absent(),  # noqa: PLW0108 - made later
            events=self.events,
            state=state,
            clock=self._clock,
            metrics=self._metrics,
            log=self._log,
        )
        self.evictor = self._make_evictor(config)
        self.forwarding = Forwarding(
            config.gateway,
            trust=self._trust,
            ready=self._peers_ready,
            on_answer=self.planning.answered,
            functions=self._lookup.functions,
            is_near=self.choices.is_near,
            shaper=self.shaper,
            metrics=self._metrics,
            log=self._log,
        )
        self._wire_replication(config)
        self.keys = KeyService(
            self._trust.keyring_keys,
            path=config.path(config.trust.directory) / "keyring",
            members=self.gossip.members,
            install=self._install_keys,
            note=self.events.add,
        )
        self.operations = self._make_operations(config, state)
        self.explaining = self._make_explaining(config)

    def _make_explaining(self, config: Config) -> Explaining:
        return Explaining(
            self.planning,
            node=config.node.name,
            store=self._store,
            runtime=self._runtime,
            artifacts=self.artifacts,
            activation=self.activation,
            functions=self.functions,
            holders=self.views.holders,
        )

    def _make_evictor(self, config: Config) -> Evictor:
        catalog = self.gossip.catalog
        return Evictor(
            self._store,
            node=config.node.name,
            bytes_max=config.store.bytes_max,
            snapshots=lambda: [
                one for one in catalog.snapshots if catalog.modules.get(one) is None
            ],
            uses=self._plan_parts.uses,
            cost_s=self._plan_parts.again_s,
            evict=self.housekeeping.collector.evict,
            note=self.events.add,
            metrics=self._metrics,
            log=self._log,
            wall_s=self._clock.now_s,
        )

    def _wire_replication(self, config: Config) -> None:
        self._nodes = Nodes(
            me=self.gossip.node_id,
            sites=self.views.sites,
            find_peer=self._peer,
            name=self.views.member_name,
            dial=partial(Line, pool=self.exchange.pool),
        )
        section, store = config.replication, self._store
        self.replication = ReplicationService(
            config.node.region,
            ReplicationConfig(
                repair_after_s=section.repair_after_s, surplus_after_s=section.surplus_after_s
            ),
            nodes=self._nodes,
            modules=self.gossip.catalog.modules,
            fetcher=self.exchange,
            held=lambda module: store.info(module) is not None,
            holders=lambda module: self.gossip.holdings.holders(module, MODULE_FORMS),
            in_use=self.housekeeping.has_use_for,
            remove=self.housekeeping.collector.remove_copy,
            on_held=self._on_held,
            note=self.events.add,
            metrics=self._metrics,
            log=self._log,
        )

    def _make_reactions(self, shunned: Callable[[IdentityTaken], None]) -> Reactions:
        return Reactions(
            gossip=self.gossip,
            acquaintances=self.acquaintances,
            forwarding=self.forwarding,
            exchange=self.exchange,
            replication=self.replication,
            journal=self.journal,
            wall_ms=self._clock.now_ms,
            shunned=shunned,
            log=self._log,
        )

    def _make_operations(self, config: Config, state: Callable[[], NodeState]) -> Operations:
        return Operations(
            store=self._store,
            runtime=self._runtime,
            artifacts=self.artifacts,
            activation=self.activation,
            choices=self.choices,
            journal=self.journal,
            cluster=self._cluster_access(),
            intake=Intake(
                store=self._store,
                runtime=self._runtime,
                keeping=self._keeping,
                on_held=self._on_held,
                mounts=frozenset(config.mounts),
                replicas=config.replication.replicas,
            ),
            inits=self.inits,
            snapshots=self.snapshots,
            planned=self.planning.chosen,
            replicas=config.replication.replicas,
            state=state,
        )

    def _cluster_access(self) -> ClusterAccess:
        return ClusterAccess(
            catalog=self.gossip.catalog,
            nodes=self._nodes,
            publish=self._publish,
            members=self.views.members,
            join=self.gossip_service.join_named,
            holders=self.views.holders,
            replicas=self.replication.replicas,
            keeping=self.housekeeping.collector.keeping,
            status=self.views.status,
            metrics=self.views.render_metrics,
            wall_ms=self._clock.now_ms,
            persisting=self._persisting,
            save_records=self._save_records,
            drop_records=self._store.drop_records,
            discard_future=self._discard_future,
        )

    async def _on_event(self, event: Event) -> None:
        self._reactions.on_event(event)

    def _install_keys(self, keys: tuple[bytes, ...]) -> None:
        self.gossip.set_keyring(Keyring(keys), trio.current_time())
        self.gossip_service.notify()

    def _peers_with_artifact(self, module: Digest) -> list[Peer]:
        return self.views.peers_with_artifact(module)

    def _rivals(self, module: Digest) -> Rivals:
        return self.views.rivals(module)

    def _name_of(self, node_id: NodeId) -> str:
        return self.views.member_name(node_id)

    async def _attested(self, module: Digest, key: ArtifactKey) -> bytes:
        return await self.artifacts.attested(module, key)

    def _peers_ready(self, function: FunctionView) -> list[Peer]:
        return self.views.peers_ready(self._lookup.codes(function))

    def _peers_holding(self, digest: Digest) -> list[Peer]:
        return self.views.peers_holding(digest)

    def _peer(self, node_id: NodeId) -> Peer | None:
        return self.views.peer(node_id)

    def _bases(self, module: Digest) -> list[Digest]:
        return [one for one in self._lookup.kin(module) if self._store.info(one) is not None]

    def _artifact_bases(self, module: Digest) -> list[Digest]:
        rows = (self.artifacts.row(one, "optimised") for one in self._lookup.kin(module))
        return [row.digest for row in rows if row is not None]

    def _keeping(self, blob: Digest) -> AbstractAsyncContextManager[None]:
        return self.housekeeping.collector.keeping(blob)

    async def _remove_copy(self, blob: Digest) -> bool:
        return await self.housekeeping.collector.remove_copy(blob)

    def _on_held(self, module: Digest) -> None:
        self.housekeeping.collector.touch(module)
        self._announce(module)

    def _on_placed(self, module: Digest) -> None:
        self._announce(module)
        self.activation.placed(module)

    def _announce(self, module: Digest) -> None:
        """What has changed of it here; what others know already costs nothing."""
        self.replication.touch(module)
        form = held_form(module, store=self._store, artifacts=self.artifacts)
        holdings, now = self.gossip.holdings, trio.current_time()
        if form == holdings.form(self._trust.node_id, module):
            return
        if not self.gossip.announce(module, form is not None, now, form or "module"):
            self._log.error("too many blobs to announce all; peers cannot find this", blob=module)
        self.gossip_service.notify()

    def _on_lost(self, digest: Digest, what: str) -> None:
        """A module, the wire form of one, or an artifact, whose module the store has forgotten."""
        self._announce(digest)
        self.housekeeping.scrubber.lost(digest, what)
        for module, form in self.gossip.holdings.held(self._trust.node_id).items():
            if form in ANSWERING_FORMS:
                self._announce(module)

    def _publish(self, records: Sequence[Record]) -> None:
        self.gossip.publish(records, trio.current_time())
        self.replication.look()
        self.gossip_service.notify()
        for key, _ in encoded_records(records):
            self.events.add("record-published", function_of(key), key)

    def _discard_future(self, wall_ms: int) -> None:
        gone = self.gossip.discard_future(trio.current_time(), wall_ms)
        self.replication.look()
        self.gossip_service.notify()
        self._log.warning("records of the future discarded", keys=gone[:8], count=len(gone))
