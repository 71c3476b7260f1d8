"""Deltas for peers: made when first asked for, remembered while they are. SPEC §10.7.

A delta costs a tenth of a second of CPU and both blobs in memory for 30 MB, so one is made at a
time, few wait for it, and what turned out not to be worth it is remembered too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import trio

from protocol.ids import Digest
from protocol.streams import DELTA_PART_BYTES

from .errors import BlobCorrupt, BlobNotFound, Overloaded
from .interfaces import Store

REMEMBERED_BYTES_MAX: Final = 32 * 1024 * 1024
REMEMBERED_MAX: Final = 1024
WAITING_MAX: Final = 16
WORTH_BYTES_MIN: Final = 64 * 1024
"""A smaller wire form travels in a few round trips anyway."""

_Pair = tuple[Digest, Digest]


class DeltaSource:
    """Implements interfaces.DeltaSource."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._made: OrderedDict[_Pair, bytes] = OrderedDict()
        """b"": there is none worth sending."""
        self._bytes = 0
        self._making = trio.Lock()

    async def part(
        self, blob: Digest, bases: Sequence[Digest], offset: int
    ) -> tuple[Digest, int, bytes]:
        for base in bases:
            if base != blob and self._store.info(base) is not None:
                delta = await self._delta(blob, base)
                if offset < len(delta):
                    return base, len(delta), delta[offset : offset + DELTA_PART_BYTES]
        raise BlobNotFound(f"no delta to blob {blob}", digest=blob)

    async def wire_bytes(self, blob: Digest, base: Digest) -> int:
        """Of what a peer that has `base` would be sent; 0: there is none worth it.

        Raises BlobNotFound, Overloaded."""
        return len(await self._delta(blob, base)) if self._store.info(base) is not None else 0

    async def _delta(self, blob: Digest, base: Digest) -> bytes:
        pair = (blob, base)
        if pair not in self._made:
            if self._making.statistics().tasks_waiting >= WAITING_MAX:
                raise Overloaded("too many deltas are waited for")
            async with self._making:
                if pair not in self._made:
                    self._remember(pair, await self._make(blob, base))
        delta = self._made.get(pair, b"")
        if delta:
            self._made.move_to_end(pair)
        return delta

    async def _make(self, blob: Digest, base: Digest) -> bytes:
        info = self._store.info(blob)
        if info is None:
            raise BlobNotFound(f"blob {blob} is not here", digest=blob)
        wire_bytes = info.wire_bytes or info.size_bytes
        if wire_bytes < WORTH_BYTES_MIN:
            return b""
        try:
            delta = await self._store.make_delta(blob, base) or b""
        except (BlobNotFound, BlobCorrupt):
            return b""  # the base, then: who asks for the blob itself will learn of the blob
        return delta if len(delta) <= min(wire_bytes // 2, REMEMBERED_BYTES_MAX) else b""

    def _remember(self, pair: _Pair, delta: bytes) -> None:
        self._made[pair] = delta
        self._bytes += len(delta)
        while self._bytes > REMEMBERED_BYTES_MAX or len(self._made) > REMEMBERED_MAX:
            _, oldest = self._made.popitem(last=False)
            self._bytes -= len(oldest)
