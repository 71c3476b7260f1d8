"""`edged invoke --from REGION`: the nearest node, and the time that lies between."""

import json
from functools import partial
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest

from edged.cli import distance
from edged.cli.distance import Distance
from edged.errors import Unreachable
from edged.lab.load.around import Around, Target
from edged.links import Document, encode_document, partition
from edged.topology import File, LinkRow
from tests.unit.cli.conftest import Edged
from tests.unit.cli.node_thread import NodeThread

GEO = Document(
    topology=File(
        regions={"eu": 1.0, "us": 1.0, "ap": 1.0},
        rtt_ms={"eu": {"us": 100.0, "ap": 300.0}, "us": {"ap": 200.0}},
        link=LinkRow(latency_ms=1.0),
    )
)


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def between(self, document: Document) -> Distance:
        target = Target("n1", "us", "192.0.2.1", 80)
        way = Around([target], document, Random(1)).way("eu", target)
        return Distance(way, between="eu and n1", clock=lambda: self.now, sleep=self.sleep)


def test_a_request_takes_two_round_trips_on_a_new_connection() -> None:
    clock = Clock()
    far = clock.between(GEO)
    far.go(500)
    assert clock.now == pytest.approx(5.15)
    far.come(5000)
    assert clock.now == pytest.approx(5.2)


@pytest.mark.parametrize("cut", ["drop", "reset"])
def test_over_a_cut_link_nothing_is_asked(cut: str) -> None:
    document = partition(GEO, [["eu"], ["us"]], cut=cut)  # type: ignore[arg-type]
    with pytest.raises(Unreachable, match=f"between eu and n1 is cut \\({cut}\\)"):
        Clock().between(document).go(500)


@pytest.fixture
def cluster(node: NodeThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A cluster whose near node answers, and whose far one is nowhere; what was slept is told."""
    parts = urlsplit(node.gateway_url)
    targets = [
        Target("far", "ap", "127.0.0.1", 1),
        Target("near", "us", parts.hostname or "", parts.port or 0),
    ]
    links = tmp_path / "links.json"
    links.write_bytes(encode_document(GEO))
    slept: list[float] = []
    monkeypatch.setattr(distance, "local_gateways", lambda _: (targets, links))
    monkeypatch.setattr(distance, "Distance", partial(Distance, sleep=slept.append))
    return slept


def test_the_nearest_node_is_asked_and_the_way_waited_for(run: Edged, cluster: list[float]) -> None:
    result = run("invoke", "hello", "--from", "eu", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["status"] == 200
    assert [round(seconds, 2) for seconds in cluster] == [0.15, 0.05]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--node", "far"), 3, "far does not answer"),
        (("--node", "n9"), 2, "no running node 'n9'; there are far, near"),
        (("--gateway", "http://127.0.0.1:1"), 2, "--from needs a local cluster"),
        (("--control", "http://127.0.0.1:1"), 2, "--from needs a local cluster"),
    ],
)
def test_what_does_not_go_is_told(
    run: Edged, cluster: list[float], args: tuple[str, ...], code: int, words: str
) -> None:
    result = run("invoke", "hello", "--from", "eu", *args)
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr


def test_a_region_that_is_none_is_told(run: Edged, cluster: list[float]) -> None:
    result = run("invoke", "hello", "--from", "atlantis")
    assert (result.exit_code, "there are eu, us, ap" in result.stderr) == (2, True)
