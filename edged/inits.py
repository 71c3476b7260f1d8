"""Deploys of functions with an init: it is run once here, and the snapshot that it gives is kept
and stated where that is wished for, or worth it. SPEC §14.2.

Owned by the node's event loop. A snapshot that no record comes to name is removed again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.catalog import Catalog
from protocol.costs import Prices
from protocol.function import FunctionSpec, InitSpec, init_digest
from protocol.identity import Credential
from protocol.ids import Digest
from protocol.manifest import Manifest, manifest_digest
from protocol.planner import worth_making
from protocol.snapshots import SnapshotFacts, SnapshotStatement, state_snapshot

from .clock import Clock
from .errors import CannotSnapshot, Conflict, EdgedError, Overloaded
from .interfaces import (
    RESEED,
    SNAPSHOT_FORMAT,
    UNCAPTURED,
    EventKind,
    InitView,
    SnapshotWish,
    Store,
)
from .making import Made, Making
from .rates import code_bytes
from .telemetry import Log

SHARED_RANDOM: Final = (
    f'init drew random numbers, which all invocations share; a function "{RESEED}" that the module '
    "exports is called at the start of each, to draw new ones"
)

NO_ROLE: Final = "this node cannot vouch for a snapshot: it has no build role"
GIVE_UP_S: Final = 5.0
"""What has not gone by then goes by collection."""
HORIZON_S: Final = 86_400.0
"""Over which calls and storage are counted."""

Fits = Callable[[Digest], Awaitable[Sequence[str]]]
Worth = Callable[[SnapshotFacts, int, int], tuple[bool, str]]
"""Of facts, the snapshot's bytes and the module's wire bytes: whether to keep it, and why."""


class Prepared(msgspec.Struct, frozen=True):
    """What a deploy says of its init: to the catalog, and to whoever asked for it."""

    statement: SnapshotStatement | None = None
    view: InitView | None = None


class _Found(msgspec.Struct, frozen=True):
    snapshot: Digest
    size_bytes: int
    manifest: Manifest
    facts: SnapshotFacts
    stated: SnapshotStatement | None
    """In a record, of just this."""
    made: bool
    """Now."""
    warnings: tuple[str, ...]


class Inits:
    def __init__(
        self,
        making: Making,
        *,
        store: Store,
        catalog: Catalog,
        private_key: Ed25519PrivateKey,
        credential: Credential,
        worth: Worth,
        delta_bytes: Callable[[Digest, Digest], Awaitable[int]],
        keeping: Callable[[Digest], AbstractAsyncContextManager[None]],
        remove: Callable[[Digest], Awaitable[bool]],
        on_held: Callable[[Digest], None],
        note: Callable[[EventKind, str, str], None],
        clock: Clock,
        log: Log,
    ) -> None:
        """`delta_bytes` of a snapshot against its module; `remove` deletes a blob unless it is in
        use, and raises StoreError."""
        self._making = making
        self._store = store
        self._catalog = catalog
        self._private_key = private_key
        self._credential = credential
        self._worth = worth
        self._delta_bytes = delta_bytes
        self._keeping = keeping
        self._remove = remove
        self._on_held = on_held
        self._note = note
        self._clock = clock
        self._log = log
        self._header_limiter = trio.CapacityLimiter(1)
        self._deploying: Counter[Digest] = Counter()
        """By module: meanwhile none of its snapshots is given up."""

    @asynccontextmanager
    async def at_deploy(
        self, spec: FunctionSpec, wish: SnapshotWish, *, name: str, fits: Fits
    ) -> AsyncIterator[Prepared]:
        """Of a function `name`, whose module is here. `fits` raises unless a snapshot serves the
        function, and tells its exports. Inside, what the statement names is not collected.

        Raises CannotSnapshot (where none is wished for: only if init cannot be run), InitTrapped,
        InitExited, InitTimeout, CompileFailed, Conflict, Overloaded, Draining, StoreError."""
        if spec.init is None:
            yield Prepared()
            return
        if wish == "always" and "build" not in self._credential.roles:
            raise Conflict(NO_ROLE)
        self._deploying[spec.module] += 1
        snapshot: Digest | None = None
        try:
            stated, made = self._stated_here(spec.module, spec.init), None
            refusal: CannotSnapshot | None = None
            try:
                if stated is None:
                    made = await self._making.make(spec.module, spec.init)
            except CannotSnapshot as error:
                if wish != "never" or error.reason not in UNCAPTURED:
                    raise
                refusal = error
            if refusal is not None:
                yield Prepared(view=_uncaptured(refusal))
                return
            snapshot = _name_of(stated, made)
            async with self._keeping(snapshot):
                exports = await fits(snapshot)
                found = await self._found(spec.module, spec.init, stated, made, exports)
                yield await self._prepared(spec, wish, name, found)
        finally:
            self._deploying[spec.module] -= 1
            self._deploying += Counter()
            if snapshot is not None:
                with trio.move_on_after(GIVE_UP_S, shield=True):
                    await self._give_up(spec.module, snapshot)

    def _stated(self, module: Digest, init: InitSpec) -> Iterator[SnapshotStatement]:
        """What can be said again of them, whoever said it."""
        for one in self._catalog.snapshots.of(module, init_digest(init)):
            if one.format == SNAPSHOT_FORMAT and one.maker.not_after_s > self._clock.now_s():
                yield one

    def _stated_here(self, module: Digest, init: InitSpec) -> SnapshotStatement | None:
        """This node's own word for a snapshot that is here still."""
        for one in self._stated(module, init):
            own = one.maker.node_id == self._credential.node_id
            if own and self._store.info(one.snapshot) is not None:
                return one
        return None

    async def _found(
        self,
        module: Digest,
        init: InitSpec,
        stated: SnapshotStatement | None,
        made: Made | None,
        exports: Sequence[str],
    ) -> _Found:
        snapshot = _name_of(stated, made)
        manifest = await self._store.make_manifest(snapshot)
        if made is None:
            assert stated is not None
            return _Found(snapshot, stated.size_bytes, manifest, stated.facts, stated, False, ())
        shared = made.report.random_bytes and RESEED not in exports
        warnings = (SHARED_RANDOM,) if shared else ()
        # Another's word that holds here stands: who says it again must not change the record.
        known = next((one for one in self._stated(module, init) if one.snapshot == snapshot), None)
        facts = await self._facts(module, made, manifest)
        return _Found(snapshot, made.size_bytes, manifest, facts, known, True, warnings)

    async def _facts(self, module: Digest, made: Made, manifest: Manifest) -> SnapshotFacts:
        path = self._store.path(made.snapshot)
        code = await trio.to_thread.run_sync(code_bytes, path, limiter=self._header_limiter)
        try:
            delta = await self._delta_bytes(made.snapshot, module)
        except Overloaded:
            delta = 0  # whoever wants one asks all the same
        return SnapshotFacts(manifest.wire_bytes, delta, code, made.report.init_cpu_s)

    async def _prepared(
        self, spec: FunctionSpec, wish: SnapshotWish, name: str, found: _Found
    ) -> Prepared:
        kept, why = await self._chosen(spec.module, wish, found)
        statement = None
        if kept:
            statement = found.stated or self._state(spec, found)
            self._on_held(found.snapshot)
            if found.stated is None:
                about = f"{found.snapshot[:12]} of module {spec.module[:12]}"
                self._note("snapshot-made", name, f"{about}, {found.size_bytes} bytes: {why}")
        view = InitView(
            init_s=round(found.facts.init_s, 6),
            size_bytes=found.size_bytes,
            wire_bytes=found.facts.wire_bytes,
            delta_wire_bytes=found.facts.delta_wire_bytes,
            snapshot=found.snapshot if kept else None,
            made=found.made,
            why=why,
            warnings=found.warnings,
        )
        return Prepared(statement, view)

    async def _chosen(self, module: Digest, wish: SnapshotWish, found: _Found) -> tuple[bool, str]:
        if found.snapshot == module:
            return False, "init changes nothing"
        if wish == "never":
            return False, "none was asked for"
        if found.stated is None and "build" not in self._credential.roles:
            return False, NO_ROLE
        if wish == "always":
            return True, "as asked for"
        if found.stated is not None:
            return True, "another deploy of this module and init has kept it"
        module_wire_bytes = (await self._store.make_manifest(module)).wire_bytes
        return self._worth(found.facts, found.size_bytes, module_wire_bytes)

    def _state(self, spec: FunctionSpec, found: _Found) -> SnapshotStatement:
        assert spec.init is not None
        return state_snapshot(
            self._private_key,
            self._credential,
            module=spec.module,
            init=init_digest(spec.init),
            snapshot_format=SNAPSHOT_FORMAT,
            snapshot=found.snapshot,
            size_bytes=found.size_bytes,
            manifest=manifest_digest(found.manifest),
            facts=found.facts,
        )

    async def _give_up(self, module: Digest, snapshot: Digest) -> None:
        """Unless a record names it, or another deploy may make one do so."""
        catalog = self._catalog
        if self._deploying[module] or snapshot in catalog.snapshots:
            return
        if catalog.modules.get(snapshot) is not None:
            return
        try:
            await self._remove(snapshot)
        except EdgedError as error:
            self._log.warning("snapshot not removed", snapshot=snapshot, why=str(error))


def worth_keeping(
    facts: SnapshotFacts,
    size_bytes: int,
    module_wire_bytes: int,
    *,
    nodes: int,
    link_bytes_s: float,
    prices: Prices,
) -> tuple[bool, str]:
    """By protocol.planner: what init costs a call, for as many calls as are usual, against what
    having the snapshot costs the nodes. Making it costs nothing more: init has been run here."""
    more_bytes = max(0, facts.wire_bytes - module_wire_bytes)
    if facts.delta_wire_bytes:
        more_bytes = min(more_bytes, facts.delta_wire_bytes)
    found = worth_making(
        init_s=facts.init_s,
        instantiate_s=facts.instantiate_before_s or 0.0,
        instantiate_snapshot_s=facts.instantiate_after_s or 0.0,
        making_cpu_s=0.0,
        extra_wire_bytes=more_bytes,
        extra_stored_bytes=size_bytes,
        nodes=nodes,
        horizon_s=HORIZON_S,
        link_bytes_s=link_bytes_s,
        prices=prices,
    )
    if found.worth:
        return True, f"it saves {facts.init_s:.3g} s of init a call"
    if math.isinf(found.calls_even):
        return False, "init costs nothing that a snapshot would save"
    return False, f"it would pay only after {found.calls_even:.0f} calls"


def _name_of(stated: SnapshotStatement | None, made: Made | None) -> Digest:
    if stated is not None:
        return stated.snapshot
    assert made is not None
    return made.snapshot


def _uncaptured(error: CannotSnapshot) -> InitView:
    return InitView(
        init_s=None,
        size_bytes=None,
        wire_bytes=None,
        delta_wire_bytes=None,
        snapshot=None,
        made=False,
        why=f"none was asked for, and none could be made: {error}",
    )
