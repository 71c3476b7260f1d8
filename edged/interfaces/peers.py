"""Peers, what they are served from, and fetching from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from protocol.ids import Digest, NodeId
from protocol.manifest import Manifest

from .store import BlobInfo


class Peer(msgspec.Struct, frozen=True):
    """A member as others may reach it."""

    node_id: NodeId
    name: str
    region: str
    gossip_address: tuple[str, int]
    stream_address: tuple[str, int]
    gateway_url: str
    rtt_s: float | None


class BlobSource(Protocol):
    """What the stream server serves from: the store, seen by peers."""

    async def manifest(self, digest: Digest) -> Manifest: ...

    async def wire_segments(self, digest: Digest, indices: Sequence[int]) -> list[bytes]:
        """All or none. Raises BlobNotFound."""
        ...


class Fetcher(Protocol):
    async def fetch(
        self,
        digest: Digest,
        manifest_digest: Digest,
        *,
        progress: Callable[[int, int], None],
        urgent: bool = True,
    ) -> BlobInfo:
        """Gets a blob from those that hold or fetch it, resuming what is on disk; `progress` gets
        (wire bytes done, of). One transfer per digest however many wait; one that is `urgent` for
        any of them goes before those that are for none.

        Raises NoHolder, DiskFull, PeerError."""
        ...
