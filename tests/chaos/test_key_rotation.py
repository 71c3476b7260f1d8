"""The cluster's key is replaced while deploys and invocations go on: real processes, no loss."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import reap, zombies

from edged.cluster import process
from edged.cluster.spec import spec_of
from edged.cluster.state import ClusterState, Home
from edged.cluster.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 90.0
WAT = """(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "hello edge")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 10))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""


def call(
    address: str, method: str, path: str, token: str = "", body: bytes | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Cluster:
    """Three nodes, and what the test asks of them."""

    def __init__(self, boss: Supervisor, state: ClusterState) -> None:
        self.boss = boss
        self.state = state
        self.nodes = state.nodes

    def ask(self, node: int, method: str, path: str, body: Any = None) -> Any:
        which = self.nodes[node]
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        token = self.boss.token(self.state, which)
        status, answer = call(which.control, method, path, token, data)
        assert status < 300, answer
        return json.loads(answer)

    def cli(self, *args: str) -> subprocess.CompletedProcess[str]:
        env = dict(os.environ, EDGED_STATE=str(self.boss.home.root), EDGED_CONTROL="")
        return subprocess.run(
            [sys.executable, "-m", "edged", "cluster", "keys", *args],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def keys(self, *args: str) -> list[list[str]]:
        """After the step, what each node holds, by node."""
        done = self.cli(*args, "--json")
        assert done.returncode == 0, done.stderr
        return [row["keys"] for row in json.loads(done.stdout)["nodes"]]

    def events(self, kind: str, nodes: int = 3) -> list[dict[str, Any]]:
        """Of the first `nodes` nodes."""
        rows = []
        for node in range(nodes):
            view = self.ask(node, "GET", "/v1/events?after=0&limit=4096")
            rows += [row for row in view["events"] if row["kind"] == kind]
        return rows


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    boss = Supervisor(Home(tmp_path / "state"))
    before = set(zombies())
    try:
        yield Cluster(boss, boss.up("rotate", spec_of(3), timeout_s=TIMEOUT_S))
    finally:
        boss.down("rotate")
        process.kill_all(process.strays(tmp_path / "state"), timeout_s=5)
        reap(set(zombies()) - before)  # their real parent is a command that ends before they do


class Load:
    """Deploys on each node in turn, and invokes what is there, until it is stopped."""

    def __init__(self, cluster: Cluster) -> None:
        self.deployed: list[str] = []
        self.answers: list[int] = []
        self._cluster = cluster
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._deploy, self._invoke)]
        for node in range(3):
            self._module = cluster.ask(node, "PUT", "/v1/modules", WAT.encode())["module"]
        self._deploy_one("first")
        for node in cluster.nodes:  # compiled everywhere before the load starts
            while call(node.gateway, "GET", "/first")[0] != 200:
                time.sleep(0.05)

    def _deploy_one(self, name: str) -> None:
        node = len(self.deployed) % 3
        self._cluster.ask(node, "PUT", f"/v1/functions/{name}", {"module": self._module})
        self.deployed.append(name)

    def _deploy(self) -> None:
        while not self._stop.wait(0.05):
            self._deploy_one(f"f{len(self.deployed)}")

    def _invoke(self) -> None:
        while not self._stop.wait(0.01):
            node = self._cluster.nodes[len(self.answers) % 3]
            self.answers.append(call(node.gateway, "GET", "/first")[0])

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def known_everywhere(cluster: Cluster, names: list[str]) -> bool:
    for node in range(3):
        listed = cluster.ask(node, "GET", "/v1/functions")["functions"]
        if {row["name"] for row in listed} != set(names):
            return False
    return True


@pytest.mark.slow
def test_rotation_under_load(cluster: Cluster) -> None:
    old = cluster.keys("list")[0][0]
    with Load(cluster) as load:
        (held, *others) = cluster.keys("add")
        assert others == [held, held]
        assert held[0] == old
        new = held[1]
        assert cluster.keys("use", new) == [[new, old]] * 3
        assert cluster.keys("remove", old) == [[new]] * 3
        time.sleep(1.0)  # a probe of everybody with the new key alone
    assert len(load.deployed) > 10
    assert len(load.answers) > 30
    assert set(load.answers) == {200}
    deadline = time.monotonic() + 10
    while not known_everywhere(cluster, load.deployed) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert known_everywhere(cluster, load.deployed)
    for kind in ("member-suspect", "member-down", "member-left"):
        assert cluster.events(kind) == []
    assert len(cluster.events("key-removed")) == 3

    cluster.boss.restart("rotate", "n2", timeout_s=TIMEOUT_S)
    assert cluster.keys("list") == [[new]] * 3


@pytest.mark.slow
def test_a_node_that_was_down_meanwhile(cluster: Cluster) -> None:
    """serf#579: it must not come back as a cluster of its own without anybody noticing."""
    old = cluster.keys("list")[0][0]
    cluster.boss.kill("rotate", "n3")
    while not any(row["name"] == "n3" for row in cluster.events("member-down", nodes=2)):
        time.sleep(0.1)
    added = cluster.cli("add")
    assert added.returncode == 0
    assert "not on n3" in added.stderr
    new = cluster.keys("list")[0][1]
    refused = cluster.cli("use", new)
    assert refused.returncode == 1
    assert "n3 (down) has not got key" in refused.stderr

    cluster.boss.restart("rotate", "n3", timeout_s=TIMEOUT_S)  # the old key opens still
    keyring = cluster.boss.home.directory("rotate") / "ca" / "keyring"
    assert cluster.keys("add", "--key-file", str(keyring)) == [[old, new]] * 3
    assert cluster.keys("use", new) == [[new, old]] * 3
    assert cluster.keys("remove", old) == [[new]] * 3
