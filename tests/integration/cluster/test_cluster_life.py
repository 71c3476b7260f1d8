"""Clusters of real nodes: `python -m edged run` processes, over real sockets."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged.cluster import process
from edged.cluster.spec import ClusterSpec, spec_of
from edged.cluster.state import ClusterState, Home
from edged.cluster.supervisor import Supervisor
from edged.cluster.views import Progress
from edged.errors import ClusterFailed, ClusterNotFound, Conflict

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 90.0
"""Generous: the machine may be busy with other tests."""

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


def edged(home: Home, *args: object) -> subprocess.CompletedProcess[str]:
    """The command line as users run it. Ends only when nobody holds its pipes any more."""
    env = dict(os.environ, EDGED_STATE=str(home.root), EDGED_CONTROL="")
    return subprocess.run(
        [sys.executable, "-m", "edged", *map(str, args)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def edged_json(home: Home, *args: object) -> Any:
    done = edged(home, *args, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def health(address: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/_edged/health")
        return connection.getresponse().status
    finally:
        connection.close()


def conditions(boss: Supervisor, name: str) -> dict[str, str]:
    return {node.name: node.condition for node in boss.status(name).nodes}


def runs(pid: int) -> bool:
    """Zombies do not: whoever adopts orphans here may be slow to bury them."""
    fields = process._stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def nothing_left(home: Home, name: str) -> bool:
    return not home.exists(name) and not process.strays(home.directory(name))


# ---------------------------------------------------------------- the command line, end to end
def test_life_of_a_cluster(home: Home, tmp_path: Path) -> None:
    up = edged_json(
        home, "cluster", "up", "-n", 3, "--pulley", 1, "--region", "eu", "--region", "us"
    )
    assert [(n["name"], n["region"], n["target"]) for n in up["nodes"]] == [
        ("n1", "eu", "native"),
        ("n2", "us", "native"),
        ("n3", "eu", "pulley64"),
    ]
    assert all(n["condition"] == "ready" for n in up["nodes"])
    assert all(n["alive"] == ["n1", "n2", "n3"] for n in up["nodes"])
    urls = {n["name"]: (n["gateway_url"], n["control_url"], n["gossip"]) for n in up["nodes"]}

    again = edged(home, "cluster", "up", "-n", 3, "--json")
    assert again.returncode == 1
    assert json.loads(again.stderr)["type"] == "urn:edged:error:conflict"

    module = tmp_path / "hello.wat"
    module.write_text(WAT)
    deployed = edged_json(home, "deploy", module, "--name", "hello")
    assert deployed["function"]["created"]
    for node in ("n1", "n2", "n3"):
        answered = ""
        while f"200 from {node}" not in answered:  # until then by another
            done = edged(home, "invoke", "hello", "--node", node, "-v")
            assert (done.returncode, done.stdout) == (0, "hello edge"), done.stderr
            answered = done.stderr
    identity = edged_json(home, "status", "--node", "n1")["node_id"]
    assert len(edged_json(home, "describe", "hello", "--node", "n2")["holders"]) == 3

    killed = edged_json(home, "cluster", "kill", "n1")
    assert not runs(killed["pid"])
    seen = {n["name"]: n["condition"] for n in edged_json(home, "cluster", "status")["nodes"]}
    assert seen == {"n1": "dead", "n2": "ready", "n3": "ready"}
    assert edged(home, "cluster", "kill", "n1").returncode == 1
    assert edged(home, "status", "--node", "n1").returncode == 3
    assert edged(home, "invoke", "hello").stdout == "hello edge"  # by the first that runs

    back = edged_json(home, "cluster", "restart", "n1")
    assert (back["gateway_url"], back["control_url"]) == urls["n1"][:2]
    status = edged_json(home, "status", "--node", "n1")
    assert (status["node_id"], status["functions"]) == (identity, 1)
    warm = edged_json(home, "invoke", "hello", "--node", "n1")
    assert (warm["body"], warm["start"]) == ("hello edge", "loaded")
    assert edged(home, "cluster", "restart", "n9").returncode == 4

    listed = edged_json(home, "cluster", "list")["clusters"]
    assert [(c["name"], c["nodes"], c["running"]) for c in listed] == [("local", 3, 3)]
    down = edged_json(home, "cluster", "down")
    assert (sorted(down["stopped"]), down["killed"]) == (["n1", "n2", "n3"], [])
    assert nothing_left(home, "local")
    assert not list(home.root.iterdir())


@pytest.mark.slow
def test_side_by_side_and_data_that_stay(home: Home, boss: Supervisor, tmp_path: Path) -> None:
    first = boss.up("a", spec_of(1), timeout_s=TIMEOUT_S)
    second = boss.up("b", spec_of(1), timeout_s=TIMEOUT_S)
    assert not set(first.nodes[0].ports) & set(second.nodes[0].ports)
    module = tmp_path / "hello.wat"
    module.write_text(WAT)
    edged_json(home, "deploy", module, "--cluster", "a")
    assert edged_json(home, "functions")["functions"] == []  # the newest is b

    assert boss.down("a", keep_data=True).removed is False
    assert conditions(boss, "a") == {"n1": "stopped"}
    assert conditions(boss, "b") == {"n1": "ready"}
    with pytest.raises(Conflict, match="exists, stopped"):
        boss.up("a", spec_of(1), timeout_s=TIMEOUT_S)
    revived = boss.up("a", None, timeout_s=TIMEOUT_S)
    assert revived.nodes[0].ports == first.nodes[0].ports
    functions = edged_json(home, "functions", "--cluster", "a")["functions"]
    assert [f["name"] for f in functions] == ["hello"]
    boss.down("a")
    assert health(second.nodes[0].gateway) == 200
    boss.down("b")
    with pytest.raises(ClusterNotFound):
        boss.down("b")


# ---------------------------------------------------------------- crashes
def test_down_after_crashes_and_with_a_damaged_state_file(home: Home, boss: Supervisor) -> None:
    state = boss.up("c", spec_of(2), timeout_s=TIMEOUT_S)
    os.kill(state.nodes[0].pid or 0, signal.SIGKILL)
    # What a crashed node may leave: a child of its own, in another session.
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", "import time; time.sleep(600)"],
        dict(os.environ) | {process.MARKER: str(home.node_directory("c", "n1"))},
        setsid=True,
    )
    (home.directory("c") / "cluster.json").write_bytes(b"{")
    done = boss.down("c")
    assert f"pid {child}" in done.killed
    assert nothing_left(home, "c")


# ---------------------------------------------------------------- starts that fail
class Meddling(Supervisor):
    """Lets a test spoil what `up` has prepared."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.created: list[ClusterState] = []
        self.holding: list[socket.socket] = []
        self.damage_key = False

    def _create(self, name: str, spec: ClusterSpec) -> ClusterState:
        state = super()._create(name, spec)
        self.created.append(state)
        if self.damage_key:
            (self.home.node_directory(name, "n2") / "trust" / "node.key").write_text("x")
        elif len(self.created) == 1:
            taker = socket.create_server(("127.0.0.1", state.nodes[0].ports[0]))
            self.holding.append(taker)
        return state


def test_a_port_taken_meanwhile(home: Home) -> None:
    boss = Meddling(home)
    try:
        state = boss.up("c", spec_of(1), timeout_s=TIMEOUT_S)
    finally:
        boss.holding[0].close()
    assert len(boss.created) == 2
    assert set(state.nodes[0].ports) != set(boss.created[0].nodes[0].ports)
    assert conditions(boss, "c") == {"n1": "ready"}
    assert boss.down("c", timeout_s=0).killed == ("n1",)


def test_a_node_that_cannot_start_shows_its_log(home: Home) -> None:
    boss = Meddling(home)
    boss.damage_key = True
    with pytest.raises(ClusterFailed, match=r"'n2' ended while starting(?s:.*)node\.key") as caught:
        boss.up("c", spec_of(2), timeout_s=TIMEOUT_S)
    assert caught.value.extra["node"] == "n2"
    assert nothing_left(home, "c")


def test_a_failed_restart_shows_its_own_lines_only(home: Home, boss: Supervisor) -> None:
    boss.up("c", spec_of(1), timeout_s=TIMEOUT_S)
    log = home.log_file("c", "n1")
    with log.open("a") as file:
        file.write("address already in use, long ago\n" * 30)
    (home.node_directory("c", "n1") / "trust" / "node.key").write_text("nonsense")
    with pytest.raises(ClusterFailed, match=r"ended while starting(?s:.*)node\.key") as caught:
        boss.restart("c", "n1", timeout_s=TIMEOUT_S)
    assert "long ago" not in str(caught.value)
    assert "long ago" in log.read_text()
    boss.down("c", timeout_s=0)


def test_a_start_that_takes_too_long(home: Home, boss: Supervisor) -> None:
    with pytest.raises(ClusterFailed, match=r"after 0\.01 s, node 'n1': is not ready"):
        boss.up("c", spec_of(1), timeout_s=0.01)
    assert nothing_left(home, "c")


def test_a_start_that_is_interrupted(home: Home, boss: Supervisor) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        boss.up("c", spec_of(2), timeout_s=TIMEOUT_S, report=interrupt)
    assert nothing_left(home, "c")


@pytest.mark.parametrize("interrupts", [signal.SIG_DFL, signal.SIG_IGN], ids=["job", "background"])
def test_up_that_is_terminated(home: Home, interrupts: signal.Handlers) -> None:
    """Also as a job in the background, of which shells have Ctrl-C ignored."""
    env = dict(os.environ, EDGED_STATE=str(home.root), EDGED_CONTROL="")
    argv = [sys.executable, "-m", "edged", "cluster", "up", "-n", "2", "--name", "c"]
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        up = subprocess.Popen(argv, cwd=ROOT, env=env, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    with up:
        deadline = time.monotonic() + TIMEOUT_S
        while not process.strays(home.directory("c")) and time.monotonic() < deadline:
            time.sleep(0.01)
        up.terminate()
        assert up.wait(TIMEOUT_S) == 1
    assert nothing_left(home, "c")


def test_commands_do_not_cross(home: Home) -> None:
    boss = Supervisor(home, patience_s=0.05)
    with home.lock("c"):
        for attempt in (
            lambda: boss.up("c", spec_of(1), timeout_s=1),
            lambda: boss.restart("c", "n1", timeout_s=1),
            lambda: boss.kill("c", "n1"),
        ):
            with pytest.raises(Conflict, match="another command"):
                attempt()
    with pytest.raises(ClusterNotFound):
        boss.up("c", None, timeout_s=1)


def test_after_a_reboot_no_old_pid_is_believed(home: Home, boss: Supervisor) -> None:
    home.directory("c").mkdir(parents=True)
    own = process.Process(os.getpid(), process.started_ticks(os.getpid()) or 0)
    state = boss._create("d", spec_of(1))
    node = msgspec.structs.replace(state.nodes[0], pid=own.pid, started_ticks=own.started_ticks)
    home.save(msgspec.structs.replace(state, boot_id="another boot", nodes=(node,)))
    assert conditions(boss, "d") == {"n1": "stopped"}
    assert boss.down("d").stopped == ()


# ---------------------------------------------------------------- edged run
def test_two_nodes_on_one_data_directory(home: Home, boss: Supervisor) -> None:
    state = boss.up("c", spec_of(1), timeout_s=TIMEOUT_S)
    second = edged(home, "run", home.node_directory("c", "n1") / "node.toml")
    assert second.returncode == 1
    assert second.stderr.startswith("error: ")
    assert len(second.stderr.splitlines()) == 1
    assert health(state.nodes[0].gateway) == 200

    # Killed, a node takes along what it started.
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", "import time; time.sleep(600)"],
        dict(os.environ) | {process.MARKER: str(home.node_directory("c", "n1"))},
    )
    ticks = process.started_ticks(child) or 0
    boss.kill("c", "n1")
    assert not process.is_running(process.Process(child, ticks))
    with pytest.raises(Conflict, match="does not run"):
        boss.kill("c", "n1")
    assert boss.down("c").stopped == ()


def test_sigterm_is_a_graceful_end(
    home: Home, boss: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGED_TOKEN", "the operator's own")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    state = boss.up("c", spec_of(1), timeout_s=TIMEOUT_S)
    pid = state.nodes[0].pid or 0
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"EDGED_TOKEN" not in environ
    assert b"PYTHONDONTWRITEBYTECODE" not in environ
    assert os.getsid(pid) == pid  # it outlives the terminal
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert conditions(boss, "c") == {"n1": "dead"}
    assert boss.down("c").killed == ()


def test_a_port_in_use_is_one_line(home: Home, boss: Supervisor) -> None:
    state = boss._create("c", spec_of(1))
    with socket.create_server(("127.0.0.1", state.nodes[0].ports[0])):
        done = edged(home, "run", home.node_directory("c", "n1") / "node.toml")
    assert done.returncode == 2
    assert "already in use" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    boss.down("c")
