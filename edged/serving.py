"""What peers are served from: the store, whose wire forms are made again when they are damaged.

A wire form is derived from its blob, deterministically for one zstd level, so a holder with a bad
one can still serve: it fails the peer's request only if the blob itself is gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from protocol.ids import ArtifactKey, Digest
from protocol.manifest import Manifest

from .errors import BlobNotFound
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
    ) -> None:
        self._store = store
        self._attested = attested
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
        return await self._store.make_manifest(digest)
