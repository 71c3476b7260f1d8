"""The gossip machine that a driver (or the simulator) runs: membership, catalog and holdings
over sealed datagrams, with stream syncs for what datagrams missed. SPEC §4–§7.

Interface first; the body follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .catalog import Catalog
from .events import Datagram, Event
from .holdings import Holdings
from .identity import Credential, TrustAnchor
from .ids import NodeId
from .member import Address, Member, Metadata
from .presets import LAN, Knobs
from .records import Record
from .rng import Rng
from .seal import Keyring


class GossipConfig(msgspec.Struct, frozen=True, kw_only=True):
    metadata: Metadata
    generation: int
    """Boot epoch: above every one this node id ever used, else nonces repeat. A driver persists
    it and starts with max(persisted + 1, Unix ms), which also survives a lost data directory."""
    knobs: Knobs = LAN


class Gossip:
    catalog: Catalog
    holdings: Holdings
    node_id: NodeId

    def __init__(
        self,
        config: GossipConfig,
        keyring: Keyring,
        anchor: TrustAnchor,
        private_key: Ed25519PrivateKey,
        credential: Credential,
        rng: Rng,
        *,
        now: float,
        wall_ms: int,
    ) -> None: ...

    def receive_datagram(self, data: bytes, source: Address, now: float, wall_ms: int) -> None: ...
    def on_timer(self, now: float, wall_ms: int) -> None: ...
    def next_deadline(self) -> float | None: ...
    def poll_transmit(self) -> Datagram | None: ...
    def poll_event(self) -> Event | None: ...
    def join(self, addresses: Sequence[Address], now: float) -> None: ...
    def leave(self, now: float) -> None: ...
    def set_metadata(self, metadata: Metadata, now: float) -> None: ...
    def publish(self, records: Sequence[Record], now: float) -> None:
        """Applies records of catalog.prepare_* (persisted by the caller first) and spreads them."""

    def note_refused(self, address: Address, now: float) -> None:
        """The OS reported "connection refused" for a datagram to `address` (IP_RECVERR)."""

    def sync_begin(self, now: float) -> bytes: ...
    def sync_answer(self, request: bytes, peer: NodeId, now: float, wall_ms: int) -> bytes: ...
    def sync_finish(
        self, answer: bytes, peer: NodeId, now: float, wall_ms: int
    ) -> bytes | None: ...
    def sync_accept(self, push: bytes, peer: NodeId, now: float, wall_ms: int) -> None: ...
    def members(self) -> tuple[Member, ...]: ...
