"""Forwarding: who runs a request, what it and its answer carry, and when it may run again."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing
from forward_support import Net, cold, net, node_id, warm
from gateway_support import Behaviours, result, spec

from edged.errors import Overloaded
from edged.gateway import forward
from edged.gateway.forward import GATHERED_BYTES_MAX
from edged.interfaces import Invocation, InvocationResult
from protocol.function import Policy

MEBIBYTE = 1024 * 1024
POLICY = Policy(body_bytes=8 * MEBIBYTE, stdout_bytes=8 * MEBIBYTE)


def request(
    *lines: bytes, method: bytes = b"GET", path: bytes = b"/f", body: bytes | None = None
) -> bytes:
    head = [method + b" " + path + b" HTTP/1.1", b"Host: a.test:80", *lines]
    if body is not None:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", body or b""])


async def pair(made: Net, *, functions: Behaviours | None = None) -> None:
    """`a` is cold, `b` is ready."""
    await made.add("a", cold("f") if functions is None else functions)
    await made.add("b", warm("f"))
    made.ready = ["b"]


# ---------------------------------------------------------------- what is carried
async def test_the_nearest_ready_peer_answers_and_both_are_named() -> None:
    async with net() as made:
        await pair(made)
        a, b = made.members["a"], made.members["b"]
        sent = request(b"X-Request-Id: abc", method=b"POST", body=b"body")
        answer = await a.exchange(sent)
        assert (answer.status, answer.body) == (200, b"ran body")
        assert answer.headers["x-edged-start"] == "forwarded"
        assert answer.headers["x-edged-node"] == "b"
        assert answer.headers["x-edged-forwarded-by"] == "a"
        assert answer.headers["via"] == "1.1 a"
        assert answer.headers["x-request-id"] == "abc"
        assert answer.headers["x-edged-version"] == b.functions.lookup("f").version[:12]
        timing = answer.headers["server-timing"]
        assert timing.startswith("queue;dur=1.000, run;dur=2.000, forward;dur=")
        assert timing.count("total;dur=") == 1
        assert a.functions.prepared == ["f"]
        assert (a.kept, a.forwards("answered")) == (1, 1)
        a.functions.far.clear()
        local = await a.exchange(request())
        assert (local.headers["x-edged-start"], local.headers["x-edged-node"]) == ("warm", "a")
        assert b.connections == 1


async def test_the_guest_sees_the_clients_request() -> None:
    seen: list[Invocation] = []
    functions = Behaviours()

    def run(call: Invocation) -> InvocationResult:
        seen.append(call)
        return result(b"Content-Type: text/plain\r\nX-Edged-Refused: draining\r\n\r\nok")

    functions.add("f", spec("cgi"), run)
    remote = Behaviours()
    remote.add("f", spec("cgi"), run)
    async with net() as made:
        a = await made.add("a", functions)
        await made.add("b", remote)
        made.ready = ["b"]
        sent = request(
            b"Connection: close, X-Hop",
            b"X-Hop: secret",
            b"X-End: kept",
            b"X-Edged-Client: 6.6.6.6 1",
            b"TE: trailers",
            b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            method=b"PUT",
            path=b"/f/a%20b?x=1&y",
            body=b"in",
        )
        here = await a.exchange(sent)
        functions.far = {"f"}
        there = await a.exchange(sent)
    assert (here.body, there.body) == (b"ok", b"ok")
    assert "x-edged-refused" not in there.headers
    local, forwarded = (dict(call.env) for call in seen)
    assert seen[0].args == seen[1].args
    assert seen[0].stdin == seen[1].stdin == b"in"
    added = {b"HTTP_VIA", b"HTTP_FORWARDED"}
    assert forwarded.keys() - local.keys() == added | {b"HTTP_X_REQUEST_ID"}
    assert local.keys() - forwarded.keys() == {b"HTTP_X_HOP"}
    same = local.keys() & forwarded.keys()
    assert {key: local[key] for key in same} == {key: forwarded[key] for key in same}
    assert local[b"REMOTE_ADDR"] == b"127.0.0.1"
    assert not [key for key in forwarded if key.startswith(b"HTTP_X_EDGED")]
    assert forwarded[b"HTTP_VIA"] == b"1.1 a"
    assert forwarded[b"HTTP_FORWARDED"].startswith(b'for="127.0.0.1:')
    assert forwarded[b"HTTP_FORWARDED"].endswith(b'host="a.test:80";proto=http;by=_a')
    assert forwarded[b"HTTP_TRACEPARENT"].startswith(b"00-0af7")


async def test_bodies_stream_both_ways_with_back_pressure() -> None:
    functions, remote = Behaviours(), Behaviours()
    for each in (functions, remote):
        each.add("f", spec(policy=POLICY), lambda call: result(call.stdin[::-1]))
    functions.far = {"f"}
    body = bytes(range(256)) * (4 * MEBIBYTE // 256)
    async with net() as made:
        a = await made.add("a", functions)
        b = await made.add("b", remote)
        made.ready = ["b"]
        for lines, sent in (
            ((b"Content-Length: %d" % len(body),), body),
            ((b"Transfer-Encoding: chunked",), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
        ):
            client = await a.connect()
            async with trio.open_nursery() as nursery:
                head = request(*lines, method=b"POST")
                nursery.start_soon(client.send, head + sent)
                answer = await client.response()
            assert answer.body == body[::-1]
            assert answer.headers["x-edged-node"] == "b"
        head_only = await a.exchange(request(method=b"HEAD"), method="HEAD")
        assert (head_only.status, head_only.headers["content-length"]) == (200, "0")
        small = await a.exchange(
            request(b"Transfer-Encoding: chunked", method=b"POST") + b"2\r\nab\r\n0\r\n\r\n"
        )
        assert small.body == b"ba"
        assert (a.kept, b.connections) == (4, 4)


async def test_the_policys_body_limit_holds_on_the_way() -> None:
    functions = Behaviours()
    limit = GATHERED_BYTES_MAX + 1000
    functions.add("f", spec(policy=Policy(body_bytes=limit)), lambda call: result(b"ran"))
    functions.far = {"f"}
    remote = Behaviours()
    remote.add("f", spec(policy=Policy(body_bytes=limit)), lambda call: result(b"ran"))
    async with net() as made:
        a = await made.add("a", functions)
        await made.add("b", remote)
        made.ready = ["b"]
        told = await a.exchange(request(b"Content-Length: %d" % (limit + 1), method=b"POST"))
        assert told.status == 413
        client = await a.connect()
        chunk = b"%x\r\n%b\r\n" % (limit + 1, b"x" * (limit + 1))
        await client.send(request(b"Transfer-Encoding: chunked", method=b"POST") + chunk)
        assert (await client.response()).status == 413
        assert remote.calls == []


# ---------------------------------------------------------------- who is believed
async def test_headers_of_authority_from_outside_are_dropped() -> None:
    functions = Behaviours()
    functions.add(
        "f", spec("cgi"), lambda call: result(b"Content-Type: text/plain\r\n\r\n" + env_of(call))
    )
    async with net() as made:
        b = await made.add("b", functions)
        spoofed = request(
            b"X-Edged-Path: " + node_id("a").encode(),
            b"X-Edged-Version: " + b"0" * 64,
            b"X-Edged-Deadline-Ms: 0",
            b"X-Edged-Client: 6.6.6.6 1",
            b"X-Edged-Refused: draining",
        )
        answer = await b.exchange(spoofed)
        assert answer.status == 200
        assert b"X_EDGED" not in answer.body
        assert b"REMOTE_ADDR=127.0.0.1" in answer.body


def env_of(call: Invocation) -> bytes:
    return b"\n".join(b"%b=%b" % pair for pair in call.env)


GOOD = {
    b"x-edged-path": node_id("a").encode(),
    b"x-edged-version": b"",
    b"x-edged-deadline-ms": b"5000",
}


@pytest.mark.parametrize(
    ("changed", "status", "refused"),
    [
        ({}, 200, None),
        ({b"x-edged-path": node_id("c").encode()}, 400, None),
        ({b"x-edged-path": b"a"}, 400, None),
        ({b"x-edged-path": node_id("b").encode() + b"," + node_id("a").encode()}, 503, "not-ready"),
        ({b"x-edged-path": b",".join([node_id("c").encode()] * 2 + [b"a" * 32])}, 400, None),
        ({b"x-edged-version": b"0" * 64}, 404, "function-not-found"),
        ({b"x-edged-version": b"current"}, 400, None),
        ({b"x-edged-deadline-ms": b"-1"}, 400, None),
        ({b"x-edged-deadline-ms": b"0"}, 504, None),
        ({b"x-edged-client": b"6.6.6.6"}, 400, None),
    ],
    ids=range(10),
)
async def test_what_a_peer_says_is_checked(
    changed: dict[bytes, bytes], status: int, refused: str | None
) -> None:
    async with net() as made:
        b = await made.add("b", warm("f"))
        version = b.functions.lookup("f").version.encode()
        fields = GOOD | {b"x-edged-version": version} | changed
        stream = await made.connect("a", "b")
        await stream.send_all([request(*(b"%b: %b" % field for field in fields.items()))])
        client = made.members["b"].clients
        from http_support import RawClient

        raw = RawClient(stream.stream)
        client.append(raw)
        answer = await raw.response()
        assert (answer.status, answer.headers.get("x-edged-refused")) == (status, refused)


async def test_requests_do_not_go_in_circles() -> None:
    """Both say that they are ready, neither is; each asks the other once."""
    async with net() as made:
        for hops_max in (1, 2):
            a = await made.add("a", cold("f"), hops_max=hops_max)
            b = await made.add("b", cold("f"), hops_max=hops_max)
            made.ready = ["a", "b"]
            answer = await a.exchange(request())
            assert (answer.status, answer.headers["x-edged-node"]) == (200, "a")
            assert (a.connections, b.connections) == (0, 1)
            assert a.forwards("refused") == 1
            for member in (a, b):
                for server in (member.public, member.peers):
                    assert server is not None
                    await server.drain(trio.current_time() + 2)


@pytest.mark.parametrize(("hops_max", "node"), [(1, "a"), (2, "c")])
async def test_the_hop_limit(hops_max: int, node: str) -> None:
    async with net() as made:
        a = await made.add("a", cold("f"), hops_max=hops_max)
        b = await made.add("b", cold("f"), hops_max=hops_max)
        c = await made.add("c", warm("f"), hops_max=hops_max)
        made.ready = ["b", "c"]
        c.unreachable = hops_max == 1
        answer = await a.exchange(request())
        assert (answer.status, answer.headers["x-edged-node"]) == (200, node)
        if hops_max == 2:
            assert answer.headers["x-edged-forwarded-by"] == "a, b"
            assert a.forwards("answered") == b.forwards("answered") == 1
        assert b.functions.prepared == []


# ---------------------------------------------------------------- who else is asked
@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("fault", ["unreachable", "closed", "draining", "cold", "busy", "overload"])
async def test_what_was_not_delivered_goes_to_another(method: bytes, fault: str) -> None:
    async with net() as made:
        a = await made.add("a", cold("f"))
        b, c = await made.add("b", warm("f")), await made.add("c", warm("f"))
        made.ready = ["b", "c"]
        b.unreachable = fault == "unreachable"
        if fault == "draining":
            b.state = "draining"
        elif fault == "cold":
            b.functions.far = {"f"}
        elif fault == "busy":
            b.functions.admitted["f"] = 10_000
        elif fault == "overload":
            b.functions.add("f", spec(), fail)
        elif fault == "closed":
            assert b.peers is not None
            await b.peers.drain(trio.current_time() + 1)
            b.wire = farewell
        answer = await a.exchange(request(method=method, body=b"x"))
        assert (answer.status, answer.body) == (200, b"ran x")
        assert answer.headers["x-edged-node"] == "c"
        c.unreachable = True
        local = await a.exchange(request(method=method, body=b"x"))
        assert (local.body, local.headers["x-edged-node"]) == (b"ran x", "a")
        b.functions.admitted.clear()


def fail(call: Invocation) -> InvocationResult:
    raise Overloaded("no instance slot is free")


async def farewell(stream: trio.SocketStream) -> None:
    """What a listener that has drained says to a connection whose request crosses it."""
    await stream.send_all(
        b"HTTP/1.1 503 Service Unavailable\r\nx-edged-refused: unserved\r\n"
        b"connection: close\r\ncontent-length: 0\r\n\r\n"
    )


async def dies_unanswered(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def dies_in_its_head(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-le")


async def talks_nonsense(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1, 2\r\n\r\nxx")


@pytest.mark.parametrize("wire", [dies_unanswered, dies_in_its_head, talks_nonsense])
async def test_what_was_delivered_runs_again_only_if_that_is_harmless(wire: object) -> None:
    async with net() as made:
        await pair(made)
        a, b = made.members["a"], made.members["b"]
        b.wire = wire  # type: ignore[assignment]
        answer = await a.exchange(request(method=b"GET", body=b"y"))
        assert (answer.status, answer.headers["x-edged-node"]) == (200, "a")
        lost = await a.exchange(request(method=b"POST", body=b"x"))
        assert (lost.status, lost.json()["type"]) == (502, "urn:edged:error:peer")
        assert (a.forwards("lost"), b.connections) == (2, 2)
        assert [call.stdin for call in a.functions.calls] == [b"y"]


async def stops(stream: trio.SocketStream) -> None:
    """As a process that was sent SIGSTOP: its kernel takes what is sent."""
    while await stream.receive_some():
        pass


async def test_a_peer_that_is_suspect_is_not_waited_for_where_that_is_harmless() -> None:
    async with net() as made:
        await pair(made)
        a, b = made.members["a"], made.members["b"]
        b.wire = stops
        clients = [await a.connect(), await a.connect()]
        await clients[0].send(request())
        await clients[1].send(request(method=b"POST", body=b"x"))
        while b.connections < 2 or not all(stream.sent for stream in made.streams):
            await trio.sleep(0.005)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert [stream.act is not None for stream in made.streams].count(True) == 1
        for stream in made.streams:
            if stream.act is not None:
                stream.act()
        answer = await clients[0].response()
        assert (answer.status, answer.headers["x-edged-node"]) == (200, "a")
        assert a.forwards("lost") == 1
        assert a.functions.calls[0].stdin == b"", "the POST waits"
        assert len(a.functions.calls) == 1


@pytest.mark.parametrize("body", [b"x", b"x" * (GATHERED_BYTES_MAX + 1)])
async def test_a_peer_that_is_late_is_given_up(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def takes_all(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        await stops(stream)

    monkeypatch.setattr(forward, "ANSWER_MARGIN_S", 0.05)
    functions = Behaviours()
    functions.add(
        "f", spec(policy=Policy(timeout_ms=50, body_bytes=MEBIBYTE)), lambda _: result(b"")
    )
    functions.far = {"f"}
    async with net() as made:
        await pair(made, functions=functions)
        a, b = made.members["a"], made.members["b"]
        b.wire = takes_all
        late = await a.exchange(request(method=b"POST", body=body))
        assert (late.status, late.json()["type"]) == (504, "urn:edged:error:deadline")
        assert "may have run" in late.json()["detail"]
        assert a.forwards("late") == 1
        assert a.functions.calls == []
        answer = await a.exchange(request())
        assert (answer.status, answer.headers["x-edged-node"]) == (200, "a")


async def test_a_peer_that_never_takes_a_long_body_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "ANSWER_MARGIN_S", 0.05)
    functions = Behaviours()
    functions.add(
        "f", spec(policy=Policy(timeout_ms=50, body_bytes=MEBIBYTE)), lambda _: result(b"")
    )
    functions.far = {"f"}
    async with net() as made:
        await pair(made, functions=functions)
        a, b = made.members["a"], made.members["b"]
        b.wire = stops
        answer = await a.exchange(request(method=b"POST", body=b"x" * (GATHERED_BYTES_MAX + 1)))
        assert (answer.status, answer.headers["x-edged-node"]) == (200, "a")


@pytest.mark.parametrize("framing", [b"content-length: 10", b"transfer-encoding: chunked"])
async def test_an_answer_cut_short_never_looks_complete(framing: bytes) -> None:
    async def dies(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n5\r\nhello\r\n"[:12])

    async with net() as made:
        await pair(made)
        a, b = made.members["a"], made.members["b"]
        b.wire = dies
        client = await a.connect()
        await client.send(request())
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await client.response()
        assert (a.forwards("cut"), b.connections) == (1, 1)
        assert a.functions.calls == []


async def test_long_bodies_are_not_sent_before_the_peer_takes_them() -> None:
    """So a refusal leaves them whole for another."""
    functions, remote, other = Behaviours(), Behaviours(), Behaviours()
    for each in (functions, remote, other):
        each.add("f", spec(policy=POLICY), lambda call: result(b"%d" % len(call.stdin)))
    functions.far = remote.far = {"f"}
    body = b"x" * (2 * GATHERED_BYTES_MAX)
    async with net() as made:
        a = await made.add("a", functions)
        await made.add("b", remote)
        c = await made.add("c", other)
        made.ready = ["b", "c"]
        answer = await a.exchange(request(method=b"POST", body=body))
        assert (answer.body, answer.headers["x-edged-node"]) == (b"%d" % len(body), "c")
        c.unreachable = True
        local = await a.exchange(request(method=b"POST", body=body))
        assert (local.body, local.headers["x-edged-node"]) == (b"%d" % len(body), "a")
        c.unreachable = False
        c.functions.admitted["f"] = 10_000
        busy = await a.exchange(request(method=b"POST", body=body))
        assert (busy.status, busy.headers["x-edged-node"]) == (429, "c")
        assert "x-edged-refused" not in busy.headers
        c.functions.admitted.clear()


@pytest.mark.parametrize("taken", [1, GATHERED_BYTES_MAX, 2 * GATHERED_BYTES_MAX])
async def test_who_refuses_after_it_took_a_long_body_is_heard_by_the_client(taken: int) -> None:
    """What was read of the body is gone: nobody else can be asked, and trying again is harmless."""
    body = b"x" * (2 * GATHERED_BYTES_MAX)

    async def overloaded_late(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = taken
        while left > 0:
            left -= len(await stream.receive_some())
        await stream.send_all(
            b"HTTP/1.1 503 Service Unavailable\r\nx-edged-refused: overloaded\r\n"
            b"retry-after: 1\r\ncontent-length: 4\r\n\r\nlate"
        )
        await stream.receive_some()

    async with net() as made:
        functions, remote = Behaviours(), Behaviours()
        for each in (functions, remote):
            each.add("f", spec(policy=POLICY), lambda call: result(b"%d" % len(call.stdin)))
        functions.far = {"f"}
        a, b = await made.add("a", functions), await made.add("b", remote)
        made.ready = ["b"]
        b.wire = overloaded_late
        answer = await a.exchange(request(method=b"POST", body=body))
        assert (answer.status, answer.body) == (503, b"late")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-edged-start"] == "forwarded"
        assert "x-edged-refused" not in answer.headers
        assert (a.forwards("answered"), b.connections, functions.calls) == (1, 1, [])
        b.wire = None
        again = await a.exchange(request(method=b"POST", body=body))
        assert (again.body, again.headers["x-edged-node"]) == (b"%d" % len(body), "b")


async def test_without_room_or_with_none_ready_it_waits_here() -> None:
    async with net() as made:
        await pair(made)
        a = made.members["a"]
        a.room = False
        assert (await a.exchange(request())).headers["x-edged-node"] == "a"
        a.room, made.ready = True, []
        assert (await a.exchange(request())).headers["x-edged-node"] == "a"
        assert made.members["b"].connections == 0


# ---------------------------------------------------------------- leaving and ending
async def test_a_client_that_leaves_stops_the_guest_elsewhere() -> None:
    remote = Behaviours()
    remote.add("f", spec(), remote.until_cancelled)
    async with net() as made:
        a = await made.add("a", cold("f"))
        await made.add("b", remote)
        made.ready = ["b"]
        client = await a.connect()
        await client.send(request())
        while not remote.cancels:
            await trio.sleep(0.005)
        await client.aclose()
        while remote.admitted["f"]:
            await trio.sleep(0.005)
        assert remote.cancels[0].is_set()
        assert a.metrics.requests.labels("f", "499", "").value == 1


async def test_the_deadline_travels() -> None:
    remote = Behaviours()
    remote.add("f", spec(policy=Policy(timeout_ms=50)), remote.until_cancelled)
    functions = Behaviours()
    functions.add("f", spec(policy=Policy(timeout_ms=50)), lambda call: result(b"ran"))
    functions.far = {"f"}
    heads: list[bytes] = []

    async def silent(stream: trio.SocketStream) -> None:
        heads.append(bytes(await stream.receive_some()))
        await trio.sleep_forever()

    async with net() as made:
        a = await made.add("a", functions)
        b = await made.add("b", remote)
        made.ready, b.wire = ["b"], silent
        client = await a.connect()
        await client.send(request())
        while not heads:
            await trio.sleep(0.005)
        (left,) = [line for line in heads[0].split(b"\r\n") if line.startswith(b"x-edged-deadline")]
        assert 80_000 < int(left.partition(b": ")[2]) <= 90_050
        await client.aclose()


async def test_a_draining_node_finishes_what_peers_sent_it() -> None:
    release = threading.Event()

    def wait(call: Invocation) -> InvocationResult:
        release.wait(10)
        return result(b"finished")

    remote = Behaviours()
    remote.add("f", spec(), wait)
    async with net() as made:
        a = await made.add("a", cold("f"))
        b = await made.add("b", remote)
        made.ready = ["b"]
        client = await a.connect()
        await client.send(request(method=b"POST", body=b"x"))
        while not remote.calls:
            await trio.sleep(0.005)
        b.state = "draining"
        assert b.peers is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.peers.drain, trio.current_time() + 10)
            await trio.sleep(0.1)
            release.set()
            answer = await client.response()
        assert (answer.body, answer.headers["x-edged-node"]) == (b"finished", "b")
