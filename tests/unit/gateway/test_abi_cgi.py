"""`cgi`: RFC 3875 in the Wagi manner."""

from __future__ import annotations

import pytest
from abi_support import Exports, function, request, result

from edged.errors import BadRequest, MalformedGuestOutput
from edged.gateway.abi.cgi import Cgi, header_variables, query_words
from edged.interfaces import Invocation
from protocol.function import Policy


async def invocation(policy: Policy | None = None, **fields: object) -> Invocation:
    made = function(args=("-x",), policy=policy or Policy())
    return await Cgi().invocation(request(**fields), made, Exports())  # type: ignore[arg-type]


async def test_meta_variables() -> None:
    made = await invocation(
        method="POST",
        path_info=b"/a%20b/%C3%A9",
        query=b"q=1&r",
        headers=[(b"host", b"edge.test:81"), (b"content-type", b"text/x"), (b"x-y", b"z")],
        body=b"body",
    )
    assert dict(made.env) == {
        b"AUTH_TYPE": b"",
        b"CONTENT_LENGTH": b"4",
        b"CONTENT_TYPE": b"text/x",
        b"GATEWAY_INTERFACE": b"CGI/1.1",
        b"HTTP_HOST": b"edge.test:81",
        b"HTTP_X_Y": b"z",
        b"PATH_INFO": "/a b/é".encode(),
        b"PATH_TRANSLATED": "/a b/é".encode(),
        b"QUERY_STRING": b"q=1&r",
        b"REMOTE_ADDR": b"192.0.2.7",
        b"REMOTE_HOST": b"192.0.2.7",
        b"REMOTE_USER": b"",
        b"REQUEST_METHOD": b"POST",
        b"SCRIPT_NAME": b"/fn",
        b"SERVER_NAME": b"edge.test",
        b"SERVER_PORT": b"81",
        b"SERVER_PROTOCOL": b"HTTP/1.1",
        b"SERVER_SOFTWARE": b"edged",
        b"X_FULL_URL": b"http://edge.test:81/fn/a%20b/%C3%A9?q=1&r",
        b"X_MATCHED_ROUTE": b"/fn/...",
        b"X_RAW_PATH_INFO": b"/a%20b/%C3%A9",
    }
    assert made.args == (b"/fn", b"-x", b"q=1", b"r")
    assert made.stdin == b"body"


@pytest.mark.parametrize(
    ("headers", "name", "port"),
    [
        ([(b"host", b"a")], b"a", b"8080"),
        ([(b"host", b"a:")], b"a", b"8080"),
        ([(b"host", b"[::1]:7")], b"[::1]", b"7"),
        ([(b"host", b"[::1]")], b"[::1]", b"8080"),
        ([], b"127.0.0.1", b"8080"),
    ],
)
async def test_the_servers_name(
    headers: list[tuple[bytes, bytes]], name: bytes, port: bytes
) -> None:
    env = dict((await invocation(headers=headers)).env)
    assert (env[b"SERVER_NAME"], env[b"SERVER_PORT"]) == (name, port)


async def test_meta_variables_win_over_the_policys_env() -> None:
    policy = Policy(env={"REQUEST_METHOD": "FAKE", "MINE": "1"})
    env = dict((await invocation(policy)).env)
    assert (env[b"REQUEST_METHOD"], env[b"MINE"]) == (b"GET", b"1")


async def test_no_header_can_become_a_meta_variable() -> None:
    headers = [(b"host", b"a"), (b"remote-addr", b"1.2.3.4"), (b"request_method", b"X")]
    env = dict((await invocation(headers=headers)).env)
    assert env[b"REMOTE_ADDR"] == b"192.0.2.7"
    assert env[b"HTTP_REMOTE_ADDR"] == b"1.2.3.4"
    assert b"HTTP_REQUEST_METHOD" not in env


def test_what_is_withheld() -> None:
    headers = [
        (b"proxy", b"http://evil"),
        (b"authorization", b"Basic x"),
        (b"proxy-authorization", b"Basic x"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"1"),
        (b"content-type", b"x"),
        (b"x_under", b"score"),
        (b"x-latin", b"\xe9"),
    ]
    assert header_variables(headers) == {}


def test_repeated_headers_are_joined() -> None:
    env = header_variables(
        [(b"x-a", b"1"), (b"cookie", b"a=1"), (b"x-a", b"2"), (b"cookie", b"b=2")]
    )
    assert env == {b"HTTP_X_A": b"1, 2", b"HTTP_COOKIE": b"a=1; b=2"}


def test_words() -> None:
    assert query_words(b"") == []
    assert query_words(b"a=1&b%20c&&d+e") == [b"a=1", b"b c", b"d e"]
    with pytest.raises(BadRequest):
        query_words(b"&".join([b"x"] * 65))
    for bad in (b"%00", b"%ff", b"%"):
        with pytest.raises(BadRequest):
            query_words(bad)


@pytest.mark.parametrize("path", [b"/%00", b"/%0a", b"/%0D", b"/%ff", b"/%", b"/%g0"])
async def test_paths_that_cannot_be_variables(path: bytes) -> None:
    with pytest.raises(BadRequest):
        await invocation(path_info=path)


@pytest.mark.parametrize(
    ("stdout", "status", "headers", "body"),
    [
        (b"Content-Type: text/x\n\nhi", 200, [(b"content-type", b"text/x")], b"hi"),
        (b"content-type:text/x\r\n\r\nhi", 200, [(b"content-type", b"text/x")], b"hi"),
        (b"content-type: a\r\n\nhi", 200, [(b"content-type", b"a")], b"hi"),
        (b"content-type: a\n\n", 200, [(b"content-type", b"a")], b""),
        (b"content-type: a\n\n\n\nx", 200, [(b"content-type", b"a")], b"\n\nx"),
        (b"status: 404 Not found\ncontent-type: a\n\nx", 404, [(b"content-type", b"a")], b"x"),
        (b"Status: 201\ncontent-type: a\n\n", 201, [(b"content-type", b"a")], b""),
        (b"location: /x\n\n", 302, [(b"location", b"/x")], b""),
        (b"Location: /x\nStatus: 308\n\n", 308, [(b"location", b"/x")], b""),
        (
            b"content-type: a\nset-cookie: b\nset-cookie: c\n\n",
            200,
            [(b"content-type", b"a"), (b"set-cookie", b"b"), (b"set-cookie", b"c")],
            b"",
        ),
        (
            b"content-type: a\nconnection: close\ncontent-length: 99\nX-Edged-Node: fake\n\n",
            200,
            [(b"content-type", b"a")],
            b"",
        ),
        (b"status: 204\ncontent-type: a\n\nignored", 204, [(b"content-type", b"a")], b""),
    ],
)
def test_outputs(
    stdout: bytes, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    response = Cgi().response(request(), function(), result(stdout))
    assert (response.status, response.headers, response.body) == (status, headers, body)


@pytest.mark.parametrize(
    "stdout",
    [
        b"",
        b"\n\nbody",
        b"no block",
        b"content-type: a\nno end",
        b"x: y\n\n",
        b"status: 200\n\n",
        b"content-type: a\nbroken line\n\n",
        b"content-type: a\nx : y\n\n",
        b"content-type: a\n folded\n\n",
        b"content-type: a\nx: \x00\n\n",
        b"content-type: a\nx: b\rset-cookie: c\n\n",
        b"content-type: a\r\r\n\r\n",
        b"content-type: a\n: y\n\n",
        b"content-type: a\nx\xc3\xa9: y\n\n",
        b"content-type: a\ncontent-type: b\n\n",
        b"location: /a\nlocation: /b\n\n",
        b"content-type: a\nstatus: 99\n\n",
        b"content-type: a\nstatus: 101\n\n",
        b"content-type: a\nstatus: 600\n\n",
        b"content-type: a\nstatus: OK\n\n",
        b"content-type: a\n" + b"x: y\n" * 100 + b"\n",
        b"content-type: a\nx: " + b"y" * 40_000 + b"\n\n",
    ],
)
def test_malformed_outputs(stdout: bytes) -> None:
    with pytest.raises(MalformedGuestOutput) as caught:
        Cgi().response(request(), function(), result(stdout))
    assert "stdout began" in caught.value.private
    assert "stdout began" not in str(caught.value)


def test_a_line_made_to_be_slow_is_refused_as_fast_as_any() -> None:
    """Overlapping quantifiers took minutes for this; the run's time limit is the assertion."""
    with pytest.raises(MalformedGuestOutput):
        Cgi().response(
            request(), function(abi="cgi"), result(b"content-type:" + b" " * 32_000 + b"\x01\n\n")
        )
