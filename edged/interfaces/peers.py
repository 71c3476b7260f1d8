"""Peers, what they are served from, and fetching from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from protocol.ids import ArtifactKey, Digest, NodeId
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


class GatewayStream(Protocol):
    """A connection to a peer's gateway: bytes of HTTP/1.1 both ways. One task writes, one reads."""

    async def send_all(self, parts: Sequence[bytes]) -> None:
        """Raises PeerError: not all of it has left this node."""
        ...

    async def receive(self) -> bytes:
        """b"" at the end. Raises PeerError."""
        ...

    def on_doubt(self, act: Callable[[], None] | None) -> None:
        """What to do, once, when the peer is suspected of being down."""
        ...

    def keep(self) -> None:
        """Its exchange is complete: it may carry another."""
        ...


class PeerGateways(Protocol):
    """Connections to peers' gateways, bounded in number."""

    def has_room(self, peer: Peer) -> bool:
        """Whether one more exchange with `peer` is within bounds now."""
        ...

    def stream(self, peer: Peer) -> AbstractAsyncContextManager[GatewayStream]:
        """One exchange. Raises (on entry) PeerError: not connected, nothing was sent."""
        ...


class BlobSource(Protocol):
    """What the stream server serves from: the store, seen by peers."""

    async def manifest(self, digest: Digest) -> Manifest: ...

    async def wire_segments(self, digest: Digest, indices: Sequence[int]) -> list[bytes]:
        """All or none. Raises BlobNotFound."""
        ...

    async def attested(self, module: Digest, key: ArtifactKey) -> bytes:
        """What there is of the module's artifact: an encoded protocol.artifact.Attested."""
        ...


class DeltaSource(Protocol):
    """What makes blobs of this node of other blobs of it, for peers that hold those."""

    async def part(
        self, blob: Digest, bases: Sequence[Digest], offset: int
    ) -> tuple[Digest, int, bytes]:
        """The base, of `bases`; the delta's size; its bytes from `offset` on, at most
        protocol.streams.DELTA_PART_BYTES. Raises BlobNotFound (there is none), Overloaded."""
        ...


class Fetcher(Protocol):
    async def fetch(
        self,
        digest: Digest,
        manifest_digest: Digest,
        *,
        progress: Callable[[int, int], None],
        urgent: bool = True,
        bases: Sequence[Digest] | None = None,
        holder: NodeId | None = None,
        holders: Callable[[Digest], Sequence[Peer]] | None = None,
    ) -> BlobInfo:
        """Gets a blob from those that hold or fetch it, resuming what is on disk; `progress` gets
        (wire bytes done, of). One transfer per digest however many wait; one that is `urgent` for
        any of them goes before those that are for none. `bases`, held here and best first, may
        make it cheaper; None: what the node knows to be like it. `holder` has it, whatever is
        known. `holders`: who is asked, nearest first; None: those of the module `digest`.

        Raises NoHolder, DiskFull, PeerError."""
        ...


class PeerLine(Protocol):
    """Requests to one peer about replicas, one after the other. SPEC §11.

    Each raises PeerError; PeerRefused if that was the peer's answer."""

    async def replicate(self, blob: Digest, manifest: Digest) -> None:
        """Returns when it is on the peer's disk; the peer fetches it, from this node too."""
        ...

    async def store_records(self, bundle: bytes) -> None:
        """Returns when they are on the peer's disk."""
        ...

    async def confirm(self, blob: Digest) -> bool: ...

    async def aclose(self) -> None: ...
