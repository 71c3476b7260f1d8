"""The control API behind edged's own HTTP server: what only real sockets show."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from edged.control import make_control_app
from edged.eventlog import EventLog
from edged.http import HttpLimits, bind_tcp, serve
from edged.telemetry import Metrics, make_log
from protocol.ids import digest_of
from tests.unit.control.memory_builders import MemoryBuilders
from tests.unit.control.memory_keys import MemoryKeys
from tests.unit.control.memory_operator import MAGIC, MemoryOperator
from tests.unit.control.memory_upkeep import MemoryUpkeep

TOKEN = "integration-token"
AUTH = f"Host: h\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
WASM = MAGIC + bytes(100_000)


class Served:
    def __init__(
        self, operator: MemoryOperator, upkeep: MemoryUpkeep, server: Any, log: io.StringIO
    ) -> None:
        self.operator = operator
        self.upkeep = upkeep
        self.server = server
        self.log = log

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.server.port)

    async def ask(self, head: bytes, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """One request on its own connection; the answer is read to its end."""
        async with await self.connect() as stream:
            await stream.send_all(head + b"Connection: close\r\n\r\n" + body)
            return await read_answer(stream)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.sleep(0.01)


async def read_answer(stream: trio.SocketStream) -> tuple[int, dict[str, str], bytes]:
    data = b""
    async for piece in stream:
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    operator, upkeep, log = MemoryOperator(), MemoryUpkeep(), io.StringIO()
    logger = make_log("n1", level="debug", stream=log)
    app = make_control_app(
        operator,
        explainer=operator,
        events=EventLog(node="n1", generation=1),
        keys=MemoryKeys().service,
        upkeep=upkeep,
        builders=MemoryBuilders().service,
        lab=None,
        links=None,
        token=TOKEN,
        log=logger,
        metrics=Metrics(),
    )
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            listen = partial(serve, log=logger)
            server = await nursery.start(
                listen, app, [bind_tcp("127.0.0.1", 0)], HttpLimits(linger_s=0.5)
            )
            yield Served(operator, upkeep, server, log)
            nursery.cancel_scope.cancel()
    assert "control.bug" not in log.getvalue()


def put(length: int, *more: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in more)
    head = f"PUT /v1/modules HTTP/1.1\r\nContent-Length: {length}\r\n{lines}"
    return head.encode() + AUTH


async def test_upload_with_a_length() -> None:
    async with served() as node:
        head = put(len(WASM), f"Edged-Digest: {digest_of(WASM)}")
        status, headers, body = await node.ask(head, WASM)
        assert (status, headers["content-type"]) == (201, "application/json")
        assert json.loads(body)["module"] == digest_of(WASM)


async def test_upload_in_chunks() -> None:
    async with served() as node:
        head = b"PUT /v1/modules HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + AUTH
        pieces = [WASM[i : i + 7000] for i in range(0, len(WASM), 7000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
        status, _, answer = await node.ask(head, body)
        assert status == 201
        assert json.loads(answer)["size_bytes"] == len(WASM)


@pytest.mark.parametrize("half_close", [True, False], ids=["half-closed", "closed"])
async def test_cut_off_uploads_store_nothing(half_close: bool) -> None:
    async with served() as node:
        async with await node.connect() as stream:
            await stream.send_all(put(len(WASM)) + b"\r\n" + WASM[:-1])
            if half_close:
                await stream.send_eof()
                async for _ in stream:
                    pass
        await until(lambda: not node.server.statistics().connections)
        assert not node.operator.modules
        status, _, _ = await node.ask(put(len(WASM)), WASM)
        assert status == 201


async def test_cut_off_chunked_upload_stores_nothing() -> None:
    async with served() as node:
        async with await node.connect() as stream:
            head = b"PUT /v1/modules HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + AUTH
            await stream.send_all(head + b"\r\n8\r\n" + MAGIC + b"\r\n")
        await until(lambda: not node.server.statistics().connections)
        assert not node.operator.modules


async def test_wrong_digest() -> None:
    async with served() as node:
        head = put(len(WASM), f"Edged-Digest: {'0' * 64}")
        status, headers, body = await node.ask(head, WASM)
        assert (status, headers["content-type"]) == (422, "application/problem+json")
        assert json.loads(body)["type"] == "urn:edged:error:digest-mismatch"
        assert not node.operator.modules


async def test_declared_oversize_is_answered_without_its_body() -> None:
    async with served() as node:
        async with await node.connect() as stream:
            await stream.send_all(put(300 * 1024 * 1024) + b"\r\n")
            await stream.send_all(bytes(1000))
            status, _, body = await read_answer(stream)
        assert status == 413
        assert json.loads(body)["status"] == 413


async def test_refused_uploader_gets_the_answer_though_it_goes_on_sending() -> None:
    async with served() as node:
        head = f"PUT /v1/modules HTTP/1.1\r\nHost: h\r\nContent-Length: {len(WASM)}\r\n\r\n"
        async with await node.connect() as stream:
            await stream.send_all(head.encode())
            for start in range(0, len(WASM), 8192):
                await stream.send_all(WASM[start : start + 8192])
            await stream.send_eof()
            status, headers, _ = await read_answer(stream)
        assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="edged control"')
        assert not node.operator.modules


async def test_two_uploads_of_one_module_at_once() -> None:
    async with served() as node:
        answers: list[tuple[int, bytes]] = []

        async def upload() -> None:
            status, _, body = await node.ask(put(len(WASM)), WASM)
            answers.append((status, body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            nursery.start_soon(upload)
        assert sorted(status for status, _ in answers) == [200, 201]
        assert len({json.loads(body)["module"] for _, body in answers}) == 1


async def test_encoded_slashes_and_unicode_in_names() -> None:
    async with served() as node:
        for name in (b"a%2Fb", b"%C3%A4", b"%ff", b"..", b"%2e%2e%2fstatus", b"a%00"):
            status, _, body = await node.ask(b"GET /v1/functions/" + name + b" HTTP/1.1\r\n" + AUTH)
            assert (status, json.loads(body)["status"]) == (404, 404), name


async def test_head_has_no_body() -> None:
    async with served() as node:
        status, headers, body = await node.ask(b"HEAD /v1/status HTTP/1.1\r\n" + AUTH)
        assert (status, body) == (200, b"")
        assert int(headers["content-length"]) > 100


async def test_keep_alive_after_errors() -> None:
    async with served() as node, await node.connect() as stream:
        for _ in range(3):
            await stream.send_all(b"GET /v1/functions/none HTTP/1.1\r\n" + AUTH + b"\r\n")
            data = b""
            while b"}" not in data:
                data += await stream.receive_some()
            assert data.startswith(b"HTTP/1.1 404 ")


async def follow(node: Served) -> trio.SocketStream:
    node.operator.modules[digest_of(WASM)] = len(WASM)
    body = json.dumps({"module": digest_of(WASM)}).encode()
    head = f"PUT /v1/functions/a HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode() + AUTH
    assert (await node.ask(head, body))[0] == 201
    stream = await node.connect()
    request = b"GET /v1/functions/a/logs?follow=1&tail=0 HTTP/1.1\r\n" + AUTH + b"\r\n"
    await stream.send_all(request)
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    assert head.startswith(b"HTTP/1.1 200 ")
    await until(lambda: node.operator.following)
    return stream


async def test_following_a_quiet_log_begins_at_once_and_lines_come_one_by_one() -> None:
    async with served() as node, await follow(node) as stream:
        for text in ("one", "two"):
            node.operator.say("a", text)
            data = b""
            while text.encode() not in data:
                data += await stream.receive_some()
        assert b'"stream":"stderr"' in data


async def test_a_follower_that_leaves_is_let_go() -> None:
    async with served() as node:
        await (await follow(node)).aclose()
        await until(lambda: not node.operator.following)
        assert (await node.ask(b"GET /v1/health HTTP/1.1\r\nHost: h\r\n"))[0] == 200


async def test_a_follower_does_not_hold_up_a_drain() -> None:
    async with served() as node:
        stream = await follow(node)
        await node.server.drain(trio.current_time() + 0.2)
        assert not node.operator.following
        await stream.aclose()


# ---------------------------------------------------------------- downloads
BLOB = bytes(range(256)) * 32768
"""8 MiB: more than sockets hold."""


def get(digest: str, *more: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in more)
    return f"GET /v1/blobs/{digest} HTTP/1.1\r\n{lines}".encode() + AUTH


async def test_a_blob_and_a_range_of_it() -> None:
    async with served() as node:
        digest = node.upkeep.add(BLOB)
        status, headers, body = await node.ask(get(digest))
        assert (status, int(headers["content-length"]), body) == (200, len(BLOB), BLOB)
        status, headers, body = await node.ask(get(digest, "Range: bytes=5000000-"))
        assert (status, body) == (206, BLOB[5000000:])
        assert node.upkeep.open == 0


async def test_a_download_that_cannot_go_on_ends_short_and_is_told() -> None:
    async with served() as node:
        node.upkeep.breaks_at = len(BLOB) // 2
        data = b""
        async with await node.connect() as stream:
            await stream.send_all(get(node.upkeep.add(BLOB)) + b"\r\n")
            with contextlib.suppress(trio.BrokenResourceError):  # a reset, no orderly end
                async for piece in stream:
                    data += piece
        assert data.startswith(b"HTTP/1.1 200 ")
        assert len(data) < len(BLOB)
        await until(lambda: "control.cut" in node.log.getvalue())
        assert node.upkeep.open == 0


async def test_a_reader_that_leaves_or_stops_holds_one_piece() -> None:
    async with served() as node:
        digest = node.upkeep.add(BLOB)
        async with await node.connect() as stream:
            await stream.send_all(get(digest) + b"\r\n")
            await stream.receive_some(1000)
            await until(lambda: node.upkeep.open == 1)
            seen = -1
            while seen != len(node.upkeep.reads):
                seen = len(node.upkeep.reads)
                await trio.sleep(0.05)
            assert sum(node.upkeep.reads) < len(BLOB)  # what nobody takes is not read
        await until(lambda: node.upkeep.open == 0)
