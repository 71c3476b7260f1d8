"""The public gateway: an ASGI application that answers `/{function}` and `/{function}/{path…}`.

Order of an invocation: function, method, body (bounded), admission, calling convention, guest,
calling convention; or, where the code is not ready, a peer that has it (forward.py). The body comes
before admission so that a trickled upload holds a connection and its share of the body budget,
never one of the function's slots. Every answer names the node that ran it, the time it took and the
request; errors are problem documents and say nothing of the node's inside. A client that leaves
stops its guest and frees its slot.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import trio

from edged.errors import (
    ConcurrencyExceeded,
    DeadlineExceeded,
    Draining,
    EdgedError,
    FunctionNotFound,
    InvocationError,
    MalformedGuestOutput,
    MethodNotAllowed,
    NoHolder,
    NotReady,
    Overloaded,
    info_of,
)
from edged.http import EXTENSION, RETRY_AFTER_S, ClientGone, DirectExchange, problem_response
from edged.interfaces import CancelFlag, Functions, FunctionView, NodeState
from edged.telemetry import Log, Metrics
from protocol.ids import FUNCTION_NAME, FunctionName, NodeId, VersionId

from .abi import REGISTRY, Abi, HttpRequest
from .body import BodyBudget, Receive, RequestBody
from .forward import Forwarder, Order, Send
from .headers import NO_PHASES, accepted_request_id, server_timing
from .passage import REFUSED, RESERVED, Headers, Passage, take_passage, without_reserved
from .request import Request, lifespan

MEBIBYTE: Final = 1024 * 1024
ROUTES_MAX: Final = 4096
"""Remembered versions, forgotten all at once, as they are cheap to make; and children of the
requests metric, of which the oldest goes: to Prometheus a series that comes back was reset."""

REFUSALS: Final = (ConcurrencyExceeded, Draining, NoHolder, NotReady, Overloaded)
"""Errors after which no guest runs for a request: a peer that sent it may ask another."""

FOUND: Final = ("warm", "loaded")
"""How requests start that find their code here."""

Answer = tuple[int, Headers, bytes]


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
        node_id: NodeId,
        forwarder: Forwarder | None = None,
    ) -> None:
        """Without a `forwarder` each request waits for this node to be ready."""
        self._functions = functions
        self._limits = limits or GatewayLimits()
        self._metrics = metrics
        self._log = log
        self._state = state
        self._node_id = node_id
        self._forwarder = forwarder
        self._node = (b"x-edged-node", node_name.encode())
        self._routes: dict[VersionId, _Route] = {}
        self._counters: dict[tuple[str, int, str], Any] = {}
        self._seconds = metrics.request_seconds
        self._bodies = BodyBudget(self._limits.bodies_bytes_max)
        self._ids = itertools.count()
        self._id_prefix = os.urandom(6).hex().encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        exchange: DirectExchange = scope["extensions"][EXTENSION]
        length: int | None = 0
        request_id = None
        reserved = False
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                length = None
            elif name == b"x-request-id":
                request_id = accepted_request_id(value)
            elif name.startswith(RESERVED):
                reserved = True
        request_id = request_id or b"%b-%x" % (self._id_prefix, next(self._ids))
        request = Request(scope, request_id, exchange.peer)
        try:
            if request.peer is not None:
                self._let_in(request, request.peer)
            elif reserved:
                scope["headers"] = without_reserved(scope["headers"])
            answer = await self._answer(request, receive, send, exchange, length)
        except EdgedError as error:
            answer = self._problem(request, error)
            if request.answering:
                raise  # only a broken connection can still say that it failed
        except ClientGone:
            request.gone, answer = True, None
        finally:
            if request.body is not None:
                request.body.release()
        if answer is not None and not request.gone:
            await self._tell(request, exchange, answer)
        elif request.gone and not request.answering:
            self._count(request, 499)

    def _let_in(self, request: Request, peer: str) -> None:
        """Raises BadRequest, Draining, NotReady."""
        state = self._state()
        if state != "ready":
            raise Draining(f"this node is {state}")
        scope = request.scope
        request.passage, scope["headers"] = take_passage(scope["headers"], peer)
        if self._node_id in request.passage.path:
            raise NotReady("the request has been here before")

    async def _tell(self, request: Request, exchange: DirectExchange, answer: Answer) -> None:
        status, headers, body = answer
        scope, slot = request.scope, request.slot
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
        request: Request,
        receive: Receive,
        send: Send,
        exchange: DirectExchange,
        length: int | None,
    ) -> Answer | None:
        """None: another node's answer has gone out."""
        raw_path: bytes = request.scope["raw_path"]
        name, slash, rest = raw_path[1:].partition(b"/")
        text = name.decode("ascii")
        if FUNCTION_NAME.match(text) is None:
            return self._own_path(request)
        passage = request.passage
        if passage is None:
            function = self._functions.lookup(text)
        else:
            function = self._functions.version(text, passage.version)
        request.function = function
        route = self._routes.get(function.version) or self._route(function)
        method: str = request.scope["method"]
        if method not in route.methods:
            raise MethodNotAllowed(
                f"{function.name} does not allow this method", allow=list(route.methods)
            )
        limit = function.spec.policy.body_bytes
        request.body = RequestBody(receive, length, limit, self._bodies)
        # Who passed it on did so for what is here.
        is_near = self._functions.is_near if passage is None else self._functions.has_code
        if not is_near(function):
            if await self._forward(request, function, request.body, exchange, send):
                return None
            if passage is not None:
                raise NotReady(f"{function.name} is not ready on this node")
        http = await self._http_request(request, request.body, slash + rest)
        return await self._invoke(request, function, route, exchange, http)

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

    def _own_path(self, request: Request) -> Answer:
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
    async def _http_request(
        self, request: Request, body: RequestBody, path_info: bytes
    ) -> HttpRequest:
        scope, passage = request.scope, request.passage
        return HttpRequest(
            scope["method"],
            scope["scheme"],
            scope["raw_path"],
            path_info,
            scope["query_string"],
            scope["http_version"],
            scope["headers"],
            scope["client"] if passage is None else passage.client,
            scope["server"] if passage is None else passage.server,
            await body.gather(),
        )

    def _timeout_s(self, request: Request, function: FunctionView) -> float:
        timeout_s = longest_s(function) + self._limits.ready_timeout_s
        passage = request.passage
        return timeout_s if passage is None else min(timeout_s, passage.left_s)

    async def _forward(
        self,
        request: Request,
        function: FunctionView,
        body: RequestBody,
        exchange: DirectExchange,
        send: Send,
    ) -> bool:
        """Whether a peer answered it. Raises as Forwarder.forward, and DeadlineExceeded."""
        forwarder, scope = self._forwarder, request.scope
        if forwarder is None:
            return False
        if request.passage is None:
            self._functions.prepare(function)
            ends = scope["client"], scope["server"]
            passage = Passage((self._node_id,), function.version, 0.0, *ends)
            peers = forwarder.peers(function, ())
        else:
            path = request.passage.path
            passage = request.passage._replace(path=(*path, self._node_id))
            peers = forwarder.peers(function, path)
        if not peers:
            return False

        def left() -> None:
            request.gone = True
            limit.cancel()

        def tell(status: int) -> None:
            request.answering = True
            self._count(request, status)

        timeout_s = self._timeout_s(request, function)
        with trio.CancelScope(deadline=trio.current_time() + timeout_s) as limit:
            exchange.on_disconnect(left)
            order = Order(
                scope=scope,
                body=body,
                passage=passage,
                request_id=request.request_id,
                started_at=request.started_at,
                limit=limit,
                timeout_s=longest_s(function),
                function=function,
            )
            if not await forwarder.forward(order, peers, exchange, send, tell):
                return False
            self._seconds.observe(trio.current_time() - request.started_at)
            return True
        if request.gone:
            raise ClientGone("the client left")
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s")

    async def _invoke(
        self,
        request: Request,
        function: FunctionView,
        route: _Route,
        exchange: DirectExchange,
        http: HttpRequest,
    ) -> Answer:
        cancel = CancelFlag()
        timeout_s = self._timeout_s(request, function)
        if request.gone:  # while a peer was asked
            raise ClientGone("the client left")

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
            raise ClientGone("the client left")
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s")

    def served(self) -> dict[FunctionName, int]:
        """Requests so far that found their code here, by function; of very many, those of late."""
        counts: Counter[FunctionName] = Counter()
        for (name, _, start), counter in self._counters.items():
            if start in FOUND:
                counts[FunctionName(name)] += int(counter.value)
        return dict(counts)

    # ------------------------------------------------------------ telling
    def _problem(self, request: Request, error: EdgedError) -> Answer:
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
        unknown = function is None and isinstance(error, FunctionNotFound)
        if request.peer is not None and (unknown or isinstance(error, REFUSALS)):
            extra.append((REFUSED, info.code.encode()))
        instance = f"urn:edged:request:{request.request_id.decode()}"
        return problem_response(error, extra_headers=extra, instance=instance)

    def _count(self, request: Request, status: int) -> None:
        function = request.function.name if request.function else ""
        start = (request.slot.start if request.slot else None) or ""
        if request.answering:
            start = "forwarded"
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


def longest_s(function: FunctionView) -> float:
    """That its guest may run: its init comes first where it is no snapshot."""
    init = function.spec.init
    init_ms = 0 if init is None else init.timeout_ms
    return (function.spec.policy.timeout_ms + init_ms) / 1000
