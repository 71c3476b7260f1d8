"""A guest's CGI output: whatever it is, it becomes a response that cannot be split, or a 502."""

from __future__ import annotations

import h11
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest, MalformedGuestOutput
from edged.gateway.abi.base import unquote
from edged.gateway.abi.cgi import Cgi
from edged.http.response import Encoder
from edged.interfaces import InvocationResult

LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"content-type: a", b"Status: 200 OK", b"status: 404", b"location: /x",
                b"X-A: b", b"connection: close", b"transfer-encoding: chunked",
                b"content-length: 3", b"", b"set-cookie: a=b",
            ]
        ),
        st.binary(max_size=12),
        st.tuples(st.binary(max_size=4), st.binary(max_size=6)).map(b": ".join),
    ),
    max_size=5,
)  # fmt: skip


@st.composite
def outputs(draw: st.DrawFn) -> bytes:
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    return b"".join(line + end for line in draw(LINES)) + end + draw(st.binary(max_size=20))


@given(outputs())
def test_an_output_becomes_one_response_or_502(stdout: bytes) -> None:
    result = InvocationResult(
        stdout=stdout, stderr=b"", stderr_truncated=False, values=(), instantiate_s=0, run_s=0
    )
    try:
        response = Cgi().response(None, None, result)  # type: ignore[arg-type]
    except MalformedGuestOutput:
        return
    head, _, _ = Encoder().head(
        method="GET",
        version="1.1",
        status=response.status,
        headers=response.headers,
        whole_bytes=len(response.body),
        close=False,
    )
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    body = b"" if response.status in (204, 304) else response.body
    client.receive_data(head + body)
    event = client.next_event()
    assert isinstance(event, h11.Response)
    assert event.status_code == response.status
    received = b""
    while isinstance(event := client.next_event(), h11.Data):
        received += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert received == body
    assert client.trailing_data[0] == b""


@given(st.binary(max_size=40))
def test_unquoting_is_exact_or_refused(data: bytes) -> None:
    quoted = b"".join(b"%%%02X" % byte for byte in data)
    try:
        assert unquote(quoted, what="x", plus=True) == data
    except BadRequest:
        assert b"\0" in data or b"\n" in data or b"\r" in data or not _is_utf8(data)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
