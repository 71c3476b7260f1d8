"""Which faults a storm has, as `--faults kill,pause=4,loss=0.1` says it, and the storm's deeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from protocol.ids import digest_of

from .node import Node
from .simulation import Simulation

DEFAULTS: Mapping[str, float] = {
    "kill": 1.0,
    "leave": 1.0,
    "pause": 1.0,
    "partition": 10.0,
    "oneway": 10.0,
    "torn": 1.0,
    "wipe": 1.0,
    "loss": 0.1,
    "dup": 0.02,
    "reorder": 0.05,
    "corrupt": 0.01,
    "jitter": 0.02,
    "skew": 2000.0,
    "drift": 0.01,
    "silent": 1.0,
    "wire": 1.0,
}
MEANING: Mapping[str, str] = {
    "kill": "processes die and come back",
    "leave": "processes say goodbye, and come back",
    "pause": "processes are stopped for up to so many seconds",
    "partition": "the cluster is split for up to so many seconds",
    "oneway": "some do not reach others, who reach them, for up to so many seconds",
    "torn": "processes die in the middle of writing to disk",
    "wipe": "hosts lose their disk while they are down",
    "loss": "share of datagrams lost",
    "dup": "share of datagrams that arrive twice",
    "reorder": "share of datagrams that come late",
    "corrupt": "share of datagrams with a flipped bit",
    "jitter": "seconds, uniform, on top of the latency",
    "skew": "wall clocks are wrong by up to so many ms, and jump",
    "drift": "monotonic clocks run up to this share too fast or too slow",
    "silent": "hosts without the process refuse nothing",
    "wire": "every other node speaks wire version 1 only",
}
STORM = "kill,leave,pause,partition,oneway,torn,loss=0.05,dup,reorder,corrupt,jitter,skew,drift"


@dataclass(frozen=True)
class Faults:
    amounts: Mapping[str, float]

    def get(self, name: str) -> float:
        return self.amounts.get(name, 0.0)

    def has(self, name: str) -> bool:
        return name in self.amounts

    def __str__(self) -> str:
        return ",".join(
            name if amount == DEFAULTS[name] else f"{name}={amount:g}"
            for name, amount in self.amounts.items()
        )


def parse_faults(text: str) -> Faults:
    """Raises ValueError with what there is."""
    amounts: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        name, equals, amount = item.partition("=")
        if name not in DEFAULTS:
            raise ValueError(f"fault {name!r}: there are {', '.join(DEFAULTS)}")
        try:
            amounts[name] = float(amount) if equals else DEFAULTS[name]
        except ValueError as error:
            raise ValueError(f"fault {item!r}: write {name}=NUMBER") from error
        if amounts[name] < 0:
            raise ValueError(f"fault {item!r}: a number of 0 or more")
    return Faults(amounts)


class Storm:
    """Random deeds of fate, operators and machines; every choice from one stream."""

    def __init__(self, sim: Simulation, faults: Faults) -> None:
        self._sim = sim
        self._faults = faults
        self._rng = sim.world.rng("storm")
        self._calm_s = 0.0
        """Until when the network is cut."""
        fates: list[tuple[float, str, Callable[[Node], None]]] = [
            (2.0, "kill", self._kill),
            (0.6, "leave", self._leave),
            (3.0, "pause", self._pause),
            (1.2, "torn", self._torn),
            (0.5, "wipe", self._wipe),
            (0.5, "skew", self._skew),
            (0.8, "partition", self._partition),
            (0.8, "oneway", self._oneway),
        ]
        self._deeds: list[tuple[float, Callable[[Node], None]]] = [
            (3.0, self._deploy),
            (1.0, self._remove),
            (1.0, self._roll_back),
            (2.5, self._hold),
        ] + [(weight, deed) for weight, name, deed in fates if faults.has(name)]
        self._weights = [weight for weight, _ in self._deeds]

    def prepare(self) -> None:
        """What holds all the time."""
        sim, faults = self._sim, self._faults
        sim.set_network(
            loss=faults.get("loss"),
            duplicate=faults.get("dup"),
            reorder=faults.get("reorder"),
            corrupt=faults.get("corrupt"),
            jitter_s=max(faults.get("jitter"), sim.network.conditions.jitter_s),
            refuses=not faults.has("silent"),
        )
        for node in sim.nodes:
            self._skew(node)
            if faults.has("wire") and node.index % 2:
                node.wire_version = 1

    def step(self) -> None:
        sim = self._sim
        if self._calm_s and sim.now >= self._calm_s:
            sim.heal()
            self._calm_s = 0.0
        node = self._rng.choice(sim.nodes)
        if not node.up:
            sim.start(node)
            return
        if node.leaving or sim.now < node.paused_until_s:
            return
        self._rng.choices(self._deeds, self._weights)[0][1](node)

    def end(self) -> None:
        """Everything runs and hears again; what the network does to datagrams stays."""
        self._sim.heal()
        longest_s = max(node.paused_until_s for node in self._sim.nodes)
        self._sim.run(max(0.6, longest_s - self._sim.now))
        self._sim.start_all()

    # ------------------------------------------------------------ operators
    def _name(self) -> str:
        return f"f{self._rng.randrange(8)}"

    def _deploy(self, node: Node) -> None:
        self._sim.deploy(node, self._name(), args=self._rng.choice([0, 0, 0, 3000]))

    def _remove(self, node: Node) -> None:
        self._sim.remove(node, self._name())

    def _roll_back(self, node: Node) -> None:
        self._sim.roll_back(node, self._name())

    def _hold(self, node: Node) -> None:
        digest = digest_of(b"%d" % self._rng.randrange(20))
        self._sim.hold(node, digest, digest not in node.disk.held)

    # ------------------------------------------------------------ fate
    def _spare(self) -> bool:
        return len(self._sim.up()) > max(2, len(self._sim.nodes) // 2)

    def _kill(self, node: Node) -> None:
        if self._spare():
            self._sim.kill(node, torn=self._faults.has("torn"))

    def _leave(self, node: Node) -> None:
        if self._spare():
            self._sim.leave(node)

    def _pause(self, node: Node) -> None:
        self._sim.pause(node, self._rng.random() * self._faults.get("pause"))

    def _torn(self, node: Node) -> None:
        if self._spare():
            self._sim.die_deploying(node, self._name())

    def _wipe(self, node: Node) -> None:
        if self._spare():
            self._sim.kill(node)
            self._sim.wipe(node)

    def _skew(self, node: Node) -> None:
        wrong_ms, share = int(self._faults.get("skew")), self._faults.get("drift")
        if wrong_ms or share:
            skew_ms = self._rng.randint(-wrong_ms, wrong_ms)
            self._sim.skew(node, skew_ms, share * (2 * self._rng.random() - 1))

    def _partition(self, node: Node) -> None:
        if self._calm_s:
            return
        nodes = self._rng.sample(self._sim.nodes, len(self._sim.nodes))
        cut = self._rng.randrange(1, len(nodes))
        self._sim.partition([nodes[:cut], nodes[cut:]])
        self._calm_s = self._sim.now + self._rng.random() * self._faults.get("partition")

    def _oneway(self, node: Node) -> None:
        if self._calm_s:
            return
        some = self._rng.sample(self._sim.nodes, self._rng.randrange(1, len(self._sim.nodes)))
        self._sim.cut([node], some)
        self._calm_s = self._sim.now + self._rng.random() * self._faults.get("oneway")
