"""Connections that others have accepted: served like any, named, and told what was not served."""

from __future__ import annotations

import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from http_support import PATIENT, RawClient, Receive, Scope, Send, answer, http_app, read_all
from msgspec.structs import replace

from edged.http import EXTENSION, HttpHooks, HttpLimits, HttpServer, serve
from edged.telemetry import make_log

REFUSED = ((b"x-refused", b"unserved"),)


@http_app
async def who(scope: Scope, receive: Receive, send: Send) -> None:
    """The peer's id and the body."""
    body = await read_all(receive)
    if body is not None:
        await answer(send, scope["extensions"][EXTENSION].peer.encode() + b" " + body)


@asynccontextmanager
async def serving(limits: HttpLimits) -> AsyncIterator[HttpServer]:
    """A listener without a socket of its own."""
    log = make_log("test", stream=io.StringIO())
    hooks = HttpHooks(unserved_headers=REFUSED)
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[HttpServer]) -> None:
            await serve(who, [], limits, log=log, hooks=hooks, task_status=task_status)

        yield await nursery.start(run)
        nursery.cancel_scope.cancel()


def connect(server: HttpServer, nursery: trio.Nursery, *, refused: bool = False) -> RawClient:
    ours, theirs = socket.socketpair()

    async def run() -> None:
        await server.serve_connected(theirs, "peer-1", refused=refused)

    nursery.start_soon(run)
    ours.setblocking(False)
    return RawClient(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))


POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"


async def test_requests_name_their_peer_and_keep_the_connection() -> None:
    async with serving(PATIENT) as server, trio.open_nursery() as nursery:
        client = connect(server, nursery)
        for _ in range(2):
            await client.send(POST)
            assert (await client.response()).body == b"peer-1 body"
        assert server.statistics().connections == 1
        await client.aclose()


async def test_one_more_than_the_limit_is_told_that_it_was_not_served() -> None:
    limits = replace(PATIENT, connections_max=1)
    async with serving(limits) as server, trio.open_nursery() as nursery:
        first = connect(server, nursery)
        await first.send(POST)
        assert (await first.response()).status == 200
        second, third = connect(server, nursery), connect(server, nursery, refused=True)
        for refused in (second, third):
            found = await refused.response()
            assert (found.status, found.headers["x-refused"]) == (503, "unserved")
        await first.send(POST)
        assert (await first.response()).body == b"peer-1 body"
        for client in (first, second, third):
            await client.aclose()


async def test_an_idle_connection_hears_that_its_next_request_is_not_served() -> None:
    limits = replace(PATIENT, says_farewell=True)
    async with serving(limits) as server, trio.open_nursery() as nursery:
        client = connect(server, nursery)
        await client.send(POST)
        assert "x-refused" not in (await client.response()).headers
        assert await server.drain(trio.current_time() + 5) == 0
        found = await client.response()
        assert (found.status, found.headers["x-refused"]) == (503, "unserved")
        assert found.headers["connection"] == "close"
        assert await client.closed()


async def test_after_the_drain_a_connection_is_told_that_it_is_not_served() -> None:
    async with serving(PATIENT) as server, trio.open_nursery() as nursery:
        await server.drain(trio.current_time())
        client = connect(server, nursery)
        found = await client.response()
        assert (found.status, found.headers["x-refused"]) == (503, "unserved")
        assert await client.closed()
