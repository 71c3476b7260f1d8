"""One simulated cluster: hosts, network and processes, what can be done to them, and the checkers
that watch. The machines are the real ones; everything else is this package."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edged.topology import Topology
from protocol.catalog import SavedRecord
from protocol.function import FunctionSpec, encode_spec, version_of
from protocol.gossip import Gossip, GossipConfig
from protocol.identity import ROLES, TrustAnchor, issue_credential, public_bytes
from protocol.ids import Digest, NodeId, digest_of
from protocol.member import Address, Metadata
from protocol.presets import LAN, Knobs
from protocol.records import Record, encoded_records
from protocol.roster import EMPTY, Roster
from protocol.seal import Keyring

from .checks import Checks
from .faultlog import FaultLog
from .network import Conditions, Cuts, Network
from .node import Disk, Node
from .processes import Processes
from .streams import Streams
from .world import START_S, World

LEAVE_S = 0.5
"""How long a process that said goodbye lingers."""
PORT = 7946


class SimulationFailure(AssertionError):
    """A checker said no; the message ends with the command that replays the run."""


class Simulation:
    def __init__(
        self,
        *,
        nodes: int,
        seed: int,
        knobs: Knobs = LAN,
        network: Conditions | None = None,
        topology: Topology | None = None,
        command: str = "",
    ) -> None:
        self.seed = seed
        self.command = command or f"scripts/sim --nodes {nodes} --seed {seed}"
        self.knobs = knobs
        self.world = World(seed)
        self.rng = self.world.rng("deeds")
        self._lives = self.world.rng("lives")
        self._torn = self.world.rng("torn")
        self.log = FaultLog()
        self.network = Network(self.world, network or Conditions(), topology)
        self._ca = self._key("ca")
        self._anchor = TrustAnchor(public_bytes(self._ca))
        self.keys = [blake3(b"keyring%d" % seed).digest()]
        self._keys_of: dict[int, list[bytes]] = {}
        self.nodes: list[Node] = []
        self._by_id: dict[NodeId, Node] = {}
        self._by_address: dict[Address, Node] = {}
        for index, region in enumerate(self._regions(nodes)):
            self.add(f"n{index}", region=region)
        self.checks = Checks(self)
        self.ledger = self.checks.ledger
        self.processes = Processes(self)
        self.streams = Streams(self)
        self._log_network()
        self.world.at(self.now + 1, self._watch)

    # ------------------------------------------------------------ hosts
    @property
    def now(self) -> float:
        return self.world.now

    def _regions(self, count: int) -> list[str]:
        topology = self.network.topology
        return topology.deal(count) if topology is not None else ["local"] * count

    def _key(self, name: str) -> Ed25519PrivateKey:
        material = blake3(f"{self.seed}/{name}".encode()).digest()
        return Ed25519PrivateKey.from_private_bytes(material)

    def add(self, name: str, *, region: str = "local") -> Node:
        """A host that has not run yet; a name may be used again, by another identity."""
        index = len(self.nodes)
        key = self._key(f"node{index}")
        credential = issue_credential(
            self._ca, name=name, public_key=public_bytes(key), roles=ROLES, not_after_s=4 * 10**9
        )
        address = (f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", PORT)
        node = Node(index, address, key, credential)
        node.region = region
        if self.network.topology is not None:
            node.place = self.network.topology.regions.index(region)
        self.nodes.append(node)
        self._by_id[node.node_id] = node
        self._by_address[address] = node
        return node

    def by_id(self, node_id: NodeId) -> Node:
        return self._by_id[node_id]

    def at_address(self, address: Address) -> Node | None:
        return self._by_address.get(address)

    def move(self, node: Node, address: Address) -> None:
        """The next process starts there; whoever has it must be moved first."""
        assert not node.up
        assert address not in self._by_address
        self._by_address[address] = node
        node.address = address

    def up(self) -> list[Node]:
        return [node for node in self.nodes if node.gossip is not None]

    def seeds(self) -> list[Address]:
        return [node.address for node in self.nodes[:3]]

    # ------------------------------------------------------------ processes
    def metadata(self, node: Node) -> Metadata:
        """As long as a real node's."""
        return Metadata(
            node.name,
            node.address,
            node.address,
            gateway_url=f"http://{node.address[0]}:8080",
            region=node.region,
            target="x86_64-unknown-linux-gnu",
            artifact_key="0123456789abcdef",
        )

    def next_generation(self, node: Node) -> None:
        assert not node.up
        wall_ms = node.clock.wall_ms(self.now)
        node.disk.generation = max(node.disk.generation + 1, wall_ms)

    def make(self, node: Node, roster: Roster = EMPTY) -> Gossip:
        """A new process on the node's disk, which remembers nothing else."""
        wall_ms = node.clock.wall_ms(self.now)
        gossip = Gossip(
            GossipConfig(
                metadata=self.metadata(node),
                generation=node.disk.generation,
                knobs=self.knobs,
                wire_version=node.wire_version,
            ),
            Keyring(self._keys_of.get(node.index, self.keys)),
            self._anchor,
            node.key,
            node.credential,
            random.Random(self._lives.getrandbits(64)),
            now=node.clock.local(self.now),
            wall_ms=wall_ms,
            roster=roster,
        )
        rows = [SavedRecord(key, encoded) for key, encoded in node.disk.records.items()]
        loaded = gossip.catalog.load(rows)
        for key in loaded.drop:
            del node.disk.records[key]
        for digest in node.disk.held:
            gossip.holdings.set_local(digest, True)
        return gossip

    def begin(self, node: Node, gossip: Gossip) -> None:
        """Runs what `make` made."""
        node.gossip = gossip
        node.paused_until_s = 0.0
        node.leaving = False
        node.timer_s = float("inf")
        self.log.started(node.index, node.disk.generation, self.now)
        self.checks.agreement.touch(node.index)
        self.processes.drain(node)

    def start(self, node: Node) -> None:
        self.next_generation(node)
        gossip = self.make(node)
        gossip.join(self.seeds(), node.clock.local(self.now))
        self.begin(node, gossip)

    def start_all(self) -> None:
        for node in self.nodes:
            if not node.up:
                self.start(node)

    def kill(self, node: Node, *, torn: bool = False) -> None:
        """`torn`: in the middle of a write."""
        assert node.up
        node.gossip = None
        node.inbox.clear()
        node.inbox_bytes = 0
        node.disk.crash(self._torn if torn else None)
        self.log.died(node.index, self.now, left=node.leaving)
        self.checks.died(node)

    def wipe(self, node: Node) -> None:
        """The host's disk is lost, with the generation on it."""
        assert not node.up
        node.disk = Disk()
        self.log.wiped[node.index] = self.now
        self.ledger.wiped(node.index)

    def leave(self, node: Node) -> None:
        """Graceful: lingers a moment, then is gone."""
        assert node.gossip is not None
        node.leaving = True
        node.gossip.leave(node.clock.local(self.now))
        self.checks.agreement.touch(node.index)
        self.processes.drain(node)
        self.world.at(self.now + LEAVE_S, self._gone, node, node.disk.generation)

    def _gone(self, node: Node, generation: int) -> None:
        if node.up and node.disk.generation == generation:
            self.kill(node)

    def pause(self, node: Node, for_s: float) -> None:
        """SIGSTOP: what arrives waits in its socket, timers run late."""
        node.paused_until_s = max(node.paused_until_s, self.now + for_s)
        self.log.paused(node.index, self.now, node.paused_until_s)
        self.world.at(node.paused_until_s, self.processes.resume, node, node.disk.generation)

    def skew(self, node: Node, skew_ms: int, drift: float = 0.0) -> None:
        """The wall clock is wrong by so much; the monotonic one runs 1 + `drift` as fast."""
        node.clock.skew_ms = skew_ms
        node.clock.drift(1 + drift, self.now)
        node.timer_s = float("inf")
        self.processes.arm(node)

    def set_keys(self, node: Node, keys: list[bytes]) -> None:
        """On its disk, and in force at once; the first seals."""
        self._keys_of[node.index] = keys
        if node.gossip is not None:
            node.gossip.set_keyring(Keyring(keys), node.clock.local(self.now))
            self.processes.drain(node)

    # ------------------------------------------------------------ network
    def partition(self, groups: Sequence[Sequence[Node]]) -> None:
        """Nobody hears another group; whoever is in none is in the first."""
        numbers = {node.index: number for number, group in enumerate(groups) for node in group}
        for node in self.nodes:
            node.group = numbers.setdefault(node.index, 0)
        self._cut(Cuts(numbers if len(groups) > 1 else None, self.network.cuts.oneway))

    def cut(self, sources: Sequence[Node], targets: Sequence[Node]) -> None:
        """What the sources send does not reach the targets; the way back stays as it was."""
        rule = (
            frozenset(node.index for node in sources),
            frozenset(node.index for node in targets),
        )
        self._cut(Cuts(self.network.cuts.groups, (*self.network.cuts.oneway, rule)))

    def heal(self) -> None:
        for node in self.nodes:
            node.group = 0
        self._cut(Cuts())

    def _cut(self, cuts: Cuts) -> None:
        self.network.cuts = cuts
        self.checks.agreement.touch(*range(len(self.nodes)))
        self._log_network()

    def set_network(self, **changes: float | bool) -> None:
        self.network.change(replace(self.network.conditions, **changes))  # type: ignore[arg-type]
        self._log_network()

    def _log_network(self) -> None:
        self.log.network(self.network.cuts, self.network.conditions, self.now)

    def loss(self) -> float:
        """Of the worst link, corruption included."""
        now = self.network.conditions
        topology = self.network.topology
        worst = max((link.loss for link in topology.links.values()), default=0.0) if topology else 0
        return 1 - (1 - worst) * (1 - now.loss) * (1 - now.corrupt)

    # ------------------------------------------------------------ what operators do
    def deploy(self, node: Node, name: str, *, args: int = 0) -> str:
        """Some spec of its own; `args` bytes of arguments make its record too big for a datagram.
        The version's id."""
        assert node.gossip is not None
        module = digest_of(self.rng.randbytes(16))
        texts = tuple("x" * min(8000, args - at) for at in range(0, args, 8000))
        spec = encode_spec(FunctionSpec("raw", module, 100, module, args=texts))
        wall_ms = node.clock.wall_ms(self.now)
        self._publish(node, node.gossip.catalog.prepare_deploy(name, spec, wall_ms=wall_ms))
        return version_of(spec)

    def remove(self, node: Node, name: str) -> None:
        assert node.gossip is not None
        wall_ms = node.clock.wall_ms(self.now)
        self._publish(node, node.gossip.catalog.prepare_remove(name, wall_ms=wall_ms))

    def roll_back(self, node: Node, name: str) -> None:
        """To the version deployed before the current one, if there is one."""
        assert node.gossip is not None
        catalog = node.gossip.catalog
        rows = catalog.versions(name)
        at = next((i for i, row in enumerate(rows) if row.current), len(rows))
        if at + 1 < len(rows):
            version, wall_ms = rows[at + 1].version, node.clock.wall_ms(self.now)
            self._publish(node, catalog.prepare_alias(name, version, wall_ms=wall_ms))

    def _publish(self, node: Node, records: list[Record]) -> None:
        """Saved, then in force: so it is acknowledged."""
        assert node.gossip is not None
        encoded = encoded_records(records)
        node.disk.records.update(encoded)
        self.ledger.signed(records)
        self.ledger.saved(node.index, [record for _, record in encoded])
        node.gossip.publish(records, node.clock.local(self.now))
        self.processes.drain(node)

    def die_deploying(self, node: Node, name: str) -> None:
        """The process ends while it saves what it was going to publish: some of it is on disk."""
        assert node.gossip is not None
        module = digest_of(self.rng.randbytes(16))
        spec = encode_spec(FunctionSpec("raw", module, 100, module))
        wall_ms = node.clock.wall_ms(self.now)
        records = node.gossip.catalog.prepare_deploy(name, spec, wall_ms=wall_ms)
        cut = self._torn.randrange(len(records) + 1)
        encoded = encoded_records(records[:cut])
        node.disk.records.update(encoded)
        self.ledger.signed(records)
        self.ledger.saved(node.index, [record for _, record in encoded])
        self.kill(node)  # whatever else waits to be written waits for this

    def hold(self, node: Node, digest: Digest, held: bool = True) -> None:
        assert node.gossip is not None
        if held:
            node.disk.held[digest] = True
        else:
            node.disk.held.pop(digest, None)
        node.gossip.announce(digest, held, node.clock.local(self.now))
        self.processes.drain(node)

    # ------------------------------------------------------------ time
    def run(self, for_s: float) -> None:
        self.world.run(for_s)

    def run_until(
        self, condition: Callable[[], bool], *, limit_s: float, what: str, step_s: float = 0.05
    ) -> float:
        """Seconds until `condition` held, looked at every `step_s`; fails after `limit_s`."""
        start_s = self.now
        while not condition():
            if self.now - start_s > limit_s:
                self.fail(f"not within {limit_s:.1f} s: {what}\n{self.checks.describe()}")
            self.run(step_s)
        return self.now - start_s

    def _watch(self) -> None:
        self.world.at(self.now + 1, self._watch)
        self.checks.watch()

    # ------------------------------------------------------------ what processes report
    def declared_down(self, observer: Node, victim: Node, generation: int) -> None:
        self.checks.declared_down(observer, victim, generation)

    def heard(self, observer: Node, subject: Node, kind: str) -> None:
        self.checks.heard(observer, subject, kind)

    def clash(self, node: Node, generation: int) -> None:
        """Peers know a later generation: the disk was lost and the clock set back. Starts above."""
        if node.index not in self.log.wiped:
            self.fail(f"{node.name} saw a newer generation of itself")
        self.world.at(self.now, self._restart_above, node, node.disk.generation, generation)

    def _restart_above(self, node: Node, generation: int, above: int) -> None:
        if node.up and node.disk.generation == generation:
            self.kill(node)
            node.disk.generation = above
            self.start(node)

    def fail(self, message: str) -> None:
        raise SimulationFailure(f"{message}\nat {self.now - START_S:.2f} s; replay: {self.command}")
