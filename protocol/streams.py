"""Messages on a stream between two nodes, and their frames. SPEC §10.

Rules. A frame is: u32 length of the rest, u16 length of the head (both big-endian), the head (one
msgpack message), the body (raw bytes). A message says how large its body may be; bulk travels as
body, never inside msgpack. The dialling side sends only requests and notices, the other only
replies. Each request has one reply, in the order of the requests and repeating their id, so
requests may be pipelined; a notice (Have, Cancel, Done) has none. A length out of bounds is
refused as soon as it is known, before anything is buffered for it; after any error the stream has
no frame boundary any more and must be closed.
"""

from __future__ import annotations

import struct
from typing import Annotated, ClassVar, Final, Generic, TypeVar

import msgspec
from msgspec import Meta

from .artifact import ATTESTED_BYTES_MAX
from .errors import LocalProtocolError, RemoteProtocolError
from .ids import ArtifactKey, Digest, NodeId
from .manifest import (
    BLOB_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENTS_MAX,
    WIRE_OVERHEAD_MAX,
)
from .records import BUNDLE_BYTES_MAX

ALPN: Final = "edged/1"
HTTP_ALPN: Final = "edged-http/1"
"""Plain HTTP/1.1 to a peer's gateway. SPEC §12."""
"""TLS application protocol (RFC 7301): the version of everything in this file."""

HEAD_BYTES_MAX: Final = 4096
SEGMENT_WIRE_MAX: Final = SEGMENT_BYTES_MAX + SEGMENT_BYTES_MAX // 64 + WIRE_OVERHEAD_MAX
SYNC_BYTES_MAX: Final = 1024 * 1024
BODY_BYTES_MAX: Final = max(SEGMENT_WIRE_MAX, SYNC_BYTES_MAX, MANIFEST_BYTES_MAX, BUNDLE_BYTES_MAX)
BITMAP_BYTES_MAX: Final = SEGMENTS_MAX // 8
FETCHERS_MAX: Final = 64
"""Named in one offer: 34 bytes each of a head of 4,096."""
HAVE_INDICES_MAX: Final = 256
"""In one notice: 3 bytes each of the same."""
BASES_MAX: Final = 4
"""Offered for one delta: 66 bytes each of the same."""
DELTA_PART_BYTES: Final = 256 * 1024
ERROR_TEXT_MAX: Final = 200

_PREFIX: Final = struct.Struct(">IH")

_RequestId = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
_Blob = Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Node = Annotated[NodeId, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_Key = Annotated[ArtifactKey, Meta(pattern=r"\A[0-9a-f]{1,64}\Z")]
_Index = Annotated[int, Meta(ge=0, lt=SEGMENTS_MAX)]
_Code = Annotated[str, Meta(pattern=r"\A[a-z][a-z-]{0,31}\Z")]


class Ping(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Is the node there, when its datagrams are not? (SWIM's stream fallback probe.)"""

    body_max: ClassVar[int] = 0
    id: _RequestId


class Sync(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """One message of a sync (SPEC §7.3); the body is the gossip machine's, opaque here."""

    body_max: ClassVar[int] = SYNC_BYTES_MAX
    id: _RequestId


class GetManifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    body_max: ClassVar[int] = 0
    id: _RequestId
    blob: _Blob


class GetSegment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    body_max: ClassVar[int] = 0
    id: _RequestId
    blob: _Blob
    index: _Index


class Want(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """The asker fetches this blob: it will ask for segments, and can be asked for its own. Body:
    bitmap of what it has, empty while it has no manifest."""

    body_max: ClassVar[int] = BITMAP_BYTES_MAX
    id: _RequestId
    blob: _Blob


class GetAny(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """A segment that the asker lacks and this holder has sent to nobody."""

    body_max: ClassVar[int] = 0
    id: _RequestId
    blob: _Blob


class Have(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """A notice: the asker has these too, on disk, and serves them."""

    body_max: ClassVar[int] = 0
    blob: _Blob
    indices: Annotated[tuple[_Index, ...], Meta(min_length=1, max_length=HAVE_INDICES_MAX)]


class Cancel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """A notice: request `id` needs no segment any more. Its reply still comes, as Nothing unless
    the segment is on its way."""

    body_max: ClassVar[int] = 0
    id: _RequestId


class GetAttestations(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=9
):
    """What the node has of this module's artifact for this key, and who vouches for it."""

    body_max: ClassVar[int] = 0
    id: _RequestId
    module: _Blob
    key: _Key


class Replicate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=10):
    """Have this blob on disk; answered when it is. The asker holds it."""

    body_max: ClassVar[int] = 0
    id: _RequestId
    blob: _Blob
    manifest: _Blob


class Records(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=11):
    """Have these records on disk; answered when they are. Body: one of records.encode_bundles."""

    body_max: ClassVar[int] = BUNDLE_BYTES_MAX
    id: _RequestId


class Confirm(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=12):
    """Is this blob on your disk, and will you keep it? (SPEC §11.5)"""

    body_max: ClassVar[int] = 0
    id: _RequestId
    blob: _Blob


class GetDelta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=13):
    """What makes the blob of one of these blobs, which the asker holds, best first; from byte
    `offset` on."""

    body_max: ClassVar[int] = 0
    id: _RequestId
    blob: _Blob
    bases: Annotated[tuple[_Blob, ...], Meta(min_length=1, max_length=BASES_MAX)]
    offset: Annotated[int, Meta(ge=0, le=BLOB_BYTES_MAX)] = 0


class Done(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=14):
    """A notice: the asker does not fetch this blob any more, and may go on with another."""

    body_max: ClassVar[int] = 0
    blob: _Blob


class Pong(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=65):
    body_max: ClassVar[int] = 0
    id: _RequestId
    generation: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    """Of the process that answers: the certificate tells the node only. 0: not told."""
    known: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    """The latest of the asking node that the other has heard of. 0: none."""


class SyncReply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=66):
    """Body as in Sync."""

    body_max: ClassVar[int] = SYNC_BYTES_MAX
    id: _RequestId


class ManifestReply(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=67
):
    """Body: the encoded manifest (SPEC §8)."""

    body_max: ClassVar[int] = MANIFEST_BYTES_MAX
    id: _RequestId


class SegmentReply(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=68
):
    """Body: the segment's zstd frame as stored."""

    body_max: ClassVar[int] = SEGMENT_WIRE_MAX
    id: _RequestId
    index: _Index


class ErrorReply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=69):
    """Instead of the reply to request `id`; the stream goes on."""

    body_max: ClassVar[int] = 0
    id: _RequestId
    code: _Code
    text: Annotated[str, Meta(max_length=ERROR_TEXT_MAX)]


class Offer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=70):
    """What the holder has: all, or what the body's bitmap says (empty: nothing yet); and others
    that it knows to be fetching the blob."""

    body_max: ClassVar[int] = BITMAP_BYTES_MAX
    id: _RequestId
    complete: bool
    fetchers: Annotated[tuple[_Node, ...], Meta(max_length=FETCHERS_MAX)]


class Nothing(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=71):
    """No segment for request `id`: it was cancelled, or is not here, or the asker lacks none."""

    body_max: ClassVar[int] = 0
    id: _RequestId


class AttestationsReply(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=72
):
    """Body: an encoded Attested (SPEC §9.2); none: there is none here."""

    body_max: ClassVar[int] = ATTESTED_BYTES_MAX
    id: _RequestId


class Replicated(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=73):
    body_max: ClassVar[int] = 0
    id: _RequestId


class RecordsStored(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=74
):
    body_max: ClassVar[int] = 0
    id: _RequestId


class Confirmed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=75):
    body_max: ClassVar[int] = 0
    id: _RequestId
    held: bool
    """It is on disk and verifies, and this node promises to keep it for a while."""


class DeltaPart(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=76):
    """Body: the next bytes of the delta from `base`, which has `size` of them in all."""

    body_max: ClassVar[int] = DELTA_PART_BYTES
    id: _RequestId
    base: _Blob
    size: Annotated[int, Meta(ge=1, le=BLOB_BYTES_MAX)]


Query = (
    Ping
    | Sync
    | GetManifest
    | GetSegment
    | Want
    | GetAny
    | GetDelta
    | GetAttestations
    | Replicate
    | Records
    | Confirm
)
"""Has one reply."""
Notice = Have | Cancel | Done
Request = Query | Notice
Reply = (
    Pong
    | SyncReply
    | ManifestReply
    | SegmentReply
    | ErrorReply
    | Offer
    | Nothing
    | AttestationsReply
    | Replicated
    | RecordsStored
    | Confirmed
    | DeltaPart
)
Message = Request | Reply

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)

M = TypeVar("M", bound=Message)


def frame_head(message: Message, body_bytes: int = 0) -> bytes:
    """What goes on the wire before a body of that many bytes."""
    if body_bytes > message.body_max:
        raise LocalProtocolError(f"{type(message).__name__}: body of {body_bytes} bytes")
    head = _encoder.encode(message)
    return _PREFIX.pack(2 + len(head) + body_bytes, len(head)) + head


def encode_frame(message: Message, body: bytes = b"") -> bytes:
    return frame_head(message, len(body)) + body


class FrameReader(Generic[M]):
    """Bytes in, messages out. Holds at most one frame's bytes and what was last fed."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()
        self._message: M | None = None
        self._body_bytes = 0

    @property
    def mid_frame(self) -> bool:
        """Whether an end of the stream now would cut a frame off."""
        return bool(self._buffer) or self._message is not None

    @property
    def due_bytes(self) -> int:
        """Still to come of the body that is coming."""
        return 0 if self._message is None else max(self._body_bytes - len(self._buffer), 0)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data

    def next_frame(self) -> tuple[M, bytes] | None:
        """The next complete frame, or None: feed more.

        Raises RemoteProtocolError("frame"); the stream is then unusable."""
        if self._message is None and not self._read_head():
            return None
        assert self._message is not None
        if len(self._buffer) < self._body_bytes:
            return None
        message, size = self._message, self._body_bytes
        body = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        self._message = None
        return message, body

    def _read_head(self) -> bool:
        if len(self._buffer) < _PREFIX.size:
            return False
        length, head_bytes = _PREFIX.unpack_from(self._buffer)
        body_bytes = length - 2 - head_bytes
        if not 0 < head_bytes <= HEAD_BYTES_MAX or not 0 <= body_bytes <= BODY_BYTES_MAX:
            raise RemoteProtocolError("frame", f"length {length}, head {head_bytes}")
        end = _PREFIX.size + head_bytes
        if len(self._buffer) < end:
            return False
        try:
            message = self._decoder.decode(memoryview(self._buffer)[_PREFIX.size : end])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RemoteProtocolError("frame", str(error)) from error
        if body_bytes > message.body_max:
            raise RemoteProtocolError("frame", f"{type(message).__name__} body of {body_bytes}")
        del self._buffer[:end]
        self._message, self._body_bytes = message, body_bytes
        return True


def request_reader() -> FrameReader[Request]:
    """What the accepting side reads with."""
    return FrameReader(_requests)


def reply_reader() -> FrameReader[Reply]:
    """What the dialling side reads with."""
    return FrameReader(_replies)
