"""What a local cluster shall be: from a TOML file or from flags."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from edged.errors import ConfigError
from edged.validation import explain
from protocol.errors import RemoteProtocolError
from protocol.ids import parse_node_name

from .state import Target

FLAGS: Final = "flags"
NODES_MAX: Final = 100
"""Three ports each; 50 processes took 1.2 GB (PSS) where this was measured."""
SUPERVISED: Final = {
    "node": {"name", "region", "data_dir"},
    "gateway": {"bind"},
    "control": {"bind", "token_file"},
    "gossip": {"bind", "advertise", "seeds"},
    "trust": {"directory"},
    "runtime": {"target"},
}
"""Keys of node.toml that the supervisor sets, so [config] must not."""


class NodeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    region: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")] = "local"
    target: Target = "native"


class ClusterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`config` is laid over every node's node.toml: {section: {key: value}}."""

    nodes: Annotated[tuple[NodeSpec, ...], Meta(min_length=1, max_length=NODES_MAX)]
    config: dict[str, dict[str, Any]] = {}


def spec_of(count: int, *, pulley: int = 0, regions: tuple[str, ...] = ()) -> ClusterSpec:
    """Nodes n1 … nN; the last `pulley` of them interpret; regions are dealt out in turn.

    Raises ConfigError."""
    if not 1 <= count <= NODES_MAX:
        raise ConfigError(f"{count} nodes: 1 to {NODES_MAX}")
    if not 0 <= pulley <= count:
        raise ConfigError(f"{pulley} pulley64 nodes of {count}: 0 to {count}")
    dealt = regions or ("local",)
    nodes = [
        {
            "name": f"n{index + 1}",
            "region": dealt[index % len(dealt)],
            "target": "pulley64" if index >= count - pulley else "native",
        }
        for index in range(count)
    ]
    return parse_spec({"nodes": nodes}, source=FLAGS)


def load_spec(path: Path) -> ClusterSpec:
    """Raises ConfigError: unreadable, not TOML, unknown or wrong keys."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it is no UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return parse_spec(data, source=str(path))


def parse_spec(data: dict[str, Any], *, source: str) -> ClusterSpec:
    """Raises ConfigError naming the key."""
    try:
        spec = msgspec.convert(data, ClusterSpec)
    except msgspec.ValidationError as error:
        flags = {"nodes.region": "--region"} if source == FLAGS else {}
        words = explain(error, data, ClusterSpec, name=lambda key: flags.get(key, key))
        raise ConfigError(words if flags else f"{source}: {words}") from error
    for node in spec.nodes:
        try:
            parse_node_name(node.name)
        except RemoteProtocolError as error:
            raise ConfigError(f"{source}: node name {error.detail}") from error
    names = [node.name for node in spec.nodes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{source}: two nodes are called {name!r}")
    for section, keys in SUPERVISED.items():
        for key in sorted(keys & spec.config.get(section, {}).keys()):
            raise ConfigError(f"{source}: config.{section}.{key} is set by edged cluster itself")
    return spec
