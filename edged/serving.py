"""What peers are served from: the store, whose wire forms are made again when they are damaged.

A wire form is derived from its blob, deterministically for one zstd level, so a holder with a bad
one can still serve: it fails the peer's request only if the blob itself is gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from protocol.ids import ArtifactKey, Digest
from protocol.manifest import Manifest

from .errors import BlobNotFound, DigestMismatch
from .interfaces import Store
from .telemetry import Log


class WireSource:
    """Implements interfaces.BlobSource."""

    def __init__(
        self,
        store: Store,
        log: Log,
        *,
        attested: Callable[[Digest, ArtifactKey], Awaitable[bytes]],
        manifests: Callable[[Digest], Sequence[Digest]] = lambda _module: (),
    ) -> None:
        """`manifests`: those by which live records name a module."""
        self._store = store
        self._attested = attested
        self._manifests = manifests
        self._log = log

    async def manifest(self, digest: Digest) -> Manifest:
        try:
            return await self._store.manifest(digest)
        except BlobNotFound as error:
            return await self._remake(digest, error)

    async def attested(self, module: Digest, key: ArtifactKey) -> bytes:
        return await self._attested(module, key)

    async def wire_segments(self, digest: Digest, indices: Sequence[int]) -> list[bytes]:
        try:
            return await self._store.wire_segments(digest, indices)
        except BlobNotFound as error:
            manifest = await self._remake(digest, error)
            if not all(0 <= index < manifest.segments for index in indices):
                raise
            return await self._store.wire_segments(digest, indices)

    async def _remake(self, digest: Digest, error: BlobNotFound) -> Manifest:
        info = self._store.info(digest)
        if info is None:
            raise error
        if info.manifest is not None:
            return await self._store.manifest(digest)
        self._log.warning("wire form made again", blob=digest, why=str(error))
        named = self._manifests(digest)
        try:
            # One that nobody asks for would be taken for a lie.
            expected = named[0] if len(named) == 1 else None
            return await self._store.make_manifest(digest, expected=expected)
        except DigestMismatch:
            raise BlobNotFound(
                f"the wire form of blob {digest} that its record names cannot be made here",
                digest=digest,
            ) from error
