"""What stock hypercorn 0.18 lets through (reproduced; FACTS §6), row by row, against ours."""

from __future__ import annotations

import socket

import pytest
import trio
from http_support import (
    PATIENT,
    QUICK,
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

from edged.http import EXTENSION, HttpServer, bind_tcp, serve
from edged.telemetry import make_log

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# HPACK literals: :method GET, :scheme http, :authority a, :path /é in UTF-8.
_FIELDS = b"\x82\x86\x41\x01a\x04\x03/\xc3\xa9"
HEADERS = len(_FIELDS).to_bytes(3) + b"\x01\x05\x00\x00\x00\x01" + _FIELDS


async def test_one_h2c_request_with_a_non_ascii_path_kills_the_process() -> None:
    async with listening(echo) as listener:
        response = await listener.exchange(PREFACE + SETTINGS + HEADERS)
        assert response.status == 400
        assert "HTTP/2" in response.json()["detail"]
        await listener.alive()


async def test_an_upload_answered_early_leaks_its_task_and_connection() -> None:
    async with listening(refuse) as listener:
        client = await listener.connect()
        chunks = b"1\r\nx\r\n" * 100
        await client.send(
            b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
        )
        assert (await client.response()).status == 413
        await listener.empty()  # though the client never ends its body, nor closes


async def test_a_client_that_stops_reading_makes_the_shutdown_endless() -> None:
    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x" * 16 * 1024 * 1024)

    async with listening(app, PATIENT) as listener:
        client = await listener.connect(receive_buffer=4096)
        await client.send(GET)
        await listener.until(lambda: listener.server.statistics().in_flight == 1)
        with trio.fail_after(5):
            await listener.drain(0.2)


async def test_a_trickled_body_never_times_out() -> None:
    async with listening(echo, QUICK) as listener:
        response = await listener.exchange(
            b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nx"
        )
        assert response.status == 408


async def test_the_read_timeout_fires_while_the_handler_runs() -> None:
    longest_s = max(QUICK.header_timeout_s, QUICK.body_timeout_s, QUICK.idle_timeout_s)

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await trio.sleep(longest_s * 2)
        await answer(send, b"late")

    async with listening(app, QUICK) as listener:
        assert (await listener.exchange(GET)).body == b"late"


async def test_headers_of_30_kb_are_accepted() -> None:
    async with listening(echo) as listener:
        request = b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"y" * 30_000 + b"\r\n\r\n"
        assert (await listener.exchange(request)).status == 431


async def test_bodies_have_no_limit() -> None:
    async with listening(echo, replace(PATIENT, body_bytes_max=10)) as listener:
        request = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 11\r\n\r\n"
        assert (await listener.exchange(request)).status == 413


async def test_connections_have_no_limit() -> None:
    async with listening(echo, replace(PATIENT, connections_max=1)) as listener:
        held = await listener.connect()
        assert (await held.get()).status == 200
        assert (await listener.exchange(b"")).status == 503


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\nHost: test\n\n",
        b"GET / HTTP/1.1\r\nHost: test\r\nX: a\r\n b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"CONNECT test:80 HTTP/1.1\r\nHost: test:80\r\n\r\n",
    ],
    ids=["bare LF", "obs-fold", "TE and CL", "CONNECT"],
)
async def test_what_is_answered_200(request_bytes: bytes) -> None:
    async with listening(echo) as listener:
        assert (await listener.exchange(request_bytes)).status == 400


async def test_a_disconnect_never_reaches_the_handler() -> None:
    told = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][EXTENSION].on_disconnect(told.set)
        await told.wait()

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(GET)
        await listener.until(lambda: listener.server.statistics().in_flight == 1)
        await client.aclose()
        with trio.fail_after(5):
            await told.wait()
        await listener.empty()


async def test_an_unread_h2_body_blocks_its_connection() -> None:
    """HTTP/2 is not spoken, neither at once nor by upgrade: there is no second stream to block."""
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    async with listening(echo) as listener:
        assert (await listener.exchange(upgrade)).status == 400
        assert (await listener.exchange(PREFACE + SETTINGS)).status == 400


async def test_workers_share_a_descriptor_only_as_a_whole() -> None:
    """hypercorn's own workers die and restart together. Here the owner binds once and passes the
    descriptor on: one server ends, the other goes on, and nothing is lost between them."""
    first = bind_tcp("127.0.0.1", 0)
    port = first.getsockname()[1]
    log = make_log("test")
    async with trio.open_nursery() as nursery:
        servers: list[HttpServer] = []
        for sock in (first.dup(), first):

            async def run(
                sock: socket.socket = sock, *, task_status: trio.TaskStatus[HttpServer]
            ) -> None:
                await serve(
                    echo, [sock], PATIENT, log=log, shared_sockets=True, task_status=task_status
                )

            servers.append(await nursery.start(run))

        async def ask() -> bytes:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                return b"".join([part async for part in stream])

        with trio.fail_after(10):
            for _ in range(20):
                assert (await ask()).startswith(b"HTTP/1.1 200")
            await servers[0].drain(trio.current_time() + 5)
            for _ in range(20):
                assert (await ask()).startswith(b"HTTP/1.1 200")
            await servers[1].drain(trio.current_time() + 5)


async def test_what_outlives_the_drain_is_cut_without_an_answer() -> None:
    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(GET)
        await listener.until(lambda: listener.server.statistics().in_flight == 1)
        assert await listener.drain(0.1) == 1
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (503, "close")
