"""Scenario files: what `configs/chaos/*.toml` says, as a frozen value. docs/LABORATORY.md has the
format for people.

Parsing is strict: a key that is unknown, out of bounds, or names a node, region, function or
version that there is not, is told with file, key, value and rule. Paths are relative to the file.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from edged.cluster.layout import check_config
from edged.cluster.spec import ClusterSpec, load_spec, parse_spec
from edged.errors import ConfigError
from edged.lab.history import Bounds
from edged.lab.load.spec import FunctionLoad, LoadSpec, parse_load
from edged.validation import explain, meant, shown
from protocol.errors import RemoteProtocolError
from protocol.function import Abi, Policy
from protocol.ids import parse_function_name
from protocol.replicas import REPLICAS_MAX

from . import actions
from .actions import (
    ACTIONS,
    Corrupt,
    FaultSpec,
    Flap,
    LinkChange,
    NodeFault,
    Partition,
    Poison,
)
from .invariants import INVARIANTS

SCENARIO_BYTES_MAX: Final = 256 * 1024
FAULTS_MAX: Final = 256
SEED_MAX: Final = 2**53
"""What every reader of JSON keeps exactly."""
MODULE_MISSING: Final = "there is no such file; scripts/guests builds those of guests/"

_Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}\Z")]
_Path = Annotated[str, Meta(min_length=1, max_length=1024)]
_Sections = dict[str, dict[str, Any]]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class VersionSpec(_Table, frozen=True, kw_only=True):
    """One of `module` and `says`."""

    label: _Label
    says: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """The module is generated: it answers this text, whatever it is asked."""
    code_kib: Annotated[int, Meta(ge=0, le=4096)] = 0
    """Of code that a generated module has besides, for compilers and links to have work."""
    module: _Path | None = None
    """A .wasm or .wat file."""
    env: dict[str, str] = {}
    """On top of the function's policy: the same module, and another version."""
    body: Annotated[str, Meta(max_length=65_536)] | None = None
    """The only right answer of `module` to `path`; None: it isn't checked byte by byte."""
    at_s: actions.Instant | None = None
    """When it is deployed; None: before the load begins."""
    node: str | None = None
    """At which; None: drawn by the seed of those that are up."""


class FunctionSpec(_Table, frozen=True, kw_only=True):
    name: str
    abi: Abi = "raw"
    path: Annotated[str, Meta(pattern=r"^([/?][!-~]*)?\Z", max_length=2048)] = ""
    """Asked behind its name, with the query."""
    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)] = 3
    policy: Policy = Policy()
    versions: Annotated[tuple[VersionSpec, ...], Meta(min_length=1, max_length=32)]

    def version(self, label: str) -> VersionSpec:
        return next(version for version in self.versions if version.label == label)


class PhaseSpec(_Table, frozen=True, kw_only=True):
    name: _Label
    for_s: actions.Duration
    errors_max: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Share of the requests of this phase that may fail; None: any."""


class _File(_Table, frozen=True, kw_only=True):
    about: Annotated[str, Meta(min_length=1, max_length=1024)]
    """A sentence: what the scenario teaches."""
    seed: Annotated[int, Meta(ge=0, le=SEED_MAX)] = 1
    cluster: str | dict[str, Any]
    topology: _Path | None = None
    config: _Sections = {}
    functions: Annotated[tuple[FunctionSpec, ...], Meta(min_length=1, max_length=64)]
    load: dict[str, Any] = {}
    health_check_s: Annotated[float, Meta(ge=0, le=3600)] = 0.5
    """How often clients learn which nodes are ready; 0: never."""
    phases: Annotated[tuple[PhaseSpec, ...], Meta(min_length=1, max_length=64)]
    faults: Annotated[tuple[dict[str, Any], ...], Meta(max_length=FAULTS_MAX)] = ()
    invariants: Bounds = Bounds()


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """Of the file, without its suffix."""
    path: Path
    text: bytes
    about: str
    seed: int
    cluster: ClusterSpec
    topology: str
    """Its name; "": nodes have no distances."""
    functions: tuple[FunctionSpec, ...]
    load: LoadSpec | None
    """None: nobody asks anything."""
    health_check_s: float
    phases: tuple[PhaseSpec, ...]
    faults: tuple[FaultSpec, ...]
    bounds: Bounds

    @property
    def for_s(self) -> float:
        """From the beginning of the load to the end of the last phase."""
        return sum(phase.for_s for phase in self.phases)

    @property
    def regions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node.region for node in self.cluster.nodes))

    def function(self, name: str) -> FunctionSpec:
        return next(function for function in self.functions if function.name == name)

    def beside(self, path: str) -> Path:
        """A path that the file names."""
        return self.path.parent / path


def load_scenario(path: Path) -> Scenario:
    """Raises ConfigError naming file, key, value and rule."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read scenario {path}: {error.strerror}") from error
    scenario = parse_scenario(text, path)
    for at, function in enumerate(scenario.functions):
        for nth, version in enumerate(function.versions):
            if version.module is not None and not scenario.beside(version.module).is_file():
                raise ConfigError(
                    f"{path}: functions[{at}].versions[{nth}].module = {version.module!r}: "
                    f"{MODULE_MISSING}"
                )
    return scenario


def parse_scenario(text: bytes, path: Path) -> Scenario:
    """`path` need not exist; files that the scenario names are beside it. Raises ConfigError."""
    if len(text) > SCENARIO_BYTES_MAX:
        raise ConfigError(f"{path}: {len(text)} bytes; at most {SCENARIO_BYTES_MAX} are read")
    try:
        data = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        file = msgspec.convert(data, _File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, data, _File)}") from error
    scenario = Scenario(
        name=path.stem,
        path=path,
        text=text,
        about=file.about,
        seed=file.seed,
        cluster=_cluster(file, path),
        topology=_topology_name(file, path),
        functions=file.functions,
        load=_load(file, path),
        health_check_s=file.health_check_s,
        phases=file.phases,
        faults=tuple(_fault(table, number, path) for number, table in enumerate(file.faults)),
        bounds=file.invariants,
    )
    _check_functions(scenario)
    _check_phases(scenario)
    _check_skip(scenario)
    for number, fault in enumerate(scenario.faults):
        _check_fault(scenario, fault, f"{path}: faults[{number}]")
    return scenario


def _cluster(file: _File, path: Path) -> ClusterSpec:
    """With links and lab switches, whatever the scenario does with them."""
    topology = None if file.topology is None else path.parent / file.topology
    if isinstance(file.cluster, str):
        spec = load_spec(path.parent / file.cluster, topology=topology, lab=True)
    else:
        inline = {**file.cluster, "lab": True}
        if topology is not None:
            inline["topology"] = str(topology.absolute())
        spec = parse_spec(inline, source=f"{path}: cluster", base=path.parent)
    config = {
        section: {**spec.config.get(section, {}), **file.config.get(section, {})}
        for section in dict.fromkeys((*spec.config, *file.config))
    }
    spec = msgspec.structs.replace(spec, config=config)
    try:
        check_config(spec)
    except ConfigError as error:
        raise ConfigError(f"{path}: config: {error}") from error
    return spec


def _topology_name(file: _File, path: Path) -> str:
    """After `_cluster`, which has read the cluster's file."""
    if file.topology is not None:
        return Path(file.topology).stem
    cluster = file.cluster
    if isinstance(cluster, str):
        cluster = tomllib.loads((path.parent / cluster).read_text(encoding="utf-8"))
    return Path(str(cluster.get("topology", ""))).stem


def _load(file: _File, path: Path) -> LoadSpec | None:
    if not file.load:
        return None
    asked = [FunctionLoad(name=each.name, path=each.path) for each in file.functions]
    seconds = sum(phase.for_s for phase in file.phases)
    return parse_load(file.load, where=f"{path}: load", functions=asked, seconds=seconds)


def _fault(table: dict[str, Any], number: int, path: Path) -> FaultSpec:
    where = f"{path}: faults[{number}]"
    settings = dict(table)
    action = settings.pop("action", None)
    kind = ACTIONS.get(action) if isinstance(action, str) else None
    if kind is None:
        given = "missing" if action is None else f"= {shown(action)}"
        raise ConfigError(f"{where}.action {given}: write one of {', '.join(ACTIONS)}")
    try:
        return msgspec.convert(settings, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} ({action}): {explain(error, settings, kind)}") from error


# ---------------------------------------------------------------- what no single value can tell
def _check_functions(scenario: Scenario) -> None:
    names = [function.name for function in scenario.functions]
    nodes = [node.name for node in scenario.cluster.nodes]
    for at, function in enumerate(scenario.functions):
        where = f"{scenario.path}: functions[{at}]"
        try:
            parse_function_name(function.name)
        except RemoteProtocolError as error:
            raise ConfigError(f"{where}.name {error.detail}") from error
        if names.count(function.name) > 1:
            raise ConfigError(f"{where}.name = {function.name!r}: there are two of that name")
        labels = [version.label for version in function.versions]
        for nth, version in enumerate(function.versions):
            key = f"{where}.versions[{nth}]"
            if labels.count(version.label) > 1:
                raise ConfigError(f"{key}.label = {version.label!r}: there are two of that label")
            if (version.says is None) == (version.module is None):
                raise ConfigError(f"{key}: write either says = … or module = …")
            if version.says is not None and (version.body is not None or function.abi != "raw"):
                raise ConfigError(f"{key}.says: goes with abi raw and without body")
            if version.node is not None and version.node not in nodes:
                raise ConfigError(f"{key}.node = {version.node!r}: there are {', '.join(nodes)}")
            if version.at_s is not None and version.at_s >= scenario.for_s:
                raise ConfigError(f"{key}.at_s = {version.at_s:g}: {_over(scenario)}")


def _check_phases(scenario: Scenario) -> None:
    names = [phase.name for phase in scenario.phases]
    for at, name in enumerate(names):
        if names.count(name) > 1 or name == "end":
            why = (
                '"end" is what follows the last' if name == "end" else "there are two of that name"
            )
            raise ConfigError(f"{scenario.path}: phases[{at}].name = {name!r}: {why}")
    if scenario.for_s > actions.RUN_S_MAX:
        raise ConfigError(f"{scenario.path}: phases last {scenario.for_s:g} s; a day is allowed")


def _check_skip(scenario: Scenario) -> None:
    names = [invariant.name for invariant in INVARIANTS]
    for name in scenario.bounds.skip:
        if name not in names:
            why = meant(name, names) or f"; there are {', '.join(names)}"
            raise ConfigError(
                f"{scenario.path}: invariants.skip = {name!r}: there is no such invariant{why}"
            )


def _check_fault(scenario: Scenario, fault: FaultSpec, where: str) -> None:
    if fault.at_s >= scenario.for_s:
        raise ConfigError(f"{where}.at_s = {fault.at_s:g}: {_over(scenario)}")
    if fault.every_s is None:
        for key in ("jitter_s", "until_s", "down_max"):
            if getattr(fault, key, None):
                raise ConfigError(f"{where}.{key}: goes with every_s")
    elif fault.jitter_s * 2 > fault.every_s:
        raise ConfigError(f"{where}.jitter_s = {fault.jitter_s:g}: at most half of every_s")
    match fault:
        case Corrupt():
            _known(fault.function, [f.name for f in scenario.functions], f"{where}.function")
        case Poison():
            _check_poison(scenario, fault, where)
        case Flap() if fault.every_s is not None or fault.for_s is None:
            raise ConfigError(f"{where}: write for_s = … and no every_s: flap repeats by itself")
        case actions.RegionLoss() if fault.region is not None:
            _known(fault.region, scenario.regions, f"{where}.region")
        case actions.Pause() | actions.SlowCpu() if fault.for_s is None:
            raise ConfigError(f"{where}.for_s: missing: write for_s = …")
        case LinkChange() if all(getattr(fault, key) is None for key in actions.LINK_KEYS):
            raise ConfigError(f"{where}: write one of {', '.join(actions.LINK_KEYS)}")
    for key, selector in _selectors(fault):
        _check_selector(scenario, selector, f"{where}.{key}", of_node=isinstance(fault, NodeFault))


def _check_poison(scenario: Scenario, fault: Poison, where: str) -> None:
    _known(fault.function, [f.name for f in scenario.functions], f"{where}.function")
    function = scenario.function(fault.function)
    labels = [version.label for version in function.versions]
    for key, label in (("version", fault.version), ("code_of", fault.code_of)):
        _known(label, labels, f"{where}.{key}")
        if function.version(label).says is None:
            raise ConfigError(f"{where}.{key} = {label!r}: goes with versions that have says = …")
    if fault.version == fault.code_of:
        raise ConfigError(f"{where}.code_of: is the version itself: write another one's label")


def _selectors(fault: FaultSpec) -> list[tuple[str, str]]:
    match fault:
        case NodeFault():
            return [("targets", selector) for selector in fault.targets]
        case Partition():
            return [("groups", selector) for group in fault.groups for selector in group]
        case LinkChange():
            sources = [("from", selector) for selector in fault.sources]
            return sources + [("to", selector) for selector in fault.targets]
        case _:
            return []


def _check_selector(scenario: Scenario, selector: str, where: str, *, of_node: bool) -> None:
    kind, _, name = selector.rpartition(":")
    functions = [function.name for function in scenario.functions]
    if selector == "*":
        return
    if kind == "node":
        _known(name, [node.name for node in scenario.cluster.nodes], where)
    elif kind == "":
        _known(name, scenario.regions, where)
    elif kind == "holder" and not of_node:
        raise ConfigError(f"{where} = {selector!r}: only a fault of nodes can have it")
    else:
        _known(name, functions, where)


def _known(name: str, names: list[str] | tuple[str, ...], where: str) -> None:
    if name not in names:
        raise ConfigError(f"{where} = {name!r}: there are {', '.join(names)}")


def _over(scenario: Scenario) -> str:
    return f"the phases end at {scenario.for_s:g} s"
