"""A cluster that changes while it runs: nodes paused, added, removed; its supervisor killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from edged.cli.main import edged
from edged.cluster import probe, process
from edged.cluster.spec import spec_of
from edged.cluster.state import ClusterState, Home, NodeState
from edged.cluster.supervisor import Supervisor
from edged.errors import ClusterNotFound, ConfigError, Conflict

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 90.0


def within(seconds: float, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sees(boss: Supervisor, state: ClusterState, node: NodeState) -> frozenset[str]:
    return probe.alive_members(node.control, boss.token(state, node)) or frozenset()


def conditions(boss: Supervisor, name: str) -> dict[str, str]:
    return {node.name: node.condition for node in boss.status(name).nodes}


def sleeper(marker: Path) -> process.Process:
    """A child as a node may have one, in a session of its own."""
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", "import time; time.sleep(600)"],
        dict(os.environ) | {process.MARKER: str(marker)},
        setsid=True,
    )
    known = process.Process(pid, process.started_ticks(pid) or 0)
    within(10, lambda: known in process.strays(marker))
    return known


# ---------------------------------------------------------------- pausing
def test_pausing_processes(tmp_path: Path) -> None:
    leader, child = sleeper(tmp_path / "n1"), sleeper(tmp_path / "n1")
    other = sleeper(tmp_path / "n2")
    try:
        stopped = process.pause_all(tmp_path / "n1", leader)
        assert stopped[0] == leader
        assert set(stopped) == {leader, child}
        within(5, lambda: process.is_paused(leader) and process.is_paused(child))
        assert not process.is_paused(other)
        assert process.is_running(leader)
        resumed = process.resume_all(tmp_path / "n1", leader)
        assert resumed == [child, leader]  # the node last
        within(5, lambda: not process.is_paused(leader) and not process.is_paused(child))
    finally:
        assert process.kill_all([leader, child, other], timeout_s=10) == []


@pytest.mark.slow
def test_a_paused_node_is_told_as_such_and_ends_gracefully(home: Home, boss: Supervisor) -> None:
    state = boss.up("c", spec_of(2), timeout_s=TIMEOUT_S)
    boss.pause("c", "n2")
    begun = time.monotonic()
    assert conditions(boss, "c") == {"n1": "ready", "n2": "paused"}
    assert time.monotonic() - begun < probe.PROBE_TIMEOUT_S  # it was not asked
    boss.resume("c", "n2")
    within(30, lambda: sees(boss, state, state.node("n2")) == {"n1", "n2"})
    assert conditions(boss, "c") == {"n1": "ready", "n2": "ready"}
    boss.pause("c", "n2")
    assert boss.restart("c", "n1", timeout_s=TIMEOUT_S).pid != state.node("n1").pid
    done = boss.down("c")
    assert (done.stopped, done.killed) == (("n1", "n2"), ())
    assert not home.exists("c")


# ---------------------------------------------------------------- joining and leaving
@pytest.mark.slow
def test_a_node_joins_and_another_leaves(home: Home, boss: Supervisor) -> None:
    boss.up("c", spec_of(2), timeout_s=TIMEOUT_S)
    added = boss.add("c", boss.plan("c", target="pulley64"), timeout_s=TIMEOUT_S)
    state = boss.load("c")
    assert [node.name for node in state.nodes] == ["n1", "n2", "n3"]
    assert (added.name, added.target) == ("n3", "pulley64")
    assert sees(boss, state, added) == {"n1", "n2", "n3"}
    with pytest.raises(Conflict, match="has a node 'n3'"):
        boss.add("c", boss.plan("c", node="n3"), timeout_s=1)

    assert boss.remove("c", "n1") is True
    assert not home.node_directory("c", "n1").exists()
    assert process.strays(home.node_directory("c", "n1")) == []
    left = boss.load("c")
    within(30, lambda: sees(boss, left, left.node("n3")) == {"n2", "n3"})
    assert boss.restart("c", "n3", timeout_s=TIMEOUT_S)  # whose seeds were n1 and n2
    assert set(boss.down("c").stopped) == {"n2", "n3"}


@pytest.mark.slow
def test_a_node_that_cannot_join_leaves_nothing(home: Home, boss: Supervisor) -> None:
    boss.up("c", spec_of(1), timeout_s=TIMEOUT_S)
    with pytest.raises(Exception, match=r"after 0\.01 s, node 'n2'"):
        boss.add("c", boss.plan("c"), timeout_s=0.01)
    assert [node.name for node in boss.load("c").nodes] == ["n1"]
    assert process.strays(home.node_directory("c", "n2")) == []
    assert not home.node_directory("c", "n2").exists()
    boss.down("c")


@pytest.mark.slow
def test_faults_on_several_nodes_at_once(home: Home, boss: Supervisor) -> None:
    """No one waits for another node to become ready."""
    boss.up("c", spec_of(3), timeout_s=TIMEOUT_S)
    restarting = threading.Thread(
        target=lambda: boss.restart("c", "n1", timeout_s=TIMEOUT_S), daemon=True
    )
    restarting.start()
    boss.pause("c", "n2")
    boss.kill("c", "n3")
    boss.resume("c", "n2")
    boss.restart("c", "n3", timeout_s=TIMEOUT_S)
    restarting.join(TIMEOUT_S)
    within(30, lambda: all(n.alive and len(n.alive) == 3 for n in boss.status("c").nodes))
    assert len(boss.running_nodes(boss.load("c"))) == 3
    assert len(boss.down("c").stopped) == 3


@pytest.mark.slow
def test_a_node_that_dies_meanwhile_is_not_waited_for(
    home: Home, boss: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    boss.up("c", spec_of(3), timeout_s=TIMEOUT_S)
    asked: list[str] = []
    ask = probe.alive_members

    def alive_members(address: str, token: str) -> frozenset[str] | None:
        """The other two fail just before the node is asked for the first time."""
        if not asked:
            asked.append(address)
            boss.kill("c", "n2")
            boss.pause("c", "n3")
        return ask(address, token)

    monkeypatch.setattr(probe, "alive_members", alive_members)
    boss.restart("c", "n1", timeout_s=20)
    assert boss.down("c").stopped == ("n1", "n3")


# ---------------------------------------------------------------- the supervisor's own end
def remembers_a_process(boss: Supervisor) -> bool:
    try:
        return any(node.pid for node in boss.load("c").nodes)
    except (ClusterNotFound, ConfigError):  # there is none yet, or no state file in it
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_supervisor_that_ends_while_nodes_start(
    home: Home, boss: Supervisor, number: signal.Signals
) -> None:
    env = dict(os.environ, EDGED_STATE=str(home.root), EDGED_CONTROL="")
    argv = [sys.executable, "-m", "edged", "cluster", "up", "-n", "4", "--name", "c"]
    with subprocess.Popen(argv, cwd=ROOT, env=env, stderr=subprocess.PIPE) as up:
        within(TIMEOUT_S, lambda: remembers_a_process(boss))
        up.send_signal(number)
        up.wait(TIMEOUT_S)
    if number == signal.SIGKILL:
        assert process.strays(home.directory("c"))
        with pytest.raises(Conflict, match="runs already"):
            boss.up("c", None, timeout_s=1)
        boss.down("c")
    assert process.strays(home.root) == []
    assert not home.exists("c")


def test_a_supervisor_that_ends_before_anything_is_remembered(home: Home, boss: Supervisor) -> None:
    boss._create("c", spec_of(1))
    child = sleeper(home.node_directory("c", "n1"))  # spawned, and not yet in cluster.json
    assert boss.down("c").killed == (f"pid {child.pid}",)
    assert not home.exists("c")


# ---------------------------------------------------------------- from inside
def test_a_shell_talks_to_its_node(home: Home, boss: Supervisor) -> None:
    state = boss._create("c", spec_of(2))

    def shell(*command: str) -> subprocess.CompletedProcess[str]:
        env = dict(os.environ, EDGED_STATE=str(home.root), EDGED_TOKEN="another", SHELL="/bin/sh")
        argv = [sys.executable, "-m", "edged", "cluster", "shell", "--name", "c", "n2", *command]
        return subprocess.run(
            argv,
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            input="echo $EDGED_NODE $EDGED_CONTROL; exit 3\n",
        )

    inner = shell()
    assert (inner.returncode, inner.stdout) == (3, f"n2 {state.node('n2').control_url}\n")
    assert "n2 of c" in inner.stderr
    told = shell("sh", "-c", 'test -z "$EDGED_TOKEN" && cat "$EDGED_TOKEN_FILE"')
    assert told.stdout.strip() == boss.token(state, state.node("n2"))
    assert shell("--", "printenv", "EDGED_NODE").stdout == "n2\n"
    missing = shell("no-such-command")
    assert (missing.returncode, "no-such-command" in missing.stderr) == (1, True)
    asked = shell(sys.executable, "-m", "edged", "status")  # nothing runs there
    assert (asked.returncode, state.node("n2").control_url in asked.stderr) == (3, True)
    boss.down("c")


def test_a_node_that_does_not_run_cannot_be_paused(home: Home, boss: Supervisor) -> None:
    boss._create("c", spec_of(1))
    for act in (boss.pause, boss.resume, boss.kill):
        with pytest.raises(Conflict, match="does not run"):
            act("c", "n1")
    with pytest.raises(ConfigError, match="node name"):
        boss.plan("c", node="N")
    boss.down("c")


# ---------------------------------------------------------------- the commands, with stand-ins
def test_what_the_commands_say(home: Home, boss: Supervisor) -> None:
    state = boss._create("c", spec_of(2))
    child = sleeper(home.node_directory("c", "n1"))
    node = msgspec.structs.replace(
        state.node("n1"), pid=child.pid, started_ticks=child.started_ticks
    )
    home.save(state.with_node(node))

    def cluster(*args: str) -> Result:
        env = {"EDGED_STATE": str(home.root), "EDGED_CONTROL": ""}
        return CliRunner().invoke(edged, ["cluster", *args], env=env, prog_name="edged")

    assert cluster("pause", "n1").stdout.startswith(f"paused n1 (pid {child.pid}); next: ")
    shown = json.loads(cluster("status", "--json").stdout)["nodes"]
    assert [each["condition"] for each in shown] == ["paused", "stopped"]
    resumed = json.loads(cluster("resume", "n1", "--json").stdout)
    assert resumed == {"cluster": "c", "node": "n1", "pids": [child.pid]}
    assert (cluster("pause", "n2").exit_code, cluster("pause", "n9").exit_code) == (1, 4)

    refused = cluster("add", "n2")
    assert (refused.exit_code, "has a node 'n2'" in refused.stderr) == (1, True)
    assert cluster("add", "--region", "EU").exit_code == 2
    assert cluster("remove", "n1").stdout == "n1 left c; removed its files\n"
    assert not process.is_running(child)
    assert (cluster("remove", "n2").exit_code, cluster("add").exit_code) == (1, 1)
    assert cluster("down").exit_code == 0
