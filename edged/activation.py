"""Makes code ready on this node: got (obtaining.py), verified, mapped (mapped.py).

Owns the flights: one task per digest however many requests wait for it; a request that stops
waiting cancels nothing. Code of the fast tier is replaced by optimised code as soon as there is
some, here or at a peer: whoever runs in the old code ends in it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final

import msgspec
import trio

from protocol.ids import Digest

from .artifacts import Artifacts
from .errors import ArtifactRefused, BlobNotFound, EdgedError, NotReady, Overloaded
from .interfaces import ArtifactRow, Code, LoadedModule, Store, Tier, Way
from .mapped import Mapped, MappedTable
from .obtaining import Obtainer
from .optimiser import Optimiser
from .supply import POLL_S, Supply
from .telemetry import Log, Metrics

PLACED_MAX: Final = 4096
"""As many as a node announces."""


class _Flight:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: EdgedError | None = None
        self.waiting = 0
        self.scope = trio.CancelScope()


class Activation:
    def __init__(
        self,
        artifacts: Artifacts,
        supply: Supply,
        obtainer: Obtainer,
        *,
        store: Store,
        table: MappedTable,
        eager: bool,
        tiers: Collection[Tier],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`eager`: modules that are placed here get their artifact unasked; `tiers`: those that
        this node compiles."""
        self._artifacts = artifacts
        self._supply = supply
        self._obtainer = obtainer
        self.table = table
        self._eager = eager
        self._has_fast = "fast" in tiers
        self._placed: OrderedDict[Digest, None] = OrderedDict()
        self._store = store
        self._log = log
        self._flights: dict[Digest, _Flight] = {}
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
            self.table.close()

    def drain(self) -> None:
        """Ends what no request waits for."""
        self._optimiser.stop()

    def is_mapped(self, digest: Digest) -> bool:
        return digest in self.table

    def in_memory(self) -> list[Mapped]:
        return self.table.all()

    def is_busy(self, digest: Digest) -> bool:
        """It is being made ready, or an invocation runs in it."""
        found = self.table.get(digest)
        return digest in self._flights or (found is not None and found.users > 0)

    def is_near(self, digest: Digest) -> bool:
        """Whether it is in memory, or will be as soon as an artifact on disk is mapped."""
        if digest in self.table.mapped or self._artifacts.accepted(digest):
            return True
        return self._artifacts.row(digest, "fast") is not None

    def tier(self, digest: Digest) -> Tier | None:
        """Of the code that is in memory now."""
        found = self.table.get(digest)
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
        found = self.table.get(digest)
        return None if found is None else found.size_bytes

    def start(self, code: Code, *, way: Way | None = None) -> None:
        """Begins making `code` ready in the background, by `way` if it has to be got, unless that
        failed just now or the node is stopping; errors are logged by the flight."""
        digest = code.digest
        if digest in self.table or self._nursery is None or self.failing(digest) is not None:
            return
        self._flight(code, way)

    async def ready(self, code: Code, *, timeout_s: float, way: Way | None = None) -> Mapped:
        """Waits until `code` is mapped; `way`: how it is got, if it is not here nor on its way;
        None: the shortest.

        Raises NotReady (still under way after `timeout_s`), NoHolder, CompileFailed, StoreError."""
        with trio.move_on_after(timeout_s):
            while True:
                flight = self._flight(code, way)
                flight.waiting += 1
                try:
                    await flight.done.wait()
                finally:
                    flight.waiting -= 1
                if flight.error is not None:
                    raise flight.error.with_traceback(None)
                # Unmapped again before this waiter ran: nothing may start in a closed module.
                mapped = self.table.get(code.digest)
                if mapped is not None:
                    return mapped
        raise NotReady(f"module {code.digest[:12]} is still being made ready; try again")

    def abandon(self, digest: Digest) -> None:
        """Ends making it ready, if that is under way: NotReady to all who wait. What was fetched
        stays, to go on from."""
        flight = self._flights.get(digest)
        if flight is not None:
            flight.scope.cancel()

    def waiting(self, digest: Digest) -> int:
        """Requests that wait for it."""
        flight = self._flights.get(digest)
        return 0 if flight is None else flight.waiting

    def _flight(self, code: Code, way: Way | None) -> _Flight:
        flight = self._flights.get(code.digest)
        if flight is None:
            if self._nursery is None:
                raise NotReady("the node is starting or stopping")
            flight = self._flights[code.digest] = _Flight()
            self._nursery.start_soon(self._fly, code, way, flight)
        return flight

    async def _fly(self, code: Code, way: Way | None, flight: _Flight) -> None:
        digest = code.digest
        try:
            with flight.scope:
                await self._activate(code, way)
            if flight.scope.cancelled_caught:
                flight.error = NotReady("it is to be had in another way")
        except EdgedError as error:
            flight.error = error
            self._log.warning(
                "activation failed", module=digest, error=str(error), private=error.private
            )
        except OSError as error:
            # Out of descriptors, processes or memory: a reason to fail here, none to end the node.
            flight.error = Overloaded("the node lacks a resource; try again", private=str(error))
            self._log.error("activation failed", module=digest, error=str(error))
        except trio.Cancelled:
            flight.error = NotReady("the node is stopping")
            raise
        finally:
            del self._flights[digest]
            flight.done.set()

    async def _activate(self, code: Code, way: Way | None) -> None:
        digest = code.digest
        started = trio.current_time()
        try:
            found = await self._obtainer.find(code, way)
            module, load_s = await self._load(digest, found.tier, found.row)
        except ArtifactRefused:  # and dropped: there may be another way
            found = await self._obtainer.find(code, way)
            module, load_s = await self._load(digest, found.tier, found.row)
        phases = msgspec.structs.replace(found.phases, load_s=load_s)
        self.table.admit(digest, Mapped(module, found.start, phases, found.row))
        if found.tier == "fast":
            self._optimiser.want(digest)
        self._artifacts.measure(digest, fetch_s=phases.fetch_s, load_s=load_s)
        self._artifacts.measure(digest, found.tier, compile_s=phases.compile_s)
        self._log.info(
            "function ready",
            module=digest,
            start=found.start,
            tier=found.tier,
            ready_s=round(trio.current_time() - started, 4),
        )

    async def _load(
        self, module: Digest, tier: Tier, row: ArtifactRow
    ) -> tuple[LoadedModule, float]:
        began_s = trio.current_time()
        loaded = await self._artifacts.load(module, tier, row)
        return loaded, trio.current_time() - began_s

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
        old = self.table.get(module)
        if old is not None:
            loaded = await self._artifacts.load(module, tier, row)
            if self.table.get(module) is not old:  # unmapped meanwhile, to make room
                loaded.close()
            else:
                self.table.replace(module, old, Mapped(loaded, old.start, old.phases, row))
        await self._artifacts.drop(module, "fast")

    def unmap(self, digest: Digest) -> None:
        """Drops a module from memory; invocations that run in it finish."""
        self.table.unmap(digest)

    def offered(self, module: Digest) -> bool:
        """Whether a peer shows an artifact for it that this node might accept."""
        return self._supply.offered(module)

    def module_of(self, artifact: Digest) -> Digest | None:
        """Whose code an artifact is that is fetched now."""
        return self._supply.module_of(artifact)

    def failing(self, module: Digest) -> EdgedError | None:
        """Why `module` could not be made ready, while that is not tried again."""
        return self._obtainer.failing(module)
