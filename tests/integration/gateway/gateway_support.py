"""A gateway over Python behaviours that stand where guests would."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from http_support import PATIENT, WAIT_S, Listener
from msgspec.structs import replace

from edged.errors import (
    ConcurrencyExceeded,
    Draining,
    FunctionNotFound,
    InvocationCancelled,
)
from edged.gateway import Gateway, GatewayLimits
from edged.http import HttpHooks, HttpLimits, HttpServer, bind_tcp, serve
from edged.interfaces import (
    CancelFlag,
    FunctionView,
    Invocation,
    InvocationResult,
    NodeState,
    Outcome,
    Phases,
    StartType,
    Tier,
)
from edged.telemetry import Metrics, make_log
from protocol.function import FunctionSpec, encode_spec, version_of
from protocol.ids import FunctionName, NodeId, VersionId, digest_of

Behaviour = Callable[[Invocation], InvocationResult]
PHASES = Phases(queue_s=0.001, run_s=0.002)


def result(stdout: bytes = b"", values: tuple[int | float, ...] = ()) -> InvocationResult:
    return InvocationResult(
        stdout=stdout,
        stderr=b"",
        stderr_truncated=False,
        values=values,
        instantiate_s=0.0,
        run_s=0.0,
    )


def spec(abi: str = "raw", **fields: object) -> FunctionSpec:
    digest = digest_of(b"module")
    made = FunctionSpec(abi="raw", module=digest, module_bytes=8, manifest=digest)
    return replace(made, abi=abi, **fields)


class Slot:
    """interfaces.Slot of one request."""

    start: StartType | None = None
    tier: Tier | None = None
    phases = Phases()

    def __init__(self, behaviours: Behaviours, function: FunctionView) -> None:
        self._behaviours = behaviours
        self._function = function

    async def params(self, export: str) -> tuple[str, ...] | None:
        return self._behaviours.exports.get(export)

    async def invoke(self, call: Invocation, cancel: CancelFlag) -> Outcome:
        self.start = "warm"
        outcome = await self._behaviours.run(self._function, call, cancel)
        self.phases = outcome.phases
        return outcome


class Behaviours:
    """interfaces.Functions of Python callables. Admission counts like the node's."""

    def __init__(self) -> None:
        self._views: dict[str, FunctionView] = {}
        self._run: dict[str, Behaviour] = {}
        self.exports: dict[str, tuple[str, ...]] = {}
        self.calls: list[Invocation] = []
        self.logged: list[tuple[str, str, str]] = []
        self.admitted: Counter[str] = Counter()
        self.cancels: list[CancelFlag] = []
        self.draining = False
        self.far: set[str] = set()
        """Functions that are not ready."""
        self.prepared: list[str] = []

    def add(self, name: str, made: FunctionSpec, run: Behaviour) -> FunctionView:
        view = FunctionView(FunctionName(name), version_of(encode_spec(made)), made)
        self._views[name] = view
        self._run[name] = run
        return view

    def lookup(self, name: str) -> FunctionView:
        view = self._views.get(name)
        if view is None:
            raise FunctionNotFound(f"no function {name!r}")
        return view

    def version(self, name: str, version: VersionId) -> FunctionView:
        view = self.lookup(name)
        if view.version != version:
            raise FunctionNotFound(f"{name!r} has no version {version!r}")
        return view

    def is_near(self, function: FunctionView) -> bool:
        return function.name not in self.far

    def has_code(self, function: FunctionView) -> bool:
        return self.is_near(function)

    def prepare(self, function: FunctionView) -> None:
        self.prepared.append(function.name)

    @asynccontextmanager
    async def admit(self, function: FunctionView) -> AsyncIterator[Slot]:
        if self.draining:
            raise Draining("this node is shutting down")
        if self.admitted[function.name] >= function.spec.policy.concurrency:
            raise ConcurrencyExceeded(f"{function.name} is busy")
        self.admitted[function.name] += 1
        try:
            yield Slot(self, function)
        finally:
            self.admitted[function.name] -= 1

    async def run(self, function: FunctionView, call: Invocation, cancel: CancelFlag) -> Outcome:
        self.calls.append(call)
        self.cancels.append(cancel)
        run = self._run[function.name]
        return Outcome(await trio.to_thread.run_sync(run, call), "warm", PHASES)

    def log(self, function: FunctionView, stream: str, text: str) -> None:
        self.logged.append((function.name, stream, text))

    def until_cancelled(self, call: Invocation) -> InvocationResult:
        """A guest that runs until its flag is set (or the test is long over)."""
        if not self.cancels[-1].wait(WAIT_S):
            raise AssertionError("nobody stopped the guest")
        raise InvocationCancelled("stopped")


class Fixture(Listener):
    functions: Behaviours
    metrics: Metrics


@asynccontextmanager
async def gateway(
    functions: Behaviours,
    *,
    http: HttpLimits = PATIENT,
    limits: GatewayLimits | None = None,
    state: Callable[[], NodeState] = lambda: "ready",
) -> AsyncIterator[Fixture]:
    metrics = Metrics()
    stream = io.StringIO()
    log = make_log("n1", stream=stream, level="debug")
    app = Gateway(
        functions,
        node_name="n1",
        node_id=NodeId("1" * 32),
        metrics=metrics,
        log=log,
        limits=limits,
        state=state,
    )
    rejected: list[str] = []
    hooks = HttpHooks(rejected=rejected.append, headers=((b"x-edged-node", b"n1"),))
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[HttpServer]) -> None:
            sockets = [bind_tcp("127.0.0.1", 0)]
            await serve(app, sockets, http, log=log, hooks=hooks, task_status=task_status)

        fixture = Fixture(await nursery.start(run), rejected, stream)
        fixture.functions = functions
        fixture.metrics = metrics
        yield fixture
        for client in fixture.clients:
            await client.aclose()
        await fixture.drain(2.0)
        nursery.cancel_scope.cancel()
    assert "http.bug" not in stream.getvalue()
    assert "http.application" not in stream.getvalue()
    assert not +functions.admitted, "a slot was not freed"
