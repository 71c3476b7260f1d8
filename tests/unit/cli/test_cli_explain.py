"""`edged explain`: one node's table, and all nodes of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.cli import target
from edged.cluster.state import ClusterState, NodeState
from tests.unit.cli.node_thread import TOKEN, NodeThread


@pytest.fixture
def ua(cli: Any, module_file: Path) -> None:
    assert cli("deploy", module_file, "--name", "ua").exit_code == 0


def row_of(shown: str, form: str) -> list[str]:
    """Of the table."""
    lines = [line for line in shown.splitlines() if line.startswith(" ")]
    return next(line.split() for line in lines if f" {form} " in line)


@pytest.mark.usefixtures("ua")
def test_a_node_s_table(cli: Any) -> None:
    shown = cli("explain", "ua").stdout
    assert row_of(shown, "snapshot")[:3] == ["chosen", "snapshot", "2.24"]
    assert "forward cannot be had: no peer answers it now\n" in shown
    assert "module → snapshot (drift): bandwidth 1 mbit/s → 20 mbit/s\n" in shown
    assert "÷32.7, at 30.6 mbit/s: snapshot-here" in shown
    assert "left alone for a while: no memory\\x1b[31m" in shown
    assert "waiting" not in shown.split("input")[0]  # a column that says nothing
    assert " artifact " not in shown.split("here ")[-1]  # nor what is not here


@pytest.mark.usefixtures("ua")
def test_what_if(cli: Any, as_json: Any) -> None:
    shown = cli("explain", "ua", "--what-if", "bandwidth=1mbit", "--what-if", "init_s=3 s").stdout
    assert "bandwidth 1 mbit/s, init 3 s" in shown
    assert "form would be  snapshot-here, instead of module" in shown
    told = as_json("explain", "ua", "--what-if", "bandwidth=1mbit")["plan"]
    (bandwidth,) = [row for row in told["inputs"] if row["name"] == "bandwidth"]
    assert (told["form"], bandwidth["source"], bandwidth["value"]) == (
        "snapshot-here",
        "what-if",
        125e3,
    )
    assert [row["total_s"] for row in told["rows"] if row["lacks"]] == [0.0, 0.0, 0.0]


@pytest.mark.usefixtures("ua")
@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("bandwidth=1", "bandwidth '1': write 20mbit, 1 gbit/s or 5 MB/s"),
        ("bndwidth=1mbit", "there is no input 'bndwidth'; there are bandwidth, rtt, rate"),
        ("rate", "write INPUT=VALUE"),
        ("bandwidth=0mbit", "must be positive"),
        ("rate=1/s,rate=2/s", "rate is given twice"),
        ("rate=" + "9" * 2000, "at most 1024 characters"),
        ("\x1b[31m=1", "there is no input '\\x1b[31m'"),
    ],
)
def test_what_cannot_be_supposed(cli: Any, wish: str, words: str) -> None:
    result = cli("explain", "ua", "--what-if", wish)
    assert result.exit_code == 1
    assert words in result.stderr


class Boss:
    """Of a cluster whose nodes are where the test says."""

    def __init__(self, *nodes: NodeState) -> None:
        self.nodes = nodes

    def load(self, _name: str) -> ClusterState:
        return ClusterState(1, "c", 0.0, "boot", self.nodes)

    def running_nodes(self, state: ClusterState) -> list[NodeState]:
        return [*state.nodes]

    def token(self, _state: ClusterState, _node: NodeState) -> str:
        return TOKEN


def node_at(name: str, region: str, control: str) -> NodeState:
    return NodeState(name, region, "native", "h:1", control, "h:3")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, node: NodeThread) -> None:
    here = node.url.removeprefix("http://")
    boss = Boss(node_at("n1", "eu", here), node_at("n2", "us", "127.0.0.1:1"))
    monkeypatch.setattr(target, "supervisor", lambda: boss)


@pytest.mark.usefixtures("ua", "cluster")
def test_all_nodes_of_a_cluster_a_line_each(run: Any) -> None:
    shown = run("explain", "ua", "--cluster", "c")
    assert shown.exit_code == 0
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith(" n1 ")]
    assert line.split()[:8] == ["n1", "eu", "snapshot", "2.24", "s", "6", "ms", "compiled"]
    assert "costs 3.06 s over 600 s at 0.5/s" in line
    assert line.rstrip().endswith("bandwidth ÷32.7, at 30.6 mbit/s: snapshot-here")
    (silent,) = [line for line in shown.stdout.splitlines() if line.startswith(" n2 ")]
    assert "does not answer" in silent


@pytest.mark.usefixtures("ua", "cluster")
def test_what_no_node_can_answer_is_one_error(run: Any) -> None:
    refused = run("explain", "ua", "--cluster", "c", "--what-if", "x=1")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "there is no input 'x'" in refused.stderr
    unknown = run("explain", "uo", "--cluster", "c")
    assert unknown.exit_code == 4


@pytest.mark.usefixtures("ua", "cluster")
def test_a_description_ends_with_what_each_node_has_chosen(cli: Any, run: Any) -> None:
    shown = run("describe", "ua", "--cluster", "c")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.endswith("forms chosen: n1 none yet (edged explain ua)\n")
    assert "nobody has asked this node" in shown.stdout
    assert "forms chosen" not in cli("describe", "ua").stdout, "of one node"
    assert "forms chosen" not in run("describe", "ua", "--cluster", "c", "--json").stdout
