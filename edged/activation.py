"""Makes a function's code ready on this node: fetch, compile, verify, map.

Owns the table of mapped modules (bounded by bytes, least recently used go first) and the flights:
one task per module however many requests wait for it; a request that stops waiting cancels
nothing. A compile that failed is not tried again for a while, so a broken module cannot occupy
the compiler. Native code is mapped only after its attestation and its hash hold (SPEC §9).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.artifact import attest, check_attestation, decode_attestation, encode_attestation
from protocol.errors import RemoteProtocolError
from protocol.function import FunctionSpec
from protocol.identity import Credential, TrustAnchor
from protocol.ids import Digest

from .errors import (
    ArtifactRefused,
    BlobNotFound,
    CompileFailed,
    EdgedError,
    NotReady,
    Overloaded,
    info_of,
)
from .interfaces import (
    ArtifactRow,
    Fetcher,
    LoadedModule,
    Phases,
    Runtime,
    StartType,
    Store,
)
from .telemetry import Log, Metrics

RETRY_AFTER_FAILURE_S: Final = (5.0, 30.0, 120.0, 600.0)
"""Pause after the 1st, 2nd, … failed compile of a module; the last repeats."""
FAILURES_MAX: Final = 1024


class Mapped:
    """A mapped module and how it came here. `users` keeps it from being unmapped."""

    def __init__(self, module: LoadedModule, start: StartType, phases: Phases, size: int) -> None:
        self.module = module
        self.start: StartType = start
        self.phases = phases
        self.size_bytes = size
        self.users = 0


class _Flight:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: EdgedError | None = None


class _Failure:
    def __init__(self) -> None:
        self.count = 0
        self.until_s = 0.0
        self.error: EdgedError | None = None


class Activation:
    def __init__(
        self,
        *,
        store: Store,
        runtime: Runtime,
        fetcher: Fetcher,
        private_key: Ed25519PrivateKey,
        credential: Credential,
        anchor: TrustAnchor,
        on_held: Callable[[Digest], None],
        loaded_bytes_max: int,
        loaded_max: int,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._fetcher = fetcher
        self._private_key = private_key
        self._credential = credential
        self._anchor = anchor
        self._on_held = on_held
        self._loaded_bytes_max = loaded_bytes_max
        self._loaded_max = loaded_max
        self._metrics = metrics
        self._log = log
        self._mapped: OrderedDict[Digest, Mapped] = OrderedDict()
        self._mapped_bytes = 0
        self._flights: dict[Digest, _Flight] = {}
        self._failures: OrderedDict[Digest, _Failure] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        self.measured: OrderedDict[Digest, dict[str, float]] = OrderedDict()
        """What making each module ready cost here, by phase."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for mapped in self._mapped.values():
                mapped.module.close()
            self._mapped.clear()

    def mapped(self, digest: Digest) -> Mapped | None:
        """The module if it is in memory now; the hot path."""
        found = self._mapped.get(digest)
        if found is not None:
            self._mapped.move_to_end(digest)
        return found

    def is_mapped(self, digest: Digest) -> bool:
        return digest in self._mapped

    def start(self, spec: FunctionSpec) -> None:
        """Begins making `spec` ready in the background, unless the node is stopping; errors are
        logged by the flight."""
        if spec.module not in self._mapped and self._nursery is not None:
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
        row = await self._trusted_artifact(digest)
        fetch_s = compile_s = None
        start: StartType = "loaded"
        if row is None:
            self._check_failures(digest)
            fetch_s = await self._have_module(spec)
            compile_from = trio.current_time()
            try:
                row = await self._compile_checked(digest)
            except EdgedError as error:
                self._failed(digest, error)
                raise
            compile_s = trio.current_time() - compile_from
            start = "compiled"
        load_from = trio.current_time()
        module = await self._load(digest, row)
        load_s = trio.current_time() - load_from
        phases = Phases(fetch_s=fetch_s, compile_s=compile_s, load_s=load_s)
        mapped = Mapped(module, start, phases, row.size_bytes)
        self._admit(digest, mapped)
        self._measure(digest, fetch_s=fetch_s, compile_s=compile_s, load_s=load_s)
        self._log.info(
            "function ready",
            module=digest,
            start=start,
            ready_s=round(trio.current_time() - started, 4),
        )

    def _admit(self, digest: Digest, mapped: Mapped) -> None:
        """Puts a module into the table and unmaps others, oldest use first, to make room."""
        self._mapped[digest] = mapped
        self._mapped_bytes += mapped.size_bytes
        for other, candidate in list(self._mapped.items()):
            if (
                self._mapped_bytes <= self._loaded_bytes_max
                and len(self._mapped) <= self._loaded_max
            ):
                return
            if candidate.users == 0 and other != digest:
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

        await self._fetcher.fetch(spec.module, spec.manifest, progress=progress)
        self._on_held(spec.module)
        return trio.current_time() - started

    async def _trusted_artifact(self, module: Digest) -> ArtifactRow | None:
        """This node's artifact of `module` if all that is claimed of it holds; else it is dropped
        and the module is compiled anew."""
        row = self._store.artifact(module, self._runtime.artifact_key)
        if row is None:
            return None
        try:
            await self._check_artifact(module, row)
        except (RemoteProtocolError, ArtifactRefused, BlobNotFound) as error:
            self._log.error("artifact refused", module=module, artifact=row.digest, why=str(error))
            await self._store.delete_artifact(module, row.key)
            return None
        return row

    async def _check_artifact(self, module: Digest, row: ArtifactRow) -> None:
        builder = check_attestation(
            decode_attestation(row.attestation),
            self._anchor,
            module=module,
            key=row.key,
            artifact=row.digest,
            wall_s=time.time(),
            own_public_key=self._credential.public_key,
        )
        if builder != self._credential.node_id:
            raise ArtifactRefused("built by another node")
        if not await self._store.verify(row.digest):
            raise ArtifactRefused("its bytes do not hash to its digest")

    async def _compile_checked(self, module: Digest) -> ArtifactRow:
        """Two modules that differ in custom sections have one artifact, so what was just compiled
        may be on disk already, and damaged: then the copy is quarantined, and compiling again
        writes a good one."""
        for last in (False, True):
            row = await self._compile(module)
            try:
                await self._check_artifact(module, row)
            except (ArtifactRefused, BlobNotFound):
                await self._store.delete_artifact(module, row.key)
                if last:
                    raise
            else:
                return row
        raise AssertionError("the last try returns or raises")

    async def _compile(self, module: Digest) -> ArtifactRow:
        output = self._store.temp_path()
        report = await self._runtime.compile(self._store.path(module), output)
        self._metrics.compiles.labels("ok").inc()
        self._metrics.compile_seconds.inc(report.cpu_s)
        info = await self._store.put_file(output, kind="artifact")
        key = self._runtime.artifact_key
        attestation = attest(
            self._private_key, self._credential, module=module, key=key, artifact=info.digest
        )
        row = ArtifactRow(
            module=module,
            key=key,
            digest=info.digest,
            size_bytes=info.size_bytes,
            compile_s=report.cpu_s,
            attestation=encode_attestation(attestation),
        )
        await self._store.put_artifact(row)
        self._failures.pop(module, None)
        self._measure(
            module, compile_cpu_s=report.cpu_s, compile_peak_bytes=float(report.peak_rss_bytes)
        )
        return row

    async def _load(self, module: Digest, row: ArtifactRow) -> LoadedModule:
        try:
            return await self._runtime.load(module, self._store.path(row.digest))
        except ArtifactRefused:
            await self._store.delete_artifact(module, row.key)
            raise

    def failing(self, module: Digest) -> EdgedError | None:
        """Why `module` could not be made ready, while that is not tried again."""
        failure = self._failures.get(module)
        if failure is not None and trio.current_time() < failure.until_s:
            return failure.error
        return None

    def _check_failures(self, module: Digest) -> None:
        error = self.failing(module)
        if error is not None:
            raise error.with_traceback(None)

    def _failed(self, module: Digest, error: EdgedError) -> None:
        """Backs off from a module that cannot be made ready; not for what the node lacked."""
        reason = error.reason if isinstance(error, CompileFailed) else info_of(error).code
        self._metrics.compiles.labels(reason).inc()
        if isinstance(error, Overloaded):
            return
        failure = self._failures.setdefault(module, _Failure())
        pause_s = RETRY_AFTER_FAILURE_S[min(failure.count, len(RETRY_AFTER_FAILURE_S) - 1)]
        failure.count += 1
        failure.until_s = trio.current_time() + pause_s
        failure.error = error
        if len(self._failures) > FAILURES_MAX:
            self._failures.popitem(last=False)

    def _measure(self, module: Digest, **values: float | None) -> None:
        row = self.measured.setdefault(module, {})
        row.update({key: round(value, 6) for key, value in values.items() if value is not None})
        if len(self.measured) > FAILURES_MAX:
            self.measured.popitem(last=False)
