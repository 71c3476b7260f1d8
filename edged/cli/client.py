"""A small synchronous HTTP client for the control API and the gateway.

The standard library's, because it loads in a fifth of the time of the others and commands live for
a fraction of a second. Every answer is bounded; every wait has a timeout.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import SplitResult, urlsplit

from edged.errors import ConfigError, Unreachable

from .common import NodeProblem

TIMEOUT_S: Final = 30.0
"""Between two bytes; a deploy's validation of a large module takes seconds."""
UPLOAD_TIMEOUT_S: Final = 180.0
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
LINE_BYTES_MAX: Final = 1024 * 1024

Body = bytes | Iterable[bytes] | None
Headers = Iterable[tuple[str, str]]
"""In order, repeated names too."""


def parse_url(url: str, *, what: str) -> SplitResult:
    """Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if not port_is_fine or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{what} = {url!r}: write http://host:port")
    return parts


class Answer:
    """An HTTP answer whose reads raise Unreachable, so that they are told from the failures of
    whoever uses it, such as a closed stdout."""

    def __init__(self, raw: http.client.HTTPResponse, client: Client) -> None:
        self._raw = raw
        self._client = client
        self.status = raw.status
        self.reason = raw.reason

    def read(self, limit_bytes: int) -> bytes:
        with self._client.translated():
            return self._raw.read(limit_bytes)

    def read_some(self, limit_bytes: int) -> bytes:
        """What is there, at least one byte; b"" at the end."""
        with self._client.translated():
            return self._raw.read1(limit_bytes)

    def read_line(self, limit_bytes: int) -> bytes:
        with self._client.translated():
            return self._raw.readline(limit_bytes)

    def header(self, name: str) -> str | None:
        return self._raw.getheader(name)

    def headers(self) -> list[tuple[str, str]]:
        return self._raw.getheaders()


class Client:
    """Requests to one base URL. `name` is what messages call the other end."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        token: str = "",
        what: str = "url",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.url = url.rstrip("/")
        self.name = name
        self._token = token
        self._parts = parse_url(url, what=what)
        self._timeout_s = timeout_s

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            place = "" if self.name.rstrip("/") == self.url else f" at {self.url}"
            raise Unreachable(
                f"{self.name} does not answer{place}: {_reason(error)}", url=self.url
            ) from error

    @contextmanager
    def open(
        self, method: str, path: str, *, body: Body = None, headers: Headers = ()
    ) -> Iterator[Answer]:
        """One exchange on its own connection. Raises Unreachable; HTTP statuses are not judged.

        A body that is not bytes needs a Content-Length among `headers`."""
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout_s)
        own = [("Authorization", f"Bearer {self._token}")] if self._token else []
        target = self._parts.path.rstrip("/") + path
        try:
            with self.translated():
                try:
                    _send(connection, method, target, body, [*own, *headers])
                except (BrokenPipeError, ConnectionResetError):
                    # Refused before the whole body was sent: the answer may be there already.
                    if connection.sock is None:
                        raise
                answer = Answer(connection.getresponse(), self)
            yield answer
        finally:
            connection.close()

    def call(self, method: str, path: str, *, body: Body = None, headers: Headers = ()) -> bytes:
        """The body of a 2xx answer. Raises NodeProblem, Unreachable."""
        with self.open(method, path, body=body, headers=headers) as answer:
            data = answer.read(ANSWER_BYTES_MAX)
            self._check(answer, data)
            return data

    def lines(self, path: str) -> Iterator[bytes]:
        """Lines of a streamed answer as they come; blank ones are dropped. Raises as call."""
        with self.open("GET", path) as answer:
            if answer.status >= 300:
                self._check(answer, answer.read(ANSWER_BYTES_MAX))
            while line := answer.read_line(LINE_BYTES_MAX):
                if line.strip():
                    yield line

    def _check(self, answer: Answer, data: bytes) -> None:
        if 200 <= answer.status < 300:
            return
        try:
            problem = json.loads(data)
        except ValueError:
            problem = None
        if not isinstance(problem, dict) or not isinstance(problem.get("status"), int):
            problem = {
                "type": "about:blank",
                "title": answer.reason,
                "status": answer.status,
                "detail": f"HTTP status {answer.status}; {self.url} is no edged control API?",
            }
        raise NodeProblem(problem, node=self.name)


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: Body,
    headers: list[tuple[str, str]],
) -> None:
    """As HTTPConnection.request, which would drop repeated headers."""
    given = {name.lower() for name, _ in headers}
    connection.putrequest(
        method,
        target,
        skip_host="host" in given,
        skip_accept_encoding="accept-encoding" in given,
    )
    if not given & {"content-length", "transfer-encoding"}:
        if isinstance(body, bytes):
            connection.putheader("Content-Length", str(len(body)))
        elif body is None and method.upper() in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", "0")  # RFC 9110 §8.6
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders(body)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused (is the node running?)"
    if isinstance(error, socket.gaierror):
        return "unknown host name"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return "the connection was closed"
    if isinstance(error, http.client.HTTPException):
        return f"not an HTTP answer ({type(error).__name__})"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
