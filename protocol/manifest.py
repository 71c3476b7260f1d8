"""How a blob travels: independent zstd frames, one per fixed-size segment of its raw bytes.

The manifest is what a receiver trusts: its digest stands in the signed record, it names the digest
and both lengths of every segment, and so bounds everything a peer can make the receiver hold.
Rules (SPEC §8): a segment is verified before it is decompressed; its decompressed size is known
beforehand; the whole blob is verified before it is used.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from blake3 import blake3

from .errors import LocalProtocolError, RemoteProtocolError
from .function import MODULE_BYTES_MAX
from .ids import DIGEST_BYTES, Digest, digest_of, parse_digest

BLOB_BYTES_MAX: Final = 2 * MODULE_BYTES_MAX
"""Artifacts are up to 3.3 times their module (Ruby: 16.7 to 54.8 MB); modules stop at 256 MiB."""
SEGMENT_BYTES_MIN: Final = 16 * 1024
SEGMENT_BYTES_MAX: Final = 1024 * 1024
SEGMENTS_MAX: Final = 8192
MANIFEST_BYTES_MAX: Final = 512 * 1024
WIRE_OVERHEAD_MAX: Final = 1024
"""A zstd frame of incompressible bytes is at most ~0.4 % + a header larger than they are."""


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    codec: Literal["zstd"]
    blob: Digest
    raw_bytes: int
    segment_bytes: int
    """Raw bytes of every segment but the last."""
    wire_lengths: tuple[int, ...]
    """Bytes of each segment's zstd frame."""
    wire_digests: bytes
    """BLAKE3-256 of each frame, 32 bytes each, joined."""

    @property
    def segments(self) -> int:
        return len(self.wire_lengths)

    @property
    def wire_bytes(self) -> int:
        return sum(self.wire_lengths)

    def raw_length(self, index: int) -> int:
        """Raw bytes of segment `index`."""
        return min(self.segment_bytes, self.raw_bytes - index * self.segment_bytes)

    def wire_digest(self, index: int) -> bytes:
        return self.wire_digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def wire_offset(self, index: int) -> int:
        """Where segment `index` starts in the joined wire form; O(n)."""
        return sum(self.wire_lengths[:index])

    def check_segment(self, index: int, wire: bytes) -> None:
        """Raises RemoteProtocolError("segment") unless `wire` is segment `index`."""
        if not 0 <= index < self.segments:
            raise RemoteProtocolError("segment", f"index {index} of {self.segments}")
        if len(wire) != self.wire_lengths[index]:
            raise RemoteProtocolError(
                "segment", f"{index}: {len(wire)} bytes, not {self.wire_lengths[index]}"
            )
        if blake3(wire).digest() != self.wire_digest(index):
            raise RemoteProtocolError("segment", f"{index}: bytes do not hash to the manifest's")


def segment_bytes_for(raw_bytes: int) -> int:
    """clamp(2^floor(log2(raw/256)), 16 KiB, 256 KiB).

    Nine nodes at 25 Mbit/s wanted small ones (36 MB: 256 KiB 20.5 s, 128 KiB 13.9 s), and a small
    blob must be many segments to be passed on while it comes: 260 KB in 16 KiB pieces reached eight
    nodes in 0.10 s. Below 16 KiB the frames lose too much of zstd's ratio.
    """
    power = max(raw_bytes // 256, 1).bit_length() - 1
    return min(max(1 << power, SEGMENT_BYTES_MIN), 256 * 1024)


def segment_count(raw_bytes: int, segment_bytes: int) -> int:
    return -(-raw_bytes // segment_bytes)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    return _encoder.encode(manifest)


def manifest_digest(manifest: Manifest) -> Digest:
    return digest_of(encode_manifest(manifest))


def check_manifest(manifest: Manifest) -> None:
    """Raises RemoteProtocolError("manifest") unless all bounds and sums hold."""
    try:
        parse_digest(manifest.blob)
    except RemoteProtocolError as error:
        raise RemoteProtocolError("manifest", error.detail) from error
    if not 0 < manifest.raw_bytes <= BLOB_BYTES_MAX:
        raise RemoteProtocolError("manifest", f"raw size {manifest.raw_bytes}")
    if not SEGMENT_BYTES_MIN <= manifest.segment_bytes <= SEGMENT_BYTES_MAX:
        raise RemoteProtocolError("manifest", f"segment size {manifest.segment_bytes}")
    count = segment_count(manifest.raw_bytes, manifest.segment_bytes)
    if count > SEGMENTS_MAX or manifest.segments != count:
        raise RemoteProtocolError("manifest", f"{manifest.segments} segments, not {count}")
    if len(manifest.wire_digests) != count * DIGEST_BYTES:
        raise RemoteProtocolError("manifest", "segment digests do not fit the segment count")
    for index, length in enumerate(manifest.wire_lengths):
        raw = manifest.raw_length(index)
        if not 0 < length <= raw + raw // 64 + WIRE_OVERHEAD_MAX:
            raise RemoteProtocolError("manifest", f"segment {index} is {length} wire bytes")


def decode_manifest(data: bytes, *, expected: Digest | None = None) -> Manifest:
    """Raises RemoteProtocolError("manifest"): too large, malformed, out of bounds, or not the one
    that `expected` (the digest in the signed record) names."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise RemoteProtocolError("manifest", f"{len(data)} bytes; at most {MANIFEST_BYTES_MAX}")
    if expected is not None and digest_of(data) != expected:
        raise RemoteProtocolError("manifest", "does not hash to the record's manifest digest")
    try:
        manifest = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("manifest", str(error)) from error
    check_manifest(manifest)
    return manifest


def build_manifest(blob: Digest, raw_bytes: int, frames: list[bytes]) -> Manifest:
    """The manifest of a blob whose wire form is `frames` at `segment_bytes_for(raw_bytes)`."""
    manifest = Manifest(
        codec="zstd",
        blob=blob,
        raw_bytes=raw_bytes,
        segment_bytes=segment_bytes_for(raw_bytes),
        wire_lengths=tuple(len(frame) for frame in frames),
        wire_digests=b"".join(blake3(frame).digest() for frame in frames),
    )
    try:
        check_manifest(manifest)
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from error
    return manifest
