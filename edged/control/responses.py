"""What the control API answers with: JSON of structs, and problem documents (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from edged.errors import EdgedError, Unauthorized
from edged.http import problem_response

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


def error_response(error: EdgedError) -> Response:
    extra = [(b"x-content-type-options", b"nosniff")]
    if isinstance(error, Unauthorized):
        # RFC 6750 §3: no error code when no credentials came at all.
        invalid = b', error="invalid_token"' if error.extra.get("given", False) else b""
        extra.append((b"www-authenticate", b'Bearer realm="edged control"' + invalid))
    status, headers, body = problem_response(error, extra_headers=extra)
    return Response(
        body,
        status_code=status,
        headers={name.decode("ascii"): value.decode("ascii") for name, value in headers},
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
