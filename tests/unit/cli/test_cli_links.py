"""`edged topology` and `edged links`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.links import NodeAt, document_of, encode_document, partition
from edged.topology import find_topology
from tests.unit.cli.node_thread import NodeThread

ROOT = Path(__file__).resolve().parents[3]
AWS = ROOT / "configs" / "topologies" / "aws8.toml"
PEER = {"n2": NodeAt("eu-west-1", "127.0.0.1:2")}


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "links.json"
    made = partition(document_of(AWS, PEER), [["eu-west-1"], ["us-east-1"]], cut="reset")
    path.write_bytes(encode_document(made))
    return path


# ---------------------------------------------------------------- topology
def test_a_topology_is_drawn(run: Any) -> None:
    shown = run("topology", "show", AWS)
    assert shown.exit_code == 0
    assert "cloudping" in shown.stdout
    (row,) = [line.split() for line in shown.stdout.splitlines() if line.startswith(" sa-east-1")]
    assert row == ["sa-east-1", "12%", "116", "180", "4", "179", "205", "302", "324", "258"]


@pytest.mark.parametrize(
    ("what", "value"),
    [("latency", "280"), ("jitter", "40"), ("loss", "0.02"), ("bandwidth", "10")],
)
def test_every_key_can_be_drawn(run: Any, what: str, value: str) -> None:
    path = ROOT / "configs" / "topologies" / "satellite.toml"
    lines = run("topology", "show", path, "--what", what).stdout.splitlines()
    (ground,) = [line.split() for line in lines if line.startswith(" ground")]
    assert ground[-1] == value


def test_a_cluster_s_links_are_drawn_with_their_cuts(run: Any, document: Path) -> None:
    shown = run("topology", "show", document).stdout
    (row,) = [line.split() for line in shown.splitlines() if line.startswith(" us-east-1")]
    assert row[5:7] == ["cut", "91"]
    told = json.loads(run("topology", "show", document, "--json").stdout)
    (link,) = [
        link for link in told["links"] if (link["from"], link["to"]) == ("us-east-1", "eu-west-1")
    ]
    assert (link["cut"], link["latency_s"]) == ("reset", 0.034)


def test_a_topology_is_checked(run: Any, tmp_path: Path) -> None:
    good = run("topology", "check", AWS)
    assert (good.exit_code, "8 regions, 64 links" in good.stdout) == (0, True)
    bad = tmp_path / "bad.toml"
    bad.write_text('[regions]\na = 1\n[[links]]\nfrom = ["b"]\nto = ["a"]\n')
    told = run("topology", "check", bad)
    assert told.exit_code == 2
    assert "links[0].from: 'b' is not a key of [regions]" in told.stderr


def test_shipped_topologies_have_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_topology("lan").is_file()


# ---------------------------------------------------------------- links
def test_links_are_set_shown_and_cleared(
    cli: Any, as_json: Callable[..., Any], node: NodeThread, document: Path
) -> None:
    assert "no peers yet" in cli("links", "show").stdout
    done = cli("links", "set", document)
    assert (done.exit_code, "is in force on" in done.stdout) == (0, True)
    node.do(node.shaper.send, b"x", ("127.0.0.1", 2))
    view = as_json("links", "show")
    assert view["document"]["topology"]["name"] == "aws8"
    assert [rule["cut"] for rule in view["document"]["rules"]] == ["reset"]

    assert as_json("links", "clear")["at_ms"] >= view["changed_at_ms"]
    view = as_json("links", "show")
    assert (view["document"]["topology"], view["document"]["rules"]) == (None, [])
    assert view["document"]["nodes"], "who is where is still known"
    assert [peer["name"] for peer in view["peers"]] == ["n2"]


def test_a_topology_can_be_set_and_is_drawn_for_each_peer(
    cli: Any, node: NodeThread, document: Path
) -> None:
    cli("links", "set", document)
    told = cli("links", "set", AWS)
    assert (told.exit_code, "no region for" in told.stderr) == (0, True)
    node.do(node.shaper.send, b"x", ("127.0.0.1", 2))
    shown = cli("links", "show").stdout
    (peer,) = [line.split() for line in shown.splitlines() if line.startswith(" n2")]
    assert peer[:3] == ["n2", "eu-west-1", "0"], "the node's own region is not of the topology"


def test_a_wrong_document_is_refused_before_anything_is_asked(run: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"rules": [{"from": ["*"], "to": ["*"], "loss": 7}]}')
    told = run("links", "set", bad)
    assert told.exit_code == 2
    assert "rules.loss = 7" in told.stderr


def test_without_a_cluster_there_is_nobody_to_tell(run: Any) -> None:
    assert run("links", "clear").exit_code == 4
