"""The driver of every simulated process: what edged/network/gossip.py is to a real one.

Datagrams in and out, the one timer, events, the disk. A stopped process finds its datagrams in
its socket when it goes on, and reads them before it looks at its timer, as the daemon does.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from protocol.errors import RemoteProtocolError
from protocol.events import (
    Event,
    HoldingsChanged,
    IdentityClash,
    MemberDown,
    MemberLeft,
    MemberRefuted,
    MemberSuspect,
    MemberUp,
    MemberUpdated,
    RecordsAccepted,
    RecordsPurged,
    StreamOutcome,
    StreamProbe,
    SyncWanted,
)
from protocol.gossip import Gossip

from .node import SAVE_S, Batch, Node

if TYPE_CHECKING:
    from .simulation import Simulation

READ_BATCH = 64
"""Datagrams that the daemon reads before timers and transmits get their turn."""


class Processes:
    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._world = sim.world
        self._network = sim.network
        self.events: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.overflown = 0
        """Datagrams that found a full socket."""
        self.accepted_s: dict[int, float] = {}
        """By node: when it first accepted records since somebody cleared this."""
        self.events_max = 0
        """Most events of one input."""

    # ------------------------------------------------------------ the loop of one process
    def drain(self, node: Node) -> None:
        gossip = node.gossip
        if gossip is None:
            return
        while (datagram := gossip.poll_transmit()) is not None:
            self._send(node, datagram.address, datagram.data)
        count = 0
        while (event := gossip.poll_event()) is not None:
            count += 1
            self._event(node, gossip, event)
        if count > self.events_max:
            self.events_max = count
        self.arm(node)

    def arm(self, node: Node) -> None:
        if node.gossip is None:
            return
        deadline_s = node.gossip.next_deadline()
        if deadline_s is None:
            return
        at_s = max(node.clock.world(deadline_s), self._world.now)
        if at_s < node.timer_s:
            node.timer_s, node.armed_s = at_s, deadline_s
            self._world.at(at_s, self._timer, node, node.disk.generation)

    def _timer(self, node: Node, generation: int) -> None:
        now = self._world.now
        if node.gossip is None or node.disk.generation != generation or now < node.timer_s:
            return
        if now < node.paused_until_s:
            return  # resume looks at the timer
        self._look_at_timer(node)
        self.drain(node)

    def _look_at_timer(self, node: Node) -> None:
        assert node.gossip is not None
        now = self._world.now
        due = now >= node.timer_s
        local_s = node.clock.local(now, node.armed_s if due else 0.0)
        node.timer_s = float("inf")
        node.gossip.on_timer(local_s)

    def resume(self, node: Node, generation: int) -> None:
        """At the end of a pause, if it was not prolonged."""
        now = self._world.now
        if node.gossip is None or node.disk.generation != generation or now < node.paused_until_s:
            return
        while node.gossip is not None:
            for _ in range(min(READ_BATCH, len(node.inbox))):
                source, data = node.inbox.popleft()
                self._receive(node, source, data)
            self._look_at_timer(node)
            self.drain(node)
            if not node.inbox:
                break
        node.inbox_bytes = 0

    # ------------------------------------------------------------ datagrams
    def _send(self, source: Node, address: tuple[str, int], data: bytes) -> None:
        self._network.count(data)
        target = self._sim.at_address(address)
        if target is None:
            return
        now = self._world.now
        for delay_s, arriving in self._network.arrivals(source, target, data):
            self._world.at(now + delay_s, self._deliver, source, target, address, arriving)

    def _deliver(self, source: Node, target: Node, address: tuple[str, int], data: bytes) -> None:
        if self._network.blocked(source, target):
            return
        if target.address != address or target.gossip is None:
            self._refuse(source, target, address)
        elif self._world.now < target.paused_until_s:
            self.overflown += not target.enqueue(source, data)
        else:
            self._world.note("datagram", target.index, data)
            self._receive(target, source, data)
            self.drain(target)

    def _receive(self, target: Node, source: Node, data: bytes) -> None:
        assert target.gossip is not None
        now = self._world.now
        try:
            target.gossip.receive_datagram(
                data, source.address, target.clock.local(now), target.clock.wall_ms(now)
            )
        except RemoteProtocolError as error:
            self.refused[error.code] += 1

    def _refuse(self, source: Node, target: Node, address: tuple[str, int]) -> None:
        """Nobody listens at that address: its host says so, unless it is a silent one."""
        if not self._network.conditions.refuses:
            return
        delay_s = self._network.icmp_s(target, source)
        if delay_s is not None:
            at_s = self._world.now + delay_s
            self._world.at(at_s, self._refused, source, source.disk.generation, address)

    def _refused(self, source: Node, generation: int, address: tuple[str, int]) -> None:
        now = self._world.now
        if source.gossip is None or source.disk.generation != generation:
            return
        if now < source.paused_until_s:
            self._world.at(source.paused_until_s, self._refused, source, generation, address)
            return
        source.gossip.note_refused(address, source.clock.local(now))
        self.drain(source)

    def stream_probed(
        self, node: Node, generation: int, probe_id: int, outcome: StreamOutcome
    ) -> None:
        now = self._world.now
        if node.gossip is None or node.disk.generation != generation:
            return
        if now < node.paused_until_s:
            again_s = node.paused_until_s
            self._world.at(again_s, self.stream_probed, node, generation, probe_id, outcome)
            return
        node.gossip.on_stream_probe(probe_id, outcome, node.clock.local(now))
        self.drain(node)

    # ------------------------------------------------------------ events
    def _event(self, node: Node, gossip: Gossip, event: Event) -> None:
        kind = type(event).__name__
        self.events[kind] += 1
        sim = self._sim
        match event:
            case SyncWanted(peer=peer):
                self._world.note(kind, node.index, peer.node_id.encode())
                sim.streams.sync(node, sim.by_id(peer.node_id))
            case StreamProbe(probe_id=probe_id, member=member):
                self._world.note(kind, node.index, member.node_id.encode())
                sim.streams.look(node, sim.by_id(member.node_id), probe_id, member.generation)
            case RecordsAccepted(records=records):
                self._world.note(kind, node.index, b"".join(key.encode() for key, _ in records))
                self.accepted_s.setdefault(node.index, self._world.now)
                self._save(node, tuple(records))
            case RecordsPurged(keys=keys):
                self._save(node, tuple((key, None) for key in keys))
            case MemberDown(member=member):
                self._world.note(kind, node.index, member.node_id.encode())
                sim.declared_down(node, sim.by_id(member.node_id), member.generation)
            case MemberUp() | MemberUpdated() | MemberSuspect() | MemberRefuted() | MemberLeft():
                self._world.note(kind, node.index, event.member.node_id.encode())
                sim.heard(node, sim.by_id(event.member.node_id), kind)
            case HoldingsChanged(node_id=node_id):
                self._world.note(kind, node.index, node_id.encode())
            case IdentityClash(generation=generation):
                sim.clash(node, generation)

    # ------------------------------------------------------------ the disk
    def _save(self, node: Node, batch: Batch) -> None:
        node.disk.waiting.append(batch)
        if len(node.disk.waiting) == 1:
            at_s = self._world.now + SAVE_S
            self._world.at(at_s, self._saved, node, node.disk.generation)

    def _saved(self, node: Node, generation: int) -> None:
        """What is not in force any more is not written: a newer batch that waits has it."""
        gossip, disk = node.gossip, node.disk
        if gossip is None or disk.generation != generation or not disk.waiting:
            return
        now = self._world.now
        if now < node.paused_until_s:
            self._world.at(node.paused_until_s + SAVE_S, self._saved, node, generation)
            return
        encoded = gossip.catalog.encoded
        batch = tuple(row for row in disk.waiting.popleft() if encoded(row[0]) == row[1])
        disk.apply(batch)
        self._sim.ledger.saved(node.index, [record for _, record in batch if record is not None])
        if disk.waiting:
            self._world.at(now + SAVE_S, self._saved, node, generation)
