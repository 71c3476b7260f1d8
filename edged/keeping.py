"""What peers may ask of this node's copies: to have one, and whether it has one. SPEC §11.

Owned by the node's event loop. Bounds: REPLICATES_MAX copies being made for peers at once, and
PEER_REPLICATES_MAX for one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from protocol.ids import Digest, NodeId

from .errors import BlobNotFound, Draining, Overloaded
from .interfaces import Fetcher, NodeState, Store

REPLICATES_MAX: Final = 64
PEER_REPLICATES_MAX: Final = 8


class Keeper:
    """Implements network.server.ReplicaKeeper."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        *,
        on_held: Callable[[Digest], None],
        keeping: Callable[[Digest], AbstractAsyncContextManager[None]],
        promise: Callable[[Digest], bool],
        state: Callable[[], NodeState],
    ) -> None:
        """Inside `keeping` a blob is not removed; `promise` has it kept for long, unless it is just
        being given up."""
        self._store = store
        self._fetcher = fetcher
        self._on_held = on_held
        self._keeping = keeping
        self._promise = promise
        self._state = state
        self._asked: Counter[NodeId] = Counter()

    async def replicate(self, peer: NodeId, blob: Digest, manifest: Digest) -> None:
        """Durable, and promised to stay, when it returns. Raises Draining, Overloaded and what
        fetching raises."""
        if self._state() == "draining":
            raise Draining("this node is shutting down")
        if self._asked.total() >= REPLICATES_MAX or self._asked[peer] >= PEER_REPLICATES_MAX:
            raise Overloaded("too many blobs are being replicated here")
        self._asked[peer] += 1
        try:
            async with self._keeping(blob):
                await self._have(peer, blob, manifest)
        finally:
            self._asked[peer] -= 1
            if not self._asked[peer]:
                del self._asked[peer]

    async def _have(self, peer: NodeId, blob: Digest, manifest: Digest) -> None:
        if await self._keeps(blob):
            return
        await self._fetcher.fetch(blob, manifest, progress=lambda _done, _of: None, holder=peer)
        self._on_held(blob)
        if not self._promise(blob):
            raise Overloaded("the blob is just being given up here")

    async def confirm(self, blob: Digest) -> bool:
        """Whether it is on disk, looked at byte by byte as the asker relies on it, and promised to
        stay."""
        async with self._keeping(blob):
            return await self._keeps(blob)

    async def _keeps(self, blob: Digest) -> bool:
        try:
            intact = await self._store.verify(blob)
        except BlobNotFound:
            return False
        return intact and self._promise(blob)
