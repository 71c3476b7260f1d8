"""Draining: nothing accepted is lost, and no client can make it endless."""

from __future__ import annotations

import socket

import pytest
import trio
from http_support import (
    PATIENT,
    Listener,
    RawClient,
    Receive,
    Scope,
    Send,
    answer,
    echo,
    http_app,
    listening,
    read_all,
    refuse,
)
from msgspec.structs import replace

from edged.errors import EdgedError
from edged.http import EXTENSION, HttpLimits, HttpServer, bind_tcp, serve
from edged.http.server import turn_away_newcomers
from edged.telemetry import make_log

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


class Gate:
    """An application that answers when it is opened."""

    def __init__(self) -> None:
        self.open = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await self.open.wait()
        await answer(send, b"done")


async def test_a_request_in_flight_is_answered_and_told_to_close() -> None:
    gate = Gate()
    async with listening(http_app(gate)) as listener, trio.open_nursery() as nursery:
        client = await listener.connect()
        await client.send(GET)
        await listener.until(lambda: listener.server.statistics().in_flight == 1)
        nursery.start_soon(listener.drain)
        await listener.until(lambda: listener.server.statistics().draining)
        await trio.sleep(0.1)  # beyond the grace for idle connections
        gate.open.set()
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await client.closed()


async def test_idle_connections_are_closed_and_new_ones_refused() -> None:
    async with listening(echo) as listener:
        idle, silent = await listener.connect(), await listener.connect()
        assert (await idle.get()).status == 200
        await listener.until(lambda: listener.server.statistics().connections == 2)
        assert await listener.drain() == 0
        assert await idle.closed()
        assert await silent.closed()
        with pytest.raises(ConnectionRefusedError):
            await listener.connect()


async def test_a_request_that_crosses_the_drain_is_answered() -> None:
    """A busy keep-alive client sends its next request just when the node begins to drain."""
    limits = replace(PATIENT, drain_grace_s=5.0)
    async with listening(echo, limits) as listener, trio.open_nursery() as nursery:
        client = await listener.connect()
        assert (await client.get()).status == 200
        nursery.start_soon(listener.drain)
        await listener.until(lambda: listener.server.statistics().draining)
        response = await client.get("/late")
        assert (response.body, response.headers["connection"]) == (b"GET /late ", "close")


async def test_what_waits_in_the_backlog_is_answered() -> None:
    """Connections that the kernel accepted before the drain are requests that were accepted."""
    sock = bind_tcp("127.0.0.1", 0)
    port = sock.getsockname()[1]
    clients = []
    for _ in range(200):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(GET)
        clients.append(client)
    log = make_log("test")
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[HttpServer]) -> None:
            await serve(echo, [sock], PATIENT, log=log, task_status=task_status)

        server = await nursery.start(run)
        with trio.fail_after(10):
            assert await server.drain(trio.current_time() + 8) == 0
    for client in clients:
        client.settimeout(5)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        client.close()


def test_a_closing_listener_ignores_newcomers_and_keeps_what_it_had() -> None:
    """Ignored, not reset: who connects between the last accept and the close must not believe
    for a moment that it was accepted."""
    sock = bind_tcp("127.0.0.1", 0)
    address = sock.getsockname()
    with sock, socket.create_connection(address, timeout=5) as early:
        turn_away_newcomers(sock)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        early.sendall(b"still here")
        accepted, _ = sock.accept()
        with accepted:
            accepted.settimeout(5)
            assert accepted.recv(100) == b"still here"
        with pytest.raises(BlockingIOError):
            sock.accept()


async def test_drain_under_load_loses_no_request() -> None:
    async with listening(echo) as listener:
        answered = 0
        lost: list[object] = []
        closing = 0

        async def load() -> None:
            nonlocal answered, closing
            client = await listener.connect()
            while True:
                try:
                    response = await client.get("/x")
                except (EOFError, OSError, trio.BrokenResourceError) as error:
                    lost.append(error)
                    return
                answered += 1
                if response.headers.get("connection") == "close":
                    closing += 1
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(load)
            await listener.until(lambda: answered > 500)
            assert await listener.drain() == 0
        assert lost == []
        assert closing == 20


async def test_what_runs_past_the_deadline_is_told_so() -> None:
    started = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await trio.sleep_forever()

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(GET)
        await started.wait()
        assert await listener.drain(0.2) == 1
        response = await client.response()
        assert response.status == 503
        assert response.json()["type"] == "urn:edged:error:draining"
        assert response.headers["retry-after"] == "1"


async def test_a_handler_in_a_thread_hears_of_the_deadline_first() -> None:
    """What waits for a thread cannot be cancelled; the callback is how its guest is stopped."""
    stopped = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][EXTENSION].on_disconnect(stopped.set)
        with trio.CancelScope(shield=True):
            await stopped.wait()

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(GET)
        await listener.until(lambda: listener.server.statistics().in_flight == 1)
        assert await listener.drain(0.1) == 1
        assert (await client.response()).status == 503


async def _half_a_head(client: RawClient) -> None:
    await client.send(b"GET / HTTP/1.1\r\nHost:")


async def _half_a_body(client: RawClient) -> None:
    await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\nabc")


async def _half_a_chunk(client: RawClient) -> None:
    await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nff\r\na")


async def _stops_reading(client: RawClient) -> None:
    await client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n")


async def _garbage(client: RawClient) -> None:
    await client.send(GET + b"\x00" * 1000)


async def _unread_upload(client: RawClient) -> None:
    await client.send(b"POST /refuse HTTP/1.1\r\nHost: test\r\nContent-Length: 100000000\r\n\r\n")


async def _silence(client: RawClient) -> None:
    return


@http_app
async def mixed(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/large":
        await answer(send, b"x" * 16 * 1024 * 1024)
    elif scope["path"] == "/refuse":
        await refuse(scope, receive, send)
    else:
        await echo(scope, receive, send)


@pytest.mark.parametrize(
    "attack",
    [
        _half_a_head,
        _half_a_body,
        _half_a_chunk,
        _stops_reading,
        _garbage,
        _unread_upload,
        _silence,
    ],
)
async def test_shutdown_ends_under_every_hostile_client(attack: object) -> None:
    """All timeouts are long here: the drain's own deadline must be enough."""
    async with listening(mixed, PATIENT) as listener:
        for _ in range(3):
            client = await listener.connect(receive_buffer=4096)
            await attack(client)  # type: ignore[operator]
        await listener.until(lambda: listener.server.statistics().accepted == 3)
        await trio.sleep(0.05)
        with trio.fail_after(5):
            await listener.drain(0.3)
        assert listener.server.statistics().connections == 0


async def test_cancelling_instead_of_draining_ends_everything() -> None:
    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    log = make_log("test")
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[HttpServer]) -> None:
            await serve(
                app, [bind_tcp("127.0.0.1", 0)], HttpLimits(), log=log, task_status=task_status
            )

        server = await nursery.start(run)
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(GET)
            await Listener(server, [], None).until(  # type: ignore[arg-type]
                lambda: server.statistics().in_flight == 1
            )
            nursery.cancel_scope.cancel()
    assert server.statistics().connections == 0


@pytest.mark.parametrize("handler", ["returns", "raises", "returns once started", "dies started"])
async def test_an_application_without_lifespan_support_is_served(handler: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer(send, b"served")
            return
        if handler.endswith("started"):
            await receive()
            await send({"type": "lifespan.startup.complete"})
        if handler in {"raises", "dies started"}:
            raise KeyError("what is a lifespan")

    async with listening(app) as listener:
        assert (await listener.exchange(GET)).body == b"served"
        assert await listener.drain() == 0


async def test_an_application_that_cannot_start_says_so() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no disk"})

    sock = bind_tcp("127.0.0.1", 0)
    with pytest.raises(EdgedError, match="no disk"):
        await serve(app, [sock], PATIENT, log=make_log("test"))
    assert sock.fileno() == -1
