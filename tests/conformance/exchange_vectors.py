"""Cases of protocol/vectors/{streams,manifests}.json, for rewrite_vectors.py."""

from __future__ import annotations

import msgspec
import zstandard
from blake3 import blake3
from protocol_support import node_id

from protocol.ids import ArtifactKey, NodeId, digest_of
from protocol.manifest import Manifest, encode_manifest, manifest_digest, segment_bytes_for
from protocol.streams import (
    AttestationsReply,
    Cancel,
    Confirm,
    Confirmed,
    DeltaPart,
    Done,
    ErrorReply,
    GetAny,
    GetAttestations,
    GetDelta,
    GetManifest,
    GetSegment,
    Have,
    ManifestReply,
    Message,
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
)

Case = dict[str, object]
HEAD, UNIT, TIMES = b"\0asm\x01\0\0\0", b"edged ", 10_000
RAW = HEAD + UNIT * TIMES
BLOB, OTHER = digest_of(RAW), digest_of(b"other")
NODE = NodeId(node_id("n1"))
U32 = 0xFFFF_FFFF

REQUESTS: list[tuple[Message, bytes]] = [
    (Ping(0), b""),
    (Sync(U32), b"sync"),
    (GetManifest(1, BLOB), b""),
    (GetSegment(2, BLOB, 8191), b""),
    (Want(3, BLOB), b"\x0f"),
    (GetAny(4, BLOB), b""),
    (Have(BLOB, (0, 128, 8191)), b""),
    (Cancel(4), b""),
    (GetAttestations(9, BLOB, ArtifactKey("cd" * 32)), b""),
    (Replicate(5, BLOB, OTHER), b""),
    (Records(6), b"\x90"),
    (Confirm(7, BLOB), b""),
    (GetDelta(8, BLOB, (OTHER,), 262144), b""),
    (Done(BLOB), b""),
]
REPLIES: list[tuple[Message, bytes]] = [
    (Pong(0, (1 << 63) - 1, 1), b""),
    (SyncReply(U32), b"sync"),
    (ManifestReply(1), b"manifest"),
    (SegmentReply(2, 8191), b"frame"),
    (ErrorReply(3, "blob-not-found", "not here"), b""),
    (Offer(3, False, (NODE,)), b"\x80"),
    (Nothing(4), b""),
    (AttestationsReply(9), b""),
    (Replicated(5), b""),
    (RecordsStored(6), b""),
    (Confirmed(7, True), b""),
    (DeltaPart(8, OTHER, 262145), b"d"),
]


def frame(head: object, body: bytes = b"") -> bytes:
    """Of any head, however wrong."""
    packed = msgspec.msgpack.encode(head)
    rest = len(packed).to_bytes(2, "big") + packed + body
    return len(rest).to_bytes(4, "big") + rest


def stream_cases() -> list[Case]:
    cases: list[Case] = [
        {
            "name": type(message).__name__,
            "spec": "10.3",
            "side": side,
            "hex": encode_frame(message, body).hex(),
            "ok": True,
        }
        for side, messages in (("request", REQUESTS), ("reply", REPLIES))
        for message, body in messages
    ]
    bad = [
        ("length 0", "request", bytes(6)),
        ("head longer than the frame", "request", b"\0\0\0\x05\0\x09\x92\x01\x07"),
        ("head over 4,096 bytes", "request", (4099).to_bytes(4, "big") + (4097).to_bytes(2, "big")),
        ("body over every bound", "request", b"\xff\xff\xff\xff\0\x03\x92\x01\x07"),
        ("unknown tag", "request", frame([99, 1])),
        ("a reply from the side that asks", "request", encode_frame(Pong(1))),
        ("a request from the side that replies", "reply", encode_frame(Ping(1))),
        ("a field missing", "request", frame([3, 1])),
        ("a field more", "request", frame([1, 1, 1])),
        ("id over 32 bits", "request", frame([1, 1 << 32])),
        ("a body where there is none", "request", frame([1, 1], b"x")),
        ("artifact key of no hex digits", "request", frame([9, 1, BLOB, "../key"])),
        ("digest in capitals", "request", frame([3, 1, BLOB.upper()])),
        ("digest of 63 digits", "request", frame([3, 1, BLOB[1:]])),
        ("index 8192", "request", frame([4, 1, BLOB, 8192])),
        ("no indices", "request", frame([7, BLOB, []])),
        ("257 indices", "request", frame([7, BLOB, [0] * 257])),
        ("no bases", "request", frame([13, 1, BLOB, [], 0])),
        ("five bases", "request", frame([13, 1, BLOB, [OTHER] * 5, 0])),
        ("offset over 512 MiB", "request", frame([13, 1, BLOB, [OTHER], (512 << 20) + 1])),
        ("bitmap over 1,024 bytes", "request", frame([5, 1, BLOB], bytes(1025))),
        ("65 fetchers", "reply", frame([70, 1, False, [NODE] * 65])),
        ("code with a capital", "reply", frame([69, 1, "Not-found", ""])),
        ("text of 201 characters", "reply", frame([69, 1, "not-found", "t" * 201])),
        ("a truth that is a number", "reply", frame([75, 1, 1])),
        ("delta of no bytes", "reply", frame([76, 1, OTHER, 0])),
        ("part over 256 KiB", "reply", frame([76, 1, OTHER, 1], bytes(256 * 1024 + 1))[:100]),
    ]
    cases += [
        {"name": name, "spec": "10.2", "side": side, "hex": data.hex(), "ok": False}
        | {"code": "frame"}
        for name, side, data in bad
    ]
    return cases


def manifest_file() -> Case:
    size = segment_bytes_for(len(RAW))
    compressor = zstandard.ZstdCompressor(level=1)
    frames = [compressor.compress(RAW[at : at + size]) for at in range(0, len(RAW), size)]
    digests = b"".join(blake3(one).digest() for one in frames)
    good = Manifest("zstd", BLOB, len(RAW), size, tuple(map(len, frames)), digests)
    packed = msgspec.msgpack.encode
    fields = ["zstd", BLOB, len(RAW), size, list(map(len, frames)), digests]

    def altered(**changes: object) -> bytes:
        names = ("codec", "blob", "raw_bytes", "segment_bytes", "lengths", "digests")
        values = dict(zip(names, fields, strict=True)) | changes
        return packed(list(values.values()))

    bad = [
        ("empty", b""),
        ("another codec", altered(codec="gzip")),
        ("blob in capitals", altered(blob=BLOB.upper())),
        ("no bytes", altered(raw_bytes=0)),
        ("more bytes than the segments have", altered(raw_bytes=len(RAW) + size)),
        ("over 512 MiB", altered(raw_bytes=(512 << 20) + 1)),
        ("segments of 8 KiB", altered(segment_bytes=8192)),
        ("segments of 2 MiB", altered(segment_bytes=2 << 20)),
        ("a digest missing", altered(digests=digests[32:])),
        ("a frame of no bytes", altered(lengths=[0, *map(len, frames[1:])])),
        ("a frame larger than its bytes can be", altered(lengths=[1 << 20] * len(frames))),
        ("trailing byte", encode_manifest(good) + b"\0"),
        ("a field more", packed([*fields, 0])),
    ]
    return {
        "spec": "8.2",
        "raw": {"head": HEAD.hex(), "then": UNIT.hex(), "times": TIMES},
        "frames": [one.hex() for one in frames],
        "hex": encode_manifest(good).hex(),
        "digest": manifest_digest(good),
        "bad": [{"name": name, "spec": "8.3", "hex": data.hex()} for name, data in bad],
    }
