"""The links document: what holds between two ends, wrong documents, and the pure helpers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edged.errors import ConfigError
from edged.links import (
    EMPTY,
    Document,
    Links,
    NodeAt,
    as_topology,
    document_of,
    encode_document,
    heal,
    load_document,
    node,
    others,
    parse_document,
    partition,
    slow,
    without,
)
from edged.topology import End
from protocol.shaping import CLEAR, Link

AWS = Path(__file__).resolve().parents[2] / "configs" / "topologies" / "aws8.toml"
EU, US = End("n1", "eu-west-1"), End("n2", "us-east-1")
SA = End("n3", "sa-east-1")
STRANGE = '{"from": ["b"], "to": ["*"]}'


def parsed(*rules: dict[str, Any], **more: Any) -> Document:
    return parse_document(json.dumps({"rules": rules, **more}).encode())


def link(document: Document, source: End, target: End) -> Link:
    return Links(document).link(source, target)


def test_an_empty_document_is_clear() -> None:
    assert link(EMPTY, EU, US) == CLEAR
    assert parse_document(b"{}") == EMPTY


def test_the_topology_is_where_it_begins() -> None:
    document = document_of(AWS)
    assert link(document, EU, US).latency_s == pytest.approx(0.034)
    assert link(document, EU, End("x", "mars")) == CLEAR
    slowed = slow(document, [node("n1")], extra_ms=100)
    assert link(slowed, EU, US).latency_s == pytest.approx(0.134)
    assert link(slowed, US, EU).latency_s == pytest.approx(0.134)
    assert link(slowed, US, SA) == link(document, US, SA)


def test_later_rules_win_key_by_key() -> None:
    document = parsed(
        {"from": ["*"], "to": ["*"], "latency_ms": 10, "loss": 0.1, "bandwidth_mbit": 8},
        {"from": ["eu-west-1"], "to": ["node:n2"], "latency_ms": 20, "jitter": "pareto"},
        {"from": ["node:n1"], "to": ["us-east-1"], "bandwidth_mbit": None},
    )
    assert link(document, EU, US) == Link(latency_s=0.02, loss=0.1, jitter="pareto")
    assert link(document, US, EU) == Link(latency_s=0.01, loss=0.1, bandwidth_bytes_s=1e6)


def test_a_node_that_is_named_has_its_own_bandwidth() -> None:
    links = Links(
        parsed(
            {"from": ["eu-west-1"], "to": ["us-east-1"], "bandwidth_mbit": 8},
            {"from": ["node:n3"], "to": ["*"], "both": True, "bandwidth_mbit": 1},
        )
    )
    assert not links.way(EU, US).own
    assert links.way(EU, SA).own
    assert not links.way(SA, EU).own


def test_a_partition_is_healed_and_the_rest_stays() -> None:
    before = slow(document_of(AWS), ["eu-west-1"], loss=0.2)
    cut = partition(before, [["eu-west-1"], ["us-east-1", node("n3")]])
    for one, other in ((EU, US), (US, EU), (EU, SA), (SA, EU)):
        assert link(cut, one, other).cut == "drop"
    assert link(cut, US, SA).cut is None
    assert heal(cut) == before
    assert without(cut, "partition") == before
    assert without(before, "slow") == document_of(AWS)


def test_a_partition_may_be_one_way() -> None:
    cut = partition(EMPTY, [["eu-west-1"], ["us-east-1"]], both=False, cut="reset")
    assert link(cut, EU, US).cut == "reset"
    assert link(cut, US, EU).cut is None


def test_a_cut_against_all_others_holds_for_nodes_that_come_later() -> None:
    group = ["eu-west-1", node("n2")]
    cut = parse_document(encode_document(partition(document_of(AWS), [group, others(group)])))
    later_in, later_out = End("n9", "eu-west-1"), End("n8", "us-east-1")
    for inside in (EU, US, later_in, End("", "eu-west-1")):
        for outside in (SA, later_out, End("", "us-east-1")):
            assert link(cut, inside, outside).cut == link(cut, outside, inside).cut == "drop"
    assert link(cut, EU, later_in).cut is link(cut, US, later_in).cut is None
    assert link(cut, SA, later_out).cut is None
    shown = as_topology(cut, name="now")
    assert shown.link("us-east-1", "eu-west-1").cut == "drop"
    assert shown.link("us-east-1", "sa-east-1").cut is None
    assert heal(cut) == document_of(AWS)


def test_clients_reach_both_sides_of_a_cut_around_single_nodes() -> None:
    cut = partition(EMPTY, [[node("n1")], others([node("n1")])])
    assert link(cut, EU, US).cut == "drop"
    assert link(cut, End("", "us-east-1"), EU).cut is None
    assert link(cut, US, End("", "eu-west-1")).cut is None


def test_an_exclusion_narrows_what_is_named() -> None:
    document = parsed({"from": ["*", "!node:n1"], "to": ["us-east-1"], "loss": 0.5})
    assert link(document, SA, US).loss == 0.5
    assert link(document, EU, US).loss == 0


def test_a_later_rule_may_mend_a_cut() -> None:
    document = parsed(
        {"from": ["*"], "to": ["*"], "cut": "drop"},
        {"from": ["*"], "to": ["node:n2"], "cut": None},
    )
    assert link(document, EU, US).cut is None
    assert link(document, US, EU).cut == "drop"


def test_documents_are_written_and_read_again(tmp_path: Path) -> None:
    nodes = {"n1": NodeAt("eu-west-1", "127.0.0.1:7946")}
    document = partition(slow(document_of(AWS, nodes), ["*"], loss=0.1), [["eu-west-1"], ["*"]])
    path = tmp_path / "links.json"
    path.write_bytes(encode_document(document))
    assert load_document(path) == document
    shown = as_topology(document, name="now")
    assert shown.link("eu-west-1", "us-east-1").cut == "drop"
    assert len(shown.links) == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "write sections and keys"),
        ('{"rule": []}', "rules is meant?"),
        ('{"rules": [{"from": ["*"]}]}', "write to = …"),
        ('{"rules": [{"from": ["*"], "to": []}]}', "0 entries"),
        ('{"rules": [{"from": ["!*"], "to": ["*"]}]}', "one after"),
        ('{"rules": [{"from": ["EU"], "to": ["*"]}]}', 'a region, "node:NAME", "*" for all, or'),
        ('{"rules": [{"from": ["*"], "to": ["*"], "loss": 2}]}', "rules.loss = 2"),
        ('{"rules": [{"from": ["*"], "to": ["*"], "cut": "yes"}]}', "write drop or reset"),
        ('{"rules": [{"from": ["*"], "to": ["*"], "latency_ms": "1"}]}', "write a number"),
        ('{"topology": {"regions": {"a": 1}}}', "no latency from a → a"),
        (
            '{"topology": {"regions": {"a": 1}, "link": {"latency_ms": 1}}, "rules": [STRANGE]}',
            "rules[0].from: 'b' is no region of the topology; there are a",
        ),
        ('{"nodes": {"N 1": {"region": "a"}}}', "nodes = 'N 1': the name of a node"),
        ('{"nodes": {"n1": {"region": "a", "address": "x"}}}', "nodes.n1.address = 'x'"),
        (" " * 1_100_000, "1100000 bytes, 1048576 are allowed"),
    ],
)
def test_wrong_documents_are_explained(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text.replace("STRANGE", STRANGE).encode())
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read links"):
        load_document(tmp_path / "none.json")
