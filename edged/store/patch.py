"""A blob as a delta against another: one zstd frame with the base as its prefix. SPEC §8.5.

Blocking. The base is matched as a whole (long-distance matching, a window over both), which is what
finds a patch release in 2 % of its bytes; a dictionary of the `zstandard` package finds next to
nothing of a base this large. Memory: base, blob and window, so both are at most RAW_BYTES_MAX.
"""

from __future__ import annotations

import sys
from typing import Final

from edged.errors import DigestMismatch

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BASE_BYTES_MIN: Final = 8
"""zstd takes no shorter prefix."""
RAW_BYTES_MAX: Final = 64 * 1024 * 1024
WINDOW_LOG: Final = 27
"""A window of 128 MiB: the base and the blob, at their largest."""
LEVEL: Final = 3
"""Ruby 2.7.1 to 2.7.2, 30 MB: 0.1 s of CPU; higher levels save little next to the matching."""


def make_patch(base: bytes, raw: bytes) -> bytes:
    """`base` has BASE_BYTES_MIN bytes at least."""
    parameters = zstd.CompressionParameter
    options: dict[int, int] = {
        parameters.compression_level: LEVEL,
        parameters.enable_long_distance_matching: 1,
        parameters.window_log: WINDOW_LOG,
    }
    prefix = zstd.ZstdDict(base, is_raw=True).as_prefix
    return zstd.compress(raw, options=options, zstd_dict=prefix)


def apply_patch(base: bytes, patch: bytes, *, raw_bytes: int) -> bytes:
    """`raw_bytes` bytes, whatever the patch says it holds. They are not verified here.

    Raises DigestMismatch."""
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    prefix = zstd.ZstdDict(base, is_raw=True).as_prefix
    decompressor = zstd.ZstdDecompressor(zstd_dict=prefix, options=options)
    try:
        raw = decompressor.decompress(patch, max_length=raw_bytes)
        if not decompressor.eof:  # the checksum, if there is one, stands after the last byte
            raw += decompressor.decompress(b"", max_length=raw_bytes - len(raw) + 1)
    except zstd.ZstdError as error:
        raise DigestMismatch("the delta is not a zstd frame", private=str(error)) from error
    if len(raw) != raw_bytes or not decompressor.eof or decompressor.unused_data:
        raise DigestMismatch(f"the delta does not make {raw_bytes} bytes")
    return raw
