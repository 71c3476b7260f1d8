"""Deltas between blobs of this store (patch.py), made for peers and applied for this node.

Synchronous; the caller runs one at a time, as each has both blobs in memory.
"""

from __future__ import annotations

from edged.errors import DigestMismatch
from edged.interfaces import BlobInfo
from protocol.ids import Digest, digest_of
from protocol.manifest import Manifest

from .core import Core
from .layout import kind_of
from .patch import BASE_BYTES_MIN, RAW_BYTES_MAX, apply_patch, make_patch


def make_delta(core: Core, digest: Digest, base: Digest) -> bytes | None:
    """None: the blobs are too large or small for one. Raises BlobNotFound, BlobCorrupt."""
    if not _fit(core, base, core.require(digest).info.size_bytes):
        return None
    return make_patch(core.read(base), core.read(digest))


def apply_delta(core: Core, manifest: Manifest, base: Digest, delta: bytes) -> BlobInfo:
    """Raises DigestMismatch (it makes another blob), BlobNotFound, BlobCorrupt, DiskFull."""
    blob, size = manifest.blob, manifest.raw_bytes
    if not _fit(core, base, size):
        raise DigestMismatch(f"blob {blob} or its base is too large or small for a delta")
    raw = apply_patch(core.read(base), delta, raw_bytes=size)
    if digest_of(raw) != blob:
        raise DigestMismatch(f"the delta does not make blob {blob}")
    return core.put(raw, kind_of(raw[:8]), blob)


def _fit(core: Core, base: Digest, raw_bytes: int) -> bool:
    base_bytes = core.require(base).info.size_bytes
    return BASE_BYTES_MIN <= base_bytes <= RAW_BYTES_MAX and raw_bytes <= RAW_BYTES_MAX
