"""What a local cluster shall be: from a TOML file or from flags.

A file has
  topology   a file of regions and links, relative to this one; its nodes shape their traffic
  count      that many nodes, n1 … nN
  [[nodes]]  name, region, target, roles: more of one of those (same name), or one beside them
  lab        whether nodes shape traffic and can be told to misbehave; default: with a topology
  [config]   laid over every node's node.toml: {section: {key: value}}
Nodes without a region are dealt over the topology's in proportion of its shares.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from edged.errors import ConfigError
from edged.topology import File as TopologyFile
from edged.topology import Topology, load_file, topology_of
from edged.validation import explain
from protocol.errors import RemoteProtocolError
from protocol.ids import parse_node_name

from .state import ROLES, Role, Target

FLAGS: Final = "flags"
LOCAL: Final = "local"
"""The region of nodes where nothing else is said."""
NODES_MAX: Final = 100
"""Three ports each; 50 processes took 1.2 GB (PSS) where this was measured."""
WIDE_RTT_S: Final = 0.1
"""Half of what the presets local and lan wait for an answer at most."""
SUPERVISED: Final = {
    "node": {"name", "region", "data_dir"},
    "gateway": {"bind"},
    "control": {"bind", "token_file"},
    "gossip": {"bind", "advertise", "seeds"},
    "trust": {"directory"},
    "runtime": {"target"},
    "links": {"enabled", "file"},
    "lab": {"enabled"},
}
"""Keys of node.toml that the supervisor sets, so [config] must not."""

Region = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Roles = Annotated[tuple[Role, ...], Meta(min_length=1, max_length=len(ROLES))]


class NodeRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    region: Region | None = None
    target: Target = "native"
    roles: Roles = ROLES


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nodes: Annotated[tuple[NodeRow, ...], Meta(max_length=NODES_MAX)] = ()
    count: Annotated[int, Meta(ge=0, le=NODES_MAX)] = 0
    topology: str | None = None
    lab: bool | None = None
    config: dict[str, dict[str, Any]] = {}


class NodeSpec(msgspec.Struct, frozen=True):
    name: str
    region: str = LOCAL
    target: Target = "native"
    roles: tuple[Role, ...] = ROLES


class ClusterSpec(msgspec.Struct, frozen=True):
    nodes: tuple[NodeSpec, ...]
    config: dict[str, dict[str, Any]] = {}
    topology: TopologyFile | None = None
    lab: bool = False


def spec_of(
    count: int,
    *,
    pulley: int = 0,
    regions: tuple[str, ...] = (),
    topology: Path | None = None,
    lab: bool | None = None,
) -> ClusterSpec:
    """Nodes n1 … nN; the last `pulley` of them interpret; `regions` are dealt out in turn, else the
    topology's by its shares.

    Raises ConfigError."""
    if not 1 <= count <= NODES_MAX:
        raise ConfigError(f"{count} nodes: 1 to {NODES_MAX}")
    if not 0 <= pulley <= count:
        raise ConfigError(f"{pulley} pulley64 nodes of {count}: 0 to {count}")
    nodes = [
        {
            "name": f"n{index + 1}",
            **({"region": regions[index % len(regions)]} if regions else {}),
            "target": "pulley64" if index >= count - pulley else "native",
        }
        for index in range(count)
    ]
    data: dict[str, Any] = {"nodes": nodes, "lab": lab}
    if topology is not None:
        data["topology"] = str(topology.absolute())
    return parse_spec(data, source=FLAGS)


def load_spec(path: Path, *, topology: Path | None = None, lab: bool | None = None) -> ClusterSpec:
    """`topology`, `lab`: instead of what the file says.

    Raises ConfigError: unreadable, not TOML, unknown or wrong keys."""
    data = _read_toml(path)
    if topology is not None:
        data["topology"] = str(topology.absolute())
    if lab is not None:
        data["lab"] = lab
    return parse_spec(data, source=str(path), base=path.parent)


def parse_spec(data: dict[str, Any], *, source: str, base: Path = Path()) -> ClusterSpec:
    """Raises ConfigError naming the key."""
    try:
        file = msgspec.convert(data, File)
    except msgspec.ValidationError as error:
        flags = {"nodes.region": "--region"} if source == FLAGS else {}
        words = explain(error, data, File, name=lambda key: flags.get(key, key))
        raise ConfigError(words if flags else f"{source}: {words}") from error
    rows = _rows(file, source)
    content = None if file.topology is None else load_file(base / file.topology)
    topology = None if content is None else topology_of(content, name=source)
    for section, keys in SUPERVISED.items():
        for key in sorted(keys & file.config.get(section, {}).keys()):
            raise ConfigError(f"{source}: config.{section}.{key} is set by edged cluster itself")
    return ClusterSpec(
        nodes=_dealt(rows, topology, source),
        config=file.config if topology is None else _with_preset(file.config, topology),
        topology=content,
        lab=content is not None if file.lab is None else file.lab,
    )


def _with_preset(
    config: dict[str, dict[str, Any]], topology: Topology
) -> dict[str, dict[str, Any]]:
    """Nodes that are far apart must be more patient with each other, unless `config` knows."""
    farthest_s = max(link.latency_s for link in topology.links.values())
    if 2 * farthest_s <= WIDE_RTT_S:
        return config
    return config | {"gossip": {"preset": "wan"} | config.get("gossip", {})}


def _read_toml(path: Path) -> dict[str, Any]:
    """Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it is no UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _rows(file: File, source: str) -> list[NodeRow]:
    """Counted nodes first, then those that are only listed. Raises ConfigError."""
    rows = {name: NodeRow(name) for name in (f"n{at + 1}" for at in range(file.count))}
    listed: set[str] = set()
    for row in file.nodes:
        if row.name in listed:
            raise ConfigError(f"{source}: two nodes are called {row.name!r}")
        check_node_name(row.name, source)
        listed.add(row.name)
        rows[row.name] = row
    if not 1 <= len(rows) <= NODES_MAX:
        raise ConfigError(
            f"{source}: nodes: {len(rows)} of them: write count = N, or a [[nodes]] for each of 1"
            f" to {NODES_MAX}"
        )
    if not any("control" in row.roles for row in rows.values()):
        raise ConfigError(f"{source}: no node has the role control, so nothing can be deployed")
    return list(rows.values())


def check_node_name(name: str, source: str) -> None:
    """Raises ConfigError."""
    try:
        parse_node_name(name)
    except RemoteProtocolError as error:
        raise ConfigError(f"{source}: node name {error.detail}") from error


def _dealt(rows: Sequence[NodeRow], topology: Topology | None, source: str) -> tuple[NodeSpec, ...]:
    """Every node has a region, one of the topology's. Raises ConfigError."""
    nodes: list[NodeSpec] = []
    given = [row.region for row in rows if row.region is not None]
    for row in rows:
        region = row.region or next_region(topology, given)
        if row.region is None:
            given.append(region)
        check_region(region, topology, f"{source}: node {row.name!r}")
        nodes.append(NodeSpec(row.name, region, row.target, row.roles))
    return tuple(nodes)


def check_region(region: str, topology: Topology | None, source: str) -> None:
    """Raises ConfigError."""
    if topology is not None and region not in topology.regions:
        raise ConfigError(
            f"{source}: region {region!r} is not in the topology; there are"
            f" {', '.join(topology.regions)}"
        )


def next_region(topology: Topology | None, given: Sequence[str]) -> str:
    """Where one more node is missed most, by the shares, when some are `given` already; ties by
    the order of the file. With none given it deals as Topology.deal does."""
    if topology is None:
        return LOCAL
    missing = [
        share * (len(given) + 1) - given.count(region)
        for region, share in zip(topology.regions, topology.shares, strict=True)
    ]
    return topology.regions[missing.index(max(missing))]
