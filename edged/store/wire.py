"""The wire form of a blob: independent zstd frames, one per segment (SPEC §8).

Blocking; runs in worker threads, zstandard and blake3 release the GIL. A zstd context belongs to
one call: contexts are not thread-safe. Memory is bounded by one segment, whatever the blob's size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import zstandard
from blake3 import blake3

from edged.errors import BlobCorrupt, DigestMismatch
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest
from protocol.manifest import Manifest, check_manifest, segment_bytes_for

from .disk import Disk, is_damage

BUDGET_S: Final = 0.5
"""CPU that a wire form may cost whoever makes it, once for the cluster."""
RATES: Final = ((19, 1.2e6), (17, 3e6), (15, 6e6), (9, 33e6), (6, 60e6))
"""Level, and bytes per second at it: WebAssembly in segments of 32 to 128 KiB, one core. Sizes
against level 9: 19 -8 to -12 %, 15 -10 %, 6 +2 %, 3 +9 %."""
FASTEST_LEVEL: Final = 3


def level_for(size_bytes: int) -> int:
    """The best level that takes about BUDGET_S. A constant table, so that every node makes the same
    wire form of a blob."""
    return next((level for level, rate in RATES if size_bytes <= rate * BUDGET_S), FASTEST_LEVEL)


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
        try:
            raw = read_exactly(source, min(segment_bytes, size - start), start)
        except OSError as error:  # of the source: when the target fails, nothing is damaged
            if not is_damage(error):
                raise
            raise BlobCorrupt(f"blob {blob} cannot be read") from error
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


def open_segment(
    decompressor: zstandard.ZstdDecompressor,
    manifest: Manifest,
    index: int,
    frame: bytes,
    *,
    verify: bool = True,
) -> bytes:
    """Raw bytes of one frame, verified before it is opened unless the caller just did so; never
    more than its raw length. Raises DigestMismatch."""
    where = f"segment {index} of blob {manifest.blob}"
    expected = manifest.raw_length(index)
    try:
        if verify:
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


def read_segments(
    fd: int, manifest: Manifest, offsets: tuple[int, ...], indices: Sequence[int]
) -> list[bytes]:
    """Frames of a wire form on disk. Raises RemoteProtocolError: one does not verify; OSError."""
    frames = []
    for index in indices:
        frame = read_exactly(fd, manifest.wire_lengths[index], offsets[index])
        manifest.check_segment(index, frame)
        frames.append(frame)
    return frames


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
