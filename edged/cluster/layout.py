"""The files of a local cluster: CA, and for each node its node.toml, trust directory and token.

<cluster>/ca/            ca.key ca.pem keyring
<cluster>/links.json     of a cluster with a topology: what its nodes' traffic suffers
<cluster>/nodes/NAME/    node.toml trust/ control.token data/ node.log
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from edged.config import parse_config
from edged.errors import ConfigError
from edged.files import write_file
from edged.links import Document
from edged.trust import create_ca, issue_node

from .shaping import write_links
from .spec import ClusterSpec
from .state import ClusterState, Home, NodeState

WRITERS: Final = 8
"""Nodes written at once: most of it is waiting for the disk, 14 times for each node."""
SEEDS_MAX: Final = 5
"""Any one of them is enough to join; five survive four deaths."""
LINKS_FILE: Final = "../../links.json"
"""Home.links_file, from a node's directory."""
LOCAL_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "gateway": {"drain_timeout_s": 10.0},
    "gossip": {"preset": "local"},
}


def write_cluster(home: Home, state: ClusterState, spec: ClusterSpec) -> None:
    """Makes everything but cluster.json. Raises ConfigError."""
    directory = home.directory(state.name)
    create_ca(directory / "ca")
    if state.lab:
        write_links(home, state, Document(topology=spec.topology))
    seeds = [node.gossip for node in state.nodes[:SEEDS_MAX]]
    texts = [node_toml(home, state, node, seeds) for node in state.nodes]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda node, text: write_node(home, state, node, text), state.nodes, texts))


def check_config(spec: ClusterSpec) -> None:
    """Before there is anything of the cluster. Raises ConfigError: what its nodes would refuse."""
    state = ClusterState(1, "", 0.0, "", (), lab=spec.lab, config=spec.config)
    address = "127.0.0.1:0"
    for each in spec.nodes:
        node = NodeState(
            each.name, each.region, each.target, gateway=address, control=address, gossip=address
        )
        data = node_config(state, node, [])
        parse_config(data, base=Path())
        dump_toml(data)


def node_toml(home: Home, state: ClusterState, node: NodeState, seeds: list[str]) -> str:
    """Raises ConfigError: a mistake in [config] shows here, not in a node's log."""
    data = node_config(state, node, seeds)
    parse_config(data, base=home.node_directory(state.name, node.name))
    return dump_toml(data)


def write_node(home: Home, state: ClusterState, node: NodeState, text: str) -> None:
    """Makes the directory of one node of `state`; `text`: of its node.toml. Raises ConfigError."""
    own = home.node_directory(state.name, node.name)
    own.mkdir(mode=0o700, parents=True)
    write_file(own / "node.toml", text.encode(), secret=True)
    write_file(own / "control.token", secrets.token_urlsafe(32).encode() + b"\n", secret=True)
    issue_node(home.directory(state.name) / "ca", own / "trust", name=node.name, roles=node.roles)


def node_config(
    state: ClusterState, node: NodeState, seeds: list[str]
) -> dict[str, dict[str, Any]]:
    """What node.toml holds: defaults of local clusters, then the cluster's, then what must be."""
    fixed: dict[str, dict[str, Any]] = {
        "node": {"name": node.name, "region": node.region, "data_dir": "data"},
        "gateway": {"bind": node.gateway},
        "control": {"bind": node.control, "token_file": "control.token"},
        "gossip": {"bind": node.gossip, "seeds": seeds},
        "trust": {"directory": "trust"},
        "runtime": {"target": node.target},
    }
    if state.lab:
        fixed |= {"links": {"enabled": True, "file": LINKS_FILE}, "lab": {"enabled": True}}
    sections = dict.fromkeys((*fixed, *state.config))
    return {
        name: {**LOCAL_DEFAULTS.get(name, {}), **state.config.get(name, {}), **fixed.get(name, {})}
        for name in sections
    }


def dump_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML of sections of scalars and lists of scalars: all that node.toml has."""
    parts: list[str] = []
    for name, values in sections.items():
        parts.append(f"[{_toml_key(name)}]")
        parts += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in values.items()]
        parts.append("")
    return "\n".join(parts)


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _toml_value(key)


def _toml_value(value: object) -> str:
    """Raises ConfigError for what node.toml has no use for."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, str):
        # A JSON string is a TOML basic string but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise ConfigError(f"config: {value!r}: only text, numbers, booleans and lists of them")
