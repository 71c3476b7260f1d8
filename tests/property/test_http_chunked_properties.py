"""Chunked bodies: any split of the bytes gives the same, h11 agrees, errors are typed."""

from __future__ import annotations

import h11
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest, PayloadTooLarge
from edged.http.chunked import CHUNKS_PER_FEED, OVERHEAD_BYTES_MAX, ChunkDecoder

EXTENSION = st.sampled_from([b"", b"", b";a", b";a=b", b';a="b c"', b";a;b=c", b"; a", b" ", b";="])


def decode(pieces: list[bytes], limit: int = 100_000) -> tuple[bytes, bytes] | str:
    """(body, rest), or the kind of refusal; "more" if the body has not ended."""
    decoder = ChunkDecoder(limit)
    out = b""
    rest = b""
    try:
        for piece in pieces:
            if decoder.done:
                rest += piece
            else:
                out += decoder.feed(piece)
                while decoder.rest and not decoder.done:
                    out += decoder.feed(decoder.rest)
    except (BadRequest, PayloadTooLarge) as error:
        return type(error).__name__
    return (out, decoder.rest + rest) if decoder.done else "more"


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    chunks = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=5))
    size = draw(st.sampled_from(["%x", "%X", "%04x"]))
    parts = []
    for chunk in chunks:
        extension = draw(EXTENSION)
        parts.append((size % len(chunk)).encode() + extension + b"\r\n" + chunk + b"\r\n")
    trailers = draw(st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"]))
    message = b"".join(parts) + b"0\r\n" + trailers + b"\r\n"
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2)):
        if at < len(message):
            message = message[:at] + bytes((byte,)) + message[at + 1 :]
    return message


@given(messages(), st.binary(max_size=10), st.lists(st.integers(1, 40), max_size=20))
def test_all_at_once_is_byte_by_byte(message: bytes, after: bytes, cuts: list[int]) -> None:
    whole = decode([message + after])
    assert decode([bytes((byte,)) for byte in message + after]) == whole
    pieces, at = [], 0
    for cut in cuts:
        pieces.append((message + after)[at : at + cut])
        at += cut
    pieces.append((message + after)[at:])
    assert decode([piece for piece in pieces if piece]) == whole


@given(messages())
def test_accepted_bodies_mean_the_same_to_h11(message: bytes) -> None:
    decoded = decode([message])
    if isinstance(decoded, str):
        return
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(oracle.next_event(), h11.Request)
    oracle.receive_data(message)
    body = b""
    while isinstance(event := oracle.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (body, oracle.trailing_data[0]) == decoded


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_typed_refusals(data: bytes) -> None:
    decode([data], limit=1000)


@given(st.integers(0, 50), st.integers(0, 50))
def test_the_limit_is_exact(size: int, limit: int) -> None:
    message = b"1\r\nx\r\n" * size + b"0\r\n\r\n"
    expected = (b"x" * size, b"") if size <= limit else "PayloadTooLarge"
    assert decode([message], limit) == expected


@given(st.integers(1, 30), st.integers(0, 60), st.integers(0, 8 * CHUNKS_PER_FEED))
def test_framing_may_not_outweigh_the_body(size: int, extension: int, count: int) -> None:
    line = b"%x" % size + (b";" + b"a" * extension if extension else b"")
    message = (line + b"\r\n" + b"x" * size + b"\r\n") * count + b"0\r\n\r\n"
    # The last chunk's line is framing too, after all of the body.
    worst = max(
        (len(line) + 4 - size) * count + 5, *((len(line) + 4 - size) * n for n in (0, count))
    )
    expected = "BadRequest" if worst > OVERHEAD_BYTES_MAX else (b"x" * size * count, b"")
    assert decode([message], limit=size * count) == expected


@given(st.integers(0, 3 * CHUNKS_PER_FEED), st.integers(1, 4000))
def test_one_call_decodes_a_bounded_number_of_chunks(count: int, cut: int) -> None:
    message = b"5\r\nabcde\r\n" * count + b"0\r\n\r\n" + b"GET /"
    decoder = ChunkDecoder(100_000)
    out, left = b"", [message[:cut], message[cut:]]
    while left and not decoder.done:
        piece = decoder.feed(left.pop(0))
        assert len(piece) <= 5 * (CHUNKS_PER_FEED + 1)
        out += piece
        if decoder.rest:
            left.insert(0, decoder.rest)
    assert out == b"abcde" * count
    assert b"".join(left) == b"GET /"
