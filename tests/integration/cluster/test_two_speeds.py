"""Issue 6's acceptance: real nodes on links of two speeds choose different forms of one function,
say why, and when one link becomes fast while all are asked, one of them changes its mind."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edged.cli.main import edged
from edged.cluster.spec import load_spec
from edged.cluster.state import ClusterState, Home, NodeState
from edged.cluster.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[3]
TABLES = ROOT / "tests" / "fixtures" / "wat" / "tables_init.wat"
WAIT_S = 90.0
CLIENTS = 4
"""Per node: round trips are long, and rates known after a few calls."""
FETCHED = ("snapshot", "snapshot-delta", "snapshot-artifact")


class Load:
    """Clients of every node, each asking again when it is answered."""

    def __init__(self, nodes: tuple[NodeState, ...]) -> None:
        self.answers: Counter[tuple[int, bytes]] = Counter()
        self.asked: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(node,))
            for node in nodes
            for _ in range(CLIENTS)
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(WAIT_S)

    def _ask(self, node: NodeState) -> None:
        while not self._over.wait(0.3):
            connection = http.client.HTTPConnection(node.gateway, timeout=WAIT_S)
            connection.request("GET", "/tables")
            answer = connection.getresponse()
            self.answers[answer.status, answer.read()] += 1
            self.asked[node.name] += 1
            connection.close()


@pytest.fixture
def command(home: Home) -> Callable[..., Any]:
    """`edged ARGS… --json`."""

    def run(*args: str) -> Any:
        env = {"EDGED_STATE": str(home.root), "EDGED_CONTROL": ""}
        done = CliRunner().invoke(edged, [*args, "--json"], env=env, prog_name="edged")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run


@pytest.fixture
def cluster(boss: Supervisor) -> Iterator[ClusterState]:
    spec = load_spec(ROOT / "configs" / "clusters" / "two-speeds.toml")
    state = boss.up("two", spec, timeout_s=WAIT_S)
    yield state
    boss.down("two")


def until(what: Callable[[], bool]) -> None:
    limit_s = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < limit_s, "not in time"
        time.sleep(0.1)


def plans(command: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    nodes = command("explain", "tables", "--cluster", "two")["nodes"]
    return {row["node"]: row["view"]["plan"] for row in nodes if "view" in row}


@pytest.mark.slow
def test_a_link_that_becomes_fast_flips_one_decision(
    home: Home, boss: Supervisor, cluster: ClusterState, command: Callable[..., Any]
) -> None:
    def flips() -> list[tuple[str, dict[str, Any]]]:
        env = {"EDGED_STATE": str(home.root), "EDGED_CONTROL": ""}
        found = []
        for node in cluster.nodes:
            args = ["events", "--json", "--tail", "4096", "--cluster", "two", "--node", node.name]
            lines = CliRunner().invoke(edged, args, env=env).stdout.splitlines()
            rows = [json.loads(line) for line in lines]
            found += [(node.name, row["plan"]) for row in rows if row["kind"] == "plan-changed"]
        return found

    regions = {node.name: node.region for node in cluster.nodes}
    assert sorted(regions.values()) == ["city", "city", "hill", "valley"]
    at = {region: name for name, region in regions.items()}
    deployed = command(
        "deploy", str(TABLES), "--name", "tables", "--init", "auto", "--init-timeout-ms", "300000",
        "--cluster", "two", "--node", "n1",
    )  # fmt: skip
    assert deployed["function"]["init"]["snapshot"]
    # Else the first requests find nobody who could answer them, and wait.
    until(
        lambda: len([p for p in plans(command).values() if _answered_s(p) < 1]) == len(regions) - 1
    )
    load = Load(cluster.nodes)
    with load.running():
        hill, valley = at["hill"], at["valley"]
        far = [hill, valley]

        def all_chose() -> bool:
            found = plans(command)
            known = all(_value(found[name], "rate") for name in far)
            return known and all(plan["held"] is not None for plan in found.values())

        until(all_chose)
        before = plans(command)
        for name, region in regions.items():
            fetched = before[name]["form"] in FETCHED
            assert fetched == (region == "city"), (name, before[name]["why"])
        for name in far:
            assert before[name]["form"] == "snapshot-here"
            (flip,) = [flip for flip in before[name]["flips"] if flip["input"] == "bandwidth"]
            assert flip["to_value"] > _value(before[name], "bandwidth")
            assert flip["form"] in FETCHED
        seen = flips()
        fibre = ("--to", "city", "--bandwidth-mbit", "1000", "--name", "two")
        command("cluster", "slow", "hill", *fibre)
        until(lambda: len(flips()) > len(seen))
        until(lambda: plans(command)[hill]["serving"] is not None)
        after = plans(command)
    new = [row for row in flips() if row not in seen]
    # As the new link is measured, one way of fetching may take the place of another.
    assert {name for name, _ in new} == {hill}, json.dumps(new)
    assert {change["after"] for _, change in new} <= {*FETCHED}
    change = new[0][1]
    assert (change["before"], change["input"]) == ("snapshot-here", "bandwidth")
    assert change in after[hill]["changes"]
    assert after[hill]["form"] in FETCHED
    assert change["input_after"] > 100 * change["input_before"]
    assert after[valley]["form"] == "snapshot-here"
    ((status, _),) = load.answers
    assert status == 200
    assert set(load.asked) == set(regions)


def _answered_s(plan: dict[str, Any]) -> float:
    """By the nearest peer, in the state after init."""
    (forward,) = [row for row in plan["rows"] if row["form"] == "forward"]
    return math.inf if forward["lacks"] else float(forward["per_call_s"])


def _value(plan: dict[str, Any], name: str) -> float:
    found: list[float] = [row["value"] for row in plan["inputs"] if row["name"] == name]
    return found[0] if found else 0.0
