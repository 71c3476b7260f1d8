"""Makes snapshots of modules that are on this node's disk: one process each, one at a time, one
flight per (module, init) however many wait for it. SPEC §14.1.

Owned by the node's event loop; at most FLIGHTS_MAX are made or waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import msgspec
import trio

from protocol.function import MEBIBYTE, InitSpec, Policy, init_digest
from protocol.ids import Digest

from .errors import Draining, EdgedError, InvocationError, Overloaded, info_of
from .interfaces import InitCall, InitPlan, SnapshotReport, Snapshots, Store
from .telemetry import Log, Metrics

FLIGHTS_MAX: Final = 16
TOLD_CHARS_MAX: Final = 4000
INIT_MEMORY_BYTES: Final = 1024 * MEBIBYTE
"""With the next, the same for every function, as growing may fail above it and leave another state:
what the policy grants is compared with what init left."""
INIT_TABLE_ELEMENTS: Final = 1_000_000


class Made(msgspec.Struct, frozen=True):
    """On this disk."""

    snapshot: Digest
    size_bytes: int
    report: SnapshotReport


def plan_of(init: InitSpec) -> tuple[InitPlan, Policy]:
    """Nothing of a function but its init, so that the snapshot is a function of that."""
    plan = InitPlan(
        calls=tuple(InitCall(call.export, call.args) for call in init.calls),
        env=init.env,
        files=False,
    )
    policy = Policy(
        timeout_ms=init.timeout_ms,
        memory_bytes=INIT_MEMORY_BYTES,
        table_elements=INIT_TABLE_ELEMENTS,
    )
    return plan, policy


class _Flight:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.made: Made | None = None
        self.error: EdgedError | None = None


class Making:
    def __init__(
        self,
        maker: Snapshots,
        *,
        store: Store,
        keeping: Callable[[Digest], AbstractAsyncContextManager[None]],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """Inside `keeping` a blob is not removed."""
        self._maker = maker
        self._store = store
        self._keeping = keeping
        self._metrics = metrics
        self._log = log
        self._flights: dict[tuple[Digest, Digest], _Flight] = {}
        self._limiter = trio.CapacityLimiter(1)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled, or drained."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def drain(self) -> None:
        """Ends what is being made; whoever waits for it is told so."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def make(self, module: Digest, init: InitSpec) -> Made:
        """The snapshot is stored, without a wire form, and stays if something comes to need it.

        Raises CannotSnapshot, InitTrapped, InitExited, InitTimeout, CompileFailed, BlobNotFound
        (the module's), Overloaded, Draining, StoreError."""
        key = (module, init_digest(init))
        flight = self._flights.get(key)
        if flight is None:
            if self._nursery is None:
                raise Draining("this node is starting or shutting down")
            if len(self._flights) >= FLIGHTS_MAX:
                raise Overloaded("too many snapshots are being made")
            flight = self._flights[key] = _Flight()
            self._nursery.start_soon(self._fly, key, init, flight)
        await flight.done.wait()
        if flight.error is not None:
            raise flight.error.with_traceback(None)
        assert flight.made is not None
        return flight.made

    async def _fly(self, key: tuple[Digest, Digest], init: InitSpec, flight: _Flight) -> None:
        module, result = key[0], "made"
        try:
            async with self._limiter, self._keeping(module):
                flight.made = await self._run(module, init)
        except EdgedError as error:
            flight.error, result = error, info_of(error).code
            if isinstance(error, InvocationError):  # whoever deploys it may see how it went
                error.extra["trace"] = error.private[:TOLD_CHARS_MAX]
                error.extra["stderr"] = error.stderr[-TOLD_CHARS_MAX:].decode(errors="replace")
            self._log.info("no snapshot", module=module, why=str(error), private=error.private)
        except OSError as error:
            flight.error, result = Overloaded("the node lacks a resource"), "overloaded"
            self._log.error("no snapshot", module=module, why=str(error))
        except trio.Cancelled:
            flight.error, result = Draining("this node is shutting down"), "draining"
            raise
        finally:
            self._metrics.snapshots.labels(result).inc()
            del self._flights[key]
            flight.done.set()

    async def _run(self, module: Digest, init: InitSpec) -> Made:
        source, output = self._store.path(module), self._store.temp_path()
        report = await self._maker.write(source, output, *plan_of(init))
        self._metrics.snapshot_seconds.inc(report.cpu_s)
        info = await self._store.put_file(output, kind="module")
        self._log.info(
            "snapshot made",
            module=module,
            snapshot=info.digest,
            size_bytes=info.size_bytes,
            init_cpu_s=report.init_cpu_s,
            cpu_s=report.cpu_s,
        )
        return Made(info.digest, info.size_bytes, report)
