"""A listener to attack, and a client that sends exactly the bytes it is told to."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from edged.http import HttpHooks, HttpLimits, HttpServer, bind_tcp, serve
from edged.telemetry import make_log

WAIT_S = 10.0
"""Bound of any single wait; nothing here should take a tenth of it."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

QUICK = HttpLimits(
    header_timeout_s=0.4,
    body_timeout_s=0.4,
    idle_timeout_s=0.4,
    write_stall_s=0.4,
    linger_s=0.3,
    drain_grace_s=0.05,
)
"""Timeouts that a test can wait for."""

PATIENT = HttpLimits(drain_grace_s=0.05, linger_s=0.3)


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One connection; reads responses one after the other."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def get(self, path: str = "/") -> Response:
        await self.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        return await self.response()

    async def _more(self) -> bool:
        data = await self.stream.receive_some(65536)
        self.buffer += data
        return bool(data)

    async def response(self, *, method: str = "GET") -> Response:
        with trio.fail_after(WAIT_S):
            while b"\r\n\r\n" not in self.buffer:
                if not await self._more():
                    raise EOFError(f"closed after {self.buffer!r}")
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin1").split("\r\n")
            version, status, *_ = first.split(" ")
            assert version == "HTTP/1.1"
            headers: dict[str, str] = {}
            for line in lines:
                name, _, value = line.partition(": ")
                assert name not in headers or name == "set-cookie", f"{name} twice"
                headers[name] = value
            body = b""
            if method != "HEAD" and status not in ("204", "304", "100"):
                body = await self._body(headers)
            return Response(int(status), headers, body)

    async def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await self._exactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") == "chunked":
            out = b""
            while True:
                while b"\r\n" not in self.buffer:
                    assert await self._more(), "closed in a chunk"
                size, _, self.buffer = self.buffer.partition(b"\r\n")
                out += await self._exactly(int(size, 16))
                assert await self._exactly(2) == b"\r\n"
                if size == b"0":
                    return out
        while await self._more():
            pass
        out, self.buffer = self.buffer, b""
        return out

    async def _exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            assert await self._more(), f"closed after {len(self.buffer)} of {size} bytes"
        out, self.buffer = self.buffer[:size], self.buffer[size:]
        return out

    async def closed(self) -> bool:
        """Waits for the end of the stream; whether nothing came before it."""
        with trio.fail_after(WAIT_S):
            try:
                while await self._more():
                    pass
            except trio.BrokenResourceError:
                pass
            return not self.buffer

    async def aclose(self) -> None:
        await self.stream.aclose()


@dataclass
class Listener:
    server: HttpServer
    rejected: list[str]
    log: io.StringIO
    clients: list[RawClient] = field(default_factory=list)

    async def connect(self, *, receive_buffer: int | None = None) -> RawClient:
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", self.server.port))
        client = RawClient(trio.SocketStream(sock))
        self.clients.append(client)
        return client

    async def exchange(self, data: bytes, *, method: str = "GET") -> Response:
        client = await self.connect()
        await client.send(data)
        try:
            return await client.response(method=method)
        finally:
            await client.aclose()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(WAIT_S):
            while not condition():
                await trio.sleep(0.005)

    async def alive(self) -> None:
        """The listener still answers, and has forgotten all connections but one."""
        response = await self.exchange(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert response.status < 500

    async def empty(self) -> None:
        await self.until(lambda: self.server.statistics().connections == 0)
        assert self.server.statistics().in_flight == 0

    async def drain(self, timeout_s: float = WAIT_S) -> int:
        with trio.fail_after(WAIT_S):
            return await self.server.drain(trio.current_time() + timeout_s)


@asynccontextmanager
async def listening(
    app: App, limits: HttpLimits = PATIENT, *, bugs: bool = False
) -> AsyncIterator[Listener]:
    """`bugs`: the test expects errors in the log."""
    rejected: list[str] = []
    stream = io.StringIO()
    log = make_log("test", stream=stream)
    hooks = HttpHooks(rejected=rejected.append, headers=((b"x-edged-node", b"test"),))
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[HttpServer]) -> None:
            await serve(
                app,
                [bind_tcp("127.0.0.1", 0)],
                limits,
                log=log,
                hooks=hooks,
                task_status=task_status,
            )

        server = await nursery.start(run)
        listener = Listener(server, rejected, stream)
        try:
            yield listener
            for client in listener.clients:
                await client.aclose()
            await listener.drain(2.0)
            assert server.statistics().connections == 0
        finally:
            nursery.cancel_scope.cancel()
    if not bugs:
        assert "http.bug" not in stream.getvalue()
        assert "http.application" not in stream.getvalue()


async def read_all(receive: Receive) -> bytes | None:
    """The body, or None: the client left."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


async def answer(send: Send, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def http_app(handler: App) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await handler(scope, receive, send)

    return app


@http_app
async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Method, target and body."""
    body = await read_all(receive)
    if body is None:
        return
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    await answer(send, b"%b %b %b" % (scope["method"].encode(), target, body))


@http_app
async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without reading the body."""
    await answer(send, b"no", 413)
