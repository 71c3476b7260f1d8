"""A whole scenario on real processes, by the command, and what an ended or killed one leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edged.cluster import process
from edged.cluster.state import Home
from edged.cluster.supervisor import Supervisor
from edged.lab import history as h
from edged.lab.runfolder import read_history, read_verdict

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 100.0
SCENARIO = """
about = "A kill, a partition and a deploy, with nobody lost."
seed = 5

[cluster]
nodes = [
  { name = "n1", region = "eu" }, { name = "n2", region = "us" }, { name = "n3", region = "ap" },
  { name = "n4", region = "eu" },
]

[[functions]]
name = "hello"
versions = [{ label = "1", says = "hello 1" }, { label = "2", says = "hello 2", at_s = 9.0 }]

[load]
rate = 15

[[phases]]
name = "calm"
for_s = 2.0

[[phases]]
name = "broken"
for_s = 13.0
errors_max = 0.3

[[faults]]
action = "kill"
at_s = 2.0
targets = ["node:n2"]
for_s = 1.0

[[faults]]
action = "partition"
at_s = 2.5
groups = [["node:n1"], ["*"]]
for_s = 3.0
"""


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "edged", *words]


def environ(state: Path) -> dict[str, str]:
    return {**os.environ, "EDGED_STATE": str(state), "PYTHONPATH": str(ROOT)}


@contextmanager
def begun(directory: Path, scenario: str = SCENARIO) -> Iterator[subprocess.Popen[str]]:
    """The command, once its load is under way."""
    file = directory / "short.toml"
    file.write_text(scenario)
    running = subprocess.Popen(
        command("chaos", "run", str(file), "--no-report", "--out", str(directory / "run")),
        env=environ(directory / "state"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        with running:
            yield running
    finally:
        running.kill()
        running.wait()
        boss = Supervisor(Home(directory / "state"))
        for name in boss.home.names():
            boss.down(name)


def wait_for_load(directory: Path) -> None:
    deadline_s = time.monotonic() + WAIT_S
    samples = directory / "run" / "samples.jsonl"
    while not samples.exists() or not samples.stat().st_size:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def clusters(directory: Path) -> list[str]:
    return Home(directory / "state").names()


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    with begun(tmp_path) as running:
        out, err = running.communicate(timeout=WAIT_S)
    assert running.returncode == 0, out + err
    assert "VALID: every fault is proven" in out
    history, verdict = read_history(tmp_path / "run"), read_verdict(tmp_path / "run")
    assert verdict is not None
    assert verdict.verdict == "valid"
    states = {(row.id, row.state) for row in history.of(h.Fault)}
    assert states == {(name, state) for name in "12" for state in ("begun", "proven", "ended")}
    assert [row.label for row in history.of(h.Deploy)] == ["1", "2"]
    assert len(history.requests) > 150
    assert {row.node for row in history.samples} == {"n1", "n2", "n3", "n4"}
    dropped = [count.dropped for row in history.samples for count in row.links.values()]
    assert max(dropped) > 0
    assert sorted(path.name for path in (tmp_path / "run" / "logs").iterdir()) == [
        "n1.log",
        "n2.log",
        "n3.log",
        "n4.log",
    ]
    assert clusters(tmp_path) == []
    assert process.strays(tmp_path / "state") == []


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_ended_run_takes_all_with_it(tmp_path: Path, number: signal.Signals) -> None:
    """Although one of its nodes is paused then."""
    paused = 'action = "pause"\nat_s = 0.5\nfor_s = 9.0\ntargets = ["node:n3"]\n'
    with begun(tmp_path, f"{SCENARIO}\n[[faults]]\n{paused}") as running:
        wait_for_load(tmp_path)
        time.sleep(1.5)
        running.send_signal(number)
        running.communicate(timeout=WAIT_S)
    assert running.returncode == 2
    assert clusters(tmp_path) == []
    assert process.strays(tmp_path / "state") == []
    assert read_history(tmp_path / "run").run.scenario == "short"


@pytest.mark.long
def test_what_a_killed_runner_leaves_is_found_and_ended(tmp_path: Path) -> None:
    with begun(tmp_path) as running:
        wait_for_load(tmp_path)
        running.kill()
        running.communicate(timeout=WAIT_S)
        (name,) = clusters(tmp_path)
        assert name.startswith("chaos-short-")
        assert len(process.strays(tmp_path / "state")) >= 4
        done = subprocess.run(
            command("cluster", "down", name),
            env=environ(tmp_path / "state"),
            capture_output=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0
    assert clusters(tmp_path) == []
    assert process.strays(tmp_path / "state") == []
    judged = subprocess.run(
        command("chaos", "judge", str(tmp_path / "run")),
        env=environ(tmp_path / "state"),
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert judged.returncode == 2
