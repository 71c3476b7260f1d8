"""What an operator can do to this node: implements interfaces.Operator for the control API.

A change is acknowledged once its blob and its signed records are durable on enough nodes
(acknowledging.py). Runs in the node's event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

import trio

from protocol.catalog import Catalog, Current, VersionRow
from protocol.costs import PlanForm
from protocol.entries import Entry
from protocol.errors import RemoteProtocolError
from protocol.function import FunctionSpec, encode_spec, version_of
from protocol.ids import Digest, FunctionName, VersionId, digest_of, parse_function_name
from protocol.records import Record, encoded_records
from protocol.snapshots import SnapshotStatement

from .acknowledging import Change, Nodes
from .activation import Activation
from .artifacts import Artifacts
from .choices import Choices, codes_of
from .errors import (
    BadRequest,
    ConfigError,
    Conflict,
    Draining,
    EdgedError,
    FunctionNotFound,
)
from .inits import Inits, Prepared
from .intake import Intake
from .interfaces import (
    ArtifactRow,
    ArtifactsView,
    ArtifactView,
    Deployed,
    DeployRequest,
    FunctionDetail,
    FunctionSummary,
    FunctionView,
    FutureRecord,
    HolderView,
    LogLine,
    MemberView,
    ModuleStored,
    NodeState,
    ReplicasView,
    Runtime,
    SnapshotView,
    StatusView,
    Store,
    VersionView,
)
from .journal import Journal
from .lookup import functions_of
from .snapshots import SnapshotService

VERSION_PREFIX_MIN: Final = 4


class ClusterAccess:
    """What operations need of the cluster side, as callables that node wires."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        nodes: Nodes,
        publish: Callable[[Sequence[Record]], None],
        members: Callable[[], tuple[MemberView, ...]],
        join: Callable[[Sequence[str]], Awaitable[None]],
        holders: Callable[[Digest], tuple[HolderView, ...]],
        replicas: Callable[[Digest], ReplicasView],
        keeping: Callable[[Digest], AbstractAsyncContextManager[None]],
        status: Callable[[], StatusView],
        metrics: Callable[[], bytes],
        wall_ms: Callable[[], int],
        persisting: trio.Lock,
        save_records: Callable[[Sequence[tuple[str, bytes]]], Awaitable[None]],
        drop_records: Callable[[Sequence[str]], Awaitable[None]],
        discard_future: Callable[[int], object],
    ) -> None:
        self.catalog = catalog
        self.nodes = nodes
        self.publish = publish
        self.members = members
        self.join = join
        self.holders = holders
        self.replicas = replicas
        self.keeping = keeping
        self.status = status
        self.metrics = metrics
        self.wall_ms = wall_ms
        self.persisting = persisting
        self.save_records = save_records
        self.drop_records = drop_records
        self.discard_future = discard_future


class Operations:
    """Implements interfaces.Operator."""

    def __init__(
        self,
        *,
        store: Store,
        runtime: Runtime,
        artifacts: Artifacts,
        activation: Activation,
        choices: Choices,
        journal: Journal,
        cluster: ClusterAccess,
        intake: Intake,
        inits: Inits,
        snapshots: SnapshotService,
        planned: Callable[[VersionId], PlanForm | None],
        replicas: int,
        state: Callable[[], NodeState],
    ) -> None:
        """`planned`: the form that this node has chosen; `replicas`: of a removal."""
        self._store = store
        self._runtime = runtime
        self._artifacts = artifacts
        self._activation = activation
        self._choices = choices
        self._journal = journal
        self._cluster = cluster
        self._intake = intake
        self._inits = inits
        self._snapshots = snapshots
        self._planned = planned
        self._replicas = replicas
        self._state = state
        # Two deploys of one name must not read the same "current" and both move it, and what peers
        # say must not be written over what was acknowledged here: one lock with the gossip driver.
        self._writing = cluster.persisting

    async def put_module(self, data: bytes, *, expected: Digest | None) -> ModuleStored:
        self._check_state()
        return await self._intake.put(data, expected=expected)

    async def deploy(self, name: str, request: DeployRequest) -> Deployed:
        self._check_state()
        function = _parse_name(name)
        async with self._cluster.keeping(request.module):  # else it might be collected meanwhile
            return await self._deploy(function, request)

    async def _deploy(self, function: FunctionName, request: DeployRequest) -> Deployed:
        spec, wire_bytes = await self._intake.spec(request)
        self._prepare(function, encode_spec(spec), None)  # nobody's init runs in vain
        fits = partial(self._intake.fits, request=request)
        async with self._inits.at_deploy(
            spec, request.snapshot, name=function, fits=fits
        ) as prepared:
            return await self._deploy_spec(function, spec, wire_bytes, prepared)

    async def _deploy_spec(
        self, function: FunctionName, spec: FunctionSpec, wire_bytes: int, prepared: Prepared
    ) -> Deployed:
        encoded, stated = encode_spec(spec), prepared.statement
        version = version_of(encoded)
        self._prepare(
            function, encoded, stated
        )  # what is refused here shall go nowhere else before
        change = self._cluster.nodes.change(spec.module, spec.replicas, wire_bytes=wire_bytes)
        async with change:
            await change.spread(spec.manifest)
            async with self._writing:
                before = self._cluster.catalog.lookup(function)
                records = self._prepare(function, encoded, stated)
                await self._commit(records)
            self._choices.deployed(FunctionView(function, version, spec, stated))
            replicas = await self._store_elsewhere(change, function, version, records)
        return Deployed(
            name=function,
            version=version,
            previous=before.version if before is not None else None,
            created=bool(records),
            replicas=replicas,
            wanted=spec.replicas,
            init=prepared.view,
        )

    def _prepare(
        self, function: FunctionName, encoded: bytes, stated: SnapshotStatement | None
    ) -> list[Record]:
        """Moves nothing but the catalog's clock. Raises Conflict, BadRequest."""
        try:
            return self._cluster.catalog.prepare_deploy(
                function, encoded, wall_ms=self._cluster.wall_ms(), snapshot=stated
            )
        except RemoteProtocolError as error:
            raise _refused(error) from error

    async def _store_elsewhere(
        self, change: Change, function: FunctionName, version: VersionId, records: Sequence[Record]
    ) -> tuple[str, ...]:
        """Without new records, those in force: whoever tries again may be told only then that it is
        done."""
        encoded = [row for _, row in encoded_records(records)]
        if not encoded:
            keys = (f"v/{function}/{version}", f"a/{function}")
            rows = [self._cluster.catalog.encoded(key) for key in keys]
            encoded = [row for row in rows if row is not None]
        return await change.store(encoded)

    async def rollback(self, name: str, version: str | None) -> Deployed:
        self._check_state()
        catalog = self._cluster.catalog
        async with self._writing:
            function, current = self._current(name)
            target = self._rollback_target(function, version)
            try:
                records = catalog.prepare_alias(
                    function, target.version, wall_ms=self._cluster.wall_ms()
                )
            except RemoteProtocolError as error:
                raise _refused(error) from error
            await self._commit(records)
        self._choices.deployed(FunctionView(function, target.version, target.spec, target.snapshot))
        change = self._cluster.nodes.change(target.spec.module, target.spec.replicas)
        async with change:
            replicas = await self._store_elsewhere(change, function, target.version, records)
        return Deployed(
            name=function,
            version=target.version,
            previous=current.version,
            created=bool(records),
            replicas=replicas,
            wanted=target.spec.replicas,
        )

    def _rollback_target(self, name: FunctionName, version: str | None) -> VersionRow:
        versions = self._cluster.catalog.versions(name)
        if version is None:
            at = next((i for i, row in enumerate(versions) if row.current), len(versions))
            if at + 1 >= len(versions):
                raise Conflict(f"{name} has no version before the current one")
            return versions[at + 1]
        if len(version) < VERSION_PREFIX_MIN:
            raise BadRequest(f"a version prefix has at least {VERSION_PREFIX_MIN} digits")
        found = [v for v in versions if v.version.startswith(version)]
        if not found:
            raise FunctionNotFound(f"{name} has no version {version}")
        if len(found) > 1:
            raise BadRequest(f"{version} is the start of {len(found)} versions; write more digits")
        return found[0]

    async def remove(self, name: str) -> Deployed:
        self._check_state()
        async with self._writing:
            function = _parse_name(name)
            catalog = self._cluster.catalog
            current = catalog.lookup(function)
            modules = {row.spec.module for row in catalog.versions(function)}
            try:
                records = catalog.prepare_remove(function, wall_ms=self._cluster.wall_ms())
            except RemoteProtocolError as error:
                raise _refused(error) from error
            await self._commit(records)
        self._journal.forget(function)
        rows = [row for _, row in encoded_records(records)]
        removed = catalog.encoded(f"a/{function}")
        if not rows and removed is not None:  # by a removal that may not have been acknowledged
            rows = [removed]
        replicas: tuple[str, ...] = ()
        if rows:
            async with self._cluster.nodes.change(
                digest_of(name.encode()), self._replicas
            ) as change:
                replicas = await change.store(rows)
        if not records:
            raise FunctionNotFound(f"there is no function {name!r}")
        previous = current.version if current is not None else None
        return Deployed(
            name=function,
            version=None,
            previous=previous,
            created=False,
            replicas=replicas,
            sharing=functions_of(modules, catalog),
        )

    def future_records(self) -> tuple[FutureRecord, ...]:
        catalog = self._cluster.catalog
        return tuple(map(_future, catalog.future(self._cluster.wall_ms())))

    async def discard_future(self) -> tuple[FutureRecord, ...]:
        """Off the disk first: a node that dies in between has them still, and is asked again."""
        self._check_state()
        async with self._writing:
            wall_ms = self._cluster.wall_ms()
            entries = self._cluster.catalog.future(wall_ms)
            with trio.CancelScope(shield=True):
                await self._cluster.drop_records([entry.key for entry in entries])
                self._cluster.discard_future(wall_ms)
        return tuple(map(_future, entries))

    def _check_state(self) -> None:
        if self._state() == "draining":
            raise Draining("this node is shutting down; use another")

    def state(self) -> NodeState:
        return self._state()

    async def _commit(self, records: Sequence[Record]) -> None:
        """Durable first, then in force and known to others. Not cancellable in between: what is
        on disk must be in memory too. No timeout: a disk that hangs has hung the node."""
        if not records:
            return
        with trio.CancelScope(shield=True):
            await self._cluster.save_records(encoded_records(records))
            self._cluster.publish(records)

    def _current(self, name: str) -> tuple[FunctionName, Current]:
        function = _parse_name(name)
        found = self._cluster.catalog.lookup(function)
        if found is None:
            raise FunctionNotFound(f"there is no function {name!r}")
        return function, found

    def functions(self) -> tuple[FunctionSummary, ...]:
        return tuple(
            self._summary(name, current) for name, current in self._cluster.catalog.functions()
        )

    def _summary(self, name: FunctionName, current: Current) -> FunctionSummary:
        function = FunctionView(name, current.version, current.spec, current.snapshot)
        module, codes = current.spec.module, [code.digest for code in codes_of(function)]
        mapped = next(filter(self._activation.is_mapped, codes), None)
        return FunctionSummary(
            name=name,
            version=current.version,
            abi=current.spec.abi,
            module=module,
            module_bytes=current.spec.module_bytes,
            deployed_at_s=current.deployed_ms / 1000,
            deployed_by=current.signer_name,
            versions=self._cluster.catalog.version_count(name),
            state=(
                "mapped"
                if mapped is not None
                else "artifact"
                if any(self._artifacts.best(code) is not None for code in codes)
                else "module"
                if any(self._store.info(code) is not None for code in codes)
                else "remote"
            ),
            tier=None if mapped is None else self._activation.tier(mapped),
            form=self._planned(current.version),
        )

    def describe(self, name: str) -> FunctionDetail:
        function, current = self._current(name)
        return FunctionDetail(
            summary=self._summary(function, current),
            spec=current.spec,
            holders=self._cluster.holders(current.spec.module),
            replicas=self._cluster.replicas(current.spec.module),
            snapshot=self._snapshot(current.snapshot),
            snapshot_holders=(
                self._cluster.holders(current.snapshot.snapshot) if current.snapshot else ()
            ),
        )

    def _snapshot(self, stated: SnapshotStatement | None) -> SnapshotView | None:
        return None if stated is None else self._snapshots.view(stated)

    def versions(self, name: str) -> tuple[VersionView, ...]:
        function, _ = self._current(name)
        return tuple(
            VersionView(
                version=row.version,
                current=row.current,
                abi=row.spec.abi,
                module=row.spec.module,
                module_bytes=row.spec.module_bytes,
                deployed_at_s=row.deployed_ms / 1000,
                deployed_by=row.signer_name,
                init=row.spec.init,
                snapshot=self._snapshot(row.snapshot),
            )
            for row in self._cluster.catalog.versions(function)
        )

    def logs(self, name: str, *, tail: int) -> list[LogLine]:
        return self._journal.tail(self._current(name)[0], tail)

    def follow(self, name: str, *, tail: int) -> AsyncIterator[LogLine]:
        return self._journal.follow(self._current(name)[0], tail)

    def artifacts(self) -> ArtifactsView:
        rows = sorted((each.row for each in self._activation.in_memory()), key=lambda r: r.module)
        return ArtifactsView(
            self._cluster.nodes.name(self._cluster.nodes.me),
            self._artifacts.accept,
            tuple(map(self._artifact, rows)),
        )

    def _artifact(self, row: ArtifactRow) -> ArtifactView:
        try:
            builders = self._artifacts.builders(row)
        except RemoteProtocolError:  # so nobody's word for it can be read
            builders = {}
        me = self._cluster.nodes.me
        return ArtifactView(
            module=row.module,
            artifact_key=row.key,
            tier="fast" if row.key == self._runtime.keys.get("fast") else "optimised",
            digest=row.digest,
            own=me in builders,
            builders=tuple(sorted(name for builder, name in builders.items() if builder != me)),
        )

    def status(self) -> StatusView:
        return self._cluster.status()

    def members(self) -> tuple[MemberView, ...]:
        return self._cluster.members()

    async def join(self, seeds: tuple[str, ...]) -> None:
        self._check_state()
        try:
            await self._cluster.join(seeds)
        except ConfigError as error:
            raise BadRequest(str(error)) from error

    def metrics(self) -> bytes:
        return self._cluster.metrics()


def _refused(error: RemoteProtocolError) -> EdgedError:
    """What the catalog's refusal of an own record means to an operator."""
    if error.code in ("credential-role", "credential-expired"):
        return Conflict(
            f"this node may not sign deployments ({error}); use one with the control role"
        )
    if error.code == "catalog-full":
        return Conflict(f"the catalog is full: {error.detail}")
    if error.code == "record-future":
        return Conflict(
            f"this node's clock is, or was, ahead: {error.detail}; wait until then, deploy through"
            " another node, or undo here what was signed ahead: edged catalog discard-future"
        )
    return BadRequest(error.detail)


def _future(entry: Entry) -> FutureRecord:
    record = entry.record()
    return FutureRecord(
        name=entry.name,
        kind=record.kind,
        version=record.version,
        removal=record.tombstone,
        signed_at_s=record.wall_ms / 1000,
        signed_by=record.credential.name,
    )


def _parse_name(name: str) -> FunctionName:
    try:
        return parse_function_name(name)
    except RemoteProtocolError as error:
        raise BadRequest(error.detail) from error
