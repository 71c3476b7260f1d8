"""What the store keeps and promises."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from protocol.ids import ArtifactKey, Digest
from protocol.manifest import Manifest

BlobKind = Literal["module", "artifact", "manifest"]


class BlobInfo(msgspec.Struct, frozen=True):
    """A complete, verified blob."""

    digest: Digest
    kind: BlobKind
    size_bytes: int
    wire_bytes: int | None
    """Size of the zstd wire form beside it; None where there is none."""
    manifest: Digest | None
    created_at_s: float
    """Unix time."""


CheckResult = Literal["whole", "corrupt", "missing", "wire-lost", "unreadable", "absent"]
"""corrupt: quarantined; missing: its file was gone; wire-lost: only its wire form was not right;
unreadable: looking at it failed, it was left as it is; absent: it belongs here (SPEC §11.1) and the
store does not know it."""


class BlobCheck(msgspec.Struct, frozen=True):
    """What re-hashing one blob found."""

    info: BlobInfo
    """As it was before."""
    result: CheckResult
    bytes_checked: int
    reason: str = ""
    """Of "unreadable"."""


class PartialInfo(msgspec.Struct, frozen=True):
    """What is on disk of a fetch that is not finished."""

    blob: Digest
    manifest: Digest
    disk_bytes: int
    touched_at_s: float
    """Unix time."""


class ArtifactRow(msgspec.Struct, frozen=True):
    """Native code of a module for one artifact key, with its builders' signed words."""

    module: Digest
    key: ArtifactKey
    digest: Digest
    size_bytes: int
    compile_s: float
    """CPU seconds that compiling took here; 0.0: it was fetched."""
    attestations: bytes
    """Of all builders known, encoded by protocol.artifact.encode_attestations."""


class RepairReport(msgspec.Struct, frozen=True):
    """What start-up found and mended."""

    temps_removed: int
    missing: tuple[Digest, ...]
    corrupt: tuple[Digest, ...]
    """Moved to quarantine/."""
    orphans_adopted: tuple[Digest, ...]
    """Complete blobs that the index did not know."""
    index_rebuilt: bool


class PartialBlob(Protocol):
    """A fetch in progress, on disk, resumable after kill -9. One user at a time per digest."""

    manifest: Manifest
    present: frozenset[int]
    """Indices of wire segments that were already on disk and verify."""

    async def write(self, segments: Sequence[tuple[int, bytes]], *, verified: bool = False) -> None:
        """Verifies length and digest of each against the manifest, unless the caller has (a fetch
        does when they come in), then stores all.

        Raises DigestMismatch (nothing was stored), DiskFull."""
        ...

    async def read(self, indices: Sequence[int]) -> list[bytes]:
        """Segments that were written or present, verified. Raises BlobNotFound."""
        ...

    async def let_go(self) -> None:
        """Frees what only this user needs; the segments stay, to resume from."""
        ...

    async def finish(self) -> BlobInfo:
        """Decompresses within the manifest's bounds, verifies the whole, makes it a blob.

        Raises DigestMismatch (the partial is discarded), DiskFull."""
        ...

    async def discard(self) -> None: ...


class Store(Protocol):
    """Content-addressed blobs, artifacts and the catalog's records, durable when a call returns."""

    async def put(self, data: bytes, *, kind: BlobKind, expected: Digest | None = None) -> BlobInfo:
        """Stores bytes; making the same blob twice, also at once, is one blob.

        Raises DigestMismatch, DiskFull."""
        ...

    async def put_file(
        self, source: Path, *, kind: BlobKind, expected: Digest | None = None
    ) -> BlobInfo:
        """As put, consuming a file that `temp_path` named."""
        ...

    def temp_path(self) -> Path:
        """A fresh name on the store's file system; swept at start if left over."""
        ...

    async def read(self, digest: Digest) -> bytes:
        """Raises BlobNotFound, BlobCorrupt (verified on each read)."""
        ...

    def path(self, digest: Digest) -> Path:
        """Read-only file of a complete blob, not verified now. Raises BlobNotFound."""
        ...

    async def verify(self, digest: Digest) -> bool:
        """Re-hashes; quarantines and returns False if it does not match. Raises BlobNotFound."""
        ...

    def info(self, digest: Digest) -> BlobInfo | None: ...

    def blobs(self) -> list[BlobInfo]: ...

    async def delete(self, digest: Digest) -> None: ...

    async def make_manifest(self, digest: Digest, *, expected: Digest | None = None) -> Manifest:
        """The blob's wire form and manifest, made once and kept beside the blob.

        Raises DigestMismatch if the manifest is not `expected`; nothing is kept then."""
        ...

    async def make_delta(self, digest: Digest, base: Digest) -> bytes | None:
        """What makes the one blob of the other. None: they are too large or small for it. Raises
        BlobNotFound, BlobCorrupt."""
        ...

    async def apply_delta(self, manifest: Manifest, base: Digest, delta: bytes) -> BlobInfo:
        """Stores the blob that `manifest` names, without a wire form. Raises DigestMismatch,
        BlobNotFound, BlobCorrupt, DiskFull."""
        ...

    async def manifest(self, digest: Digest) -> Manifest:
        """Of a blob held here, by the *blob's* digest. Raises BlobNotFound."""
        ...

    async def wire_segments(self, digest: Digest, indices: Sequence[int]) -> list[bytes]:
        """Raises BlobNotFound, also for an index the manifest lacks."""
        ...

    async def wire_segment(self, digest: Digest, index: int) -> bytes: ...

    async def begin_partial(self, manifest: Manifest) -> PartialBlob: ...

    async def rebuild(self, digest: Digest, manifest: Digest) -> BlobInfo | None:
        """Makes a lost blob again from what is left of its wire form on this disk; `manifest` is
        the digest of its manifest. None: not enough is there. Raises DiskFull."""
        ...

    def artifact(self, module: Digest, key: ArtifactKey) -> ArtifactRow | None: ...

    def artifacts(self) -> list[ArtifactRow]: ...

    async def put_artifact(self, row: ArtifactRow) -> None:
        """Records an artifact whose blob is already stored."""
        ...

    async def delete_artifact(self, module: Digest, key: ArtifactKey) -> None:
        """With its blob, once no other row names it; code that is mapped stays usable."""
        ...

    async def save_records(self, records: Sequence[tuple[str, bytes]]) -> None:
        """(key, encoded record), upserted in one durable transaction."""
        ...

    async def drop_records(self, keys: Sequence[str]) -> None:
        """Removes records in one durable transaction; absent ones are fine."""
        ...

    def load_records(self) -> Iterable[tuple[str, bytes]]: ...

    async def set_meta(self, key: str, value: bytes) -> None: ...

    def get_meta(self, key: str) -> bytes | None: ...
