"""What the strict gate lets through, h11 reads the same way; what it does not, it refuses typed.

h11 is the oracle, not a part of the server: two parsers that disagree on one message are what
request smuggling needs, so every accepted head is checked against the other reading.
"""

from __future__ import annotations

import contextlib

import h11
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest, HeadersTooLarge, PayloadTooLarge
from edged.http.head import CHUNKED, parse_head
from edged.http.limits import HttpLimits

LIMITS = HttpLimits()

TOKEN = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=12)
NASTY = st.sampled_from(
    ["\r", "\n", "\x00", "\t", " ", ":", "\x0b", "\x7f", "\xe9", "\x85", ",", ";", "chunked", "5"]
)
VALUE = st.lists(st.one_of(st.text('abc 019\t,;="', max_size=8), NASTY), max_size=4).map("".join)
NAMES = st.one_of(
    st.sampled_from(
        [
            "Host", "host", "Content-Length", "Transfer-Encoding", "Connection", "Expect",
            "Upgrade", "X-A", "X A", "", " X",
        ]
    ),
    TOKEN,
)  # fmt: skip
LIKELY = st.sampled_from(
    [
        "Host: test", "Content-Length: 5", "Transfer-Encoding: chunked", "Connection: close",
        "Transfer-Encoding: Chunked", "Expect: 100-continue", "Host: test:80", "X-Y:  z ",
    ]
)  # fmt: skip
LINE = st.one_of(LIKELY, st.tuples(NAMES, VALUE).map(lambda pair: f"{pair[0]}: {pair[1]}"))
REQUEST_LINE = st.one_of(
    st.sampled_from(
        [
            "GET / HTTP/1.1", "POST /a?b HTTP/1.1", "GET / HTTP/1.0", "OPTIONS * HTTP/1.1",
            "GET http://test/x HTTP/1.1", "CONNECT a:1 HTTP/1.1", "GET / HTTP/2.0", "GET /",
        ]
    ),
    st.tuples(TOKEN, VALUE, st.sampled_from(["1.1", "1.0", "2.0"])).map(
        lambda parts: f"{parts[0]} /{parts[1]} HTTP/{parts[2]}"
    ),
)  # fmt: skip
ENDS = st.sampled_from(["\r\n"] * 8 + ["\n", "\r"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    lines = [draw(REQUEST_LINE), *draw(st.lists(LINE, max_size=6))]
    text = "".join(line + draw(ENDS) for line in lines) + "\r\n"
    raw = text.encode("latin1")
    end = raw.find(b"\r\n\r\n")
    return raw[: end + 4] if end >= 0 else raw + b"\r\n\r\n"


@given(heads())
def test_accepted_heads_mean_the_same_to_h11(raw: bytes) -> None:
    try:
        head = parse_head(raw, LIMITS)
    except (BadRequest, HeadersTooLarge, PayloadTooLarge):
        return
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(raw)
    event = oracle.next_event()
    assert isinstance(event, h11.Request)
    assert event.method.decode() == head.method
    assert event.http_version.decode() == head.version
    assert [(bytes(name), bytes(value)) for name, value in event.headers] == [
        (name, value.lower() if name == b"transfer-encoding" else value)
        for name, value in head.headers
    ]
    assert event.target == head.target or event.target.startswith(b"http://")
    body = b"5\r\nabcde\r\n0\r\n\r\n" if head.body == CHUNKED else b"a" * head.body
    oracle.receive_data(body + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    received = b""
    while isinstance(event := oracle.next_event(), h11.Data):
        received += event.data
        if len(received) > 1_000_000:
            return
    assert isinstance(event, h11.EndOfMessage)
    assert received == (b"abcde" if head.body == CHUNKED else body)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_typed_refusals(data: bytes) -> None:
    with contextlib.suppress(BadRequest, HeadersTooLarge, PayloadTooLarge):
        parse_head(data.replace(b"\r\n\r\n", b"") + b"\r\n\r\n", LIMITS)
