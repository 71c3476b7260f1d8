"""`raw`: query keys become the environment, stdout is the body."""

from __future__ import annotations

import pytest
from abi_support import Exports, function, request, result

from edged.errors import BadRequest
from edged.gateway.abi.raw import JUDGED_BYTES, KEYS_MAX, Raw, query_env
from protocol.function import Policy


async def test_the_invocation() -> None:
    made = await Raw().invocation(
        request(query=b"a=1", body=b"in"),
        function(args=("-x",), entrypoint="run", policy=Policy(env={"p": "q"})),
        Exports(),  # type: ignore[arg-type]
    )
    assert made.args == (b"fn", b"-x")
    assert dict(made.env) == {b"a": b"1", b"p": b"q"}
    assert (made.stdin, made.entrypoint, made.export) == (b"in", "run", None)
    assert made.policy.env == {"p": "q"}


async def test_the_policys_env_wins() -> None:
    made = await Raw().invocation(
        request(query=b"p=mine&P=other"),
        function(policy=Policy(env={"p": "pinned"})),
        Exports(),  # type: ignore[arg-type]
    )
    assert dict(made.env) == {b"p": b"pinned", b"P": b"other"}


@pytest.mark.parametrize(
    ("query", "env"),
    [
        (b"a=1&b=2", {b"a": b"1", b"b": b"2"}),
        (b"a=1&a=2", {b"a": b"2"}),
        (b"a", {b"a": b""}),
        (b"a=", {b"a": b""}),
        (b"a=b=c", {b"a": b"b=c"}),
        (b"a=%3D%26+%2B", {b"a": b"=& +"}),
        (b"%C3%A9=%c3%a9", {"é".encode(): "é".encode()}),
        (b"a+b=1", {b"a b": b"1"}),
        (b"&&a=1&", {b"a": b"1"}),
        (b"a=x%0Ay%0D", {b"a": b"x\ny\r"}),
    ],
)
def test_queries(query: bytes, env: dict[bytes, bytes]) -> None:
    assert query_env(query) == env


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (b"=1", "empty"),
        (b"a%00b=1", "NUL"),
        (b"a=%00", "NUL"),
        (b"a%3db=1", "'='"),
        (b"%ff=1", "UTF-8"),
        (b"a=%c3", "UTF-8"),
        (b"a=%", "two hex digits"),
        (b"a=%1", "two hex digits"),
        (b"a=%zz", "two hex digits"),
        (b"a%0d=1", "CR or LF"),
        (b"a%0a=1", "CR or LF"),
        (b"a" * 129 + b"=1", "128"),
        (b"a=" + b"b" * 8193, "8192"),
        (b"&".join(b"k%d=" % n for n in range(KEYS_MAX + 1)), "more than 64"),
    ],
)
def test_bad_queries_are_named(query: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        query_env(query)


@pytest.mark.parametrize(
    ("stdout", "kind"),
    [
        (b"", b"text/plain; charset=utf-8"),
        (b"abc", b"text/plain; charset=utf-8"),
        ("é".encode(), b"text/plain; charset=utf-8"),
        (b"\xff", b"application/octet-stream"),
        (b"a\x00b", b"text/plain; charset=utf-8"),
        (b"\xc3", b"application/octet-stream"),
        ("é".encode() + b"\xff" * JUDGED_BYTES, b"application/octet-stream"),
        # A character across the bound is no fault, and behind it nothing is judged.
        (b"a" * (JUDGED_BYTES - 1) + "é".encode(), b"text/plain; charset=utf-8"),
        (b"a" * (JUDGED_BYTES - 3) + "🙂".encode(), b"text/plain; charset=utf-8"),
        (b"a" * (JUDGED_BYTES - 1) + b"\xc3", b"application/octet-stream"),
        (b"a" * (JUDGED_BYTES - 2) + b"\xff\xc3more", b"application/octet-stream"),
        ("é".encode() * JUDGED_BYTES + b"\xff", b"text/plain; charset=utf-8"),
    ],
)
def test_stdout_is_the_body(stdout: bytes, kind: bytes) -> None:
    response = Raw().response(request(), function(), result(stdout))
    assert (response.status, response.body) == (200, stdout)
    assert response.headers == [(b"content-type", kind)]


def test_methods() -> None:
    assert Raw().methods == ("GET", "HEAD", "POST")
