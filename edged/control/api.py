"""The endpoints of the control API: parse the input, ask the operator, encode the answer.

Names and bodies are judged here, so the operator sees only what could be meant; it still raises
for what does not exist. edged/docs/API.md is the reference.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edged.errors import BadRequest, Draining, FunctionNotFound, KeyNotFound, Overloaded
from edged.interfaces import (
    BuilderOperator,
    DeployRequest,
    EventSource,
    Explainer,
    JoinRequest,
    KeyOperator,
    Lab,
    LinkOperator,
    Operator,
    Upkeep,
)
from protocol.errors import RemoteProtocolError
from protocol.function import MODULE_BYTES_MAX
from protocol.ids import parse_function_name

from .bodies import UploadBudget, digest_field, expected_digest, read_body, read_json
from .download import Download
from .lab import LabApi
from .links import LinksApi
from .queries import check_query, flag, number
from .responses import COMMON, json_response
from .stream import NDJSON, LogStream, ndjson, unless_disconnected
from .upkeep import UpkeepApi
from .what_if import what_if

HEALTH_PATH: Final = "/v1/health"
TAIL_DEFAULT: Final = 100
TAIL_MAX: Final = 10_000
EVENTS_LIMIT: Final = 1000
EVENTS_LIMIT_MAX: Final = 4096
EVENTS_WAIT_S_MAX: Final = 60
"""A long poll; proxies commonly call an answer dead after that."""
EVENT_SEQ_MAX: Final = 2**53 - 1
"""What every JSON reader can hold."""
PROMETHEUS: Final = "text/plain; version=0.0.4"
VERSION_PREFIX: Final = re.compile(r"[0-9a-f]{4,64}\Z")

KEY: Final = re.compile(r"[0-9a-f]{64}\Z")
KEY_ID: Final = re.compile(r"[0-9a-f]{8}\Z")

Endpoint = Callable[[Request], Awaitable[Response | LogStream | Download]]


class RollbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST …/rollback; none at all means the version before."""

    version: str | None = None


class AddKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/keys."""

    key: str


class Api:
    """One method per endpoint; each parses its input and hands it to the operator."""

    def __init__(
        self,
        operator: Operator,
        explainer: Explainer,
        events: EventSource,
        keys: KeyOperator,
        upkeep: Upkeep,
        builders: BuilderOperator,
        lab: Lab | None,
        links: LinkOperator | None,
    ) -> None:
        self._operator = operator
        self._explainer = explainer
        self._events = events
        self._keys = keys
        self._builders = builders
        self._upkeep = UpkeepApi(upkeep)
        self._lab = LabApi(lab)
        self._links = LinksApi(links)
        self._uploads = UploadBudget()

    def routes(self) -> list[Route]:
        upkeep = self._upkeep
        table: list[tuple[str, str, Endpoint, *tuple[str, ...]]] = [
            ("GET", HEALTH_PATH, self.health),
            ("GET", "/v1/status", self.status),
            ("GET", "/v1/members", self.members),
            ("POST", "/v1/join", self.join),
            ("GET", "/v1/metrics", self.metrics),
            ("GET", "/v1/artifacts", self.artifacts),
            ("GET", "/v1/events", self.events, "after", "limit", "wait_s"),
            ("GET", "/v1/keys", self.keys),
            ("POST", "/v1/keys", self.add_key),
            ("POST", "/v1/keys/{id}/use", self.use_key, "force"),
            ("DELETE", "/v1/keys/{id}", self.remove_key, "force"),
            ("GET", "/v1/records/future", self.future_records),
            ("DELETE", "/v1/records/future", self.discard_future),
            ("GET", "/v1/builders/distrusted", self.distrusted),
            ("DELETE", "/v1/builders/distrusted/{target}", self.trust),
            ("GET", "/v1/blobs", upkeep.blobs, "after", "limit"),
            ("GET", "/v1/blobs/{digest}", upkeep.blob),
            ("GET", "/v1/transfers", upkeep.transfers),
            ("POST", "/v1/gc", upkeep.collect, "dry_run", "grace_s"),
            ("GET", "/v1/verify", upkeep.verification),
            ("POST", "/v1/verify", upkeep.verify),
            ("GET", "/v1/pins", upkeep.pins),
            ("PUT", "/v1/pins/{target:path}", upkeep.pin),
            ("DELETE", "/v1/pins/{target:path}", upkeep.unpin),
            ("GET", "/v1/lab", self._lab.view),
            ("PUT", "/v1/lab", self._lab.set),
            ("GET", "/v1/links", self._links.view),
            ("PUT", "/v1/links", self._links.change),
            ("PUT", "/v1/modules", self.put_module),
            ("GET", "/v1/functions", self.functions),
            ("PUT", "/v1/functions/{name}", self.deploy),
            ("GET", "/v1/functions/{name}", self.describe),
            ("DELETE", "/v1/functions/{name}", self.remove),
            ("GET", "/v1/functions/{name}/versions", self.versions),
            ("POST", "/v1/functions/{name}/rollback", self.rollback),
            ("GET", "/v1/functions/{name}/logs", self.logs, "tail", "follow"),
            ("GET", "/v1/functions/{name}/explain", self.explain, "what_if"),
        ]
        # One Route per path: Starlette answers 405 with the methods of the first one that fits.
        paths: dict[str, dict[str, _Known]] = {}
        for method, path, endpoint, *query in table:
            paths.setdefault(path, {})[method] = _Known(endpoint, tuple(query))
        return [Route(path, _Dispatch(known), methods=[*known]) for path, known in paths.items()]

    async def health(self, _request: Request) -> Response:
        state = self._operator.state()
        if state == "draining":
            raise Draining("the node is shutting down", state=state)
        if state != "ready":
            raise Overloaded("the node is starting", state=state)
        return json_response({"state": state})

    async def status(self, _request: Request) -> Response:
        return json_response(self._operator.status())

    async def members(self, _request: Request) -> Response:
        return json_response({"members": self._operator.members()})

    async def join(self, request: Request) -> Response:
        wanted = await read_json(request, JoinRequest)
        await self._operator.join(wanted.seeds)
        return json_response({"seeds": wanted.seeds}, status=202)

    async def artifacts(self, _request: Request) -> Response:
        return json_response(self._operator.artifacts())

    async def metrics(self, _request: Request) -> Response:
        return Response(self._operator.metrics(), media_type=PROMETHEUS)

    async def events(self, request: Request) -> Response:
        after = number(request, "after", EVENT_SEQ_MAX)
        limit = number(request, "limit", EVENTS_LIMIT_MAX)
        wait_s = number(request, "wait_s", EVENTS_WAIT_S_MAX) or 0
        read = self._events.read(
            after=after, limit=EVENTS_LIMIT if limit is None else limit, wait_s=wait_s
        )
        view = await unless_disconnected(request.receive, read)
        return Response(status_code=204) if view is None else json_response(view)  # 204: to nobody

    async def keys(self, _request: Request) -> Response:
        return json_response(self._keys.view())

    async def add_key(self, request: Request) -> Response:
        wanted = await read_json(request, AddKeyRequest)
        if not KEY.match(wanted.key):
            raise BadRequest("key: 64 lower-case hex digits")  # what came instead stays unsaid
        change = await self._keys.add(bytes.fromhex(wanted.key))
        return json_response(change, status=201 if change.changed else 200)

    async def use_key(self, request: Request) -> Response:
        change = await self._keys.use(_key_id(request), force=flag(request, "force"))
        return json_response(change)

    async def remove_key(self, request: Request) -> Response:
        change = await self._keys.remove(_key_id(request), force=flag(request, "force"))
        return json_response(change)

    async def distrusted(self, _request: Request) -> Response:
        return json_response(self._builders.view())

    async def trust(self, request: Request) -> Response:
        return json_response(await self._builders.trust(request.path_params["target"]))

    async def future_records(self, _request: Request) -> Response:
        return json_response({"records": self._operator.future_records()})

    async def discard_future(self, _request: Request) -> Response:
        return json_response({"records": await self._operator.discard_future()})

    async def put_module(self, request: Request) -> Response:
        expected = expected_digest(request)
        with self._uploads.share() as share:
            data = await read_body(request, limit_bytes=MODULE_BYTES_MAX, share=share)
            if not data:
                raise BadRequest("send the module, .wasm or .wat, as the body")
            stored = await self._operator.put_module(data, expected=expected)
        return json_response(stored, status=201 if stored.created else 200)

    async def functions(self, _request: Request) -> Response:
        return json_response({"functions": self._operator.functions()})

    async def deploy(self, request: Request) -> Response:
        try:
            name = parse_function_name(request.path_params["name"])
        except RemoteProtocolError as error:
            raise BadRequest(f"function name {error.detail}") from error
        wanted = await read_json(request, DeployRequest)
        digest_field(wanted.module, name="module")
        deployed = await self._operator.deploy(name, wanted)
        headers = {"location": f"/v1/functions/{name}"} if deployed.created else {}
        return json_response(deployed, status=201 if deployed.created else 200, headers=headers)

    async def describe(self, request: Request) -> Response:
        return json_response(self._operator.describe(_known_name(request)))

    async def versions(self, request: Request) -> Response:
        return json_response({"versions": self._operator.versions(_known_name(request))})

    async def rollback(self, request: Request) -> Response:
        name = _known_name(request)
        wanted = await read_json(request, RollbackRequest, empty=RollbackRequest())
        if wanted.version is not None and not VERSION_PREFIX.match(wanted.version):
            raise BadRequest(f"version {wanted.version[:80]!r}: 4 to 64 lower-case hex digits")
        return json_response(await self._operator.rollback(name, wanted.version))

    async def remove(self, request: Request) -> Response:
        return json_response(await self._operator.remove(_known_name(request)))

    async def logs(self, request: Request) -> Response | LogStream:
        name = _known_name(request)
        tail = number(request, "tail", TAIL_MAX)
        tail = TAIL_DEFAULT if tail is None else tail
        follow = flag(request, "follow")
        lines = self._operator.logs(name, tail=0 if follow else tail)
        if follow:  # the call above has raised FunctionNotFound where there is none
            return LogStream(self._operator.follow(name, tail=tail))
        return Response(ndjson(lines), media_type=NDJSON.decode(), headers=COMMON)

    async def explain(self, request: Request) -> Response:
        name, assumed = _known_name(request), what_if(request)
        return json_response(self._explainer.explain(name, assumed))


class _Known(NamedTuple):
    """An endpoint, and the query keys it takes."""

    endpoint: Endpoint
    query: tuple[str, ...]


class _Dispatch:
    """The endpoints of one path by method; HEAD is GET without its body."""

    def __init__(self, endpoints: dict[str, _Known]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        known = self._endpoints[method]
        request = Request(scope, receive, send)
        check_query(request, known.query)
        answer = await known.endpoint(request)
        await answer(scope, receive, send)


def _known_name(request: Request) -> str:
    """Raises FunctionNotFound for names that no function can have."""
    try:
        return parse_function_name(request.path_params["name"])
    except RemoteProtocolError as error:
        raise FunctionNotFound(f"no function {error.detail}") from error


def _key_id(request: Request) -> str:
    """Raises KeyNotFound for ids that no key can have."""
    text: str = request.path_params["id"]
    if not KEY_ID.match(text):
        raise KeyNotFound(f"no key {text[:80]!r}: a key id has 8 lower-case hex digits")
    return text
