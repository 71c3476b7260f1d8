"""Clients that take more than their share: of the event loop, of memory, of connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from http_support import (
    PATIENT,
    QUICK,
    WAIT_S,
    RawClient,
    Receive,
    Scope,
    Send,
    answer,
    echo,
    http_app,
    listening,
    read_all,
)
from msgspec.structs import replace

from edged.http.chunked import CHUNKS_PER_FEED

H = b"Host: test\r\n"
GET = b"GET / HTTP/1.1\r\n" + H + b"\r\n"
POST = b"POST / HTTP/1.1\r\n" + H
MEBIBYTE = 1024 * 1024


class Turns:
    """Counts the turns that another task gets in the event loop."""

    def __init__(self) -> None:
        self.count = 0

    async def _run(self) -> None:
        while True:
            self.count += 1
            await trio.lowlevel.checkpoint()

    @staticmethod
    def fair(counts: list[int]) -> bool:
        """Two in a row can be equal: the order within a pass of trio's loop is random."""
        assert len(counts) > 4
        return all(before < after for before, after in zip(counts, counts[2:], strict=False))

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[None]:
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run)
                yield
                nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- the event loop
@pytest.mark.parametrize(
    ("head", "body", "piece_max"),
    [
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n",
            b"5\r\nabcde\r\n" * 60_000 + b"0\r\n\r\n",
            5 * CHUNKS_PER_FEED + 5,  # the last read's unfinished one
        ),
        (POST + b"Content-Length: 2000000\r\n\r\n", b"x" * 2_000_000, 256 * 1024),
    ],
    ids=["small chunks", "content-length"],
)
async def test_others_have_a_turn_between_the_pieces_of_a_fast_body(
    head: bytes, body: bytes, piece_max: int
) -> None:
    turns = Turns()
    seen: list[tuple[int, int]] = []

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await sent.wait()
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            seen.append((turns.count, len(message["body"])))
        await answer(send, b"%d" % sum(size for _, size in seen))

    sent = trio.Event()
    async with turns.counted(), listening(app) as listener:
        client = await listener.connect()
        # The kernel has bytes before the first `receive`.
        await client.send(head + body[: 48 * 1024])
        sent.set()
        await client.send(body[48 * 1024 :])
        total = (await client.response()).body
    assert total == (b"300000" if b"chunked" in head else b"2000000")
    assert max(size for _, size in seen) <= piece_max
    assert turns.fair([count for count, _ in seen])


async def test_others_have_a_turn_between_requests_that_are_always_there() -> None:
    """Requests of the size of a read leave nothing in the buffer, and still do not wait."""
    turns = Turns()
    seen: list[int] = []
    started = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if not seen:
            await started.wait()
        seen.append(turns.count)
        await read_all(receive)
        await answer(send, b"ok")

    head = POST + b"Content-Length: %d\r\n\r\n"
    body = 16 * 1024 - len(head % 16000)
    request = head % body + b"x" * body
    assert len(request) == 16 * 1024
    async with turns.counted(), listening(app) as listener:
        client = await listener.connect()
        await client.send(request * 3)
        started.set()
        await client.send(request * 17)
        for _ in range(20):
            assert (await client.response()).body == b"ok"
    # The first waited for `started`, which was its turn: the second need not give way again.
    assert turns.fair(seen[1:])


async def test_a_receive_that_is_cancelled_loses_no_byte() -> None:
    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            with trio.CancelScope() as scope_:
                if len(body) % 2:
                    scope_.cancel()
                message = await receive()
                body += message["body"]
                more = message["more_body"]
            if scope_.cancelled_caught:
                message = await receive()
                body += message["body"]
                more = message["more_body"]
        await answer(send, body)

    body = bytes(range(256)) * 100
    chunks = b"".join(b"7\r\n" + body[at : at + 7] + b"\r\n" for at in range(0, 25_599, 7))
    async with listening(app) as listener:
        client = await listener.connect()
        await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        await client.send(b"1\r\n" + body[25_599:] + b"\r\n0\r\n\r\n")
        assert (await client.response()).body == body


# ---------------------------------------------------------------- memory
@http_app
async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"x" * 8 * MEBIBYTE)


@http_app
async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(128):
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("app", [large, stream], ids=["whole", "streamed"])
async def test_a_trickle_is_not_progress(app: object) -> None:
    """Each byte taken used to renew the time an answer may take."""
    limits = replace(QUICK, write_stall_s=1.0, write_bytes_per_s_min=4 * MEBIBYTE)
    async with listening(app, limits) as listener:  # type: ignore[arg-type]
        client = await listener.connect(receive_buffer=16 * 1024)
        await client.send(GET)
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                while await client.stream.receive_some(8 * 1024):
                    await trio.sleep(0.01)

            async def read() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await trickle()

            nursery.start_soon(read)
            await listener.until(lambda: "write-stall" in listener.rejected)
        await listener.empty()
        assert listener.server.statistics().unsent_bytes == 0


async def read_to_the_end(client: RawClient) -> None:
    while await client.stream.receive_some(65536):
        pass


async def test_slow_readers_hold_no_more_than_the_budget() -> None:
    limits = replace(PATIENT, unsent_bytes_max=20 * MEBIBYTE)
    async with listening(large, limits) as listener:
        statistics = listener.server.statistics
        clients: list[RawClient] = []
        for _ in range(2):
            clients.append(await listener.connect(receive_buffer=4096))
            await clients[-1].send(GET)
            await listener.until(lambda: statistics().unsent_bytes == len(clients) * 8 * MEBIBYTE)
        for count in range(1, 4):
            clients.append(await listener.connect(receive_buffer=4096))
            await clients[-1].send(GET)
            await listener.until(lambda: listener.rejected.count("client-gone") == count)  # noqa: B023
            assert statistics().unsent_bytes == 16 * MEBIBYTE
        # The oldest went, and cannot take what they have for the whole answer.
        assert listener.rejected == ["unsent-bytes", "client-gone"] * 3
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await read_to_the_end(clients[0])
        # Whoever reads is served, now too.
        assert len((await listener.exchange(GET)).body) == 8 * MEBIBYTE
        for client in clients:
            await client.aclose()
        await listener.empty()
        assert statistics().unsent_bytes == 0


async def test_an_answer_larger_than_the_budget_is_cut_alone() -> None:
    limits = replace(PATIENT, unsent_bytes_max=4 * MEBIBYTE)
    async with listening(large, limits) as listener:
        client = await listener.connect(receive_buffer=4096)
        await client.send(GET)
        await listener.until(lambda: "unsent-bytes" in listener.rejected)
        await listener.empty()


async def test_after_a_cut_answer_there_is_no_next_one() -> None:
    """Also if the application does not mind that its answer could not be sent."""
    requests = 0

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal requests
        requests += 1
        try:
            await answer(send, b"x" * 16 * MEBIBYTE)
        except OSError:
            return

    async with listening(app, QUICK) as listener:
        client = await listener.connect(receive_buffer=4096)
        await client.send(GET * 3)
        await listener.until(lambda: "write-stall" in listener.rejected)
        await listener.empty()
        assert requests == 1


# ---------------------------------------------------------------- connections
async def test_connections_without_a_request_give_way_to_those_with_one() -> None:
    limits = replace(PATIENT, connections_max=3, give_way_after_s=0.05)
    async with listening(echo, limits) as listener:
        silent, partial, idle = [await listener.connect() for _ in range(3)]
        assert (await idle.get()).status == 200
        await partial.send(b"G")
        await listener.until(lambda: listener.server.statistics().connections == 3)
        for _ in range(6):
            await trio.sleep(0.06)
            newcomer = await listener.connect()
            assert (await newcomer.get()).status == 200
            assert listener.server.statistics().connections == 3
        for client in (silent, partial, idle):
            assert await client.closed()
        assert listener.rejected == ["gave-way"] * 6


async def test_busy_connections_do_not_give_way() -> None:
    finish = trio.Event()

    @http_app
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await finish.wait()
        await answer(send, b"done")

    limits = replace(PATIENT, connections_max=2, give_way_after_s=0.0)
    async with listening(app, limits) as listener:
        working, uploading = [await listener.connect() for _ in range(2)]
        await working.send(GET)
        await uploading.send(POST + b"Content-Length: 2\r\n\r\na")
        await listener.until(lambda: listener.server.statistics().in_flight == 2)
        for _ in range(3):
            newcomer = await listener.connect()
            assert (await newcomer.response()).status == 503
            assert await newcomer.closed()
        finish.set()
        await uploading.send(b"b")
        for client in (working, uploading):
            assert (await client.response()).body == b"done"
        assert set(listener.rejected) == {"connections"}


async def test_a_young_connection_does_not_give_way() -> None:
    """Its request is on the wire."""
    limits = replace(PATIENT, connections_max=2, give_way_after_s=60.0)
    async with listening(echo, limits) as listener:
        first, second = [await listener.connect() for _ in range(2)]
        await listener.until(lambda: listener.server.statistics().connections == 2)
        newcomer = await listener.connect()
        assert (await newcomer.response()).status == 503
        for client in (first, second):
            assert (await client.get()).status == 200


# ---------------------------------------------------------------- an empty line
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 10])
async def test_one_empty_line_before_a_request_is_ignored(cut: int) -> None:
    async with listening(echo) as listener:
        client = await listener.connect()
        for _ in range(2):
            data = b"\r\n" + POST + b"Content-Length: 2\r\n\r\nab"
            for part in filter(None, (data[:cut], data[cut:])):
                await client.send(part)
                await trio.sleep(0.01)
            assert (await client.response()).body == b"POST / ab"
        await client.send(POST + b"Content-Length: 2\r\n\r\nab\r\n" + GET)
        assert (await client.response()).body == b"POST / ab"
        assert (await client.response()).body == b"GET / "
        assert listener.rejected == []
