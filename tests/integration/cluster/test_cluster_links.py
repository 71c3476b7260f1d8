"""Links of a cluster: who is cut off from whom, in words, in links.json, on all nodes at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from edged.cli.main import edged
from edged.cluster import nodes, probe, process, shaping
from edged.cluster.spec import spec_of
from edged.cluster.state import ClusterState, Home, NodeState
from edged.cluster.supervisor import Supervisor
from edged.errors import ClusterNotFound, ConfigError
from edged.interfaces import LinksView
from edged.links import Document, load_document, partition, slow

TIMEOUT_S = 90.0
REGIONS = ("eu", "us", "eu", "ap")


@pytest.fixture
def state(home: Home) -> ClusterState:
    """n1 and n3 in eu, n2 in us, n4 in ap; none of them runs."""
    return Supervisor(home)._create("c", spec_of(4, regions=REGIONS, lab=True))


@pytest.fixture
def cluster(home: Home, state: ClusterState) -> Callable[..., Result]:
    def run(*args: str) -> Result:
        env = {"EDGED_STATE": str(home.root), "EDGED_CONTROL": ""}
        return CliRunner().invoke(edged, ["cluster", *args], env=env, prog_name="edged")

    return run


# ---------------------------------------------------------------- groups
@pytest.mark.parametrize(
    ("words", "groups"),
    [
        (["eu|us"], [["eu"], ["us"]]),
        (["eu", "us,n4"], [["eu"], ["us", "node:n4"]]),
        (["n1|n2|n3"], [["node:n1"], ["node:n2"], ["node:n3"]]),
        (["n1 , node:n3", "us"], [["node:n1", "node:n3"], ["us"]]),
        (["eu"], [["eu"], ["!eu"]]),
        (["eu,n2"], [["eu", "node:n2"], ["!eu", "!node:n2"]]),
    ],
)
def test_groups(state: ClusterState, words: list[str], groups: list[list[str]]) -> None:
    assert shaping.groups_of(state, words) == groups


@pytest.mark.parametrize(
    ("words", "kind", "named"),
    [
        (["eu|mars"], ClusterNotFound, "'mars'; nodes: n1, n2, n3, n4; regions: eu, us, ap"),
        (["eu|n1"], ConfigError, "n1 would be on both sides"),
        (["n1", "us", "n1"], ConfigError, "n1 would"),
        (["*"], ConfigError, "nothing to separate"),
        ([""], ClusterNotFound, "''"),
    ],
)
def test_wrong_groups(
    state: ClusterState, words: list[str], kind: type[Exception], named: str
) -> None:
    with pytest.raises(kind, match=named.replace("*", r"\*")):
        shaping.groups_of(state, words)


def test_who_is_expected_to_see_whom(home: Home, state: ClusterState) -> None:
    names = ["n1", "n2", "n3"]
    everyone = frozenset(names)
    assert shaping.reachable(home, state, names) == dict.fromkeys(names, everyone)
    one_way = partition(Document(), [["eu"], ["us"]], both=False)
    shaping.write_links(home, state, slow(one_way, ["node:n1"], loss=0.5))
    assert shaping.reachable(home, state, names) == {
        "n1": {"n1", "n3"},
        "n2": {"n2"},
        "n3": {"n1", "n3"},
    }


# ---------------------------------------------------------------- telling
class Control:
    """Stands for the operator API of one node."""

    def __init__(self, answer: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]) -> None:
        self.bodies: list[dict[str, Any]] = []
        control = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                control.bodies.append(body)
                status, document = answer(body)
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def controls() -> Iterator[list[Control]]:
    found = [
        Control(lambda body: (200, {"at_ms": body["at_ms"], "rules": 0})),
        Control(lambda body: (200, {"at_ms": body["at_ms"] + 40, "rules": 0})),
        Control(lambda _: (409, {"detail": "links.enabled"})),
    ]
    yield found
    for each in found:
        each.close()


def test_all_are_told_the_same_instant(
    home: Home, state: ClusterState, controls: list[Control]
) -> None:
    addresses = [*(each.address for each in controls), "127.0.0.1:1"]
    nodes = [
        msgspec.structs.replace(node, control=address)
        for node, address in zip(state.nodes, addresses, strict=True)
    ]
    document = partition(Document(), [["eu"], ["us"]])
    before_ms = time.time() * 1000
    done = shaping.tell_links(home, state, nodes, document, None)
    assert done.at_ms >= before_ms + shaping.LEAD_MS - 1
    assert time.time() * 1000 >= done.at_ms  # it was waited for
    bodies = [each.bodies for each in controls]
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0][0]["at_ms"] == done.at_ms
    assert bodies[0][0]["rules"][0]["cut"] == "drop"
    assert [each.node for each in done.late] == ["n2"]
    assert [(each.node, each.why) for each in done.missed] == [
        ("n3", 'HTTP 409: {"detail": "links.enabled"}'),
        ("n4", "no answer"),
    ]
    begun = time.monotonic()
    far_ms = done.at_ms + 60_000
    assert shaping.tell_links(home, state, nodes[:1], document, far_ms).at_ms == far_ms
    assert time.monotonic() - begun < 30  # it was not waited for


def test_one_that_does_not_take_it_is_told_loudly(
    home: Home, state: ClusterState, cluster: Callable[..., Result], controls: list[Control]
) -> None:
    here = process.Process(1, process.started_ticks(1) or 0)  # something that runs
    for at, control in ((0, controls[0]), (2, controls[2])):
        node = msgspec.structs.replace(
            state.nodes[at], control=control.address, pid=1, started_ticks=here.started_ticks
        )
        state = state.with_node(node)
    home.save(state)
    done = cluster("partition", "eu|us")
    assert done.exit_code == 1
    assert "resumed" not in done.stdout
    assert "cut eu | us; 1 of 2 nodes since" in done.stdout
    assert "n3 did not take it: HTTP 409" in done.stderr


def test_a_paused_node_takes_it_later_and_one_that_is_only_slow_now(
    home: Home, state: ClusterState, cluster: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = process.started_ticks(1)  # something that runs
    for node in state.nodes[:2]:
        state = state.with_node(msgspec.structs.replace(node, pid=1, started_ticks=ticks))
    home.save(state)
    looks: list[str] = []

    def is_paused(node: NodeState) -> bool:
        looks.append(node.name)
        return node.name == "n1" or looks.count("n2") < 3

    monkeypatch.setattr(nodes, "is_paused", is_paused)
    monkeypatch.setattr(probe, "ask", lambda *_, **__: (200, b'{"at_ms": 0}'))
    done = cluster("partition", "eu|us")
    assert "1 of 1 nodes since" in done.stdout
    assert "n1 will take it when resumed" in done.stdout
    assert looks.count("n2") == 3


# ---------------------------------------------------------------- commands
def rules(cluster: Callable[..., Result], *args: str) -> list[dict[str, Any]]:
    done = cluster(*args, "--json")
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)["rules"]
    return found


def test_rules_come_and_go(cluster: Callable[..., Result]) -> None:
    parted = rules(cluster, "partition", "eu,n4", "us", "--reset")
    assert parted == [
        {
            "from": ["eu", "node:n4"],
            "to": ["us"],
            "both": True,
            "cut": "reset",
            "label": "partition",
        }
    ]
    (_, one_way) = rules(cluster, "partition", "us>eu")
    assert (one_way["from"], one_way["to"], one_way.get("both")) == (["us"], ["eu"], False)
    slower = rules(cluster, "slow", "n4", "eu", "--extra-ms", "100", "--loss", "0.1")
    assert [rule["from"] for rule in slower[2:]] == [["node:n4"], ["eu"]]
    again = rules(cluster, "slow", "n4", "--bandwidth-mbit", "1")
    assert [rule.get("bandwidth_mbit") for rule in again[2:]] == [None, 1]
    assert len(rules(cluster, "heal")) == 2
    assert [rule["from"] for rule in rules(cluster, "slow", "eu", "--off")] == [["node:n4"]]
    assert rules(cluster, "links") == again[3:]
    assert rules(cluster, "heal", "--all") == []
    (between,) = rules(cluster, "slow", "eu", "--to", "n4,us", "--bandwidth-mbit", "1000")
    assert (between["from"], between["to"], between["both"]) == (["eu"], ["node:n4", "us"], True)
    assert len(rules(cluster, "slow", "eu", "--bandwidth-mbit", "1")) == 2
    assert len(rules(cluster, "slow", "eu", "--to", "n4,us", "--off")) == 1


def test_not_a_number_is_told(cluster: Callable[..., Result]) -> None:
    told = cluster("slow", "n1", "--extra-ms", "nan")
    assert (told.exit_code, "--extra-ms nan: write a number" in told.stderr) == (2, True)


def test_a_broken_document_is_mended_by_another(home: Home, cluster: Callable[..., Result]) -> None:
    path = home.links_file("c")
    path.write_text("{")
    assert cluster("partition", "eu|us").exit_code == 2
    assert Supervisor(home).set_links("c", Document()).missed == ()
    assert set(load_document(path).nodes) == {"n1", "n2", "n3", "n4"}


def test_a_topology_without_a_place_for_a_node_is_refused(
    home: Home, state: ClusterState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Supervisor, "running_nodes", lambda _self, now: list(now.nodes[:2]))
    before = home.links_file("c").read_bytes()
    args = ["links", "set", "aws8", "--cluster", state.name]
    env = {"EDGED_STATE": str(home.root), "EDGED_CONTROL": ""}
    told = CliRunner().invoke(edged, args, env=env, prog_name="edged")
    assert told.exit_code == 2
    assert "no region for n1 in eu, n2 in us; there are us-east-1" in told.stderr
    assert home.links_file("c").read_bytes() == before


def test_rules_in_words(cluster: Callable[..., Result]) -> None:
    assert "cut us → eu; 0 of 0 nodes" in cluster("partition", "us>eu").stdout
    assert "node:n4: extra_ms 5" in cluster("slow", "n4", "--extra-ms", "5").stdout
    shown = cluster("links").stdout
    assert "us → eu: cut drop\n" in shown
    assert "node:n4 ↔ *: extra_ms 5.0\n" in shown


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (("slow", "n4"), 2, "say what"),
        (("slow", "n4", "--off", "--loss", "1"), 2, "say what"),
        (("slow", "n4", "--loss", "2"), 2, "loss"),
        (("slow", "n9", "--loss", "1"), 4, "'n9'"),
        (("partition", "us>eu>ap"), 4, "'eu>ap'"),
        (("partition",), 2, "Missing argument"),
    ],
)
def test_wrong_changes(
    cluster: Callable[..., Result], args: tuple[str, ...], code: int, named: str
) -> None:
    done = cluster(*args)
    assert (done.exit_code, named in done.stderr) == (code, True), done.output
    assert rules(cluster, "links") == []


# ---------------------------------------------------------------- real nodes
@pytest.mark.slow
def test_a_partition_of_real_nodes(home: Home, boss: Supervisor) -> None:
    boss.up("d", spec_of(4, regions=("eu", "us"), lab=True), timeout_s=TIMEOUT_S)
    state = boss.load("d")

    def sees(name: str) -> frozenset[str]:
        node = state.node(name)
        return probe.alive_members(node.control, boss.token(state, node)) or frozenset()

    def looked(name: str) -> LinksView:
        return msgspec.json.decode(dict(boss.link_views("d"))[name] or b"", type=LinksView)

    def within(seconds: float, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    boss.pause("d", "n4")
    done = boss.change_links("d", lambda before: partition(before, [["eu"], ["us"]]))
    assert (len(done.nodes), done.missed, done.paused) == (3, (), ("n4",))
    boss.resume("d", "n4")
    assert looked("n4").document.rules
    within(60, lambda: sees("n1") == {"n1", "n3"} and sees("n2") == {"n2", "n4"})
    # A node that starts within the partition stays on its side, and is not waited for in vain.
    boss.restart("d", "n3", timeout_s=TIMEOUT_S)
    added = boss.add("d", boss.plan("d", region="us"), timeout_s=TIMEOUT_S)
    state = boss.load("d")
    within(60, lambda: sees("n3") == {"n1", "n3"} and sees(added.name) == {"n2", "n4", "n5"})
    assert all(looked(node.name).document.rules for node in state.nodes)
    assert sum(peer.datagrams_dropped.get("cut", 0) for peer in looked("n1").peers)

    assert boss.set_links("d", Document()).missed == ()
    everyone = {node.name for node in state.nodes}
    within(60, lambda: all(sees(name) == everyone for name in everyone))
    boss.down("d")
