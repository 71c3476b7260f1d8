"""Clusters of protocol.replication machines under a virtual clock and one seed: who is gone or back
is known after a delay, transfers and answers take their time, disks may be lost. What each drop
leaves behind is checked from outside, at once."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from random import Random

from protocol.ids import Digest, NodeId, digest_of
from protocol.modules import Wanted
from protocol.replicas import Site, placement
from protocol.replication import AskHolders, Drop, Repair, Replication, ReplicationConfig

CONFIG = ReplicationConfig(repair_after_s=10.0, surplus_after_s=120.0)
REGIONS = ("eu", "us", "ap")
MANIFEST = digest_of(b"manifest")


class Node:
    def __init__(self, sim: Simulation, index: int) -> None:
        self.sim = sim
        self.site = Site(NodeId(f"{index:032x}"), REGIONS[index % len(REGIONS)])
        self.disk: dict[Digest, None] = {}
        self.up = True
        self.believes: dict[NodeId, None] = {}
        self.used: set[Digest] = set()
        self.machine = self._machine()
        self.timer = 0

    @property
    def node_id(self) -> NodeId:
        return self.site.node_id

    def _machine(self) -> Replication:
        return Replication(
            self.site,
            CONFIG,
            self.sim.rng,
            held=lambda blob: blob in self.disk,
            holders=self._holders,
            in_use=lambda blob: blob in self.used,
        )

    def _holders(self, blob: Digest) -> list[NodeId]:
        nodes = self.sim.by_id
        return [other for other in self.believes if blob in nodes[other].disk]

    def boot(self) -> None:
        """With what is on its disk; it knows the catalog, and nobody else yet."""
        self.up = True
        self.believes = {}
        self.machine = self._machine()
        for blob, wanted in self.sim.wanted.items():
            self.machine.want(blob, wanted, self.sim.now)
        self.settle()

    def see(self, other: Node, *, up: bool) -> None:
        if not self.up or other is self:
            return
        if up:
            self.believes[other.node_id] = None
            self.machine.member_up(other.site, self.sim.now)
        else:
            self.believes.pop(other.node_id, None)
            self.machine.member_gone(other.node_id, self.sim.now)
        self.settle()

    def settle(self) -> None:
        """Obeys the machine, then sets its one timer."""
        machine, sim = self.machine, self.sim
        while (event := machine.poll_event()) is not None:
            match event:
                case Repair(blob):
                    sim.transfer(self, blob)
                case AskHolders(blob, peers):
                    for peer in peers:
                        sim.ask(self, blob, sim.by_id[peer])
                case Drop(blob):
                    sim.later(sim.rng.random() * 0.3, lambda b=blob: self._drop(b, machine))
        self.timer += 1
        number, deadline = self.timer, machine.next_deadline()
        if deadline is not None:
            sim.at(deadline, lambda: self._on_timer(number))

    def _on_timer(self, number: int) -> None:
        if self.up and number == self.timer:
            self.machine.on_timer(self.sim.now)
            self.settle()

    def _drop(self, blob: Digest, machine: Replication) -> None:
        if not self.up or machine is not self.machine:
            return
        if blob not in self.used:
            self.sim.dropped(self, blob)
        machine.dropped(blob, self.sim.now)
        self.settle()


class Simulation:
    def __init__(self, seed: int, nodes: int, blobs: int) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.repairs = self.drops = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.wanted = {digest_of(i.to_bytes(4)): Wanted((MANIFEST,), 3) for i in range(blobs)}
        self.nodes: list[Node] = []
        self.nodes += [Node(self, index) for index in range(nodes)]
        self.by_id = {node.node_id: node for node in self.nodes}
        for blob, wanted in self.wanted.items():
            for site in placement(blob, [node.site for node in self.nodes], wanted.replicas):
                self.by_id[site.node_id].disk[blob] = None
        for node in self.nodes:
            node.boot()
            for other in self.nodes:
                node.see(other, up=True)

    # ------------------------------------------------------------ time
    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._numbers), what))

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        self.at(self.now + delay_s, what)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, what = heapq.heappop(self._heap)
            what()
        self.now = until

    # ------------------------------------------------------------ the world
    def transfer(self, node: Node, blob: Digest) -> None:
        """Goes on while any node that is up has it."""
        machine = node.machine

        def end() -> None:
            if not node.up or machine is not node.machine:
                return
            ok = any(one.up and blob in one.disk for one in self.nodes if one is not node)
            if ok:
                node.disk[blob] = None
                self.repairs += 1
            machine.repaired(blob, self.now, ok=ok)
            node.settle()

        self.later(0.1 + 2 * self.rng.random(), end)

    def ask(self, node: Node, blob: Digest, peer: Node) -> None:
        machine = node.machine

        def asked() -> None:
            held = peer.up and peer.machine.promise(blob, self.now)
            self.later(self.rng.random(), lambda: answered(held))

        def answered(held: bool) -> None:
            if node.up and machine is node.machine:
                machine.confirmed(blob, peer.node_id, self.now, held=held)
                node.settle()

        self.later(self.rng.random(), asked)

    def dropped(self, node: Node, blob: Digest) -> None:
        del node.disk[blob]
        self.drops += 1
        left = [other for other in self.nodes if blob in other.disk]
        assert len(left) >= self.wanted[blob].replicas, f"{self.now:.1f}: {len(left)} copies left"

    def kill(self, node: Node, *, disk_too: bool = False) -> None:
        node.up = False
        if disk_too:
            node.disk.clear()
        self._tell(node, up=False)

    def restart(self, node: Node) -> None:
        node.boot()
        for other in self.nodes:
            if other.up:
                self.later(self.rng.random(), lambda o=other: node.see(o, up=o.up))
        self._tell(node, up=True)

    def _tell(self, node: Node, *, up: bool) -> None:
        """Each of the others, in its own time; what is true by then."""
        for other in self.nodes:
            delay_s = 0.5 + 3 * self.rng.random() if not up else self.rng.random()
            self.later(delay_s, lambda o=other: o.see(node, up=node.up))

    # ------------------------------------------------------------ looking at it
    def copies(self, blob: Digest) -> list[Node]:
        return [node for node in self.nodes if node.up and blob in node.disk]

    def lacking(self) -> Iterator[Digest]:
        alive = sum(node.up for node in self.nodes)
        for blob, wanted in self.wanted.items():
            if len(self.copies(blob)) < min(wanted.replicas, alive):
                yield blob

    def misplaced(self) -> Iterator[Digest]:
        sites = [node.site for node in self.nodes if node.up]
        for blob, wanted in self.wanted.items():
            right = {site.node_id for site in placement(blob, sites, wanted.replicas)}
            if {node.node_id for node in self.copies(blob)} != right:
                yield blob
