"""Streams between processes: a sync in its three legs, each of which may find the other side gone,
cut off or stopped. A stopped peer's kernel still accepts; the dialler waits, up to its timeout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.gossip import Gossip

from .node import Node

if TYPE_CHECKING:
    from .simulation import Simulation

SYNC_TIMEOUT_S = 30.0
"""Of the daemon, for a whole sync."""

Step = Callable[[Gossip, Gossip], None]


class Streams:
    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._world = sim.world
        self._network = sim.network
        self.started = 0
        self.broken = 0

    def sync(self, node: Node, peer: Node) -> None:
        _SyncRun(self._sim, node, peer).begin()
        self.started += 1


class _SyncRun:
    def __init__(self, sim: Simulation, node: Node, peer: Node) -> None:
        self._sim = sim
        self._world = sim.world
        self._node, self._peer = node, peer
        self._generations = (node.disk.generation, peer.disk.generation)
        self._address = peer.address
        self._until_s = sim.world.now + SYNC_TIMEOUT_S

    def begin(self) -> None:
        """TCP's and TLS's handshakes take two round trips."""
        network = self._sim.network
        hand_s = network.leg_s(self._node, self._peer, syn=True)
        for one, other in ((self._peer, self._node), (self._node, self._peer)):
            hand_s += network.leg_s(one, other)
        self._then(hand_s, self._ask)

    def _then(self, after_s: float, step: Step) -> None:
        self._world.at(self._world.now + after_s, self._step, step)

    def _step(self, step: Step) -> None:
        """Runs `step` when both can; drops the stream when one is gone or time is up."""
        node, peer, now = self._node, self._peer, self._world.now
        same = (node.disk.generation, peer.disk.generation) == self._generations
        cut = self._sim.network.blocked(node, peer) or self._sim.network.blocked(peer, node)
        if node.gossip is None or peer.gossip is None or not same or peer.address != self._address:
            self._sim.streams.broken += 1
            return
        wakes_s = max(node.paused_until_s, peer.paused_until_s)
        if cut:  # retransmissions go on; a short cut is survived
            wakes_s = max(wakes_s, now + 1.0)
        if now < wakes_s:
            if wakes_s >= self._until_s:
                self._sim.streams.broken += 1
            else:
                self._world.at(wakes_s + 0.001, self._step, step)
            return
        step(node.gossip, peer.gossip)

    def _forth_s(self) -> float:
        return self._sim.network.leg_s(self._node, self._peer)

    def _back_s(self) -> float:
        return self._sim.network.leg_s(self._peer, self._node)

    def _ask(self, asker: Gossip, answerer: Gossip) -> None:
        request = asker.sync_begin(self._node.clock.local(self._world.now))
        self._sim.processes.drain(self._node)
        self._then(self._forth_s(), lambda one, other: self._answer(other, request))

    def _answer(self, answerer: Gossip, request: bytes) -> None:
        clock, now = self._peer.clock, self._world.now
        reply = answerer.sync_answer(
            request, self._node.node_id, clock.local(now), clock.wall_ms(now)
        )
        self._sim.processes.drain(self._peer)
        self._then(self._back_s(), lambda one, other: self._finish(one, reply))

    def _finish(self, asker: Gossip, reply: bytes) -> None:
        clock, now = self._node.clock, self._world.now
        push = asker.sync_finish(reply, self._peer.node_id, clock.local(now), clock.wall_ms(now))
        self._sim.processes.drain(self._node)
        if push is not None:
            self._then(self._forth_s(), lambda one, other: self._accept(other, push))

    def _accept(self, answerer: Gossip, push: bytes) -> None:
        clock, now = self._peer.clock, self._world.now
        answerer.sync_accept(push, self._node.node_id, clock.local(now), clock.wall_ms(now))
        self._sim.processes.drain(self._peer)
