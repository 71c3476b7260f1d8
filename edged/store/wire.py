"""The wire form of a blob: independent zstd frames, one per segment (SPEC §8).

Blocking; runs in worker threads, zstandard and blake3 release the GIL. A zstd context belongs to
one call: contexts are not thread-safe. Memory is bounded by one segment, whatever the blob's size.
"""

from __future__ import annotations

import os

import zstandard
from blake3 import blake3

from edged.errors import BlobCorrupt, DigestMismatch
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest
from protocol.manifest import Manifest, check_manifest, segment_bytes_for

from .disk import Disk


def compress(
    disk: Disk, source: int, target: int, *, blob: Digest, size: int, level: int
) -> Manifest:
    """Writes the frames of the open file `source` to `target`.

    Raises BlobCorrupt if the source does not hash to `blob`, OSError."""
    segment_bytes = segment_bytes_for(size)
    compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
    whole = blake3()
    lengths: list[int] = []
    digests: list[bytes] = []
    offset = 0
    for start in range(0, size, segment_bytes):
        raw = read_exactly(source, min(segment_bytes, size - start), start)
        whole.update(raw)
        frame = compressor.compress(raw)
        disk.write(target, frame, offset)
        lengths.append(len(frame))
        digests.append(blake3(frame).digest())
        offset += len(frame)
    if whole.hexdigest() != blob:
        raise BlobCorrupt(f"blob {blob} does not hash to its name any more")
    manifest = Manifest("zstd", blob, size, segment_bytes, tuple(lengths), b"".join(digests))
    check_manifest(manifest)
    return manifest


def decompress(disk: Disk, source: int, target: int, manifest: Manifest) -> bytes:
    """Writes the raw bytes of the wire form in `source` to `target`; their first 8 bytes.

    Each frame is verified before it is opened, and no frame can make more than its raw length.
    Raises DigestMismatch, OSError."""
    decompressor = zstandard.ZstdDecompressor()
    whole = blake3()
    head = b""
    wire_offset = raw_offset = 0
    for index, length in enumerate(manifest.wire_lengths):
        frame = read_exactly(source, length, wire_offset)
        raw = open_segment(decompressor, manifest, index, frame)
        whole.update(raw)
        disk.write(target, raw, raw_offset)
        head = head or raw[:8]
        wire_offset += length
        raw_offset += len(raw)
    if whole.hexdigest() != manifest.blob:
        raise DigestMismatch(f"the segments do not make blob {manifest.blob}")
    return head


def open_segment(
    decompressor: zstandard.ZstdDecompressor, manifest: Manifest, index: int, frame: bytes
) -> bytes:
    """Raw bytes of one frame. Raises DigestMismatch."""
    where = f"segment {index} of blob {manifest.blob}"
    expected = manifest.raw_length(index)
    try:
        manifest.check_segment(index, frame)
        parameters = zstandard.get_frame_parameters(frame)
        if parameters.content_size != expected or parameters.dict_id:
            raise DigestMismatch(f"{where}: the frame declares another size than {expected} bytes")
        raw = decompressor.decompress(frame, max_output_size=expected, allow_extra_data=False)
    except RemoteProtocolError as error:
        raise DigestMismatch(f"{where}: {error.detail}") from error
    except zstandard.ZstdError as error:
        raise DigestMismatch(f"{where}: not one zstd frame", private=str(error)) from error
    if len(raw) != expected:
        raise DigestMismatch(f"{where}: {len(raw)} bytes, not {expected}")
    return raw


def read_exactly(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes, or fewer at the end of the file (whose digest then tells)."""
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def present_segments(fd: int, manifest: Manifest) -> set[int]:
    """Indices whose bytes are on disk and verify: what a resumed fetch need not ask for again."""
    present = set()
    offset = 0
    for index, length in enumerate(manifest.wire_lengths):
        frame = read_exactly(fd, length, offset)
        if len(frame) == length and blake3(frame).digest() == manifest.wire_digest(index):
            present.add(index)
        offset += length
    return present
