"""The configuration files that ship are right, and configs/node.toml leaves no key out."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from edged.cluster.spec import load_spec
from edged.config import Config, load_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_node_toml_holds_every_key_with_its_default() -> None:
    shipped = tomllib.loads((CONFIGS / "node.toml").read_text())
    minimal = msgspec.convert({"node": {"name": "edge-1"}}, Config)
    defaults = msgspec.json.decode(msgspec.json.encode(minimal))
    del defaults["base"]
    assert shipped == defaults
    assert load_config(CONFIGS / "node.toml").node.name == "edge-1"


CLUSTERS = [
    ("local3", 3, 1),
    ("regions5", 5, 3),
    ("geo8", 8, 8),
    ("metro30", 30, 5),
    ("two-speeds", 4, 3),
]


@pytest.mark.parametrize(("name", "nodes", "regions"), CLUSTERS)
def test_cluster_files(name: str, nodes: int, regions: int) -> None:
    spec = load_spec(CONFIGS / "clusters" / f"{name}.toml")
    assert len(spec.nodes) == nodes
    assert len({node.region for node in spec.nodes}) == regions


def test_every_cluster_file_is_tested() -> None:
    files = {path.stem for path in (CONFIGS / "clusters").glob("*.toml")}
    assert files == {name for name, _, _ in CLUSTERS}
