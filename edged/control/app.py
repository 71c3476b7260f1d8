"""The control API as an ASGI application: authentication, errors; its endpoints are in api.py.

Everything but GET /v1/health needs the bearer token, compared in constant time. The token is also
what keeps web pages out: a browser never attaches it by itself, and no CORS header is ever sent,
so neither cross-site requests nor DNS rebinding get past 401. edged/docs/API.md is the reference.
"""

from __future__ import annotations

import hmac

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edged.errors import ConfigError, EdgedError, MethodNotAllowed, Unauthorized, info_of
from edged.interfaces import (
    BuilderOperator,
    EventSource,
    Explainer,
    KeyOperator,
    Lab,
    LinkOperator,
    Operator,
    Upkeep,
)
from edged.telemetry import Log, Metrics

from .api import HEALTH_PATH, Api
from .download import AnswerCut
from .responses import error_response, plain_problem


def make_control_app(
    operator: Operator,
    *,
    explainer: Explainer,
    events: EventSource,
    keys: KeyOperator,
    upkeep: Upkeep,
    builders: BuilderOperator,
    lab: Lab | None,
    links: LinkOperator | None,
    token: str,
    log: Log,
    metrics: Metrics,
) -> ASGIApp:
    """Serves one node's operator API. `token` must not be empty; `lab`, `links`: if it has them."""
    if not token:
        raise ConfigError("the control token is empty; remove its file and start again")
    errors = _Errors(log, metrics)
    app = Starlette(
        routes=Api(operator, explainer, events, keys, upkeep, builders, lab, links).routes(),
        exception_handlers={
            HTTPException: errors.of_http,
            EdgedError: errors.expected,
            Exception: errors.bug,
        },
    )
    app.router.redirect_slashes = False
    return _Guard(app, token=token, errors=errors, log=log)


class _Errors:
    """Turns exceptions into problem documents; counts and logs them."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics

    async def expected(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, EdgedError)
        info = info_of(error)
        self._metrics.errors.labels(info.code).inc()
        private = {"private": error.private} if error.private else {}
        getattr(self._log, info.level)(
            "control.error", code=info.code, detail=str(error), path=request.url.path, **private
        )
        return error_response(error)

    async def bug(self, request: Request, error: Exception) -> Response:
        """One request's bug must not end the node, which serves others meanwhile."""
        if isinstance(error, AnswerCut):
            self._metrics.errors.labels("store").inc()
            self._log.error("control.cut", path=request.url.path, reason=str(error))
        elif not isinstance(error, _ClientGone):
            self._metrics.errors.labels("internal").inc()
            self._log.error("control.bug", path=request.url.path, exc_info=error)
        # After the answer's head, Starlette drops this one.
        return error_response(EdgedError("internal error; the node's log says more"))

    async def of_http(self, request: Request, error: Exception) -> Response:
        """What Starlette's router refuses: unknown paths and methods."""
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}"
        if error.status_code == 405:
            given = (error.headers or {}).get("Allow", "")
            allow = sorted(part.strip() for part in given.split(","))
            return error_response(MethodNotAllowed(f"{what}: not allowed here", allow=allow))
        return plain_problem(error.status_code, f"{what}: {error.detail}")


class _ClientGone(OSError):
    """The answer's reader left; no bug, whatever the server calls it."""


class _Guard:
    """Lets in only who has the token; keeps a failed request from ending anything else."""

    def __init__(self, app: ASGIApp, *, token: str, errors: _Errors, log: Log) -> None:
        self._app = app
        self._token = token.encode()
        self._errors = errors
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started_at = trio.current_time()
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            try:
                await send(message)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise _ClientGone from error

        try:
            await self._admit(scope, receive, watched_send)
        except Exception:  # noqa: BLE001, S110 - Starlette raises again what _Errors.bug logged
            pass
        finally:
            self._report(scope, status, trio.current_time() - started_at)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._authenticate(scope)
        except Unauthorized as error:
            answer = await self._errors.expected(Request(scope), error)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _authenticate(self, scope: Scope) -> None:
        """Raises Unauthorized."""
        if scope["path"] == HEALTH_PATH and scope["method"] in ("GET", "HEAD"):
            return
        values = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if not values:
            raise Unauthorized("send Authorization: Bearer with the node's control token")
        scheme, _, given = values[0].partition(b" ")
        matches = hmac.compare_digest(given.strip(), self._token)
        if len(values) > 1 or scheme.lower() != b"bearer" or not matches:
            raise Unauthorized("this is not the node's control token", given=True)

    def _report(self, scope: Scope, status: int, duration_s: float) -> None:
        write = self._log.debug if scope["method"] in ("GET", "HEAD") else self._log.info
        write(
            "control.request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            duration_s=round(duration_s, 6),
        )
