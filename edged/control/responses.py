"""What the control API answers with: JSON of structs, and problem documents (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from edged.errors import EdgedError, MethodNotAllowed, Unauthorized, info_of, problem_of

RETRY_AFTER_S: Final = 1
"""A guess that suits what is retryable here: drains and full queues pass in about a second."""

COMMON: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        media_type="application/json",
        headers=COMMON | (headers or {}),
    )


def problem_response(error: EdgedError) -> Response:
    info = info_of(error)
    headers = dict(COMMON)
    if info.retryable:
        headers["retry-after"] = str(RETRY_AFTER_S)
    if isinstance(error, Unauthorized):
        # RFC 6750 §3: no error code when no credentials came at all.
        given = error.extra.get("given", False)
        headers["www-authenticate"] = 'Bearer realm="edged control"' + (
            ', error="invalid_token"' if given else ""
        )
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.extra.get("allow", ()))
    return Response(
        msgspec.json.encode(problem_of(error)),
        status_code=info.status,
        media_type="application/problem+json",
        headers=headers,
    )


def plain_problem(status: int, detail: str) -> Response:
    """A problem that says no more than its HTTP status does (RFC 9457 §4.2.1)."""
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    return Response(
        msgspec.json.encode(document),
        status_code=status,
        media_type="application/problem+json",
        headers=COMMON,
    )
