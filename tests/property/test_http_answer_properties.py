"""Answers of peers: any split of the bytes reads the same, h11 agrees, errors are typed."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edged.errors import PeerError
from edged.http import AnswerReader
from edged.http.answer import FIELDS_MAX, HEAD_BYTES_MAX

Read = tuple[int, list[tuple[bytes, bytes]], bytes, bytes]


def read(method: str, pieces: list[bytes]) -> Read | str:
    """(status, headers, body, rest), "bad", or "more" if the answer has not ended."""
    reader = AnswerReader(method)
    body = rest = b""
    try:
        for piece in pieces:
            if reader.done:
                rest += piece
            else:
                body += reader.feed(piece)
    except PeerError:
        return "bad"
    if not reader.done:
        return "more"
    assert reader.head is not None
    return reader.head.status, reader.head.headers, body, reader.rest + rest


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    status = draw(st.sampled_from(["200", "204", "304", "404", "503", "099", "101", "700"]))
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    body = draw(st.binary(max_size=40))
    framing, sent = draw(
        st.sampled_from(
            [
                (b"content-length: %d\r\n" % len(body), body),
                (
                    b"Transfer-Encoding: chunked\r\n",
                    (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n",
                ),
                (b"", b""),
                (b"content-length: 1\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"),
                (b"content-length: 1\r\ncontent-length: 1\r\n", b"x"),
                (b"content-length: +1\r\n", b"x"),
            ]
        )
    )
    fields = draw(st.sampled_from([b"", b"X-A: b\r\n", b"x-a:\tb \r\nconnection: close\r\n"]))
    message = interim + b"HTTP/1.1 %b OK\r\n" % status.encode() + fields + framing + b"\r\n" + sent
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=2)):
        if at < len(message):
            message = message[:at] + bytes((byte,)) + message[at + 1 :]
    return message


@given(st.sampled_from(["GET", "HEAD"]), answers(), st.binary(max_size=9), st.integers(0, 200))
@example("GET", b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n", b"more", 3)
def test_all_at_once_is_byte_by_byte(method: str, answer: bytes, after: bytes, cut: int) -> None:
    whole = answer + after
    expected = read(method, [whole])
    assert read(method, [bytes((byte,)) for byte in whole]) == expected
    assert read(method, [piece for piece in (whole[:cut], whole[cut:]) if piece]) == expected


@given(st.sampled_from(["GET", "HEAD"]), answers())
def test_what_is_accepted_means_the_same_to_h11(method: str, answer: bytes) -> None:
    found = read(method, [answer])
    if isinstance(found, str):
        return
    oracle = h11.Connection(h11.CLIENT)
    oracle.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    oracle.send(h11.EndOfMessage())
    oracle.receive_data(answer)
    event = oracle.next_event()
    while isinstance(event, h11.InformationalResponse):
        event = oracle.next_event()
    assert isinstance(event, h11.Response)
    body = b""
    while isinstance(data := oracle.next_event(), h11.Data):
        body += bytes(data.data)
    assert isinstance(data, h11.EndOfMessage)
    assert (event.status_code, body) == (found[0], found[2])
    # h11 writes the coding in lower case.
    assert [(name, value.lower()) for name, value in event.headers] == [
        (name, value.lower()) for name, value in found[1]
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: \0\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\nb\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 2,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * (FIELDS_MAX + 1) + b"content-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_BYTES_MAX,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
    ids=range(10),
)
def test_what_is_refused(answer: bytes) -> None:
    assert read("GET", [answer]) == "bad"
