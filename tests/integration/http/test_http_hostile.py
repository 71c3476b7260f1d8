"""Hostile clients: each shape is refused or bounded, and the listener forgets it."""

from __future__ import annotations

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

from edged.errors import EdgedError
from edged.http import EXTENSION

H = b"Host: test\r\n"

MALFORMED: dict[str, bytes] = {
    "no request at all": b"hello\r\n\r\n",
    "two empty lines first": b"\r\n\r\nGET / HTTP/1.1\r\n" + H + b"\r\n",
    "bare CR first": b"\rGET / HTTP/1.1\r\n" + H + b"\r\n",
    "bare LF first": b"\nGET / HTTP/1.1\r\n" + H + b"\r\n",
    "CR after an empty line": b"\r\n\r",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "NUL first": b"\x00",
    "h2 prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "h2c upgrade": b"GET / HTTP/1.1\r\n" + H + b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
    "websocket upgrade": b"GET / HTTP/1.1\r\n" + H + b"Connection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + H + b"\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n" + H + b"\r\n",
    "lower-case version": b"GET / http/1.1\r\n" + H + b"\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + H + b"\r\n",
    "tab as space": b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\n" + H + b"\r\n",
    "space after the version": b"GET / HTTP/1.1 \r\n" + H + b"\r\n",
    "bad method": b"G(T / HTTP/1.1\r\n" + H + b"\r\n",
    "method too long": b"G" * 33 + b" / HTTP/1.1\r\n" + H + b"\r\n",
    "UTF-8 in the target": "GET /é HTTP/1.1\r\n".encode() + H + b"\r\n",
    "latin-1 in the query": b"GET /?a=\xe9 HTTP/1.1\r\n" + H + b"\r\n",
    "NUL in the target": b"GET /a\x00b HTTP/1.1\r\n" + H + b"\r\n",
    "DEL in the target": b"GET /a\x7fb HTTP/1.1\r\n" + H + b"\r\n",
    "CR in the target": b"GET /a\rb HTTP/1.1\r\n" + H + b"\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\n" + H + b"\r\n",
    "no slash": b"GET a HTTP/1.1\r\n" + H + b"\r\n",
    "asterisk with GET": b"GET * HTTP/1.1\r\n" + H + b"\r\n",
    "CONNECT": b"CONNECT test:443 HTTP/1.1\r\n" + H + b"\r\n",
    "https target": b"GET https://test/ HTTP/1.1\r\n" + H + b"\r\n",
    "bare LF after the request line": b"GET / HTTP/1.1\n" + H + b"\r\n",
    "bare LF after a header": b"GET / HTTP/1.1\r\nHost: test\n\r\n",
    "only bare LFs": b"GET / HTTP/1.1\nHost: test\n\n",
    "bare LF inside a header": b"GET / HTTP/1.1\r\n" + H + b"X: a\nY: b\r\n\r\n",
    "bare CR inside a header": b"GET / HTTP/1.1\r\n" + H + b"X: a\rY: b\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\n" + H + b"X: a\x00b\r\n\r\n",
    "control character in a header": b"GET / HTTP/1.1\r\n" + H + b"X: a\x1bb\r\n\r\n",
    "obs-fold": b"GET / HTTP/1.1\r\n" + H + b"X: a\r\n b\r\n\r\n",
    "obs-fold with a tab first": b"GET / HTTP/1.1\r\n\tX: a\r\n" + H + b"\r\n",
    "header without a colon": b"GET / HTTP/1.1\r\n" + H + b"nonsense\r\n\r\n",
    "header without a name": b"GET / HTTP/1.1\r\n" + H + b": x\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\n" + H + b"X : a\r\n\r\n",
    "bad header name": b"GET / HTTP/1.1\r\n" + H + b"X[1]: a\r\n\r\n",
    "non-ASCII header name": b"GET / HTTP/1.1\r\n" + H + b"X\xc3\xa9: a\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\n" + H + H + b"\r\n",
    "two Hosts on 1.0": b"GET / HTTP/1.0\r\n" + H + H + b"\r\n",
    "empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "Host with a path": b"GET / HTTP/1.1\r\nHost: test/evil\r\n\r\n",
    "Host with user": b"GET / HTTP/1.1\r\nHost: a@test\r\n\r\n",
    "Host list": b"GET / HTTP/1.1\r\nHost: a, b c\r\n\r\n",
    "unknown expectation": b"GET / HTTP/1.1\r\n" + H + b"Expect: a pony\r\n\r\n",
}

POST = b"POST / HTTP/1.1\r\n" + H
SMUGGLING: dict[str, bytes] = {
    "CL and TE": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE and CL": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two different CLs": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two equal CLs": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "CL list": POST + b"Content-Length: 1, 1\r\n\r\na",
    "signed CL": POST + b"Content-Length: +1\r\n\r\na",
    "negative CL": POST + b"Content-Length: -1\r\n\r\na",
    "hex CL": POST + b"Content-Length: 0x1\r\n\r\na",
    "empty CL": POST + b"Content-Length:\r\n\r\n",
    "CL with a space": POST + b"Content-Length: 1 1\r\n\r\na",
    "huge CL": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\na",
    "underscore digits": POST + b"Content-Length: 1_0\r\n\r\na",
    "TE identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "TE gzip": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE quoted": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "TE xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE with vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "TE twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE on 1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE space colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
}

CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BAD_CHUNKS: dict[str, bytes] = {
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "not hex": b"xyz\r\n",
    "signed": b"+3\r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "space before": b" 3\r\nabc\r\n0\r\n\r\n",
    "space after": b"3 \r\nabc\r\n0\r\n\r\n",
    "too many digits": b"0" * 17 + b"3\r\nabc\r\n0\r\n\r\n",
    "bare LF": b"3\nabc\r\n0\r\n\r\n",
    "longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "shorter than its size": b"5\r\nabc\r\n0\r\n\r\n",
    "bad extension": b"3;a b\r\nabc\r\n0\r\n\r\n",
    "extension with CR": b"3;a=\rb\r\nabc\r\n0\r\n\r\n",
    "endless extension": b"3;" + b"a" * 400,
    "mostly framing": b"1\r\na\r\n" * 5000 + b"0\r\n\r\n",
    "mostly extensions": (b"1;a=".ljust(200, b"b") + b"\r\na\r\n") * 100 + b"0\r\n\r\n",
    "bad trailer": b"0\r\nX y: z\r\n\r\n",
    "folded trailer": b"0\r\nX: z\r\n y\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X: y\r\n" * 1000,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_requests_are_refused_and_the_connection_closed(data: bytes) -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        await client.send(data)
        response = await client.response()
        assert response.status == 400
        assert response.headers["connection"] == "close"
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["type"] == "urn:edged:error:bad-request"
        assert await client.closed()
        assert listener.rejected == ["bad-request"]


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING.keys())
async def test_smuggling_shapes_get_one_answer_and_no_second_request(data: bytes) -> None:
    seen: list[bytes] = []

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["raw_path"])
        await read_all(receive)
        await answer(send, b"served")

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(data + b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n")
        response = await client.response()
        assert response.status == 400
        assert await client.closed()
        assert seen == []


@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
async def test_bad_chunks_are_refused_and_the_connection_closed(body: bytes) -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        await client.send(CHUNKED + body + b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n")
        response = await client.response()
        assert response.status == 400
        assert await client.closed()
        await listener.alive()


async def test_header_limits() -> None:
    limits = replace(
        PATIENT, header_bytes_max=2000, header_count_max=10, request_line_bytes_max=1000
    )
    start = b"GET / HTTP/1.1\r\n" + H
    async with listening(echo, limits) as listener:
        many = start + b"X: y\r\n" * 9 + b"\r\n"
        assert (await listener.exchange(many)).status == 200
        assert (await listener.exchange(start + b"X: y\r\n" * 10 + b"\r\n")).status == 431
        large = start + b"X: " + b"y" * (2000 - len(start) - 3)
        assert (await listener.exchange(large + b"\r\n\r\n")).status == 200
        assert (await listener.exchange(large + b"y\r\n\r\n")).status == 431
        assert (await listener.exchange(start + b"X: " + b"y" * 30_000)).status == 431
        line = b"GET /" + b"a" * (1000 - 14)
        assert (await listener.exchange(line + b" HTTP/1.1\r\n" + H + b"\r\n")).status == 200
        assert (await listener.exchange(line + b"a HTTP/1.1\r\n" + H + b"\r\n")).status == 431
        await listener.alive()
        assert set(listener.rejected) == {"headers-too-large"}


async def test_duplicate_ordinary_headers_reach_the_application_in_order() -> None:
    seen: list[tuple[bytes, bytes]] = []

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await answer(send, b"")

    async with listening(app) as listener:
        await listener.exchange(b"GET / HTTP/1.1\r\n" + H + b"X: 1\r\nx: 2\r\nX:\t3 \r\n\r\n")
    assert [value for name, value in seen if name == b"x"] == [b"1", b"2", b"3"]


async def test_slow_headers_time_out_and_silence_is_closed_without_a_word() -> None:
    async with listening(echo, QUICK) as listener:
        slow, silent, idle = [await listener.connect() for _ in range(3)]
        assert (await idle.get()).status == 200
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                for byte in b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"y" * 10_000:
                    try:
                        await slow.send(bytes((byte,)))
                    except trio.BrokenResourceError:
                        return
                    await trio.sleep(0.02)

            nursery.start_soon(trickle)
            assert (await slow.response()).status == 408
            assert await slow.closed()
            nursery.cancel_scope.cancel()
        assert await silent.closed()
        assert await idle.closed()
        await listener.empty()
        assert sorted(listener.rejected) == ["idle", "idle", "request-timeout"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_trickled_body_times_out_as_a_whole(chunked: bool) -> None:
    async with listening(echo, QUICK) as listener:
        client = await listener.connect()
        await client.send(CHUNKED if chunked else POST + b"Content-Length: 1000\r\n\r\n")
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                for _ in range(1000):
                    try:
                        await client.send(b"1\r\na\r\n" if chunked else b"a")
                    except trio.BrokenResourceError:
                        return
                    await trio.sleep(0.02)

            nursery.start_soon(trickle)
            assert (await client.response()).status == 408
            assert await client.closed()
            nursery.cancel_scope.cancel()
        await listener.empty()


async def test_body_limit_early_from_the_length_and_late_from_chunks() -> None:
    async with listening(echo, replace(PATIENT, body_bytes_max=1000)) as listener:
        fits = await listener.exchange(POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000)
        assert fits.status == 200
        early = await listener.exchange(POST + b"Content-Length: 1001\r\n\r\n")
        assert (early.status, early.headers["connection"]) == (413, "close")
        late = await listener.exchange(CHUNKED + b"1f4\r\n" + b"x" * 500 + b"\r\n1f5\r\n")
        assert late.status == 413
        absurd = await listener.exchange(CHUNKED + b"ffffffffffffffff\r\n")
        assert absurd.status == 413
        await listener.alive()


async def test_one_connection_too_many_is_told_so() -> None:
    limits = replace(PATIENT, connections_max=2, give_way_after_s=60.0)
    async with listening(echo, limits) as listener:
        first, second = [await listener.connect() for _ in range(2)]
        assert (await first.get()).status == 200
        assert (await second.get()).status == 200
        third = await listener.connect()
        response = await third.response()
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert await third.closed()
        await first.aclose()
        await listener.until(lambda: listener.server.statistics().connections == 1)
        await listener.alive()
        assert "connections" in listener.rejected


async def test_a_client_that_stops_reading_is_cut() -> None:
    finished = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await answer(send, b"x" * 64 * 1024 * 1024)
        finally:
            finished.set()

    async with listening(app, QUICK) as listener:
        client = await listener.connect(receive_buffer=4096)
        await client.send(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
        with trio.fail_after(10):
            await finished.wait()
        await listener.empty()
        assert "write-stall" in listener.rejected


async def test_a_slow_but_steady_reader_is_not_cut() -> None:
    size = 2 * 1024 * 1024

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x" * size)

    async with listening(app, QUICK) as listener:
        client = await listener.connect(receive_buffer=65536)
        await client.send(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
        received = 0
        with trio.fail_after(20):
            while received < size:
                data = await client.stream.receive_some(256 * 1024)
                assert data, f"cut after {received}"
                received += len(data)
                await trio.sleep(0.02)


async def test_a_client_gone_mid_request_body() -> None:
    told: list[bytes | None] = []

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told.append(await read_all(receive))

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(POST + b"Content-Length: 100\r\n\r\nabc")
        await listener.until(lambda: listener.server.statistics().in_flight == 1)
        await client.aclose()
        await listener.empty()
        assert told == [None]
        assert listener.rejected == ["client-gone"]


async def test_a_client_that_resets_mid_answer() -> None:
    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
        await client.stream.receive_some(1000)
        await client.aclose()  # unread bytes: the kernel resets
        await listener.empty()


async def test_pipelined_garbage_after_a_request() -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        await client.send(b"GET /a HTTP/1.1\r\n" + H + b"\r\n\x00\x01garbage\r\n\r\n")
        assert (await client.response()).body == b"GET /a "
        assert (await client.response()).status == 400
        assert await client.closed()
        await listener.alive()


async def test_an_early_413_with_many_unread_chunks_leaks_nothing() -> None:
    """Stock hypercorn keeps the task and the connection for ever after some 10 unread chunks."""
    async with listening(refuse) as listener:
        client = await listener.connect()
        await client.send(CHUNKED)
        async with trio.open_nursery() as nursery:

            async def upload() -> None:
                chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
                try:
                    for _ in range(1000):
                        await client.send(chunk)
                except trio.BrokenResourceError:
                    return

            nursery.start_soon(upload)
            response = await client.response()
            assert (response.status, response.headers["connection"]) == (413, "close")
            await client.closed()
        await listener.empty()


async def test_an_uploader_that_never_stops_is_cut() -> None:
    limits = replace(QUICK, linger_bytes_max=1024 * 1024)
    async with listening(refuse, limits) as listener:
        client = await listener.connect()
        await client.send(POST + b"Content-Length: 200000000\r\n\r\n")

        async def upload_for_ever() -> None:
            while True:
                await client.send(b"x" * 65536)

        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await upload_for_ever()
        await listener.empty()


async def test_many_small_chunks_are_one_body() -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        await client.send(CHUNKED + b"5\r\nxxxxx\r\n" * 20_000 + b"0\r\n\r\n")
        assert (await client.response()).body == b"POST / " + b"x" * 100_000


async def test_the_handler_of_a_client_that_left_is_told_while_it_works() -> None:
    told = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await read_all(receive) == b""
        scope["extensions"][EXTENSION].on_disconnect(told.set)
        await told.wait()
        raise EdgedError("stopped")

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
        await listener.until(lambda: listener.server.statistics().in_flight == 1)
        await client.aclose()
        with trio.fail_after(10):
            await told.wait()
        await listener.empty()
