"""Streams between processes: a sync leg by leg, each of which may find the other side gone, cut
off or stopped. A stopped peer's kernel still accepts; the dialler waits, up to its timeout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.events import StreamOutcome
from protocol.gossip import Gossip

from .node import Node

if TYPE_CHECKING:
    from .simulation import Simulation

SYNC_TIMEOUT_S = 30.0
"""Of the daemon, for one request and its reply."""

CONNECT_TIMEOUT_S = 1.5
REDIAL_S = 0.3
HOLD_S = 30.0
"""Of the daemon's looks: for a connection to stand, between dials, and for an answer."""

Step = Callable[[Gossip, Gossip], None]


class Streams:
    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._world = sim.world
        self._network = sim.network
        self.started = 0
        self.broken = 0
        self.carried_bytes = 0
        """Sync payloads, both ways."""
        self.running: set[tuple[int, int, int]] = set()
        """(asker, its generation, answerer): one at a time, as in the daemon."""

    def sync(self, node: Node, peer: Node) -> None:
        run = (node.index, node.disk.generation, peer.index)
        if run in self.running:
            return
        self.running.add(run)
        self.started += 1
        _SyncRun(self._sim, node, peer, run).begin()

    def look(self, node: Node, peer: Node, probe_id: int, generation: int) -> None:
        _LookRun(self._sim, node, peer, probe_id, generation).begin()


class _LookRun:
    """A stream probe: the kernel answers for the host, the process for itself. A process that died
    resets the connection, a restarted one tells its generation."""

    def __init__(
        self, sim: Simulation, node: Node, peer: Node, probe_id: int, generation: int
    ) -> None:
        self._sim = sim
        self._node, self._peer = node, peer
        self._generations = (node.disk.generation, generation)
        self._address = peer.address
        self._probe_id = probe_id
        self._until_s = sim.world.now + HOLD_S

    def begin(self) -> None:
        world = self._sim.world
        legs_s = self._handshake_s()
        if legs_s > CONNECT_TIMEOUT_S:
            self._report_in(CONNECT_TIMEOUT_S, "silent")
        else:
            world.at(world.now + legs_s, self._connected)

    def _handshake_s(self) -> float:
        """Until the first of the dials is taken, were there nothing but loss in its way."""
        leg_s = self._sim.network.leg_s
        best_s, dialled_s = math.inf, 0.0
        while dialled_s < min(best_s, CONNECT_TIMEOUT_S):
            there_s = leg_s(self._node, self._peer, syn=True)
            best_s = min(best_s, dialled_s + there_s + leg_s(self._peer, self._node, syn=True))
            dialled_s += REDIAL_S
        return best_s

    def _report_in(self, after_s: float, outcome: StreamOutcome) -> None:
        world, node = self._sim.world, self._node
        report = self._sim.processes.stream_probed
        world.at(world.now + after_s, report, node, self._generations[0], self._probe_id, outcome)

    def _cut(self) -> bool:
        network = self._sim.network
        return network.blocked(self._node, self._peer) or network.blocked(self._peer, self._node)

    def _connected(self) -> None:
        listens = self._peer.gossip is not None and self._peer.address == self._address
        if self._cut() or not (listens or self._sim.network.conditions.refuses):
            self._report_in(CONNECT_TIMEOUT_S, "silent")
        elif not listens:
            self._report_in(0.0, "refused")
        else:
            self._report_in(0.0, "stalled")
            self._answered()

    def _answered(self) -> None:
        """TLS and Ping take two round trips more, once the process runs and the link is whole."""
        peer, world, now = self._peer, self._sim.world, self._sim.world.now
        if now > self._until_s:
            self._report_in(0.0, "silent")
        elif self._cut() or now < peer.paused_until_s:
            world.at(max(now + 0.2, peer.paused_until_s), self._answered)
        elif peer.gossip is None or peer.disk.generation != self._generations[1]:
            self._report_in(0.0, "refused")
        else:
            network = self._sim.network
            legs_s = sum(
                network.leg_s(one, other)
                for one, other in 2 * ((self._node, peer), (peer, self._node))
            )
            self._report_in(legs_s, "pong")


class _SyncRun:
    def __init__(self, sim: Simulation, node: Node, peer: Node, run: tuple[int, int, int]) -> None:
        self._sim = sim
        self._run = run
        self._world = sim.world
        self._node, self._peer = node, peer
        self._generations = (node.disk.generation, peer.disk.generation)
        self._address = peer.address
        self._until_s = 0.0

    def begin(self) -> None:
        """TCP's and TLS's handshakes take two round trips."""
        network = self._sim.network
        self._until_s = self._world.now + SYNC_TIMEOUT_S
        hand_s = network.leg_s(self._node, self._peer, syn=True)
        for one, other in ((self._peer, self._node), (self._node, self._peer)):
            hand_s += network.leg_s(one, other)
        self._then(hand_s, self._ask)

    def _break(self) -> None:
        """The asker finds out, if it still runs."""
        self._sim.streams.broken += 1
        self._sim.streams.running.discard(self._run)
        asker = self._node.gossip
        if asker is not None and self._node.disk.generation == self._generations[0]:
            asker.sync_failed(self._peer.node_id)

    def _then(self, after_s: float, step: Step) -> None:
        self._world.at(self._world.now + after_s, self._step, step)

    def _step(self, step: Step) -> None:
        """Runs `step` when both can; drops the stream when one is gone or time is up."""
        node, peer, now = self._node, self._peer, self._world.now
        same = (node.disk.generation, peer.disk.generation) == self._generations
        cut = self._sim.network.blocked(node, peer) or self._sim.network.blocked(peer, node)
        if node.gossip is None or peer.gossip is None or not same or peer.address != self._address:
            self._break()
            return
        wakes_s = max(node.paused_until_s, peer.paused_until_s)
        if cut:  # retransmissions go on; a short cut is survived
            wakes_s = max(wakes_s, now + 1.0)
        if now < wakes_s:
            if wakes_s >= self._until_s:
                self._break()
            else:
                self._world.at(wakes_s + 0.001, self._step, step)
            return
        step(node.gossip, peer.gossip)

    def _forth_s(self) -> float:
        return self._sim.network.leg_s(self._node, self._peer)

    def _back_s(self) -> float:
        return self._sim.network.leg_s(self._peer, self._node)

    def _ask(self, asker: Gossip, answerer: Gossip) -> None:
        request = asker.sync_begin(self._peer.node_id, self._node.clock.local(self._world.now))
        self._sim.processes.drain(self._node)
        self._send(request)

    def _send(self, request: bytes) -> None:
        self._until_s = self._world.now + SYNC_TIMEOUT_S
        self._then(self._forth_s(), lambda one, other: self._answer(other, request))

    def _answer(self, answerer: Gossip, request: bytes) -> None:
        clock, now = self._peer.clock, self._world.now
        reply = answerer.sync_answer(
            request, self._node.node_id, clock.local(now), clock.wall_ms(now)
        )
        self._sim.streams.carried_bytes += len(request) + len(reply)
        self._sim.processes.drain(self._peer)
        self._then(self._back_s(), lambda one, other: self._go_on(one, reply))

    def _go_on(self, asker: Gossip, reply: bytes) -> None:
        clock, now = self._node.clock, self._world.now
        request = asker.sync_next(reply, self._peer.node_id, clock.local(now), clock.wall_ms(now))
        self._sim.processes.drain(self._node)
        if request is not None:
            self._send(request)
        else:
            self._sim.streams.running.discard(self._run)
