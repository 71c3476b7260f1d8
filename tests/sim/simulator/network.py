"""Between the hosts: who hears whom, after how long, and what arrives broken.

A datagram draws each fault on its own. Latency, jitter (uniform here, whatever its kind) and loss
are those of the regions' link in the topology, where there is one, with `Conditions` on top;
without a topology `Conditions` is all. Bandwidth, and single nodes' links, are not simulated.
Partitions are groups (nobody hears another group) and cuts (this one does not reach that one,
though the way back may be open).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edged.topology import Topology

from .node import Node
from .world import World

DATAGRAM_BYTES_MAX = 1200
RETRANSMIT_S = 0.2
"""Least retransmission timeout of Linux's TCP; a lost SYN waits 1 s."""
SYN_RETRANSMIT_S = 1.0


@dataclass(frozen=True)
class Conditions:
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """Share of datagrams that come up to REORDER_S late."""
    corrupt: float = 0.0
    """Share of datagrams with one bit flipped."""
    latency_s: float = 0.001
    """One way; a topology's own takes its place."""
    jitter_s: float = 0.001
    """Uniform on top, likewise."""
    refuses: bool = True
    """A host without the process answers "connection refused"; False: silence."""


REORDER_S = 0.1


class Cuts:
    """Which hosts reach which; immutable, so that a checker may keep the former ones."""

    def __init__(
        self,
        groups: dict[int, int] | None = None,
        oneway: Sequence[tuple[frozenset[int], frozenset[int]]] = (),
    ) -> None:
        self.groups = groups or {}
        self.oneway = tuple(oneway)
        self.any = bool(groups or oneway)

    def blocked(self, source: int, target: int) -> bool:
        if not self.any:
            return False
        if self.groups.get(source, 0) != self.groups.get(target, 0):
            return True
        return any(source in froms and target in tos for froms, tos in self.oneway)

    def mutual(self, one: int, other: int) -> bool:
        return not self.blocked(one, other) and not self.blocked(other, one)

    def apart(self, one: int, other: int, helpers: Sequence[int]) -> bool:
        """The two cannot probe each other directly, and fewer than a third of the helpers could
        for them: of three helpers asked, it is likelier than not that none can."""
        if self.mutual(one, other):
            return False
        able = sum(self.mutual(one, via) and self.mutual(via, other) for via in helpers)
        return 3 * able < max(len(helpers), 1)


class Network:
    def __init__(
        self, world: World, conditions: Conditions, topology: Topology | None = None
    ) -> None:
        self._world = world
        self._rng = world.rng("network")
        self.conditions = conditions
        self.topology = topology
        self.cuts = Cuts()
        self.datagrams = 0
        self.datagram_bytes = 0
        self.largest_bytes = 0
        self.lost = 0
        self.corrupted = 0
        self._paths: dict[tuple[int, int], tuple[float, float, float]] = {}

    def change(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._paths = {}

    def path(self, source: Node, target: Node) -> tuple[float, float, float]:
        """(least latency, width of its range, loss), without what is in its way."""
        key = (source.place, target.place)
        known = self._paths.get(key)
        if known is None:
            now = self.conditions
            known = (now.latency_s, now.jitter_s, now.loss)
            if self.topology is not None:
                link = self.topology.link(source.region, target.region)
                loss = 1 - (1 - link.loss) * (1 - now.loss)
                least_s = max(0.0, link.latency_s - link.jitter_s)
                known = (least_s, link.latency_s + link.jitter_s - least_s, loss)
            self._paths[key] = known
        return known

    def blocked(self, source: Node, target: Node) -> bool:
        return self.cuts.blocked(source.index, target.index)

    def arrivals(self, source: Node, target: Node, data: bytes) -> list[tuple[float, bytes]]:
        """(delay, bytes) of every copy that gets there."""
        random_ = self._rng.random
        now = self.conditions
        latency_s, jitter_s, loss = self.path(source, target)
        copies = 2 if now.duplicate and random_() < now.duplicate else 1
        arriving: list[tuple[float, bytes]] = []
        for _ in range(copies):
            if loss and random_() < loss:
                self.lost += 1
                continue
            delay_s = latency_s + random_() * jitter_s
            if now.reorder and random_() < now.reorder:
                delay_s += random_() * REORDER_S
            arriving.append((delay_s, data))
        if now.corrupt and random_() < now.corrupt:
            arriving = [(delay_s, self._flip(data)) for delay_s, data in arriving]
        return arriving

    def _flip(self, data: bytes) -> bytes:
        self.corrupted += 1
        at = self._rng.randrange(len(data) * 8)
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        return bytes(flipped)

    def count(self, data: bytes) -> None:
        self.datagrams += 1
        self.datagram_bytes += len(data)
        if len(data) > self.largest_bytes:
            self.largest_bytes = len(data)

    def icmp_s(self, source: Node, target: Node) -> float | None:
        """Delay of a "connection refused" from `source` back to `target`; None: it gets lost."""
        latency_s, jitter_s, loss = self.path(source, target)
        if self.blocked(source, target) or (loss and self._rng.random() < loss):
            return None
        return latency_s + self._rng.random() * jitter_s

    def leg_s(self, source: Node, target: Node, *, syn: bool = False) -> float:
        """One way of a stream's segment, retransmissions included."""
        latency_s, jitter_s, loss = self.path(source, target)
        delay_s = latency_s + self._rng.random() * jitter_s
        wait_s = SYN_RETRANSMIT_S if syn else RETRANSMIT_S
        while loss and delay_s < 60 and self._rng.random() < loss:
            delay_s += wait_s
            wait_s *= 2
        return delay_s
