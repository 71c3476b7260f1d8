"""One simulated host: its identity, its clocks, its disk, and the process that may run on it.

A process that dies loses its memory and what it had not saved yet; the disk stays. Saving takes
SAVE_S, one batch after the other, as the daemon does it.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.gossip import Gossip
from protocol.identity import Credential
from protocol.ids import Digest, NodeId
from protocol.member import Address
from protocol.seal import WIRE_VERSION

from .world import WALL_START_MS

SAVE_S = 0.005
"""An fsync or two of an SSD."""
SOCKET_BYTES = 425_984
"""Receive buffer: Linux doubles what is asked for, up to its rmem_max of 212,992; each datagram
takes DATAGRAM_OVERHEAD_BYTES more than it has."""
DATAGRAM_OVERHEAD_BYTES = 768

Batch = tuple[tuple[str, bytes | None], ...]
"""Records to save, and keys to drop (None)."""


class Clock:
    """A host's monotonic clock, which may drift, and its wall clock, which may be wrong."""

    def __init__(self) -> None:
        self.rate = 1.0
        self.skew_ms = 0
        self._base_world_s = 0.0
        self._base_local_s = 0.0
        self._last_s = 0.0

    def drift(self, rate: float, world_s: float) -> None:
        self._base_local_s, self._base_world_s = self.local(world_s), world_s
        self.rate = rate

    def local(self, world_s: float, at_least_s: float = 0.0) -> float:
        """Never backwards. `at_least_s`: the deadline that this moment was computed from, which
        rounding must not miss."""
        local_s = self._base_local_s + (world_s - self._base_world_s) * self.rate
        self._last_s = max(local_s, self._last_s, at_least_s)
        return self._last_s

    def world(self, local_s: float) -> float:
        return self._base_world_s + (local_s - self._base_local_s) / self.rate

    def wall_ms(self, world_s: float) -> int:
        return WALL_START_MS + int(world_s * 1000) + self.skew_ms


@dataclass
class Disk:
    generation: int = 0
    records: dict[str, bytes] = field(default_factory=dict)
    held: dict[Digest, bool] = field(default_factory=dict)
    waiting: deque[Batch] = field(default_factory=deque)
    """Not saved yet: what the process had accepted when it died is lost."""

    def apply(self, batch: Batch, count: int | None = None) -> None:
        """The first `count` of it, where the write was torn."""
        for key, record in batch[:count]:
            if record is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record

    def crash(self, rng: random.Random | None) -> None:
        """What waits is lost; with `rng` the first batch is half on disk, perhaps with one record
        that is half a record."""
        if rng is not None and self.waiting:
            batch = self.waiting[0]
            cut = rng.randrange(len(batch) + 1)
            self.apply(batch, cut)
            if cut < len(batch) and rng.random() < 0.5:
                key, record = batch[cut]
                if record is not None and key not in self.records:  # a row is replaced whole
                    self.records[key] = record[: rng.randrange(len(record))]
        self.waiting.clear()


class Node:
    __slots__ = (
        "address",
        "armed_s",
        "clock",
        "credential",
        "disk",
        "gossip",
        "group",
        "inbox",
        "inbox_bytes",
        "index",
        "key",
        "leaving",
        "name",
        "node_id",
        "paused_until_s",
        "place",
        "region",
        "timer_s",
        "wire_version",
    )

    def __init__(
        self, index: int, address: Address, key: Ed25519PrivateKey, credential: Credential
    ) -> None:
        self.index = index
        self.name = credential.name
        self.address = address
        self.key = key
        self.credential = credential
        self.node_id: NodeId = credential.node_id
        self.region = "local"
        self.place = 0
        """Number of the region in the topology."""
        self.clock = Clock()
        self.disk = Disk()
        self.gossip: Gossip | None = None
        self.leaving = False
        self.group = 0
        """Partition group: only equal groups hear each other."""
        self.paused_until_s = 0.0
        self.inbox: deque[tuple[Node, bytes]] = deque()
        """What arrived while it was paused."""
        self.inbox_bytes = 0
        self.timer_s = float("inf")
        self.armed_s = 0.0
        """The deadline behind timer_s, by the node's own clock."""
        self.wire_version = WIRE_VERSION

    def __repr__(self) -> str:
        return self.name

    @property
    def generation(self) -> int:
        return self.disk.generation

    @property
    def up(self) -> bool:
        return self.gossip is not None

    def enqueue(self, source: Node, data: bytes) -> bool:
        """While paused; False if the socket's buffer is full."""
        cost = len(data) + DATAGRAM_OVERHEAD_BYTES
        if self.inbox_bytes + cost > SOCKET_BYTES:
            return False
        self.inbox.append((source, data))
        self.inbox_bytes += cost
        return True
