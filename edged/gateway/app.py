"""The public gateway: an ASGI application that answers `/{function}` and `/{function}/{path…}`.

Order of an invocation: function, method, body (bounded), admission, calling convention, guest,
calling convention. The body comes before admission so that a trickled upload holds a connection
and its share of the body budget, never one of the function's slots. Every answer names the node,
the time it took and the request; errors are problem documents and say nothing of the node's inside.
A client that leaves stops its guest and frees its slot.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import msgspec
import trio

from edged.errors import (
    DeadlineExceeded,
    EdgedError,
    FunctionNotFound,
    InvocationError,
    MalformedGuestOutput,
    MethodNotAllowed,
    Overloaded,
    PayloadTooLarge,
    info_of,
)
from edged.http import EXTENSION, RETRY_AFTER_S, DirectExchange, problem_response
from edged.interfaces import CancelFlag, Functions, FunctionView, NodeState, Slot
from edged.telemetry import Log, Metrics
from protocol.ids import FUNCTION_NAME, VersionId

from .abi import REGISTRY, Abi, HttpRequest
from .headers import NO_PHASES, accepted_request_id, server_timing

MEBIBYTE: Final = 1024 * 1024
ROUTES_MAX: Final = 4096
"""Remembered versions, forgotten all at once, as they are cheap to make; and children of the
requests metric, of which the oldest goes: to Prometheus a series that comes back was reset."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class GatewayLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the gateway itself; the adapter's are edged.http.HttpLimits."""

    ready_timeout_s: float = 90.0
    """On top of the policy's timeout, for fetching, compiling and waiting for a thread: a backstop
    behind the node's own limits; 504."""
    bodies_bytes_max: int = 256 * MEBIBYTE
    """Request bodies in memory, all together; more is 503."""


class _Route(NamedTuple):
    """What a version always needs."""

    abi: Abi
    methods: tuple[str, ...]
    headers: Headers


class _Request:
    """One request on its way through."""

    __slots__ = ("function", "gone", "request_id", "scope", "slot", "started_at")

    def __init__(self, scope: dict[str, Any], request_id: bytes) -> None:
        self.scope = scope
        self.request_id = request_id
        self.started_at = trio.current_time()
        self.function: FunctionView | None = None
        self.slot: Slot | None = None
        self.gone = False


class Gateway:
    def __init__(
        self,
        functions: Functions,
        *,
        node_name: str,
        metrics: Metrics,
        log: Log,
        limits: GatewayLimits | None = None,
        state: Callable[[], NodeState] = lambda: "ready",
    ) -> None:
        self._functions = functions
        self._limits = limits or GatewayLimits()
        self._metrics = metrics
        self._log = log
        self._state = state
        self._node = (b"x-edged-node", node_name.encode())
        self._routes: dict[VersionId, _Route] = {}
        self._counters: dict[tuple[str, int, str], Any] = {}
        self._seconds = metrics.request_seconds
        self._bodies_bytes = 0
        self._ids = itertools.count()
        self._id_prefix = os.urandom(6).hex().encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        exchange: DirectExchange = scope["extensions"][EXTENSION]
        length = request_id = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value)
            elif name == b"x-request-id":
                request_id = accepted_request_id(value)
        request = _Request(scope, request_id or b"%b-%x" % (self._id_prefix, next(self._ids)))
        try:
            status, headers, body = await self._answer(request, receive, exchange, length)
        except EdgedError as error:
            status, headers, body = self._problem(request, error)
        if request.gone:
            self._count(request, 499)
            return
        slot = request.slot
        phases, tier = (slot.phases, slot.tier) if slot else (NO_PHASES, None)
        total_s = trio.current_time() - request.started_at
        headers.append((b"x-request-id", request.request_id))
        headers.append((b"server-timing", server_timing(phases, total_s, tier)))
        self._count(request, status)
        self._seconds.observe(total_s)
        self._log.debug(
            "gateway.request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            total_ms=total_s * 1000,
            request_id=request.request_id.decode(),
        )
        await exchange.respond(status, headers, body)

    # ------------------------------------------------------------ routing
    async def _answer(
        self,
        request: _Request,
        receive: Receive,
        exchange: DirectExchange,
        length: int | None,
    ) -> tuple[int, Headers, bytes]:
        raw_path: bytes = request.scope["raw_path"]
        name, slash, rest = raw_path[1:].partition(b"/")
        text = name.decode("ascii")
        if FUNCTION_NAME.match(text) is None:
            return self._own_path(request)
        function = self._functions.lookup(text)
        request.function = function
        route = self._routes.get(function.version) or self._route(function)
        method: str = request.scope["method"]
        if method not in route.methods:
            raise MethodNotAllowed(
                f"{function.name} does not allow this method", allow=list(route.methods)
            )
        return await self._with_body(request, route, receive, exchange, length, slash + rest)

    def _route(self, function: FunctionView) -> _Route:
        spec = function.spec
        abi = REGISTRY[spec.abi]
        headers = [self._node, (b"x-edged-version", function.version[:12].encode())]
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        methods = spec.methods or abi.methods
        if "GET" in methods and "HEAD" not in methods:
            methods = (*methods, "HEAD")
        route = _Route(abi, methods, headers)
        self._routes[function.version] = route
        return route

    def _own_path(self, request: _Request) -> tuple[int, Headers, bytes]:
        """Paths that no function can have."""
        if request.scope["raw_path"] != b"/_edged/health":
            raise FunctionNotFound("no such function; call /{function} or /{function}/{path}")
        if request.scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("health is read with GET", allow=["GET", "HEAD"])
        state = self._state()
        headers = [
            self._node,
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
        ]
        if state != "ready":
            headers.append((b"retry-after", RETRY_AFTER_S))
        return 200 if state == "ready" else 503, headers, msgspec.json.encode({"status": state})

    # ------------------------------------------------------------ invoking
    async def _with_body(
        self,
        request: _Request,
        route: _Route,
        receive: Receive,
        exchange: DirectExchange,
        length: int | None,
        path_info: bytes,
    ) -> tuple[int, Headers, bytes]:
        function = request.function
        assert function is not None
        limit = function.spec.policy.body_bytes
        if length is not None and length > limit:
            raise PayloadTooLarge(f"the body is over {limit} bytes", limit_bytes=limit)
        chunks: list[bytes] = []
        taken = 0
        try:
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    request.gone = True
                    return 499, [], b""
                chunk: bytes = message["body"]
                more = message["more_body"]
                if chunk:
                    taken += len(chunk)
                    self._bodies_bytes += len(chunk)
                    if taken > limit:
                        raise PayloadTooLarge(f"the body is over {limit} bytes", limit_bytes=limit)
                    if self._bodies_bytes > self._limits.bodies_bytes_max:
                        raise Overloaded("too many request bodies at once")
                    chunks.append(chunk)
            http = self._http_request(request.scope, path_info, b"".join(chunks))
            chunks.clear()  # else the body is in memory twice while the guest runs
            return await self._invoke(request, route, exchange, http)
        finally:
            self._bodies_bytes -= taken

    def _http_request(self, scope: dict[str, Any], path_info: bytes, body: bytes) -> HttpRequest:
        return HttpRequest(
            scope["method"],
            scope["scheme"],
            scope["raw_path"],
            path_info,
            scope["query_string"],
            scope["http_version"],
            scope["headers"],
            scope["client"],
            scope["server"],
            body,
        )

    async def _invoke(
        self, request: _Request, route: _Route, exchange: DirectExchange, http: HttpRequest
    ) -> tuple[int, Headers, bytes]:
        function = request.function
        assert function is not None
        cancel = CancelFlag()
        timeout_s = function.spec.policy.timeout_ms / 1000 + self._limits.ready_timeout_s

        def left() -> None:
            # Both: the flag stops a running guest, the scope whatever waits for something.
            request.gone = True
            cancel.set()
            scope.cancel()

        with trio.CancelScope(deadline=trio.current_time() + timeout_s) as scope:
            exchange.on_disconnect(left)
            async with self._functions.admit(function) as slot:
                request.slot = slot
                call = await route.abi.invocation(http, function, slot)
                outcome = await slot.invoke(call, cancel)
            status, headers, body = route.abi.response(http, function, outcome.result)
            return (
                status,
                [*headers, *route.headers, (b"x-edged-start", outcome.start.encode())],
                body,
            )
        if request.gone:
            return 499, [], b""
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s")

    # ------------------------------------------------------------ telling
    def _problem(self, request: _Request, error: EdgedError) -> tuple[int, Headers, bytes]:
        info = info_of(error)
        function = request.function
        if not request.gone:
            self._metrics.errors.labels(info.code).inc()
        if function is not None and (
            isinstance(error, MalformedGuestOutput)
            or (error.private and not isinstance(error, InvocationError))
        ):
            # What invoke itself raises as InvocationError, the node has logged.
            self._functions.log(function, "edged", error.private or str(error))
        getattr(self._log, info.level)(
            "gateway.error",
            code=info.code,
            function=function.name if function else None,
            request_id=request.request_id.decode(),
            detail=str(error),
            private=error.private or None,
        )
        extra = [self._node]
        if function is not None:
            extra.append((b"x-edged-version", function.version[:12].encode()))
            if request.slot is not None and request.slot.start is not None:
                extra.append((b"x-edged-start", request.slot.start.encode()))
        instance = f"urn:edged:request:{request.request_id.decode()}"
        return problem_response(error, extra_headers=extra, instance=instance)

    def _count(self, request: _Request, status: int) -> None:
        function = request.function.name if request.function else ""
        start = (request.slot.start if request.slot else None) or ""
        key = (function, status, start)
        counter = self._counters.get(key)
        if counter is None:
            if len(self._counters) >= ROUTES_MAX:
                oldest = next(iter(self._counters))
                del self._counters[oldest]
                self._metrics.requests.remove(*map(str, oldest))
            counter = self._metrics.requests.labels(function, str(status), start)
            self._counters[key] = counter
        counter.inc()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
