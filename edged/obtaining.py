"""Gets code onto this node's disk as an artifact that may be mapped: a peer's, or compiled here of
bytes that are here, or are fetched or made of a module first.

Decides nothing about forms: it is told which way to go, and goes the shortest if it is not. A
compile that failed is not tried again for a while (backoff.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

import trio

from protocol.function import FunctionSpec
from protocol.ids import Digest
from protocol.snapshots import SnapshotStatement

from .artifacts import Artifacts
from .backoff import Backoff
from .errors import BlobNotFound, CompileFailed, EdgedError, NoHolder, Overloaded, info_of
from .interfaces import (
    ArtifactRow,
    Code,
    Fetcher,
    Phases,
    StartType,
    Store,
    Tier,
    Way,
    module_code,
)
from .rates import Rates
from .supply import POLL_S, Supply
from .telemetry import Log, Metrics

Made = tuple[Tier, ArtifactRow]
ARTIFACT_WAYS: Final = ("artifact", "snapshot-artifact")
CHOSEN_S: Final = 20.0
"""What an artifact that was chosen may be expected to take, or CHOSEN times what making it would,
if that is more; it may then take a half more."""
CHOSEN: Final = 3.0
HOLDERLESS_S: Final = 2.0
"""A module without a holder is looked for so long: one that was restarted is back before others
know what it holds, and whoever asks in between would be refused what nobody has lost."""


class Rebuilder(Protocol):
    """Snapshots of their modules: snapshots.SnapshotService."""

    def unproven(self, stated: SnapshotStatement) -> bool:
        """It may run here only once it has been made here."""
        ...

    async def rebuild(self, spec: FunctionSpec, stated: SnapshotStatement, /) -> None:
        """Makes it of the module, which is fetched if need be, and compares it with `stated`."""
        ...


class Obtained(NamedTuple):
    """An artifact on disk of which all that is claimed holds, and how it came."""

    tier: Tier
    row: ArtifactRow
    start: StartType
    phases: Phases


class Obtainer:
    """All state belongs to the node's event loop."""

    def __init__(
        self,
        artifacts: Artifacts,
        supply: Supply,
        *,
        store: Store,
        fetcher: Fetcher,
        rates: Rates,
        on_held: Callable[[Digest], None],
        tiers: Collection[Tier],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`on_held` is told of a blob that came; `tiers`: those that this node compiles."""
        self._artifacts = artifacts
        self._supply = supply
        self._store = store
        self._fetcher = fetcher
        self._rates = rates
        self._on_held = on_held
        self._has_fast = "fast" in tiers
        self._metrics = metrics
        self._log = log
        self._backoff = Backoff()
        self.snapshots: Rebuilder | None = None
        """Set by who wires it, before anything runs."""

    async def find(self, code: Code, way: Way | None = None) -> Obtained:
        """What is here, or else is got by `way`; None: by the shortest. Raises NoHolder,
        CompileFailed, StoreError, Overloaded, Draining; and what making a snapshot raises."""
        await self._prove(code)
        found = await self._artifacts.trusted(code.digest)
        if found is not None:
            return Obtained(*found, "loaded", Phases())
        return await self._obtain(code, way)

    async def _prove(self, code: Code) -> None:
        """A snapshot for which nobody's word is enough here is made here first (SPEC §14.4)."""
        spec, stated, snapshots = code.spec, code.stated, self.snapshots
        if spec is not None and stated is not None and snapshots and snapshots.unproven(stated):
            await snapshots.rebuild(spec, stated)

    def failing(self, digest: Digest) -> EdgedError | None:
        """Why it could not be made ready, while that is not tried again."""
        return self._backoff.failing(digest)

    async def _obtain(self, code: Code, way: Way | None) -> Obtained:
        """Code of either tier."""
        digest, began_s = code.digest, trio.current_time()
        while True:
            if await self._supplied(code, way):
                found = await self._artifacts.trusted(digest)
                if found is not None:
                    phases = Phases(fetch_s=trio.current_time() - began_s)
                    return Obtained(*found, "artifact", phases)
            known = self.failing(digest)
            if known is not None:
                raise known.with_traceback(None)
            offered = code.stated is None and way != "artifact" and self._supply.offered(digest)
            try:
                fetch_s, make_s = await self._bring(code, way, 0.0 if offered else HOLDERLESS_S)
            except NoHolder:
                if not offered:
                    raise
                # Whoever showed the module has lost it since; its native code is had without.
                self._log.info("module not to be had; trying its native code", module=digest)
                way = "artifact"
                continue
            compile_from = trio.current_time()
            try:
                made = await self._compiled(code)
            except EdgedError as error:
                self._failed(digest, error)
                raise
            if made is not None:
                self._backoff.succeeded(digest)
                compile_s = trio.current_time() - compile_from
                phases = Phases(fetch_s=fetch_s, make_s=make_s, compile_s=compile_s)
                start: StartType = "compiled" if code.stated is None else "snapshot"
                return Obtained(*made, start, phases)

    async def _compiled(self, code: Code) -> Made | None:
        """None: another node compiles the same, and this one is to wait for it."""
        estimate_s = await self._artifacts.estimate_s(
            code.digest, "optimised", module_bytes=code.size_bytes
        )
        make = partial(self._artifacts.make, code.digest, shown=self._supply.shown(estimate_s))
        if self._has_fast:
            return await make()
        return await self._supply.first_of_all(code.digest, make, estimate_s=estimate_s)

    async def _supplied(self, code: Code, way: Way | None) -> bool:
        """Whether a peer's artifact came. With a fast compiler only if that is sooner; else others
        that compile it are waited for. Raises NoHolder where a snapshot's was to come."""
        digest, size = code.digest, code.size_bytes
        if way in ARTIFACT_WAYS:
            if await self._supply.sooner(
                digest, make_s=max(CHOSEN_S, CHOSEN * await self._make_s(code))
            ):
                return True
            if code.stated is not None:
                raise NoHolder(f"no peer gave the native code of {digest[:12]}", digest=digest)
        elif way is not None and self._has_fast:
            return False  # it was weighed
        if self._has_fast:
            return await self._supply.sooner(digest, make_s=await self._make_s(code))
        while True:
            step, _ = await self._supply.step(digest, module_bytes=size, urgent=True)
            if step != "wait":
                return step == "fetched"
            await trio.sleep(POLL_S)

    async def _make_s(self, code: Code) -> float:
        """Until its native code could be here without peers that have it."""
        tier: Tier = "fast" if self._has_fast else "optimised"
        make_s = await self._artifacts.estimate_s(code.digest, tier, module_bytes=code.size_bytes)
        if self._store.info(code.digest) is None:
            make_s += self._rates.fetch_s(code.size_bytes)
        return make_s

    async def _bring(
        self, code: Code, way: Way | None, patience_s: float
    ) -> tuple[float | None, float | None]:
        """On return its bytes are here; seconds of fetching and of making, if any. `patience_s`: a
        module's holder is looked for so long."""
        if code.spec is None or code.stated is None:
            return await self.have(code, patience_s=patience_s), None
        if way == "snapshot-here" and self.snapshots is not None:
            module_s, began_s = await self.have(module_code(code.spec)), trio.current_time()
            await self.snapshots.rebuild(code.spec, code.stated)
            return module_s, trio.current_time() - began_s
        if way != "snapshot-delta":
            return await self.have(code, bases=()), None
        module_s = await self.have(module_code(code.spec))
        snapshot_s = await self.have(code, bases=(code.spec.module,))
        return _sum(module_s, snapshot_s), None

    async def have(
        self,
        code: Code,
        *,
        bases: Sequence[Digest] | None = None,
        patience_s: float | None = None,
    ) -> float | None:
        """Makes sure the code's bytes are here and intact; seconds of fetching, if any. `bases` as
        Fetcher.fetch; `patience_s`: holders are looked for so long, else HOLDERLESS_S."""
        digest = code.digest
        try:
            if await self._store.verify(digest):
                return None
            self._log.error("module is corrupt on disk; fetching it again", module=digest)
        except BlobNotFound:
            pass
        if await self._store.rebuild(digest, code.manifest) is not None:
            self._log.info("module rebuilt from its wire form", module=digest)
            self._on_held(digest)
            return None
        started = trio.current_time()
        patience_s = HOLDERLESS_S if patience_s is None else patience_s

        def progress(done: int, of: int) -> None:
            self._log.debug("fetching", module=digest, wire_bytes=done, of=of)

        while True:
            try:
                await self._fetcher.fetch(digest, code.manifest, progress=progress, bases=bases)
            except NoHolder:
                if trio.current_time() - started > patience_s:
                    raise
                await trio.sleep(POLL_S)
            else:
                break
        self._on_held(digest)
        return trio.current_time() - started

    def _failed(self, digest: Digest, error: EdgedError) -> None:
        """Backs off from a module that cannot be made ready; not for what the node lacked."""
        reason = error.reason if isinstance(error, CompileFailed) else info_of(error).code
        self._metrics.compiles.labels(reason).inc()
        if not isinstance(error, Overloaded):
            self._backoff.failed(digest, error)


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None
