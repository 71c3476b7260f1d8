"""What peers may ask of this node's copies: to have one, and whether it has one. SPEC §11.

Owned by the node's event loop. Bounds: REPLICATES_MAX copies being made for peers at once, and
PEER_REPLICATES_MAX for one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from protocol.ids import Digest, NodeId

from .errors import BlobNotFound, Overloaded
from .interfaces import Fetcher, Store

REPLICATES_MAX: Final = 64
PEER_REPLICATES_MAX: Final = 8


class Keeper:
    """Implements network.server.ReplicaKeeper."""

    def __init__(
        self, store: Store, fetcher: Fetcher, *, on_held: Callable[[Digest], None]
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._on_held = on_held
        self._asked: Counter[NodeId] = Counter()

    async def replicate(self, peer: NodeId, blob: Digest, manifest: Digest) -> None:
        """Durable when it returns. Raises Overloaded and what fetching raises."""
        if self._asked.total() >= REPLICATES_MAX or self._asked[peer] >= PEER_REPLICATES_MAX:
            raise Overloaded("too many blobs are being replicated here")
        self._asked[peer] += 1
        try:
            if not await self.confirm(blob):
                await self._fetcher.fetch(
                    blob, manifest, progress=lambda _done, _of: None, holder=peer
                )
                self._on_held(blob)
        finally:
            self._asked[peer] -= 1
            if not self._asked[peer]:
                del self._asked[peer]

    async def confirm(self, blob: Digest) -> bool:
        """Whether it is on disk, looked at byte by byte: the asker relies on it."""
        try:
            return await self._store.verify(blob)
        except BlobNotFound:
            return False
