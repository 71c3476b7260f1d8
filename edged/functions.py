"""Runs functions for the gateway: look-up, admission, readiness, a worker thread, the log.

Bounds: each function's own concurrency, from admission on; `invocations_max` guests at once and
`queue_max` invocations waiting for one of those threads. Requests that wait for cold code hold none
of the node's slots: a slow compile must not turn away what is ready. All state belongs to the
node's event loop.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Final, Protocol, Self

import msgspec
import trio

from protocol.function import InitSpec
from protocol.ids import FunctionName, VersionId

from .config import GatewaySection
from .errors import (
    ConcurrencyExceeded,
    EdgedError,
    InvocationError,
    Overloaded,
)
from .interfaces import (
    CancelFlag,
    FunctionView,
    Invocation,
    InvocationResult,
    LoadedModule,
    Outcome,
    Phases,
    StartType,
    Tier,
)
from .journal import CHARACTERS_MAX, Journal
from .mapped import Mapped
from .workers import Workers

NOTHING: Final = Phases()
ALL: Final = nullcontext()
SHARES_MAX: Final = 1024
"""Functions with a limiter; above it those that run nothing lose theirs."""


class Codes(Protocol):
    """What functions run in."""

    @property
    def use(self) -> Callable[[FunctionView], Mapped | None]:
        """What gives it if it is in memory now; the hot path."""
        ...

    def is_near(self, function: FunctionView) -> bool: ...

    def has_code(self, function: FunctionView) -> bool: ...

    def start(self, function: FunctionView) -> None: ...

    async def ready(self, function: FunctionView, *, timeout_s: float) -> Mapped: ...


class FunctionService:
    """Implements interfaces.Functions."""

    def __init__(
        self,
        *,
        lookup: Callable[[str], FunctionView],
        version: Callable[[str, VersionId], FunctionView],
        codes: Codes,
        journal: Journal,
        limits: GatewaySection,
        on_run: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_run` is told of every invocation."""
        self._lookup = lookup
        self._version = version
        self._codes = codes
        self.mapped = codes.use
        self._journal = journal
        self._limits = limits
        self._on_run = on_run
        self._workers = Workers(limits.invocations_max, name="edged-guest")
        self._admitted: Counter[FunctionName] = Counter()
        self._shares: dict[FunctionName, trio.CapacityLimiter] = {}

    @property
    def running(self) -> int:
        """Invocations that run or wait for a thread."""
        return self._workers.unfinished

    def close(self) -> None:
        """Ends the worker threads; nothing may be running any more."""
        self._workers.close()

    def lookup(self, name: str) -> FunctionView:
        return self._lookup(name)

    def version(self, name: str, version: VersionId) -> FunctionView:
        return self._version(name, version)

    def is_near(self, function: FunctionView) -> bool:
        return self._codes.is_near(function)

    def has_code(self, function: FunctionView) -> bool:
        return self._codes.has_code(function)

    def prepare(self, function: FunctionView) -> None:
        self._codes.start(function)

    def admit(self, function: FunctionView) -> _Admission:
        return _Admission(self, function)

    def log(self, function: FunctionView, stream: str, text: str) -> None:
        self._journal.write(function.name, function.version, stream, text)

    async def run(
        self, function: FunctionView, mapped: Mapped, call: Invocation, cancel: CancelFlag
    ) -> InvocationResult:
        """One instance in a worker thread; what it wrote to stderr goes to its log.

        Its time runs from now on: waiting for a thread counts."""
        limits = self._limits
        if self.running >= limits.invocations_max + limits.queue_max:
            raise Overloaded(f"{self.running} invocations run or wait on this node")
        mapped.users += 1
        self._on_run()
        timeout_s = function.spec.policy.timeout_ms / 1000
        init = init_of(function, mapped)
        stubs = () if function.spec.init is None else function.spec.init.stubs
        deadline_s = time.monotonic() + timeout_s
        job = partial(invoke_by, mapped.module, call, init, stubs, cancel, deadline_s)
        try:
            async with self._share_of(function):
                result = await self._workers.run(job, on_cancel=cancel.set)
        except InvocationError as error:
            self._log_failure(function, error)
            raise
        finally:
            mapped.users -= 1
        mapped.last = (result.instantiate_s, result.init_s, result.run_s)
        if result.stderr:
            self._log_stderr(function, result.stderr, truncated=result.stderr_truncated)
        return result

    def _share_of(self, function: FunctionView) -> AbstractAsyncContextManager[object]:
        """Keeps a quarter of the threads out of reach of any one function. Only those that could
        have more pay for it."""
        share = max(self._limits.invocations_max * 3 // 4, 1)
        if function.spec.policy.concurrency <= share:
            return ALL
        limiter = self._shares.get(function.name)
        if limiter is None:
            if len(self._shares) >= SHARES_MAX:
                self._shares = {
                    name: kept for name, kept in self._shares.items() if kept.borrowed_tokens
                }
            limiter = self._shares[function.name] = trio.CapacityLimiter(share)
        return limiter

    async def ready(self, function: FunctionView) -> Mapped:
        return await self._codes.ready(function, timeout_s=self._limits.ready_timeout_s)

    def _log_failure(self, function: FunctionView, error: InvocationError) -> None:
        if error.stderr:
            self._log_stderr(function, error.stderr, truncated=False)
        self.log(function, "edged", error.private or str(error))

    def _log_stderr(self, function: FunctionView, stderr: bytes, *, truncated: bool) -> None:
        self.log(function, "stderr", stderr[-CHARACTERS_MAX:].decode("utf-8", "backslashreplace"))
        if truncated:
            limit = function.spec.policy.stderr_bytes
            self.log(function, "edged", f"stderr was cut at {limit} bytes (policy.stderr_bytes)")

    def enter(self, function: FunctionView) -> None:
        """Takes one slot of the function's concurrency."""
        if self._admitted[function.name] >= function.spec.policy.concurrency:
            raise ConcurrencyExceeded(
                f"{function.name} already runs {function.spec.policy.concurrency} times"
            )
        self._admitted[function.name] += 1

    def leave(self, function: FunctionView) -> None:
        self._admitted[function.name] -= 1
        if not self._admitted[function.name]:
            del self._admitted[function.name]


def invoke_by(
    module: LoadedModule,
    call: Invocation,
    init: InitSpec | None,
    stubs: tuple[str, ...],
    cancel: CancelFlag,
    deadline_s: float,
) -> InvocationResult:
    """In a worker thread: `call` with what is left until `deadline_s` of the monotonic clock."""
    left_s = deadline_s - time.monotonic()
    given = msgspec.structs.replace(call, timeout_s=left_s, init=init, stubs=stubs)
    return module.invoke(given, cancel)


def init_of(function: FunctionView, mapped: Mapped) -> InitSpec | None:
    """What an invocation in that code begins with; None: it is a snapshot, or there is no init."""
    init = function.spec.init
    return init if init is None or mapped.module.digest == function.spec.module else None


def waited_for(phases: Phases, waited_s: float) -> Phases:
    """The last `waited_s` of making code ready, for a request that came in the middle of it."""
    shares: dict[str, float] = {}
    for name in ("load_s", "compile_s", "make_s", "fetch_s"):
        phase_s = getattr(phases, name)
        if phase_s is not None and waited_s > 0:
            shares[name] = min(phase_s, waited_s)
            waited_s -= shares[name]
    return Phases(**shares)


class _Admission:
    """One admitted request, as context manager and interfaces.Slot. A class, as a generator costs
    2 µs more per request."""

    __slots__ = ("_function", "_service", "phases", "start", "tier")

    def __init__(self, service: FunctionService, function: FunctionView) -> None:
        self._service = service
        self._function = function
        self.start: StartType | None = None
        self.tier: Tier | None = None
        self.phases = NOTHING

    async def __aenter__(self) -> Self:
        self._service.enter(self._function)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._service.leave(self._function)

    async def _ready(self) -> Mapped:
        mapped = self._service.mapped(self._function)
        if mapped is not None:
            self.start = self.start or "warm"
            return mapped
        began_s = trio.current_time()
        try:
            mapped = await self._service.ready(self._function)
        finally:
            self.phases = Phases(queue_s=trio.current_time() - began_s)
        self.start = mapped.start
        self.phases = waited_for(mapped.phases, trio.current_time() - began_s)
        return mapped

    async def params(self, export: str) -> tuple[str, ...] | None:
        mapped = await self._ready()
        return mapped.module.export_params(export, init_of(self._function, mapped))

    async def invoke(self, call: Invocation, cancel: CancelFlag) -> Outcome:
        # Nothing is awaited between finding the module mapped and its use being counted.
        mapped = await self._ready()
        self.tier = mapped.module.tier
        began_s = trio.current_time()
        try:
            result = await self._service.run(self._function, mapped, call, cancel)
        except EdgedError:
            # How long it waited and how long it ran is not told apart.
            self.phases = msgspec.structs.replace(self.phases, run_s=trio.current_time() - began_s)
            raise
        guest_s = result.instantiate_s + result.init_s + result.run_s
        self.phases = msgspec.structs.replace(
            self.phases,
            queue_s=max(trio.current_time() - began_s - guest_s, 0.0),
            instantiate_s=result.instantiate_s,
            init_s=result.init_s or None,
            run_s=result.run_s,
        )
        assert self.start is not None
        return Outcome(result, self.start, self.phases)
