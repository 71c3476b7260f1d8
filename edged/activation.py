"""Makes a function's code ready on this node: fetch, compile, verify, map.

Owns the table of mapped modules (bounded by bytes, least recently used go first) and the flights:
one task per module however many requests wait for it; a request that stops waiting cancels
nothing. A compile that failed is not tried again for a while. Code of the fast tier is replaced by
optimised code as soon as there is some, here or at a peer: whoever runs in the old code ends in it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import msgspec
import trio

from protocol.function import FunctionSpec
from protocol.ids import Digest

from .artifacts import Artifacts
from .backoff import Backoff
from .errors import (
    ArtifactRefused,
    BlobNotFound,
    CompileFailed,
    EdgedError,
    NoHolder,
    NotReady,
    Overloaded,
    info_of,
)
from .interfaces import ArtifactRow, Fetcher, LoadedModule, Phases, StartType, Store, Tier
from .optimiser import Optimiser
from .rates import Rates
from .supply import POLL_S, Supply
from .telemetry import Log, Metrics

Obtained = tuple[Tier, ArtifactRow]
HOLDERLESS_S: Final = 2.0
"""A module without a holder is looked for so long: one that was restarted is back before others
know what it holds, and whoever asks in between would be refused what nobody has lost."""
PLACED_MAX: Final = 4096
"""As many as a node announces."""


class Mapped:
    """A mapped module and how it came here. `users` keeps it from being unmapped."""

    def __init__(
        self, module: LoadedModule, start: StartType, phases: Phases, row: ArtifactRow
    ) -> None:
        """`row`: as it was when its code was opened."""
        self.module = module
        self.start: StartType = start
        self.phases = phases
        self.row = row
        self.size_bytes = row.size_bytes
        self.users = 0


class _Flight:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: EdgedError | None = None


class Activation:
    def __init__(
        self,
        artifacts: Artifacts,
        supply: Supply,
        *,
        store: Store,
        fetcher: Fetcher,
        rates: Rates,
        on_held: Callable[[Digest], None],
        loaded_bytes_max: int,
        loaded_max: int,
        eager: bool,
        tiers: Collection[Tier],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`eager`: modules that are placed here get their artifact unasked; `tiers`: those that
        this node compiles."""
        self._artifacts = artifacts
        self._supply = supply
        self._rates = rates
        self._eager = eager
        self._has_fast = "fast" in tiers
        self._placed: OrderedDict[Digest, None] = OrderedDict()
        self._store = store
        self._fetcher = fetcher
        self._on_held = on_held
        self._loaded_bytes_max = loaded_bytes_max
        self._loaded_max = loaded_max
        self._metrics = metrics
        self._log = log
        self._mapped: OrderedDict[Digest, Mapped] = OrderedDict()
        self._mapped_bytes = 0
        self._flights: dict[Digest, _Flight] = {}
        self._backoff = Backoff()
        self._optimiser = Optimiser(
            self._optimise,
            is_wanted=self._lacks,
            metrics=metrics,
            log=log,
        )
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._optimiser.run)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for mapped in self._mapped.values():
                mapped.module.close()
            self._mapped.clear()

    def drain(self) -> None:
        """Ends what no request waits for."""
        self._optimiser.stop()

    def mapped(self, digest: Digest) -> Mapped | None:
        """The module if it is in memory now; the hot path."""
        found = self._mapped.get(digest)
        if found is not None:
            self._mapped.move_to_end(digest)
        return found

    def is_mapped(self, digest: Digest) -> bool:
        return digest in self._mapped

    def in_memory(self) -> list[Mapped]:
        """Least recently used first."""
        return list(self._mapped.values())

    def is_busy(self, digest: Digest) -> bool:
        """It is being made ready, or an invocation runs in it."""
        found = self._mapped.get(digest)
        return digest in self._flights or (found is not None and found.users > 0)

    def is_near(self, digest: Digest) -> bool:
        """Whether it is in memory, or will be as soon as an artifact on disk is mapped."""
        if digest in self._mapped or self._artifacts.accepted(digest):
            return True
        return self._artifacts.row(digest, "fast") is not None

    def tier(self, digest: Digest) -> Tier | None:
        """Of the code that is in memory now."""
        found = self._mapped.get(digest)
        return None if found is None else found.module.tier

    def placed(self, module: Digest) -> None:
        """The module's bytes were put on this node's disk before anybody asked it for them."""
        if self._eager and not self._artifacts.accepted(module):
            self._placed[module] = None
            if len(self._placed) > PLACED_MAX:
                self._placed.popitem(last=False)
            self._optimiser.want(module)

    def _lacks(self, module: Digest) -> bool:
        if self.tier(module) == "fast":
            return True
        wanted = module in self._placed and self._store.info(module) is not None
        if wanted and not self._artifacts.accepted(module):
            return True
        self._placed.pop(module, None)
        return False

    @property
    def busy(self) -> bool:
        """Whether code is being made ready now."""
        return bool(self._flights)

    def optimising(self, digest: Digest) -> str | None:
        """For an operator: what becomes of the fast code in memory; None if there is none."""
        if self.tier(digest) != "fast":
            return None
        error = self._optimiser.failing(digest)
        return "in the background" if error is None else f"failed, will be tried again: {error}"

    def mapped_bytes(self, digest: Digest) -> int | None:
        found = self._mapped.get(digest)
        return None if found is None else found.size_bytes

    def start(self, spec: FunctionSpec) -> None:
        """Begins making `spec` ready in the background, unless that failed just now or the node is
        stopping; errors are logged by the flight."""
        module = spec.module
        if module in self._mapped or self._nursery is None or self.failing(module) is not None:
            return
        self._flight(spec)

    async def ready(self, spec: FunctionSpec, *, timeout_s: float) -> Mapped:
        """Waits until `spec`'s module is mapped.

        Raises NotReady (still under way after `timeout_s`), NoHolder, CompileFailed, StoreError."""
        with trio.move_on_after(timeout_s):
            while True:
                flight = self._flight(spec)
                await flight.done.wait()
                if flight.error is not None:
                    raise flight.error.with_traceback(None)
                # Unmapped again before this waiter ran: nothing may start in a closed module.
                mapped = self._mapped.get(spec.module)
                if mapped is not None:
                    return mapped
        raise NotReady(f"module {spec.module[:12]} is still being made ready; try again")

    def _flight(self, spec: FunctionSpec) -> _Flight:
        flight = self._flights.get(spec.module)
        if flight is None:
            if self._nursery is None:
                raise NotReady("the node is starting or stopping")
            flight = self._flights[spec.module] = _Flight()
            self._nursery.start_soon(self._fly, spec, flight)
        return flight

    async def _fly(self, spec: FunctionSpec, flight: _Flight) -> None:
        try:
            await self._activate(spec)
        except EdgedError as error:
            flight.error = error
            self._log.warning(
                "activation failed", module=spec.module, error=str(error), private=error.private
            )
        except OSError as error:
            # Out of descriptors, processes or memory: a reason to fail here, none to end the node.
            flight.error = Overloaded("the node lacks a resource; try again", private=str(error))
            self._log.error("activation failed", module=spec.module, error=str(error))
        except trio.Cancelled:
            flight.error = NotReady("the node is stopping")
            raise
        finally:
            del self._flights[spec.module]
            flight.done.set()

    async def _activate(self, spec: FunctionSpec) -> None:
        digest = spec.module
        started = trio.current_time()
        try:
            (tier, row), start, phases = await self._find(spec)
            module, load_s = await self._load(digest, tier, row)
        except ArtifactRefused:  # and dropped: there may be another way
            (tier, row), start, phases = await self._find(spec)
            module, load_s = await self._load(digest, tier, row)
        phases = msgspec.structs.replace(phases, load_s=load_s)
        self._admit(digest, Mapped(module, start, phases, row))
        if tier == "fast":
            self._optimiser.want(digest)
        self._artifacts.measure(digest, fetch_s=phases.fetch_s, load_s=load_s)
        self._artifacts.measure(digest, tier, compile_s=phases.compile_s)
        self._log.info(
            "function ready",
            module=digest,
            start=start,
            tier=tier,
            ready_s=round(trio.current_time() - started, 4),
        )

    async def _find(self, spec: FunctionSpec) -> tuple[Obtained, StartType, Phases]:
        found = await self._artifacts.trusted(spec.module)
        if found is not None:
            return found, "loaded", Phases()
        return await self._obtain(spec)

    async def _load(
        self, module: Digest, tier: Tier, row: ArtifactRow
    ) -> tuple[LoadedModule, float]:
        began_s = trio.current_time()
        loaded = await self._artifacts.load(module, tier, row)
        return loaded, trio.current_time() - began_s

    async def _obtain(self, spec: FunctionSpec) -> tuple[Obtained, StartType, Phases]:
        """Code of either tier, by the shortest way. Raises as `ready`."""
        digest, began_s = spec.module, trio.current_time()
        while True:
            if await self._supplied(spec):
                found = await self._artifacts.trusted(digest)
                if found is not None:
                    return found, "artifact", Phases(fetch_s=trio.current_time() - began_s)
            known = self.failing(digest)
            if known is not None:
                raise known.with_traceback(None)
            fetch_s = await self._have_module(spec)
            compile_from = trio.current_time()
            try:
                made = await self._compiled(spec)
            except EdgedError as error:
                self._failed(digest, error)
                raise
            if made is not None:
                self._backoff.succeeded(digest)
                compile_s = trio.current_time() - compile_from
                return made, "compiled", Phases(fetch_s=fetch_s, compile_s=compile_s)

    async def _compiled(self, spec: FunctionSpec) -> Obtained | None:
        """None: another node compiles the same, and this one is to wait for it."""
        estimate_s = await self._artifacts.estimate_s(
            spec.module, "optimised", module_bytes=spec.module_bytes
        )
        make = partial(self._artifacts.make, spec.module, shown=self._supply.shown(estimate_s))
        if self._has_fast:
            return await make()
        return await self._supply.first_of_all(spec.module, make, estimate_s=estimate_s)

    async def _supplied(self, spec: FunctionSpec) -> bool:
        """Whether a peer's artifact came. With a fast compiler only if that is sooner; else others
        that compile it are waited for."""
        digest, size = spec.module, spec.module_bytes
        if self._has_fast:
            make_s = await self._artifacts.estimate_s(digest, "fast", module_bytes=size)
            if self._store.info(digest) is None:
                make_s += self._rates.fetch_s(size)
            return await self._supply.sooner(digest, make_s=make_s)
        while True:
            step, _ = await self._supply.step(digest, module_bytes=size, urgent=True)
            if step != "wait":
                return step == "fetched"
            await trio.sleep(POLL_S)

    async def _optimise(self, module: Digest) -> float | None:
        """Puts optimised code in the place of fast code, or says when to try again. Raises
        EdgedError; nothing has changed."""
        began_s = trio.current_time()
        info = self._store.info(module)
        size = 0 if info is None else info.size_bytes
        step, estimate_s = "fetched", 0.0
        if self._artifacts.row(module, "optimised") is None:
            step, estimate_s = await self._supply.step(module, module_bytes=size, urgent=False)
        if step == "wait":
            return POLL_S
        if step == "build":
            shown = self._supply.shown(estimate_s)
            with self._artifacts.shown_building(module, shown=shown):
                if shown and not await self._supply.claim(module):
                    return POLL_S
                if module in self._flights and not self._has_fast:
                    return POLL_S  # a request has come meanwhile: what it waits for is this
                await self._artifacts.optimise(module)
        # Flights look at the artifacts of both tiers, and one of them is about to go.
        while (other := self._flights.get(module)) is not None:
            await other.done.wait()
        flight = self._flights[module] = _Flight()
        try:
            await self._replace(module)
        finally:
            del self._flights[module]
            flight.done.set()
        self._log.info(
            "function optimised",
            module=module,
            how=step,
            after_s=round(trio.current_time() - began_s, 4),
        )
        return None

    async def _replace(self, module: Digest) -> None:
        found = await self._artifacts.trusted(module)
        if found is None or found[0] != "optimised":
            raise BlobNotFound(f"the optimised code of {module[:12]} is gone")
        tier, row = found
        old = self._mapped.get(module)
        if old is not None:
            loaded = await self._artifacts.load(module, tier, row)
            if self._mapped.get(module) is not old:  # unmapped meanwhile, to make room
                loaded.close()
            else:
                self._mapped[module] = Mapped(loaded, old.start, old.phases, row)
                self._mapped_bytes += row.size_bytes - old.size_bytes
                self._make_room(module)
                if old.users == 0:
                    old.module.close()
                # else whoever still runs in the old code holds it: it goes with the last of them
        await self._artifacts.drop(module, "fast")

    def _admit(self, digest: Digest, mapped: Mapped) -> None:
        self._mapped[digest] = mapped
        self._mapped_bytes += mapped.size_bytes
        self._make_room(digest)

    def _make_room(self, newest: Digest) -> None:
        """Unmaps others than `newest`, oldest use first, while there is too much."""
        for other, candidate in list(self._mapped.items()):
            if (
                self._mapped_bytes <= self._loaded_bytes_max
                and len(self._mapped) <= self._loaded_max
            ):
                return
            if candidate.users == 0 and other != newest:
                self.unmap(other)

    def unmap(self, digest: Digest) -> None:
        """Drops a module from memory; invocations that run in it finish."""
        mapped = self._mapped.pop(digest, None)
        if mapped is not None:
            self._mapped_bytes -= mapped.size_bytes
            mapped.module.close()

    async def _have_module(self, spec: FunctionSpec) -> float | None:
        """Makes sure the module's bytes are here and intact; seconds of fetching, if any."""
        try:
            if await self._store.verify(spec.module):
                return None
            self._log.error("module is corrupt on disk; fetching it again", module=spec.module)
        except BlobNotFound:
            pass
        if await self._store.rebuild(spec.module, spec.manifest) is not None:
            self._log.info("module rebuilt from its wire form", module=spec.module)
            self._on_held(spec.module)
            return None
        started = trio.current_time()

        def progress(done: int, of: int) -> None:
            self._log.debug("fetching", module=spec.module, wire_bytes=done, of=of)

        while True:
            try:
                await self._fetcher.fetch(spec.module, spec.manifest, progress=progress)
            except NoHolder:
                if trio.current_time() - started > HOLDERLESS_S:
                    raise
                await trio.sleep(POLL_S)
            else:
                break
        self._on_held(spec.module)
        return trio.current_time() - started

    def offered(self, module: Digest) -> bool:
        """Whether a peer shows an artifact for it that this node might accept."""
        return self._supply.offered(module)

    def module_of(self, artifact: Digest) -> Digest | None:
        """Whose code an artifact is that is fetched now."""
        return self._supply.module_of(artifact)

    def failing(self, module: Digest) -> EdgedError | None:
        """Why `module` could not be made ready, while that is not tried again."""
        return self._backoff.failing(module)

    def _failed(self, module: Digest, error: EdgedError) -> None:
        """Backs off from a module that cannot be made ready; not for what the node lacked."""
        reason = error.reason if isinstance(error, CompileFailed) else info_of(error).code
        self._metrics.compiles.labels(reason).inc()
        if not isinstance(error, Overloaded):
            self._backoff.failed(module, error)
