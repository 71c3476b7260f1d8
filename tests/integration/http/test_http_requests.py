"""What a lawful client gets, and what an application may do, right and wrong."""

from __future__ import annotations

import json

import pytest
import trio
from http_support import (
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

from edged.errors import Conflict
from edged.http import EXTENSION, ClientGone

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


async def test_keep_alive_serves_one_request_after_the_other() -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        for path in ("/a", "/b?x=1", "/c"):
            response = await client.get(path)
            assert response.body == f"GET {path} ".encode()
            assert "connection" not in response.headers
            assert response.headers["content-length"] == str(len(response.body))
            assert response.headers["date"].endswith("GMT")
        assert listener.server.statistics().requests == 3
        assert listener.server.statistics().accepted == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        post = b"POST /%d HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n%02d"
        await client.send(b"".join(post % (n, n) for n in range(20)))
        for n in range(20):
            assert (await client.response()).body == b"POST /%d %02d" % (n, n)


async def test_a_request_that_comes_byte_by_byte() -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        data = b"POST /x HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        for byte in data + b"2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n":
            await client.send(bytes((byte,)))
        assert (await client.response()).body == b"POST /x abcde"
        assert (await client.get("/again")).status == 200


async def test_the_scope_is_what_asgi_says() -> None:
    seen: list[Scope] = []

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await answer(send, b"")

    async with listening(app) as listener:
        await listener.exchange(
            b"GET /a%20b/%C3%A9?q=%31 HTTP/1.1\r\nHOST: test\r\nX-Thing:  two words \r\n\r\n"
        )
    (scope,) = seen
    assert scope["type"] == "http"
    assert scope["asgi"]["version"] == "3.0"
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("GET", "1.1", "http")
    assert (scope["path"], scope["raw_path"]) == ("/a b/é", b"/a%20b/%C3%A9")
    assert scope["query_string"] == b"q=%31"
    assert scope["headers"] == [(b"host", b"test"), (b"x-thing", b"two words")]
    assert scope["client"][0] == "127.0.0.1"
    assert scope["server"][1] > 0


@pytest.mark.parametrize(
    ("request_bytes", "stays"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: test\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: test\r\nConnection: foo, Close\r\n\r\n", False),
    ],
)
async def test_keep_alive_rules(request_bytes: bytes, stays: bool) -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        await client.send(request_bytes)
        response = await client.response()
        assert response.status == 200
        assert (response.headers.get("connection") != "close") == stays
        if stays:
            await client.send(request_bytes)
            assert (await client.response()).status == 200
        else:
            assert await client.closed()


async def test_http_10_keep_alive_is_confirmed() -> None:
    async with listening(echo) as listener:
        response = await listener.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert response.headers["connection"] == "keep-alive"


async def test_absolute_form_is_served_for_this_host_only() -> None:
    async with listening(echo) as listener:
        own = await listener.exchange(b"GET http://test/a?b HTTP/1.1\r\nHost: TEST\r\n\r\n")
        assert own.body == b"GET /a?b "
        for target in (b"http://other/", b"https://test/", b"ftp://test/x"):
            other = await listener.exchange(b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n" % target)
            assert other.status == 400


async def test_head_has_the_length_and_no_body() -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        await client.send(b"HEAD /x HTTP/1.1\r\nHost: test\r\n\r\n")
        head = await client.response(method="HEAD")
        assert head.headers["content-length"] == str(len(b"HEAD /x "))
        assert (await client.get("/y")).body == b"GET /y "


async def test_no_content_has_neither_length_nor_body() -> None:
    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"ignored", 204)

    async with listening(app) as listener:
        client = await listener.connect()
        for _ in range(2):
            response = await client.get()
            assert response.status == 204
            assert "content-length" not in response.headers


async def test_expect_continue_is_answered_when_the_body_is_wanted() -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        await client.send(head)
        assert (await client.response()).status == 100
        await client.send(b"abc")
        assert (await client.response()).body == b"POST / abc"


async def test_expect_continue_is_not_answered_when_the_body_is_unwanted() -> None:
    async with listening(refuse) as listener:
        client = await listener.connect()
        head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        await client.send(head)
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (413, "close")


async def test_a_small_unread_body_that_is_here_keeps_the_connection() -> None:
    async with listening(refuse) as listener:
        client = await listener.connect()
        for _ in range(3):
            await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nabcde")
            response = await client.response()
            assert "connection" not in response.headers


async def test_large_bodies_both_ways() -> None:
    size = 8 * 1024 * 1024

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_all(receive)
        assert body is not None
        await answer(send, body[::-1])

    async with listening(app) as listener:
        client = await listener.connect()
        body = bytes(range(256)) * (size // 256)
        async with trio.open_nursery() as nursery:
            head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size
            nursery.start_soon(client.send, head + body)
            response = await client.response()
        assert response.body == body[::-1]


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_streaming_without_a_length(version: bytes) -> None:
    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one ", b"", b"two ", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    async with listening(app) as listener:
        response = await listener.exchange(b"GET / HTTP/%b\r\nHost: test\r\n\r\n" % version)
        assert response.body == b"one two three"
        assert ("transfer-encoding" in response.headers) == (version == b"1.1")


async def test_a_streams_head_comes_before_its_first_bytes() -> None:
    """A log that is followed may be quiet for long; its reader must know that it is connected."""
    go_on = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert await read_all(receive) == b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await go_on.wait()
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            nursery.cancel_scope.cancel()

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(GET)
        with trio.fail_after(5):
            while b"\r\n\r\n" not in client.buffer:
                client.buffer += await client.stream.receive_some(1000)
        go_on.set()
        assert (await client.response()).body == b"x"


async def test_a_waiting_stream_is_told_that_its_client_left() -> None:
    left = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await read_all(receive)
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(GET)
        await client.stream.receive_some(1000)
        await client.aclose()
        with trio.fail_after(5):
            await left.wait()
        await listener.empty()


async def test_a_callback_instead_of_a_task_hears_of_the_disconnect() -> None:
    left = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][EXTENSION].on_disconnect(left.set)
        await left.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def send_for_ever() -> None:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})

        with pytest.raises(ClientGone):
            await send_for_ever()
        raise ClientGone

    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(GET)
        await listener.until(lambda: listener.server.statistics().in_flight == 1)
        await client.aclose()
        with trio.fail_after(5):
            await left.wait()
        await listener.empty()
        assert "client-gone" in listener.rejected


async def test_an_error_of_edged_becomes_a_problem_document() -> None:
    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Conflict("no, thanks", private="the secret path", digest="abc")

    async with listening(app) as listener:
        response = await listener.exchange(GET)
        assert response.status == 409
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-edged-node"] == "test"
        assert response.headers["server-timing"].startswith("total;dur=")
        assert response.json()["detail"] == "no, thanks"
        assert response.json()["digest"] == "abc"
        assert b"secret" not in response.body


async def _raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("secret")


async def _raises_group(scope: Scope, receive: Receive, send: Send) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise RuntimeError("secret")


async def _no_answer(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def _no_body(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def _splits(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"", 200, (b"x", b"a\r\nset-cookie: stolen=1"))


async def _bad_name(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"", 200, (b"x y", b"a"))


async def _wrong_length(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"abc", 200, (b"content-length", b"2"))


async def _twice(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize(
    "handler",
    [_raises, _raises_group, _no_answer, _no_body, _splits, _bad_name, _wrong_length, _twice],
)
async def test_an_applications_bug_is_a_500_that_says_nothing(handler: object) -> None:
    async with listening(http_app(handler), bugs=True) as listener:  # type: ignore[arg-type]
        response = await listener.exchange(GET)
        assert response.status == 500
        assert b"secret" not in response.body
        assert "stolen" not in str(response.headers)
        lines = [json.loads(line) for line in listener.log.getvalue().splitlines()]
        assert [line["event"] for line in lines] == ["http.application"]
        await listener.empty()


@pytest.mark.parametrize("length", [2, 5])
async def test_an_answer_that_breaks_its_own_length_is_a_broken_connection(length: int) -> None:
    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await send({"type": "http.response.body", "body": b"c"})

    async with listening(app, QUICK, bugs=True) as listener:
        client = await listener.connect()
        await client.send(GET)
        assert not await client.closed()  # the head came
        await listener.empty()
