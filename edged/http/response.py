"""Response heads, from ASGI messages to bytes. No I/O.

The adapter owns framing: what an application says of Connection, Transfer-Encoding and the like is
dropped. A header that could split the response is our bug or a guest's attack that got past its
ABI: it raises instead of being sent.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec

from edged.errors import EdgedError, info_of, problem_of

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z")
HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
RETRY_AFTER_S: Final = b"1"
"""Queues and limits clear within invocations' time; a draining node's peers answer at once."""

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class BadResponse(Exception):
    """The application broke ASGI or HTTP."""


def bodiless(method: str, status: int) -> bool:
    """Whether the response has no body whatever its headers say (RFC 9110 §6.4.1)."""
    return method == "HEAD" or status in (204, 304)


@lru_cache(maxsize=1024)
def _lower_name(name: bytes) -> bytes:
    """Lower-cased, b"" for what the adapter decides itself. Raises BadResponse."""
    if _NAME.match(name) is None:
        raise BadResponse(f"bad response header name {name[:80]!r}")
    lower = name.lower()
    return b"" if lower in HOP_BY_HOP else lower


class _Clock:
    """The Date header, made once a second."""

    def __init__(self, wall_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self.second = 0
        self.line = b""

    def header(self) -> bytes:
        now = int(self._wall_s())
        if now != self.second:
            self.second = now
            self.line = b"date: " + email.utils.formatdate(now, usegmt=True).encode() + b"\r\n"
        return self.line


class Encoder:
    """Builds heads for one listener."""

    def __init__(self, wall_s: Callable[[], float] = time.time) -> None:
        self._clock = _Clock(wall_s)

    def head(
        self,
        *,
        method: str,
        version: str,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        whole_bytes: int | None,
        close: bool,
    ) -> tuple[bytes, int | None, bool]:
        """(head, body bytes to come or None for chunks or until close, close).

        `whole_bytes`: size of the body where all of it is known now. Raises BadResponse."""
        lines: list[bytes] = []
        length: int | None = None
        dated = False
        for name, value in headers:
            lower = _lower_name(bytes(name))
            if lower == b"content-length":
                if length is not None or not value.isdigit():
                    raise BadResponse("bad content-length in the response")
                length = int(value)
            elif lower:
                lines.append(b"%b: %b" % (lower, value))
                dated = dated or lower == b"date"
        lines.append(b"")
        block = b"\r\n".join(lines)
        if block.count(b"\n") != len(lines) - 1 or block.count(b"\r") != len(lines) - 1:
            raise BadResponse("CR or LF in a response header")
        if b"\0" in block:
            raise BadResponse("NUL in a response header")
        framing = b""
        if bodiless(method, status):
            # What GET would have said (RFC 9110 §8.6), but never on 204.
            length = length if length is not None else whole_bytes
            if method == "HEAD" and length is not None and status != 204:
                framing = b"content-length: %d\r\n" % length
            length = 0
        elif whole_bytes is not None:
            if length is not None and length != whole_bytes:
                raise BadResponse(f"content-length {length} of a body of {whole_bytes} bytes")
            length = whole_bytes
            framing = b"content-length: %d\r\n" % length
        elif length is not None:
            framing = b"content-length: %d\r\n" % length
        elif version == "1.1":
            framing = b"transfer-encoding: chunked\r\n"
        else:
            close = True
        if close:
            framing += b"connection: close\r\n"
        elif version == "1.0":
            framing += b"connection: keep-alive\r\n"
        if not 200 <= status <= 999:
            raise BadResponse(f"status {status}")
        first = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        date = b"" if dated else self._clock.header()
        return b"".join((first, block, date, framing, b"\r\n")), length, close


def problem_response(
    error: EdgedError, *, extra_headers: Iterable[tuple[bytes, bytes]] = (), instance: str = ""
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body that tell a client of `error` (RFC 9457). `private` stays out.

    What is retryable says when (RFC 9110 §10.2.3 allows Retry-After with any status)."""
    info = info_of(error)
    document = problem_of(error)
    if instance:
        document["instance"] = instance
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"cache-control", b"no-store"),
        *extra_headers,
    ]
    if info.retryable:
        headers.append((b"retry-after", RETRY_AFTER_S))
    allow = error.extra.get("allow")
    if info.status == 405 and allow:
        headers.append((b"allow", ", ".join(allow).encode("ascii", "replace")))
    # The newline is for people: a shell's prompt after curl stands on its own line.
    return info.status, headers, msgspec.json.encode(document) + b"\n"
