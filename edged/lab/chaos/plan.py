"""The timeline of a run: a pure function of scenario and seed, targets included.

Every entry draws from a stream of its own, named by seed and place in the file, so that one more
entry at the end changes none before it. Times are whole milliseconds. What is drawn depends on
nothing that happens in the run: two runs of one seed have byte-identical timelines.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from edged.errors import ConfigError
from edged.lab.history import Planned, Setting
from edged.links import others

from . import actions
from .actions import (
    Corrupt,
    FaultSpec,
    Flap,
    Heal,
    Kill,
    LinkChange,
    NodeFault,
    Partition,
    Pause,
    Poison,
    RegionLoss,
    Restart,
    name_of,
)
from .modules import module_that_says
from .scenario import FunctionSpec, Scenario, VersionSpec

PLANNED_MAX: Final = 20_000
RECOVERY_S: Final = 2.0
"""A node that was started again counts as down for so long: a process starts in 0.4 s, and needs
more on a busy machine."""
BETWEEN_GROUPS: Final = "|"
TOWARDS: Final = "→"


class Dice:
    """Draws by `random()` alone, whose values Python keeps between versions."""

    def __init__(self, *name: object) -> None:
        self._random = random.Random("/".join(map(str, name)))  # noqa: S311 - replayable

    def around(self, middle: float, width: float) -> float:
        return middle + width * (2.0 * self._random.random() - 1.0)

    def choose(self, items: Sequence[str], count: int) -> list[str]:
        """`count` different ones, in the order of `items`."""
        left = list(range(len(items)))
        chosen = [left.pop(int(self._random.random() * len(left))) for _ in range(count)]
        return [items[at] for at in sorted(chosen)]


class _Time(NamedTuple):
    """One happening of an entry. Sorted so, all are resolved in the order of the run."""

    at_ms: int
    entry: int
    """Place in the file; deploys come first."""
    nth: int


def plan(scenario: Scenario, seed: int) -> tuple[Planned, ...]:
    """In the order of time. Raises ConfigError: targets that there are not at that time."""
    return _Planner(scenario, seed).run()


class _Planner:
    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._scenario = scenario
        self._seed = seed
        self._names = [node.name for node in scenario.cluster.nodes]
        self._down: dict[str, list[tuple[float, float]]] = {name: [] for name in self._names}
        """From when to when each is planned not to answer."""
        self._origins: dict[str, str] = {}
        """Function -> the node at which it was deployed last."""
        self._planned: list[Planned] = []
        self._dice: dict[int, Dice] = {}

    def run(self) -> tuple[Planned, ...]:
        versions = [
            (function, version)
            for function in self._scenario.functions
            for version in function.versions
        ]
        times = [
            _Time(-1 if version.at_s is None else _ms(version.at_s), at - len(versions), 0)
            for at, (_, version) in enumerate(versions)
        ]
        for entry, fault in enumerate(self._scenario.faults):
            times += self._times(entry, fault)
            if len(times) > PLANNED_MAX:
                raise ConfigError(f"{self._where(entry)}: over {PLANNED_MAX} times in all")
        for time in sorted(times):
            if time.entry < 0:
                self._deploy(*versions[time.entry + len(versions)], time)
            else:
                self._fault(self._scenario.faults[time.entry], time)
        return tuple(self._planned)

    # ------------------------------------------------------------ when
    def _times(self, entry: int, fault: FaultSpec) -> Iterator[_Time]:
        """At most PLANNED_MAX + 1."""
        end_s = self._scenario.for_s
        every_s, until_s = fault.every_s, end_s if fault.until_s is None else fault.until_s
        if isinstance(fault, Flap):
            assert fault.for_s is not None
            every_s, until_s = fault.down_s + fault.up_s, fault.at_s + fault.for_s
        if every_s is None:
            yield _Time(_ms(fault.at_s), entry, 0)
            return
        dice = self._dice[entry] = Dice(self._seed, "times", entry)
        for nth in range(PLANNED_MAX + 1):
            middle_s = fault.at_s + nth * every_s
            if middle_s >= min(until_s, end_s):
                return
            at_s = max(0.0, dice.around(middle_s, fault.jitter_s))
            if at_s < end_s:
                yield _Time(_ms(at_s), entry, nth)

    # ------------------------------------------------------------ what
    def _deploy(self, function: FunctionSpec, version: VersionSpec, time: _Time) -> None:
        at_s = max(0, time.at_ms) / 1000
        node = version.node
        if node is None:
            nodes = self._scenario.cluster.nodes
            able = [each.name for each in nodes if "control" in each.roles]
            up = [name for name in able if not self._is_down(name, at_s)]
            if not up:
                raise ConfigError(
                    f"{self._scenario.path}: function {function.name}, version {version.label}: "
                    f"no node with the role control is up at {at_s:g} s"
                )
            node = Dice(self._seed, "deploy", function.name, version.label).choose(up, 1)[0]
        self._origins[function.name] = node
        settings: dict[str, Setting] = {"function": function.name, "version": version.label}
        if version.at_s is None:
            settings["before_load"] = True
        name = f"deploy-{function.name}-{version.label}"
        self._add(Planned(t_s=at_s, id=name, action="deploy", targets=(node,), settings=settings))

    def _fault(self, fault: FaultSpec, time: _Time) -> None:
        at_s = time.at_ms / 1000
        if isinstance(fault, Heal):
            self._heal(at_s)
            return
        again = fault.every_s is not None or isinstance(fault, Flap)
        planned = Planned(
            t_s=at_s,
            id=f"{time.entry + 1}.{time.nth + 1}" if again else str(time.entry + 1),
            action="partition" if isinstance(fault, Flap) else name_of(fault),
            duration_s=fault.down_s if isinstance(fault, Flap) else fault.for_s,
        )
        match fault:
            case Partition():
                targets = self._groups(fault, at_s, time.entry)
                settings: dict[str, Setting] = {"one_way": fault.one_way, "cut": fault.cut}
            case LinkChange():
                sources, ends = (self._ends(ends) for ends in (fault.sources, fault.targets))
                targets = (*sources, TOWARDS, *ends)
                given = {key: getattr(fault, key) for key in actions.LINK_KEYS}
                settings = {key: value for key, value in given.items() if value is not None}
                settings["both"] = fault.both
            case RegionLoss():
                targets, settings = self._region(fault, at_s, time)
            case NodeFault():
                targets, settings = self._nodes(fault, at_s, time), _settings(fault, self._scenario)
            case _:
                raise AssertionError(fault)
        if not targets:
            if not again:
                raise ConfigError(
                    f"{self._where(time.entry)}: none of its targets is up at {at_s:g} s"
                )
            return
        planned = msgspec.structs.replace(planned, targets=targets, settings=settings)
        self._take_down(fault, planned)
        self._add(planned)

    def _heal(self, at_s: float) -> None:
        for place, planned in enumerate(self._planned):
            linked = planned.action in ("partition", "link") or planned.settings.get("how") == "cut"
            if linked and planned.duration_s is None:
                duration_s = round(at_s - planned.t_s, 3)
                self._planned[place] = msgspec.structs.replace(planned, duration_s=duration_s)

    # ------------------------------------------------------------ whom
    def _nodes(self, fault: NodeFault, at_s: float, time: _Time) -> tuple[str, ...]:
        if any(selector.startswith("holder:") for selector in fault.targets):
            return fault.targets
        named = self._members(fault.targets)
        up = [name for name in self._names if name in named and not self._is_down(name, at_s)]
        count = len(up) if fault.pick is None else min(fault.pick, len(up))
        if fault.down_max is not None:
            down = sum(self._is_down(name, at_s) for name in self._names)
            count = min(count, max(0, fault.down_max - down))
        return tuple(Dice(self._seed, "targets", time.entry, time.nth).choose(up, count))

    def _region(
        self, fault: RegionLoss, at_s: float, time: _Time
    ) -> tuple[tuple[str, ...], dict[str, Setting]]:
        region = fault.region
        if region is None:
            dice = Dice(self._seed, "targets", time.entry, time.nth)
            region = dice.choose(self._scenario.regions, 1)[0]
        members = self._members((region,))
        up = tuple(name for name in members if not self._is_down(name, at_s))
        return up, {"region": region, "how": fault.how}

    def _groups(self, fault: Partition, at_s: float, entry: int) -> tuple[str, ...]:
        """Groups of selectors for links, "|" between them."""
        ends = [self._ends(group) for group in fault.groups]
        named = {name for group in ends for name in self._members(group) if "*" not in group}
        given = dict.fromkeys(each for group in ends if "*" not in group for each in group)
        rest = [name for name in self._names if name not in named]
        whole = [others(given) if "*" in group else group for group in ends]
        members = [rest if "*" in group else self._members(group) for group in ends]
        if not all(members):
            raise ConfigError(f"{self._where(entry)}.groups: one has no node at {at_s:g} s")
        flat = [name for group in members for name in group]
        for name in flat:
            if flat.count(name) > 1:
                raise ConfigError(f"{self._where(entry)}.groups: {name} is in two groups")
        parts: list[str] = []
        for group in whole:
            parts += [*group, BETWEEN_GROUPS]
        return tuple(parts[:-1])

    def _ends(self, selectors: Sequence[str]) -> tuple[str, ...]:
        """Selectors as links have them."""
        return tuple(
            f"node:{self._origin(selector)}" if selector.startswith("origin:") else selector
            for selector in selectors
        )

    def _members(self, selectors: Sequence[str]) -> list[str]:
        """Names of nodes, in the cluster's order."""
        found: set[str] = set()
        for selector in selectors:
            kind, _, name = selector.rpartition(":")
            if selector == "*":
                found.update(self._names)
            elif kind == "node":
                found.add(name)
            elif kind == "origin":
                found.add(self._origin(selector))
            else:
                nodes = self._scenario.cluster.nodes
                found.update(node.name for node in nodes if node.region == name)
        return [name for name in self._names if name in found]

    def _origin(self, selector: str) -> str:
        function = selector.removeprefix("origin:")
        if function not in self._origins:
            raise ConfigError(f"{self._scenario.path}: {selector}: not deployed by then")
        return self._origins[function]

    # ------------------------------------------------------------ who is down
    def _is_down(self, name: str, at_s: float) -> bool:
        return any(begin <= at_s < end for begin, end in self._down[name])

    def _take_down(self, fault: FaultSpec, planned: Planned) -> None:
        killed = isinstance(fault, RegionLoss) and fault.how == "kill"
        if not killed and not isinstance(fault, Kill | Pause | Restart | Poison):
            return
        duration_s = planned.duration_s
        if duration_s is None:
            duration_s = 0.0 if isinstance(fault, Restart | Poison) else math.inf
        for name in planned.targets:
            if name in self._down:  # not so a holder, which only the run can tell
                self._down[name].append((planned.t_s, planned.t_s + duration_s + RECOVERY_S))

    def _add(self, planned: Planned) -> None:
        self._planned.append(planned)

    def _where(self, entry: int) -> str:
        return f"{self._scenario.path}: faults[{entry}]"


def _digest(scenario: Scenario, function: str, label: str) -> str:
    version = scenario.function(function).version(label)
    assert version.says is not None
    module = module_that_says(version.says, code_kib=version.code_kib)
    return blake3(module).hexdigest()


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _settings(fault: NodeFault, scenario: Scenario) -> dict[str, Setting]:
    match fault:
        case Poison():
            module, code_of = (
                _digest(scenario, fault.function, label) for label in (fault.version, fault.code_of)
            )
            return {"module": module, "code_of": code_of, "signed": fault.signed}
        case actions.SlowCpu():
            return {"share": fault.share}
        case actions.ClockSkew():
            return {"skew_ms": fault.skew_ms}
        case Corrupt():
            return {"function": fault.function, "what": fault.what}
        case actions.RollingRestart():
            config = msgspec.json.encode(fault.config, order="sorted").decode()
            return {"gap_s": fault.gap_s, "config": config}
        case _:
            return {}
