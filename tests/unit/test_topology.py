"""Topology files: what they mean, and what is said about wrong ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edged.errors import ConfigError
from edged.topology import Topology, load_topology, parse_topology

DIRECTORY = Path(__file__).resolve().parents[2] / "configs" / "topologies"
FILES = sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def parsed(**data: Any) -> Topology:
    data.setdefault("regions", {"a": 1, "b": 1})
    data.setdefault("link", {"latency_ms": 1})
    return parse_topology(data, name="t", where="t.toml")


def test_the_shipped_files_say_what_they_model() -> None:
    assert FILES == ["aws8", "lan", "metro", "satellite", "small-world", "two-speeds"]
    for name in FILES:
        topology = load_topology(DIRECTORY / f"{name}.toml")
        assert topology.name == name
        assert topology.about
        assert len(topology.links) == len(topology.regions) ** 2
        assert sum(topology.shares) == pytest.approx(1)


def test_aws_round_trips_are_halved() -> None:
    aws = load_topology(DIRECTORY / "aws8.toml")
    there = aws.link("ap-south-1", "sa-east-1").latency_s
    back = aws.link("sa-east-1", "ap-south-1").latency_s
    assert there == back == pytest.approx(0.151)
    assert aws.link("us-west-2", "us-west-2").latency_s == pytest.approx(0.0015)


def test_the_ship_hears_sooner_than_it_is_heard() -> None:
    satellite = load_topology(DIRECTORY / "satellite.toml")
    up, down = satellite.link("ship", "ground"), satellite.link("ground", "ship")
    assert up.latency_s > down.latency_s
    assert up.loss > down.loss


def test_round_trips_may_differ_by_direction() -> None:
    topology = parsed(rtt_ms={"a": {"b": 10}, "b": {"a": 30}})
    assert topology.link("a", "b").latency_s == pytest.approx(0.005)
    assert topology.link("b", "a").latency_s == pytest.approx(0.015)
    assert topology.link("a", "a").latency_s == pytest.approx(0.001)


def test_one_direction_given_holds_both_ways() -> None:
    topology = parsed(rtt_ms={"b": {"a": 30}})
    assert topology.link("a", "b") == topology.link("b", "a")


def test_links_override_and_the_later_wins() -> None:
    topology = parsed(
        link={"latency_ms": 1, "loss": 0.1},
        links=[
            {"from": ["a"], "to": ["a", "b"], "jitter_ms": 7, "bandwidth_mbit": 8},
            {"from": ["a"], "to": ["b"], "loss": 0, "both": True},
        ],
    )
    there, back = topology.link("a", "b"), topology.link("b", "a")
    assert (there.jitter_s, there.loss, there.bandwidth_bytes_s) == (0.007, 0, 1_000_000)
    assert (back.jitter_s, back.loss, back.bandwidth_bytes_s) == (0, 0, None)
    assert topology.link("a", "a").loss == 0.1


def test_nodes_are_dealt_by_share_and_interleaved() -> None:
    topology = parsed(regions={"a": 3, "b": 1})
    assert topology.deal(4).count("a") == 3
    assert topology.deal(2) == ["a", "b"] or topology.deal(2) == ["a", "a"]
    assert Counter(topology.deal(100)) == {"a": 75, "b": 25}
    assert topology.deal(50) == topology.deal(100)[:50]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"regions": {}}, "regions = {}: 0 entries"),
        ({"regions": {"A": 1}}, "1 to 32 of a-z 0-9 -"),
        ({"regions": {"a": 0}}, "regions.a = 0"),
        ({"link": {"latency_ms": -1}}, "link.latency_ms = -1"),
        ({"link": {"loss": 1.5}}, "link.loss = 1.5"),
        ({"link": {"latencyms": 1}}, "latency_ms is meant?"),
        ({"rtt_ms": {"a": {"c": 1}}}, "rtt_ms.a.c: 'c' is not a key of [regions]; there are a, b"),
        ({"links": [{"from": ["c"], "to": ["a"]}]}, "links[0].from: 'c'"),
        ({"links": [{"from": ["a"], "to": []}]}, "0 entries"),
        ({"links": [{"from": "a", "to": ["a"]}]}, "write a list"),
        ({"link": {}, "rtt_ms": {"a": {"b": 1}}}, "no latency from a → a (2 links lack one)"),
    ],
)
def test_wrong_files_are_explained(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(**data)
    assert "t.toml: " in str(caught.value)
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read topology"):
        load_topology(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("regions = [")
    with pytest.raises(ConfigError, match="not TOML"):
        load_topology(broken)


def test_a_region_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="region 'c' is not in topology t; there are a, b"):
        parsed().link("a", "c")
