"""protocol.streams: frames, their bounds, and which side may say what. SPEC §10."""

from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.ids import NodeId, digest_of
from protocol.records import BUNDLE_BYTES_MAX
from protocol.streams import (
    BITMAP_BYTES_MAX,
    BODY_BYTES_MAX,
    FETCHERS_MAX,
    HAVE_INDICES_MAX,
    HEAD_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    SEGMENT_WIRE_MAX,
    SEGMENTS_MAX,
    Cancel,
    Confirm,
    Confirmed,
    DeltaPart,
    Done,
    ErrorReply,
    GetAny,
    GetDelta,
    GetManifest,
    GetSegment,
    Have,
    ManifestReply,
    Nothing,
    Offer,
    Ping,
    Pong,
    Records,
    RecordsStored,
    Replicate,
    Replicated,
    SegmentReply,
    Sync,
    SyncReply,
    Want,
    encode_frame,
    frame_head,
    reply_reader,
    request_reader,
)

BLOB = digest_of(b"x")
NODE = NodeId("a" * 32)


def test_golden_frames() -> None:
    assert encode_frame(Ping(7)).hex() == "000000050003920107"
    assert encode_frame(SegmentReply(1, 2), b"abc").hex() == "00000009000493440102616263"
    assert encode_frame(GetSegment(1, BLOB, 2))[:6].hex() == "000000480046"


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (Ping(0), b""),
        (Sync(0xFFFF_FFFF), b"s" * 1024),
        (GetManifest(1, BLOB), b""),
        (GetSegment(1, BLOB, 8191), b""),
        (Want(1, BLOB), b"\xff" * BITMAP_BYTES_MAX),
        (GetAny(1, BLOB), b""),
        (GetDelta(1, BLOB, (BLOB,) * 4, 5), b""),
        (Have(BLOB, tuple(range(7000, 7000 + HAVE_INDICES_MAX))), b""),
        (Cancel(9), b""),
        (Replicate(1, BLOB, BLOB), b""),
        (Records(2), b"r" * BUNDLE_BYTES_MAX),
        (Confirm(3, BLOB), b""),
        (Done(BLOB), b""),
    ],
)
def test_requests_round_trip(message, body) -> None:  # type: ignore[no-untyped-def]
    reader = request_reader()
    reader.feed(encode_frame(message, body))
    assert reader.next_frame() == (message, body)
    assert reader.next_frame() is None
    assert not reader.mid_frame


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (Pong(0), b""),
        (SyncReply(1), b"s" * 1024),
        (ManifestReply(1), b"m" * MANIFEST_BYTES_MAX),
        (SegmentReply(1, 0), b"w" * SEGMENT_WIRE_MAX),
        (Offer(1, True, ()), b""),
        (Offer(1, False, (NODE,) * FETCHERS_MAX), b"\x01" * BITMAP_BYTES_MAX),
        (Nothing(1), b""),
        (DeltaPart(1, BLOB, 7), b"delta"),
        (Replicated(1), b""),
        (RecordsStored(2), b""),
        (Confirmed(3, True), b""),
        (ErrorReply(1, "blob-not-found", "t" * 200), b""),
    ],
)
def test_replies_round_trip(message, body) -> None:  # type: ignore[no-untyped-def]
    reader = reply_reader()
    reader.feed(encode_frame(message, body))
    assert reader.next_frame() == (message, body)


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(Pong(1)),
        b"\x00\x00\x00\x02\x00\x00",
        b"\x00\x00\x00\x01\x00\x03",
        (HEAD_BYTES_MAX + 3).to_bytes(4, "big") + (HEAD_BYTES_MAX + 1).to_bytes(2, "big"),
        (2 + HEAD_BYTES_MAX + BODY_BYTES_MAX + 1).to_bytes(4, "big")
        + HEAD_BYTES_MAX.to_bytes(2, "big"),
        (2 + 3 + BODY_BYTES_MAX + 1).to_bytes(4, "big") + b"\x00\x03",
        b"\x00\x00\x00\x06\x00\x03\x92\x01\x01",  # a ping with a body, seen before it comes
        b"\x00\x00\x00\x05\x00\x03\x92\x01\xff",  # id -1
        b"\x00\x00\x00\x04\x00\x02\x91\x01",  # no id
        b"\x00\x00\x00\x06\x00\x04\x93\x01\x01\x01",  # a field more
        b"\x00\x00\x00\x03\x00\x01\xc1",
        encode_frame(GetSegment(1, BLOB, 0)).replace(BLOB.encode(), BLOB.upper().encode()),
        encode_frame(Have(BLOB, (0,) * (HAVE_INDICES_MAX + 1))),
        encode_frame(Have(BLOB, ())),
        encode_frame(Have(BLOB, (SEGMENTS_MAX,))),
        encode_frame(GetSegment(1, BLOB, 0)).replace(BLOB.encode(), BLOB[:-1].encode() + b"\n"),
        b"\x00\x00\x00\x4a\x00\x48\x94\x04\x01\xd9\x40" + BLOB.encode() + b"\xcd\x20\x00",
    ],
)
def test_a_frame_out_of_bounds_is_refused_as_soon_as_that_shows(data: bytes) -> None:
    reader = request_reader()
    reader.feed(data)
    with pytest.raises(RemoteProtocolError) as caught:
        reader.next_frame()
    assert caught.value.code == "frame"


def test_our_own_oversized_body_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        frame_head(Ping(1), 1)
    with pytest.raises(LocalProtocolError):
        frame_head(SegmentReply(1, 0), SEGMENT_WIRE_MAX + 1)


def test_an_end_within_a_frame_shows() -> None:
    reader = request_reader()
    assert not reader.mid_frame
    for byte in encode_frame(Sync(1), b"body")[:-1]:
        reader.feed(bytes([byte]))
        assert reader.next_frame() is None
        assert reader.mid_frame
