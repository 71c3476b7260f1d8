"""Runs functions for the gateway: look-up, admission, readiness, a worker thread, the log.

Bounds: `invocations_max` guests at once, `queue_max` admitted requests waiting for one of those
threads, and each function's own concurrency. All state belongs to the node's event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType

import msgspec
import trio

from protocol.ids import FunctionName

from .activation import Activation, Mapped
from .config import GatewaySection
from .errors import (
    ConcurrencyExceeded,
    Draining,
    InvocationError,
    Overloaded,
)
from .interfaces import (
    CancelFlag,
    FunctionView,
    Invocation,
    Outcome,
    Phases,
    StartType,
)
from .journal import Journal
from .telemetry import Metrics

WARM = Phases()


class FunctionService:
    """Implements interfaces.Functions."""

    def __init__(
        self,
        *,
        lookup: Callable[[str], FunctionView],
        activation: Activation,
        journal: Journal,
        limits: GatewaySection,
        metrics: Metrics,
    ) -> None:
        self._lookup = lookup
        self._activation = activation
        self._journal = journal
        self._limits = limits
        self._metrics = metrics
        self._threads = trio.CapacityLimiter(limits.invocations_max)
        self._admitted: Counter[FunctionName] = Counter()
        self._admitted_total = 0
        self.draining = False

    @property
    def running(self) -> int:
        """Admitted invocations that have not ended."""
        return self._admitted_total

    def lookup(self, name: str) -> FunctionView:
        return self._lookup(name)

    def admit(self, function: FunctionView) -> _Admission:
        return _Admission(self, function)

    async def params(self, function: FunctionView, export: str) -> tuple[str, ...] | None:
        mapped, _, _ = await self._ready(function)
        return mapped.module.export_params(export)

    async def invoke(self, function: FunctionView, call: Invocation, cancel: CancelFlag) -> Outcome:
        mapped, start, phases = await self._ready(function)
        mapped.users += 1
        queued_at = trio.current_time()
        try:
            result = await trio.to_thread.run_sync(
                mapped.module.invoke, call, cancel, limiter=self._threads
            )
        except InvocationError as error:
            self._log_failure(function, error)
            raise
        finally:
            mapped.users -= 1
        if result.stderr:
            self._log_stderr(function, result.stderr, truncated=result.stderr_truncated)
        guest_s = result.instantiate_s + result.run_s
        phases = msgspec.structs.replace(
            phases,
            queue_s=max(trio.current_time() - queued_at - guest_s, 0.0),
            instantiate_s=result.instantiate_s,
            run_s=result.run_s,
        )
        return Outcome(result, start, phases)

    def log(self, function: FunctionView, stream: str, text: str) -> None:
        self._journal.write(function.name, function.version, stream, text)

    async def _ready(self, function: FunctionView) -> tuple[Mapped, StartType, Phases]:
        mapped = self._activation.mapped(function.spec.module)
        if mapped is not None:
            return mapped, "warm", WARM
        mapped = await self._activation.ready(function.spec, timeout_s=self._limits.ready_timeout_s)
        return mapped, mapped.start, mapped.phases

    def _log_failure(self, function: FunctionView, error: InvocationError) -> None:
        if error.stderr:
            self._log_stderr(function, error.stderr, truncated=False)
        self.log(function, "edged", error.private or str(error))

    def _log_stderr(self, function: FunctionView, stderr: bytes, *, truncated: bool) -> None:
        self.log(function, "stderr", stderr.decode("utf-8", "backslashreplace"))
        if truncated:
            limit = function.spec.policy.stderr_bytes
            self.log(function, "edged", f"stderr was cut at {limit} bytes (policy.stderr_bytes)")

    def enter(self, function: FunctionView) -> None:
        """Takes one slot of the node's and of the function's concurrency."""
        if self.draining:
            raise Draining("this node is shutting down")
        limits = self._limits
        if self._admitted_total >= limits.invocations_max + limits.queue_max:
            raise Overloaded(f"{self._admitted_total} requests are running or waiting")
        if self._admitted[function.name] >= function.spec.policy.concurrency:
            raise ConcurrencyExceeded(
                f"{function.name} already runs {function.spec.policy.concurrency} times"
            )
        self._admitted[function.name] += 1
        self._admitted_total += 1
        self._metrics.running.set(self._admitted_total)

    def leave(self, function: FunctionView) -> None:
        self._admitted_total -= 1
        self._admitted[function.name] -= 1
        if not self._admitted[function.name]:
            del self._admitted[function.name]
        self._metrics.running.set(self._admitted_total)


class _Admission:
    """The slot as a context manager: a class, as a generator costs 2 µs more per request."""

    def __init__(self, service: FunctionService, function: FunctionView) -> None:
        self._service = service
        self._function = function

    async def __aenter__(self) -> None:
        self._service.enter(self._function)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._service.leave(self._function)
