"""Text scenarios: blocks of commands, `----`, and what they are expected to say.

A block ends at an empty line; `#` starts a comment. Nodes are n0, n1 …, a list is n0,n1 or n0..n3
or `all`. Outcomes are states and bounds, never measured times, so a file holds whatever a machine
draws. Commands:

  cluster nodes=N seed=K preset=P topology=T wire=1,2 [silent] [apart]   starts all; `apart`: none
  run S · kill N [torn] · start N [at=HOST] · pause N S · leave N · wipe N · add NAME
  upgrade N WIRE, from its next start
  clock N MS [drift=D]
  split A | B · cut A -> B · heal · net loss=L dup=D reorder=R corrupt=C jitter=S
  deploy N F · remove N F · rollback N F · hold N TEXT · keys N K1,K2   (first seals)
  until CONDITION within S       agreed | settled | down N | up N | left N | function F | no F
  members N · functions N · deaths · suspects · refused        the last three: since last asked
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from protocol.ids import digest_of
from protocol.presets import PRESETS
from protocol.seal import WIRE_VERSION

from .network import Conditions
from .node import Node
from .runs import topology_of
from .simulation import Simulation
from .stories import state_of

RULE = "----"


class ScriptError(Exception):
    """The file is wrong, not the cluster."""


class Block(NamedTuple):
    text: str
    """Comments and commands, as written."""
    commands: tuple[str, ...]
    expected: str


def parse_script(text: str) -> list[Block]:
    blocks: list[Block] = []
    head: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.strip() != RULE:
            head.append(line)
            continue
        outcome: list[str] = []
        for said in lines:
            if not said.strip():
                break
            outcome.append(said)
        stripped = [line.split("#")[0].strip() for line in head]
        written = "\n".join(head).strip("\n")
        blocks.append(Block(written, tuple(filter(None, stripped)), "\n".join(outcome)))
        head = []
    if any(line.split("#")[0].strip() for line in head):
        raise ScriptError(f"commands without {RULE} after them: {head}")
    return blocks


def run_script(text: str) -> str:
    """The file as it should be: the same commands, with what they say now."""
    player = Player()
    done = []
    for block in parse_script(text):
        said = [line for command in block.commands for line in player.run(command)]
        done.append("\n".join([block.text, RULE, *(said or ["ok"])]))
    return "\n\n".join(done) + "\n"


def rewrite(path: Path) -> None:
    path.write_text(run_script(path.read_text(encoding="utf-8")), encoding="utf-8")


class Player:
    def __init__(self) -> None:
        self._sim: Simulation | None = None
        self._deaths_told = 0
        self._suspects_told = 0
        self._refused_told: dict[str, int] = {}

    @property
    def sim(self) -> Simulation:
        if self._sim is None:
            raise ScriptError("a scenario begins with `cluster`")
        return self._sim

    def run(self, command: str) -> list[str]:
        verb, _, rest = command.partition(" ")
        action = getattr(self, f"_do_{verb}", None)
        if action is None:
            raise ScriptError(f"unknown command {verb!r}")
        words = [word for word in rest.split() if "=" not in word]
        pairs = dict(word.split("=", 1) for word in rest.split() if "=" in word)
        said: list[str] | None = action(words, pairs)
        return said or []

    # ------------------------------------------------------------ words
    def _nodes(self, text: str) -> list[Node]:
        if text == "all":
            return list(self.sim.nodes)
        found: list[Node] = []
        for part in text.split(","):
            first, dots, last = part.partition("..")
            if dots:
                found += self.sim.nodes[int(first[1:]) : int(last[1:]) + 1]
            else:
                found.append(self._node(part))
        return found

    def _node(self, name: str) -> Node:
        """The latest of that name: it may have come back as another."""
        named = [node for node in self.sim.nodes if node.name == name]
        if not named:
            raise ScriptError(f"no node {name!r}")
        return named[-1]

    def _names(self, indices: list[int]) -> str:
        up = [node.index for node in self.sim.up()]
        if set(up) <= set(indices) and len(up) > 1:
            return "all"
        return " ".join(self.sim.nodes[index].name for index in sorted(indices))

    # ------------------------------------------------------------ the world
    def _do_cluster(self, words: list[str], pairs: dict[str, str]) -> list[str]:
        count = int(pairs.get("nodes", "3"))
        self._sim = Simulation(
            nodes=count,
            seed=int(pairs.get("seed", "1")),
            knobs=PRESETS[pairs.get("preset", "lan")],  # type: ignore[index]
            network=Conditions(refuses="silent" not in words),
            topology=topology_of(pairs.get("topology", "")),
        )
        versions = [int(one) for one in pairs.get("wire", str(WIRE_VERSION)).split(",")]
        for node in self._sim.nodes:
            node.wire_version = versions[node.index % len(versions)]
        if "apart" in words:
            return []
        self._sim.start_all()
        self._sim.checks.settle("joined")
        return [f"{count} nodes agree"]

    def _do_run(self, words: list[str], pairs: dict[str, str]) -> None:
        self.sim.run(float(words[0]))

    def _do_kill(self, words: list[str], pairs: dict[str, str]) -> None:
        for node in self._nodes(words[0]):
            self.sim.kill(node, torn="torn" in words)

    def _do_start(self, words: list[str], pairs: dict[str, str]) -> None:
        for node in self._nodes(words[0]):
            if "at" in pairs:
                self.sim.move(node, (pairs["at"], 7946))
            self.sim.start(node)

    def _do_upgrade(self, words: list[str], pairs: dict[str, str]) -> None:
        for node in self._nodes(words[0]):
            node.wire_version = int(words[1])

    def _do_pause(self, words: list[str], pairs: dict[str, str]) -> None:
        for node in self._nodes(words[0]):
            self.sim.pause(node, float(words[1]))

    def _do_leave(self, words: list[str], pairs: dict[str, str]) -> None:
        for node in self._nodes(words[0]):
            self.sim.leave(node)

    def _do_wipe(self, words: list[str], pairs: dict[str, str]) -> None:
        for node in self._nodes(words[0]):
            self.sim.wipe(node)

    def _do_add(self, words: list[str], pairs: dict[str, str]) -> None:
        self.sim.start(self.sim.add(words[0]))

    def _do_clock(self, words: list[str], pairs: dict[str, str]) -> None:
        for node in self._nodes(words[0]):
            self.sim.skew(node, int(words[1]), float(pairs.get("drift", "0")))

    def _do_split(self, words: list[str], pairs: dict[str, str]) -> None:
        groups = " ".join(words).split("|")
        self.sim.partition([self._nodes(group.strip()) for group in groups])

    def _do_cut(self, words: list[str], pairs: dict[str, str]) -> None:
        source, _, target = " ".join(words).partition("->")
        self.sim.cut(self._nodes(source.strip()), self._nodes(target.strip()))

    def _do_heal(self, words: list[str], pairs: dict[str, str]) -> None:
        self.sim.heal()

    def _do_net(self, words: list[str], pairs: dict[str, str]) -> None:
        names = {"dup": "duplicate", "jitter": "jitter_s"}
        self.sim.set_network(**{names.get(key, key): float(pairs[key]) for key in pairs})

    # ------------------------------------------------------------ operators
    def _do_deploy(self, words: list[str], pairs: dict[str, str]) -> None:
        self.sim.deploy(self._node(words[0]), words[1], args=int(pairs.get("args", "0")))

    def _do_remove(self, words: list[str], pairs: dict[str, str]) -> None:
        self.sim.remove(self._node(words[0]), words[1])

    def _do_rollback(self, words: list[str], pairs: dict[str, str]) -> None:
        self.sim.roll_back(self._node(words[0]), words[1])

    def _do_hold(self, words: list[str], pairs: dict[str, str]) -> None:
        self.sim.hold(self._node(words[0]), digest_of(words[1].encode()))

    def _do_keys(self, words: list[str], pairs: dict[str, str]) -> None:
        """Names of keys; "k" is the one that the cluster began with."""
        keys = [
            self.sim.keys[0] if name == "k" else blake3(name.encode()).digest()
            for name in words[1].split(",")
        ]
        for node in self._nodes(words[0]):
            self.sim.set_keys(node, keys)

    # ------------------------------------------------------------ looking
    def _do_until(self, words: list[str], pairs: dict[str, str]) -> list[str]:
        at = words.index("within")
        limit_s = float(words[at + 1])
        holds = self._condition(words[:at])
        start_s = self.sim.now
        while not holds():
            if self.sim.now - start_s >= limit_s:
                return [f"not within {limit_s:g} s", *self.sim.checks.describe().splitlines()]
            self.sim.run(0.05)
        return ["yes"]

    def _condition(self, words: list[str]) -> Callable[[], bool]:
        checks, what = self.sim.checks, words[0]
        if what == "agreed":
            return checks.members_agree
        if what == "settled":
            return lambda: checks.converged() and not checks.catalog_wrong()
        if what in ("down", "left"):
            node = self._node(words[1])
            return lambda: all(state_of(one, node) == what for one in self._others(node))
        if what == "up":
            node = self._node(words[1])
            return lambda: all(
                checks.reachable(one.index, node.index) == node.generation
                for one in self._others(node)
            )
        if what in ("function", "no"):
            return lambda: all(
                (node.gossip is not None and node.gossip.catalog.lookup(words[1]) is not None)
                == (what == "function")
                for node in self.sim.up()
            )
        raise ScriptError(f"unknown condition {what!r}")

    def _others(self, node: Node) -> list[Node]:
        return [one for one in self.sim.up() if one is not node and not one.leaving]

    def _do_members(self, words: list[str], pairs: dict[str, str]) -> list[str]:
        gossip = self._node(words[0]).gossip
        if gossip is None:
            return ["not running"]
        rows = sorted((member.name, member.state) for member in gossip.members())
        return [" ".join(f"{name}:{state}" for name, state in rows)]

    def _do_functions(self, words: list[str], pairs: dict[str, str]) -> list[str]:
        gossip = self._node(words[0]).gossip
        if gossip is None:
            return ["not running"]
        rows = gossip.catalog.functions()
        return [f"{name}: {len(gossip.catalog.versions(name))} versions" for name, _ in rows] or [
            "none"
        ]

    def _do_deaths(self, words: list[str], pairs: dict[str, str]) -> list[str]:
        """Who was declared down, why that was right or to be expected, and by whom."""
        deaths = self.sim.checks.accuracy.deaths[self._deaths_told :]
        self._deaths_told += len(deaths)
        told: dict[tuple[str, str], dict[int, None]] = {}
        for death in deaths:
            name = self.sim.nodes[death.victim].name
            told.setdefault((name, death.why), {})[death.observer] = None
        return [
            f"{name} ({why}) by {self._names(list(by))}" for (name, why), by in sorted(told.items())
        ] or ["none"]

    def _do_suspects(self, words: list[str], pairs: dict[str, str]) -> list[str]:
        suspected = self.sim.checks.suspected
        names = sorted({self.sim.nodes[subject].name for _, subject in suspected})
        suspected.clear()
        return [" ".join(names) or "none"]

    def _do_refused(self, words: list[str], pairs: dict[str, str]) -> list[str]:
        """By code: datagrams, and items of them."""
        now = dict(self.sim.processes.refused)
        for node in self.sim.up():
            assert node.gossip is not None
            for code, count in node.gossip.statistics().refused.items():
                now[code] = now.get(code, 0) + count
        new = sorted(code for code in now if now[code] > self._refused_told.get(code, 0))
        self._refused_told = now
        return [" ".join(new) or "none"]
