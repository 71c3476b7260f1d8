"""A deterministic world for gossip machines: one heap of events, a virtual clock, one seed.

The machines are the real ones; sockets, streams, disks and clocks are this file. Everything random
comes from the seed, every tie is broken by order of scheduling, and each event is folded into a
trace digest, so two runs of one seed can be compared. A process that is killed loses its memory
and keeps its disk (records, holdings, generation).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import RemoteProtocolError
from protocol.events import (
    Event,
    HoldingsChanged,
    IdentityClash,
    MemberDown,
    MemberLeft,
    MemberSuspect,
    MemberUp,
    MemberUpdated,
    RecordsAccepted,
    RecordsPurged,
    SyncWanted,
)
from protocol.function import FunctionSpec, encode_spec, version_of
from protocol.gossip import Gossip, GossipConfig
from protocol.identity import ROLES, TrustAnchor, issue_credential, public_bytes
from protocol.ids import Digest, NodeId, digest_of
from protocol.member import Address, Metadata
from protocol.presets import LAN, Knobs
from protocol.records import Record, decode_record, encoded_records
from protocol.seal import Keyring

WALL_START_MS = 1_800_000_000_000


@dataclass(frozen=True)
class Network:
    """Of every link; a datagram draws each fault on its own."""

    loss: float = 0.0
    duplicate: float = 0.0
    latency_s: float = 0.001
    """One way."""
    jitter_s: float = 0.001
    """Uniform on top; more than the time between two datagrams reorders them."""
    refuses: bool = True
    """A host without the process answers "connection refused"; False: silence."""


@dataclass
class Node:
    index: int
    name: str
    address: Address
    key: Ed25519PrivateKey
    node_id: NodeId
    gossip: Gossip | None = None
    generation: int = 0
    group: int = 0
    """Partition group: only equal groups hear each other."""
    skew_ms: int = 0
    paused_until_s: float = 0.0
    disturbed_s: float = 0.0
    """When it last was not simply up, connected and running."""
    timer_s: float = float("inf")
    records: dict[str, bytes] = field(default_factory=dict)
    held: dict[Digest, bool] = field(default_factory=dict)
    heard_at_s: dict[str, float] = field(default_factory=dict)
    """By record key: when the record was accepted last."""


class SimulationFailure(AssertionError):
    """A checker said no; the message ends with the command that replays the run."""


class Simulation:
    def __init__(
        self,
        *,
        nodes: int,
        seed: int,
        knobs: Knobs = LAN,
        network: Network | None = None,
        command: str = "",
    ) -> None:
        self.seed = seed
        self.command = command or f"scripts/sim --nodes {nodes} --seed {seed}"
        self.rng = random.Random(seed)
        self.network = network or Network()
        self.knobs = knobs
        self.now = 1000.0
        self.trace = blake3()
        self.events: dict[str, int] = {}
        self.datagrams = 0
        self.datagram_bytes = 0
        self.refused: dict[str, int] = {}
        self.false_deaths: list[str] = []
        self.downs: dict[tuple[int, int], float] = {}
        """(observer, victim) to time, since the victim last started."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._ca = self._key("ca")
        self._anchor_key = public_bytes(self._ca)
        self._keyring = Keyring([blake3(b"keyring%d" % seed).digest()])
        self.nodes = [self._node(index) for index in range(nodes)]
        self._by_address = {node.address: node for node in self.nodes}
        self._by_id = {node.node_id: node for node in self.nodes}

    # ------------------------------------------------------------ making
    def _key(self, name: str) -> Ed25519PrivateKey:
        material = blake3(f"{self.seed}/{name}".encode()).digest()
        return Ed25519PrivateKey.from_private_bytes(material)

    def _node(self, index: int) -> Node:
        key = self._key(f"node{index}")
        name = f"n{index}"
        address = (f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 7946)
        credential = issue_credential(
            self._ca, name=name, public_key=public_bytes(key), roles=ROLES, not_after_s=4 * 10**9
        )
        return Node(index, name, address, key, credential.node_id)

    def wall_ms(self, node: Node) -> int:
        return WALL_START_MS + int(self.now * 1000) + node.skew_ms

    def seeds(self) -> list[Address]:
        return [node.address for node in self.nodes[:3]]

    def start(self, node: Node) -> None:
        """A new process on the node's disk: next generation, nothing else remembered."""
        assert node.gossip is None
        node.generation += 1
        node.disturbed_s = self.now
        node.paused_until_s = 0.0
        for pair in [pair for pair in self.downs if pair[1] == node.index]:
            del self.downs[pair]
        credential = issue_credential(
            self._ca,
            name=node.name,
            public_key=public_bytes(node.key),
            roles=ROLES,
            not_after_s=4 * 10**9,
        )
        metadata = Metadata(node.name, node.address, node.address, region=f"r{node.index % 3}")
        gossip = Gossip(
            GossipConfig(metadata=metadata, generation=node.generation, knobs=self.knobs),
            self._keyring,
            TrustAnchor(self._anchor_key),
            node.key,
            credential,
            random.Random(self.rng.getrandbits(64)),
            now=self.now,
            wall_ms=self.wall_ms(node),
        )
        loaded = gossip.catalog.load(node.records.items(), wall_ms=self.wall_ms(node))
        assert not loaded.refused, loaded.refused
        for digest in node.held:
            gossip.holdings.set_local(digest, True)
        node.gossip = gossip
        gossip.join(self.seeds(), self.now)
        self._drain(node)

    def start_all(self) -> None:
        for node in self.nodes:
            self.start(node)

    # ------------------------------------------------------------ faults and deeds
    def kill(self, node: Node) -> None:
        node.gossip = None
        node.timer_s = float("inf")
        node.disturbed_s = self.now

    def leave(self, node: Node) -> None:
        """Graceful: lingers half a second, then is gone."""
        assert node.gossip is not None
        node.gossip.leave(self.now)
        self._drain(node)
        self.at(self.now + 0.5, lambda: self.kill(node))

    def pause(self, node: Node, for_s: float) -> None:
        """SIGSTOP: what arrives waits in its socket, timers run late."""
        node.paused_until_s = self.now + for_s
        node.disturbed_s = node.paused_until_s

    def partition(self, groups: list[list[Node]]) -> None:
        for number, group in enumerate(groups):
            for node in group:
                node.group = number
                node.disturbed_s = self.now

    def heal(self) -> None:
        self.partition([self.nodes])

    def set_network(self, **changes: float | bool) -> None:
        self.network = replace(self.network, **changes)  # type: ignore[arg-type]

    def deploy(self, node: Node, name: str, *, args: int = 0) -> str:
        """Some spec of its own; `args` bytes of arguments make its record too big for a datagram.
        The version's id."""
        assert node.gossip is not None
        catalog = node.gossip.catalog
        module = digest_of(self.rng.randbytes(16))
        texts = tuple("x" * min(8000, args - at) for at in range(0, args, 8000))
        spec = encode_spec(FunctionSpec("raw", module, 100, module, args=texts))
        self._publish(node, catalog.prepare_deploy(name, spec, wall_ms=self.wall_ms(node)))
        return version_of(spec)

    def remove(self, node: Node, name: str) -> None:
        assert node.gossip is not None
        self._publish(node, node.gossip.catalog.prepare_remove(name, wall_ms=self.wall_ms(node)))

    def roll_back(self, node: Node, name: str) -> None:
        """To the version deployed before the current one, if there is one."""
        assert node.gossip is not None
        catalog = node.gossip.catalog
        rows = catalog.versions(name)
        at = next((i for i, row in enumerate(rows) if row.current), len(rows))
        if at + 1 < len(rows):
            version = rows[at + 1].version
            self._publish(node, catalog.prepare_alias(name, version, wall_ms=self.wall_ms(node)))

    def _publish(self, node: Node, records: list[Record]) -> None:
        assert node.gossip is not None
        node.records.update(encoded_records(records))
        node.gossip.publish(records, self.now)
        self._drain(node)

    def hold(self, node: Node, digest: Digest, held: bool = True) -> None:
        assert node.gossip is not None
        if held:
            node.held[digest] = True
        else:
            node.held.pop(digest, None)
        node.gossip.announce(digest, held, self.now)
        self._drain(node)

    # ------------------------------------------------------------ the loop
    def at(self, at_s: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, action))

    def run(self, for_s: float) -> None:
        until_s = self.now + for_s
        while self._heap and self._heap[0][0] <= until_s:
            at_s, _, action = heapq.heappop(self._heap)
            self.now = max(self.now, at_s)
            action()
        self.now = until_s

    def run_until(self, condition: Callable[[], bool], *, limit_s: float, what: str) -> float:
        """Seconds until `condition` held, looked at every 50 ms; fails after `limit_s`."""
        start_s = self.now
        while not condition():
            if self.now - start_s > limit_s:
                self.fail(f"not within {limit_s} s: {what}\n{self.describe()}")
            self.run(0.05)
        return self.now - start_s

    def _running(self, node: Node, generation: int) -> Gossip | None:
        return node.gossip if node.generation == generation else None

    def _drain(self, node: Node) -> None:
        gossip = node.gossip
        while gossip is not None and (datagram := gossip.poll_transmit()) is not None:
            self._carry(node, datagram.address, datagram.data)
        while gossip is not None and (event := gossip.poll_event()) is not None:
            self._event(node, gossip, event)
        self._arm(node)

    def _arm(self, node: Node) -> None:
        if node.gossip is None:
            return
        deadline_s = node.gossip.next_deadline()
        if deadline_s is None or deadline_s >= node.timer_s:
            return
        node.timer_s = max(deadline_s, self.now)
        generation = node.generation
        self.at(node.timer_s, lambda: self._timer(node, generation))

    def _timer(self, node: Node, generation: int) -> None:
        gossip = self._running(node, generation)
        if gossip is None or self.now < node.timer_s:
            return
        if self.now < node.paused_until_s:
            node.timer_s = node.paused_until_s
            self.at(node.timer_s, lambda: self._timer(node, generation))
            return
        node.timer_s = float("inf")
        gossip.on_timer(self.now, self.wall_ms(node))
        self._drain(node)

    # ------------------------------------------------------------ network
    def _delay_s(self) -> float:
        return self.network.latency_s + self.rng.random() * self.network.jitter_s

    def _carry(self, source: Node, address: Address, data: bytes) -> None:
        assert len(data) <= 1200
        self.datagrams += 1
        self.datagram_bytes += len(data)
        target = self._by_address.get(address)
        copies = 2 if self.rng.random() < self.network.duplicate else 1
        for _ in range(copies):
            if target is not None and self.rng.random() >= self.network.loss:
                self.at(self.now + self._delay_s(), lambda: self._deliver(source, target, data))

    def _deliver(self, source: Node, target: Node, data: bytes) -> None:
        if source.group != target.group:
            return
        if target.gossip is None:
            if self.network.refuses and source.gossip is not None:
                source.gossip.note_refused(target.address, self.now)
                self._drain(source)
            return
        if self.now < target.paused_until_s:
            self.at(target.paused_until_s, lambda: self._deliver(source, target, data))
            return
        self._note("datagram", target, data)
        try:
            target.gossip.receive_datagram(data, source.address, self.now, self.wall_ms(target))
        except RemoteProtocolError as error:
            self.refused[error.code] = self.refused.get(error.code, 0) + 1
        self._drain(target)

    def _stream(self, node: Node, peer: Node) -> None:
        """One sync; any step finds the other side gone and the stream breaks."""
        generations = (node.generation, peer.generation)

        def both() -> tuple[Gossip, Gossip] | None:
            asker = self._running(node, generations[0])
            answerer = self._running(peer, generations[1])
            paused = self.now < max(node.paused_until_s, peer.paused_until_s)
            if asker is None or answerer is None or node.group != peer.group or paused:
                return None
            return asker, answerer

        def ask() -> None:
            if (pair := both()) is not None:
                request = pair[0].sync_begin(self.now)
                self._drain(node)
                self.at(self.now + self._delay_s(), lambda: answer(request))

        def answer(request: bytes) -> None:
            if (pair := both()) is not None:
                reply = pair[1].sync_answer(request, node.node_id, self.now, self.wall_ms(peer))
                self._drain(peer)
                self.at(self.now + self._delay_s(), lambda: finish(reply))

        def finish(reply: bytes) -> None:
            if (pair := both()) is not None:
                push = pair[0].sync_finish(reply, peer.node_id, self.now, self.wall_ms(node))
                self._drain(node)
                if push is not None:
                    self.at(self.now + self._delay_s(), lambda: accept(push))

        def accept(push: bytes) -> None:
            if (pair := both()) is not None:
                pair[1].sync_accept(push, node.node_id, self.now, self.wall_ms(peer))
                self._drain(peer)

        self.at(self.now + 3 * self._delay_s(), ask)

    # ------------------------------------------------------------ events
    def _note(self, kind: str, node: Node, data: bytes) -> None:
        self.trace.update(f"{self.now!r} {kind} {node.index} {len(data)}".encode() + data)

    def _event(self, node: Node, gossip: Gossip, event: Event) -> None:
        kind = type(event).__name__
        self.events[kind] = self.events.get(kind, 0) + 1
        match event:
            case SyncWanted(peer=peer):
                self._note(kind, node, peer.name.encode())
                self._stream(node, self._by_id[peer.node_id])
            case RecordsAccepted(records=records):
                node.records.update(records)
                for key, _ in records:
                    node.heard_at_s[key] = self.now
                self._note(kind, node, b"".join(key.encode() for key, _ in records))
            case RecordsPurged(keys=keys):
                for key in keys:
                    if gossip.catalog.encoded(key) is None:
                        node.records.pop(key, None)
            case MemberDown(member=member):
                self._note(kind, node, member.name.encode())
                self._judge_death(node, self._by_id[member.node_id], member.generation)
            case MemberUp() | MemberUpdated() | MemberSuspect() | MemberLeft():
                self._note(kind, node, event.member.name.encode())
            case HoldingsChanged(node_id=node_id):
                self._note(kind, node, node_id.encode())
            case IdentityClash():
                self.fail(f"{node.name} saw a newer generation of itself")

    def _judge_death(self, observer: Node, victim: Node, generation: int) -> None:
        self.downs.setdefault((observer.index, victim.index), self.now)
        window_s = 2 * self.knobs.suspicion_min_s * self.knobs.suspicion_max_factor
        healthy = (
            victim.gossip is not None
            and victim.generation == generation
            and victim.group == observer.group
            and all(
                self.now - max(node.disturbed_s, node.paused_until_s) > window_s
                for node in (victim, observer)
            )
        )
        if healthy:
            self.false_deaths.append(
                f"{self.now - 1000:.2f} s: {observer.name} declared {victim.name} down"
            )

    # ------------------------------------------------------------ checkers
    def up(self) -> list[Node]:
        return [node for node in self.nodes if node.gossip is not None]

    def sees(self, node: Node) -> set[tuple[str, int]]:
        assert node.gossip is not None
        return {(m.name, m.generation) for m in node.gossip.members() if m.reachable}

    def members_agree(self) -> bool:
        """Every node sees exactly those that run in its partition, in their generation."""
        for node in self.up():
            expected = {
                (other.name, other.generation) for other in self.up() if other.group == node.group
            }
            if self.sees(node) != expected:
                return False
        return True

    def catalogs_agree(self) -> bool:
        """By content, not by the digest that the machines compare themselves."""
        return (
            len({blake3(repr(self.catalog_of(node)).encode()).digest() for node in self.up()}) < 2
        )

    def catalog_of(self, node: Node) -> list[tuple[str, str, tuple[str, ...]]]:
        assert node.gossip is not None
        catalog = node.gossip.catalog
        return [
            (name, current.version, tuple(row.version for row in catalog.versions(name)))
            for name, current in catalog.functions()
        ]

    def holdings_agree(self) -> bool:
        """Everyone's view of every running node's blobs is what that node has on disk."""
        for node in self.up():
            assert node.gossip is not None
            for other in self.up():
                if node.group == other.group:
                    held = set(node.gossip.holdings.held(other.node_id))
                    if held != set(other.held):
                        return False
        return True

    def digests_agree(self) -> bool:
        return len({n.gossip.state_digest() for n in self.up() if n.gossip is not None}) < 2

    def converged(self) -> bool:
        return (
            self.digests_agree()
            and self.members_agree()
            and self.catalogs_agree()
            and self.holdings_agree()
        )

    def check_no_false_deaths(self) -> None:
        if self.false_deaths:
            self.fail("healthy nodes were declared down:\n" + "\n".join(self.false_deaths))

    def check_aliases_mean_something(self) -> None:
        """Once all agree: whatever is deployed can be called."""
        for node in self.up():
            assert node.gossip is not None
            for key, encoded in node.records.items():
                record = decode_record(encoded)
                live = record.kind == "alias" and not record.tombstone
                if live and node.gossip.catalog.lookup(record.name) is None:
                    self.fail(f"{node.name}: {key} lives, and its version does not")

    def describe(self) -> str:
        lines = []
        for node in self.up()[:12]:
            assert node.gossip is not None
            states = ", ".join(f"{m.name}:{m.state}" for m in node.gossip.members()[:12])
            digest = node.gossip.state_digest()
            lines.append(f"{node.name} g{node.generation} {digest:016x} {states}")
        return "\n".join(lines)

    def fail(self, message: str) -> None:
        raise SimulationFailure(f"{message}\nat {self.now - 1000:.2f} s; replay: {self.command}")
