"""Gets code onto this node's disk as an artifact that may be mapped: a peer's, or compiled here of
bytes that are here or are fetched first.

Knows nothing of functions: a `Code` is a digest with a manifest. A compile that failed is not tried
again for a while (backoff.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Final, NamedTuple

import trio

from protocol.ids import Digest

from .artifacts import Artifacts
from .backoff import Backoff
from .errors import BlobNotFound, CompileFailed, EdgedError, NoHolder, Overloaded, info_of
from .interfaces import ArtifactRow, Code, Fetcher, Phases, StartType, Store, Tier
from .rates import Rates
from .supply import POLL_S, Supply
from .telemetry import Log, Metrics

Made = tuple[Tier, ArtifactRow]
HOLDERLESS_S: Final = 2.0
"""A module without a holder is looked for so long: one that was restarted is back before others
know what it holds, and whoever asks in between would be refused what nobody has lost."""


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

    async def find(self, code: Code) -> Obtained:
        """What is here, or else is got by the shortest way. Raises NoHolder, CompileFailed,
        StoreError, Overloaded, Draining."""
        found = await self._artifacts.trusted(code.digest)
        if found is not None:
            return Obtained(*found, "loaded", Phases())
        return await self._obtain(code)

    def failing(self, digest: Digest) -> EdgedError | None:
        """Why it could not be made ready, while that is not tried again."""
        return self._backoff.failing(digest)

    async def _obtain(self, code: Code) -> Obtained:
        """Code of either tier."""
        digest, began_s = code.digest, trio.current_time()
        while True:
            if await self._supplied(code):
                found = await self._artifacts.trusted(digest)
                if found is not None:
                    phases = Phases(fetch_s=trio.current_time() - began_s)
                    return Obtained(*found, "artifact", phases)
            known = self.failing(digest)
            if known is not None:
                raise known.with_traceback(None)
            fetch_s = await self.have(code)
            compile_from = trio.current_time()
            try:
                made = await self._compiled(code)
            except EdgedError as error:
                self._failed(digest, error)
                raise
            if made is not None:
                self._backoff.succeeded(digest)
                compile_s = trio.current_time() - compile_from
                phases = Phases(fetch_s=fetch_s, compile_s=compile_s)
                return Obtained(*made, "compiled", phases)

    async def _compiled(self, code: Code) -> Made | None:
        """None: another node compiles the same, and this one is to wait for it."""
        estimate_s = await self._artifacts.estimate_s(
            code.digest, "optimised", module_bytes=code.size_bytes
        )
        make = partial(self._artifacts.make, code.digest, shown=self._supply.shown(estimate_s))
        if self._has_fast:
            return await make()
        return await self._supply.first_of_all(code.digest, make, estimate_s=estimate_s)

    async def _supplied(self, code: Code) -> bool:
        """Whether a peer's artifact came. With a fast compiler only if that is sooner; else others
        that compile it are waited for."""
        digest, size = code.digest, code.size_bytes
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

    async def have(self, code: Code) -> float | None:
        """Makes sure the code's bytes are here and intact; seconds of fetching, if any."""
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

        def progress(done: int, of: int) -> None:
            self._log.debug("fetching", module=digest, wire_bytes=done, of=of)

        while True:
            try:
                await self._fetcher.fetch(digest, code.manifest, progress=progress)
            except NoHolder:
                if trio.current_time() - started > HOLDERLESS_S:
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
