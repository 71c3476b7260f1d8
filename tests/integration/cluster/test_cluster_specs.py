"""What a cluster shall be: counted and listed nodes, roles, regions of a topology."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.cli.target import find_target
from edged.cluster import layout, process
from edged.cluster.spec import ClusterSpec, load_spec, next_region, parse_spec, spec_of
from edged.cluster.state import ROLES, ClusterState, Home
from edged.cluster.supervisor import Supervisor
from edged.config import load_config
from edged.errors import ConfigError, Conflict
from edged.links import Document, load_document
from edged.topology import parse_topology
from edged.trust import load_trust

FAR = """regions = {eu = 3, us = 1}
[rtt_ms]
eu = {eu = 2, us = 120}
us = {us = 2}
"""
NEAR = "regions = {eu = 1}\nlink = {latency_ms = 4}"


def written(tmp_path: Path, text: str) -> ClusterSpec:
    (tmp_path / "topologies").mkdir(exist_ok=True)
    (tmp_path / "topologies" / "far.toml").write_text(FAR)
    (tmp_path / "clusters").mkdir(exist_ok=True)
    path = tmp_path / "clusters" / "c.toml"
    path.write_text(text)
    return load_spec(path)


def test_a_count_over_a_topology(tmp_path: Path) -> None:
    spec = written(tmp_path, "topology = '../topologies/far.toml'\ncount = 8")
    assert [node.name for node in spec.nodes] == [f"n{at}" for at in range(1, 9)]
    assert Counter(node.region for node in spec.nodes) == {"eu": 6, "us": 2}
    assert spec.topology is not None
    assert (spec.lab, spec.topology.name) == (True, "far")
    assert {node.roles for node in spec.nodes} == {ROLES}


def test_listed_nodes_say_more_of_counted_ones_or_are_others(tmp_path: Path) -> None:
    spec = written(
        tmp_path,
        "topology = '../topologies/far.toml'\ncount = 2\n"
        "[[nodes]]\nname = 'n2'\ntarget = 'pulley64'\nroles = ['serve']\nregion = 'eu'\n"
        "[[nodes]]\nname = 'edge'\n",
    )
    assert [(n.name, n.region, n.target, n.roles) for n in spec.nodes] == [
        ("n1", "eu", "native", ROLES),
        ("n2", "eu", "pulley64", ("serve",)),
        ("edge", "us", "native", ROLES),  # two of the three are in eu by then
    ]


def test_flags_over_a_topology(tmp_path: Path) -> None:
    (tmp_path / "far.toml").write_text(FAR)
    spec = spec_of(4, pulley=1, topology=tmp_path / "far.toml")
    assert Counter(node.region for node in spec.nodes) == {"eu": 3, "us": 1}
    assert spec.nodes[3].target == "pulley64"
    assert spec_of(1).lab is False
    assert spec_of(1, lab=True).lab is True
    assert spec_of(1, topology=tmp_path / "far.toml", lab=False).lab is False


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("count = 0", "1 to 100"),
        ("count = 101", "count"),
        ("count = 100\n[[nodes]]\nname = 'one-more'", "101 of them"),
        ("count = 2\nroles = ['serve']", "roles"),
        ("[[nodes]]\nname = 'a'\nroles = []", "roles"),
        ("[[nodes]]\nname = 'a'\nroles = ['cook']", "roles"),
        ("[[nodes]]\nname = 'a'\nroles = ['serve', 'build']", "role control"),
        ("topology = 'none.toml'\ncount = 1", "none.toml"),
        ("topology = '../topologies/far.toml'\n[[nodes]]\nname='a'\nregion='mars'", "eu, us"),
        ("count = 1\n[config.links]\nenabled = true", "config.links.enabled is set"),
        ("count = 1\n[config.lab]\nenabled = true", "config.lab.enabled is set"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        written(tmp_path, text)


@given(st.integers(1, 60), st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_one_by_one_is_dealt_as_all_at_once(count: int, shares: list[int]) -> None:
    regions = {f"r{at}": share for at, share in enumerate(shares)}
    topology = parse_topology({"regions": regions, "link": {"latency_ms": 1}}, name="t")
    given_so_far: list[str] = []
    for _ in range(count):
        given_so_far.append(next_region(topology, given_so_far))
    assert given_so_far == topology.deal(count)


@pytest.mark.parametrize(
    ("topology", "config", "preset"),
    [
        (FAR, {}, "wan"),
        (NEAR, {}, None),
        (FAR, {"gossip": {"preset": "lan"}}, "lan"),
    ],
)
def test_far_nodes_are_patient(
    tmp_path: Path, topology: str, config: dict, preset: str | None
) -> None:
    path = tmp_path / "t.toml"
    path.write_text(topology)
    spec = parse_spec({"count": 1, "topology": str(path), "config": config}, source="t")
    assert spec.config.get("gossip", {}).get("preset") == preset


# ---------------------------------------------------------------- what is written
def created(home: Home, spec: ClusterSpec) -> ClusterState:
    return Supervisor(home)._create("c", spec)


def test_the_files_of_a_laboratory(home: Home, tmp_path: Path) -> None:
    spec = written(
        tmp_path,
        "topology = '../topologies/far.toml'\ncount = 2\n[[nodes]]\nname='n2'\nroles=['serve']",
    )
    state = created(home, spec)
    assert load_trust(home.node_directory("c", "n2") / "trust").credential.roles == ("serve",)
    document = load_document(home.links_file("c"))
    assert document.topology is not None
    assert {name: (at.region, at.address) for name, at in document.nodes.items()} == {
        node.name: (node.region, node.gossip) for node in state.nodes
    }
    config = load_config(home.node_directory("c", "n1") / "node.toml")
    assert (config.gossip.preset, config.lab.enabled) == ("wan", True)
    assert home.load("c") == state


def test_who_joins_next(home: Home, tmp_path: Path) -> None:
    boss = Supervisor(home)
    created(home, written(tmp_path, "topology = '../topologies/far.toml'\ncount = 4"))
    planned = boss.plan("c")  # three of four are in eu: the fifth of shares 3 and 1 goes there too
    assert (planned.name, planned.region, planned.roles) == ("n5", "eu", ROLES)
    assert boss.plan("c", node="x", region="us", roles=("serve",)).roles == ("serve",)
    with pytest.raises(ConfigError, match="eu, us"):
        boss.plan("c", region="mars")
    with pytest.raises(ConfigError, match="node name"):
        boss.plan("c", node="../x")
    with pytest.raises(Conflict, match="has a node 'n4'"):
        boss.add("c", boss.plan("c", node="n4"), timeout_s=1)
    with pytest.raises(Conflict, match="no node of cluster 'c' runs"):
        boss.add("c", planned, timeout_s=1)
    assert len(home.load("c").nodes) == 4


def test_who_joins_a_cluster_without_a_topology(home: Home) -> None:
    created(home, spec_of(3, regions=("eu", "us")))
    assert Supervisor(home).plan("c").region == "us"


def test_no_node_is_left_over_from_a_join_that_fails(home: Home) -> None:
    boss = Supervisor(home)
    state = created(home, spec_of(1))
    own = process.Process(1, process.started_ticks(1) or 0)  # something that runs
    running = msgspec.structs.replace(state.nodes[0], pid=own.pid, started_ticks=own.started_ticks)
    home.save(state.with_node(running))
    (home.directory("c") / "ca" / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key"):
        boss.add("c", boss.plan("c"), timeout_s=1)
    assert [node.name for node in home.load("c").nodes] == ["n1"]
    assert not home.node_directory("c", "n2").exists()
    home.save(state)


def test_a_removed_node_is_forgotten(home: Home) -> None:
    boss = Supervisor(home)
    created(home, spec_of(2))
    assert boss.remove("c", "n1") is False  # it did not run
    assert [node.name for node in home.load("c").nodes] == ["n2"]
    assert not home.node_directory("c", "n1").exists()
    with pytest.raises(Conflict, match="the last one"):
        boss.remove("c", "n2")


def test_links_need_a_laboratory(home: Home) -> None:
    from edged.cluster.shaping import read_links, topology

    state = created(home, spec_of(1))
    assert topology(home, state) is None
    with pytest.raises(Conflict, match="--lab"):
        read_links(home, state)
    lab = msgspec.structs.replace(state, name="d", lab=True)
    home.directory("d").mkdir(parents=True)
    layout.write_cluster(home, lab, spec_of(1, lab=True))
    assert read_links(home, lab).topology is None
    assert isinstance(read_links(home, lab), Document)
    assert topology(home, lab) is None


def test_commands_go_to_a_node_that_can_take_deploys(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"name": "n1", "roles": ["serve"]}, {"name": "n2"}, {"name": "n3"}]
    state = created(home, parse_spec({"nodes": nodes}, source="t"))
    ticks = process.started_ticks(1)  # something that runs
    for node in state.nodes:
        state = state.with_node(msgspec.structs.replace(node, pid=1, started_ticks=ticks))
    home.save(state)
    monkeypatch.setenv("EDGED_STATE", str(home.root))

    def default() -> str:
        return find_target(node=None, cluster=None, control=None, token_file=None).name

    assert default() == "n2"
    monkeypatch.setattr(process, "is_paused", lambda _: True)
    assert default() == "n1"  # no better one: it will not answer, and say so
