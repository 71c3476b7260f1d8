"""Routing, admission, bodies, headers and errors of the public gateway, over real sockets."""

from __future__ import annotations

import json
import re
import threading

import pytest
import trio
from gateway_support import Behaviours, gateway, result, spec
from http_support import QUICK

from edged.errors import (
    CompileFailed,
    DeadlineExceeded,
    EdgedError,
    GuestExit,
    GuestTrap,
    NoHolder,
    OutputLimitExceeded,
    Overloaded,
)
from edged.gateway import GatewayLimits, app
from edged.interfaces import Invocation, InvocationResult
from protocol.function import Policy

TIMING = re.compile(r"(?:[a-z]+;dur=[0-9]+\.[0-9]{3}, )*total;dur=[0-9]+\.[0-9]{3}\Z")


def hello() -> Behaviours:
    functions = Behaviours()
    functions.add("hello", spec(), lambda call: result(b"hello " + call.stdin))
    return functions


def request(
    path: bytes = b"/hello", *lines: bytes, method: bytes = b"GET", body: bytes = b""
) -> bytes:
    head = [method + b" " + path + b" HTTP/1.1", b"Host: n1.test:8080", *lines]
    if body:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", body])


async def test_an_answer_names_node_version_start_time_and_request() -> None:
    async with gateway(hello()) as server:
        response = await server.exchange(request())
        view = server.functions.lookup("hello")
    assert (response.status, response.body) == (200, b"hello ")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-edged-node"] == "n1"
    assert response.headers["x-edged-start"] == "warm"
    assert response.headers["x-edged-version"] == view.version[:12]
    timing = response.headers["server-timing"]
    assert TIMING.match(timing)
    assert timing.startswith("queue;dur=1.000, run;dur=2.000, total;dur=")
    assert response.headers["x-request-id"]


async def test_every_error_names_node_time_and_request_too() -> None:
    async with gateway(hello()) as server:
        for data in (
            request(b"/absent"),
            request(b"/"),
            request(b"/hello", method=b"PATCH"),
            request(b"/hello?%zz"),
        ):
            response = await server.exchange(data)
            assert 400 <= response.status < 500
            assert response.headers["content-type"] == "application/problem+json"
            assert response.headers["x-edged-node"] == "n1"
            assert TIMING.match(response.headers["server-timing"])
            assert response.json()["status"] == response.status
            instance = f"urn:edged:request:{response.headers['x-request-id']}"
            assert response.json()["instance"] == instance
        adapters = await server.exchange(b"nonsense\r\n\r\n")
        assert adapters.headers["x-edged-node"] == "n1"
        assert TIMING.match(adapters.headers["server-timing"])


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"abc-123.x_y", True),
        (b"a" * 64, True),
        (b"a" * 65, False),
        (b"a b", False),
        (b'"><script>', False),
        (b"\xff", False),
        (b"", False),
    ],
)
async def test_a_sane_request_id_is_kept(sent: bytes, kept: bool) -> None:
    async with gateway(hello()) as server:
        response = await server.exchange(request(b"/hello", b"X-Request-Id: " + sent))
        assert (response.headers["x-request-id"].encode() == sent) == kept
        assert re.match(r"[A-Za-z0-9._:-]{1,64}\Z", response.headers["x-request-id"])


async def test_request_ids_differ_and_are_in_the_log() -> None:
    async with gateway(hello()) as server:
        ids = [
            (await server.exchange(request(b"/absent"))).headers["x-request-id"] for _ in range(3)
        ]
        assert len(set(ids)) == 3
        logged = [json.loads(line).get("request_id") for line in server.log.getvalue().splitlines()]
        assert set(ids) <= set(logged)


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/absent",
        b"//hello",
        b"/Hello",
        b"/hel%6Co",
        b"/_edged/other",
        b"/../hello",
        b"/" + b"a" * 200,
        b"/%00",
        b"/%ff%fe",
        b"/hello%0d%0aX:y",
    ],
)
async def test_what_is_no_function_is_404(path: bytes) -> None:
    async with gateway(hello()) as server:
        response = await server.exchange(request(path))
        assert response.status == 404
        assert response.json()["type"] == "urn:edged:error:function-not-found"


async def test_methods() -> None:
    functions = hello()
    functions.add("put-only", spec(methods=("PUT",)), lambda call: result(b"put"))
    functions.add("get-only", spec(methods=("GET",)), lambda call: result(b"got"))
    async with gateway(functions) as server:
        refused = await server.exchange(request(method=b"DELETE"))
        assert refused.status == 405
        assert refused.headers["allow"] == "GET, HEAD, POST"
        assert (await server.exchange(request(method=b"OPTIONS"))).status == 405
        assert (await server.exchange(request(b"/put-only", method=b"PUT"))).body == b"put"
        assert (await server.exchange(request(b"/put-only"))).headers["allow"] == "PUT"
        head = await server.exchange(request(b"/get-only", method=b"HEAD"), method="HEAD")
        assert (head.status, head.headers["content-length"]) == (200, "3")


async def test_bodies_up_to_the_policys_limit() -> None:
    functions = Behaviours()
    limit = 1000
    functions.add("echo", spec(policy=Policy(body_bytes=limit)), lambda call: result(call.stdin))
    chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with gateway(functions) as server:
        exact = await server.exchange(request(b"/echo", method=b"POST", body=b"x" * limit))
        assert exact.body == b"x" * limit
        over = await server.exchange(request(b"/echo", method=b"POST", body=b"x" * (limit + 1)))
        assert over.status == 413
        assert over.json()["limit_bytes"] == limit
        pieces = await server.exchange(chunked + b"1f4\r\n" + b"x" * 500 + b"\r\n0\r\n\r\n")
        assert pieces.body == b"x" * 500
        late = await server.exchange(chunked + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
        assert late.status == 413
        assert len(functions.calls) == 2


async def test_a_trickled_body_holds_no_slot_and_times_out() -> None:
    functions = Behaviours()
    functions.add("one", spec(policy=Policy(concurrency=1)), lambda call: result(b"ok"))
    async with gateway(functions, http=QUICK) as server:
        slow = await server.connect()
        await slow.send(b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        await server.until(lambda: server.server.statistics().in_flight == 1)
        assert (await server.exchange(request(b"/one"))).status == 200
        assert (await slow.response()).status == 408


async def test_all_bodies_together_are_bounded() -> None:
    functions = hello()
    async with gateway(functions, limits=GatewayLimits(bodies_bytes_max=1500)) as server:
        holder = await server.connect()
        await holder.send(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
        await holder.send(b"x" * 1000)
        await trio.sleep(0.05)
        response = await server.exchange(request(method=b"POST", body=b"y" * 1000))
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        await holder.send(b"x")
        assert (await holder.response()).status == 200
        again = await server.exchange(request(method=b"POST", body=b"y" * 1000))
        assert again.status == 200


async def test_concurrency_is_429_and_draining_503() -> None:
    functions = Behaviours()
    release = threading.Event()

    def wait(call: Invocation) -> InvocationResult:
        release.wait(10)
        return result(b"done")

    functions.add("one", spec(policy=Policy(concurrency=1)), wait)
    async with gateway(functions) as server:
        first = await server.connect()
        await first.send(request(b"/one"))
        await server.until(lambda: functions.admitted["one"] == 1)
        busy = await server.exchange(request(b"/one"))
        assert (busy.status, busy.headers["retry-after"]) == (429, "1")
        functions.draining = True
        draining = await server.exchange(request(b"/one"))
        assert (draining.status, draining.headers["retry-after"]) == (503, "1")
        release.set()
        assert (await first.response()).body == b"done"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (GuestTrap("the guest trapped: unreachable", private="wasm backtrace"), 500, "trap"),
        (GuestExit("the guest exited with 3"), 500, "guest-exit"),
        (DeadlineExceeded("over 10 ms"), 504, "deadline"),
        (OutputLimitExceeded("over 10 bytes"), 502, "output-limit"),
        (CompileFailed("memory", "gave up", private="rss 2 GB"), 500, "compile-failed"),
        (NoHolder("no peer has it", digest="ab" * 32), 503, "no-holder"),
        (Overloaded("no thread"), 503, "overloaded"),
        (EdgedError("odd", private="traceback"), 500, "internal"),
    ],
)
async def test_errors_follow_the_table_and_leak_nothing(
    error: EdgedError, status: int, code: str
) -> None:
    functions = Behaviours()

    def fail(call: Invocation) -> InvocationResult:
        raise error

    functions.add("bad", spec(), fail)
    async with gateway(functions) as server:
        response = await server.exchange(request(b"/bad"))
        assert response.status == status
        document = response.json()
        assert document["type"] == f"urn:edged:error:{code}"
        assert document["detail"] == str(error)
        assert ("retry-after" in response.headers) == (status == 503)
        assert response.headers["x-edged-version"] == functions.lookup("bad").version[:12]
        if error.private:
            assert error.private not in response.body.decode()
            assert error.private in server.log.getvalue()
        if isinstance(error, NoHolder):
            assert document["digest"] == "ab" * 32
        assert server.metrics.errors.labels(code).value == 1
        labels = ("bad", str(status), "warm")
        assert server.metrics.requests.labels(*labels).value == 1


async def test_private_details_reach_the_functions_log() -> None:
    functions = Behaviours()

    def fail(call: Invocation) -> InvocationResult:
        raise CompileFailed("crash", "the compiler crashed", private="signal 11")

    functions.add("bad", spec(), fail)
    functions.add("cgi", spec("cgi"), lambda call: result(b"no block here"))
    async with gateway(functions) as server:
        await server.exchange(request(b"/bad"))
        broken = await server.exchange(request(b"/cgi"))
        assert broken.status == 502
        assert broken.headers["x-edged-start"] == "warm"
        assert b"no block here" not in broken.body
    assert ("bad", "edged", "signal 11") in functions.logged
    assert any(name == "cgi" and "no block here" in text for name, _, text in functions.logged)


async def test_a_client_that_leaves_stops_its_guest_and_frees_its_slot() -> None:
    functions = Behaviours()
    functions.add("long", spec(), functions.until_cancelled)
    async with gateway(functions) as server:
        client = await server.connect()
        await client.send(request(b"/long"))
        await server.until(lambda: bool(functions.cancels))
        await client.aclose()
        await server.until(lambda: functions.admitted["long"] == 0)
        assert functions.cancels[0].is_set()
        await server.empty()
        labels = ("long", "499", "warm")
        assert server.metrics.requests.labels(*labels).value == 1


async def test_the_drains_deadline_stops_guests() -> None:
    functions = Behaviours()
    functions.add("long", spec(), functions.until_cancelled)
    async with gateway(functions) as server:
        client = await server.connect()
        await client.send(request(b"/long"))
        await server.until(lambda: bool(functions.cancels))
        assert await server.drain(0.1) == 1
        assert (await client.response()).status == 503


async def test_the_requests_metric_has_a_bounded_number_of_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Statuses are the guests' to choose: each would be a series for ever."""
    monkeypatch.setattr(app, "ROUTES_MAX", 3)
    functions = Behaviours()
    for number in range(5):
        text = b"Content-Type: text/plain\nStatus: %d\n\n" % (200 + number)
        functions.add(f"f{number}", spec("cgi"), lambda call, text=text: result(text))
    async with gateway(functions) as server:
        for number in range(5):
            assert (await server.exchange(request(b"/f%d" % number))).status == 200 + number
        assert (await server.exchange(request(b"/f4"))).status == 204

        def count(number: int) -> float | None:
            children = dict(server.metrics.requests.children())
            values = (f"f{number}", str(200 + number), "warm")
            found = children.get(tuple(zip(("function", "status", "start"), values, strict=True)))
            return None if found is None else found.value

        assert [count(number) for number in range(5)] == [None, None, 1, 1, 2]


async def test_health_follows_the_nodes_state() -> None:
    state = ["starting"]
    async with gateway(hello(), state=lambda: state[0]) as server:  # type: ignore[arg-type,return-value]
        starting = await server.exchange(request(b"/_edged/health"))
        assert (starting.status, starting.json()) == (503, {"status": "starting"})
        state[0] = "ready"
        ready = await server.exchange(request(b"/_edged/health"))
        assert (ready.status, ready.json()) == (200, {"status": "ready"})
        assert ready.headers["x-edged-node"] == "n1"
        assert TIMING.match(ready.headers["server-timing"])
        state[0] = "draining"
        draining = await server.exchange(request(b"/_edged/health"))
        assert (draining.status, draining.headers["retry-after"]) == (503, "1")
        assert (await server.exchange(request(b"/_edged/health", method=b"POST"))).status == 405


async def test_raw_end_to_end() -> None:
    functions = Behaviours()

    def show(call: Invocation) -> InvocationResult:
        return result(repr((dict(call.env), call.args, call.stdin)).encode())

    policy = Policy(env={"PINNED": "by the operator"})
    functions.add("show", spec(args=("-v",), policy=policy), show)
    functions.add("bytes", spec(), lambda call: result(b"\xff\xfe"))
    async with gateway(functions) as server:
        response = await server.exchange(request(b"/show?a=1&b=%C3%A9+x&PINNED=mine&flag"))
        env = {b"a": b"1", b"b": "é x".encode(), b"PINNED": b"by the operator", b"flag": b""}
        assert response.body.decode() == repr((env, (b"show", b"-v"), b""))
        binary = await server.exchange(request(b"/bytes"))
        assert binary.headers["content-type"] == "application/octet-stream"
        for query in (b"a%00=1", b"a=%00", b"a%3Db=1", b"=1", b"%ff=1", b"a=%ff", b"a%0a=1"):
            assert (await server.exchange(request(b"/show?" + query))).status == 400


async def test_cgi_end_to_end() -> None:
    functions = Behaviours()

    def script(call: Invocation) -> InvocationResult:
        env = dict(call.env)
        if env[b"PATH_INFO"] == b"/redirect":
            return result(b"location: /elsewhere\n\n")
        lines = b"\n".join(name + b"=" + value for name, value in call.env)
        return result(b"Content-Type: text/x\r\nStatus: 404 Not found\r\nX-A: b\r\n\r\n" + lines)

    functions.add("cgi", spec("cgi"), script)
    async with gateway(functions) as server:
        response = await server.exchange(
            request(b"/cgi/a%20b?q=1&x", b"Proxy: evil", b"Authorization: Basic x", b"X-Y: z")
        )
        assert (response.status, response.headers["content-type"]) == (404, "text/x")
        assert response.headers["x-a"] == "b"
        env = dict(line.split(b"=", 1) for line in response.body.split(b"\n"))
        assert env[b"PATH_INFO"] == b"/a b"
        assert env[b"SERVER_NAME"] == b"n1.test"
        assert env[b"SERVER_PORT"] == b"8080"
        assert env[b"X_FULL_URL"] == b"http://n1.test:8080/cgi/a%20b?q=1&x"
        assert env[b"HTTP_X_Y"] == b"z"
        assert b"HTTP_PROXY" not in env
        assert b"HTTP_AUTHORIZATION" not in env
        assert functions.calls[0].args == (b"/cgi", b"q=1", b"x")
        redirect = await server.exchange(request(b"/cgi/redirect"))
        assert (redirect.status, redirect.headers["location"]) == (302, "/elsewhere")
        assert (await server.exchange(request(b"/cgi/%00"))).status == 400
        assert (await server.exchange(request(b"/cgi/a%0d%0ab"))).status == 400


async def test_export_end_to_end() -> None:
    functions = Behaviours()
    functions.exports = {"add": ("i32", "i32"), "swap": ("i64", "i64"), "nothing": ()}

    def call_export(call: Invocation) -> InvocationResult:
        assert call.export is not None
        params = [int(text) for text in call.export.params]
        if call.export.name == "add":
            return result(values=(sum(params),))
        return result(values=tuple(reversed(params)))

    functions.add("math", spec("export"), call_export)
    async with gateway(functions) as server:
        one = await server.exchange(request(b"/math/add?a=5&b=10"))
        assert (one.body, one.headers["content-type"]) == (b"15\n", "text/plain; charset=utf-8")
        json_one = await server.exchange(
            request(b"/math/add?a=5&b=10", b"Accept: application/json")
        )
        assert (json_one.body, json_one.headers["content-type"]) == (b"15\n", "application/json")
        two = await server.exchange(request(b"/math/swap?a=1&b=9223372036854775807"))
        assert two.body == b"[9223372036854775807,1]\n"
        assert (await server.exchange(request(b"/math/nothing"))).status == 204
        assert (await server.exchange(request(b"/math/absent"))).status == 404
        assert (await server.exchange(request(b"/math"))).status == 404
        wrong = await server.exchange(request(b"/math/add?a=5&b=ten"))
        assert wrong.status == 400
        assert "parameter 2 ('b') is not an i32" in wrong.json()["detail"]
        assert (await server.exchange(request(b"/math/add?a=5"))).status == 400
