"""The gossip core in a simulated world; a failure prints the command that replays it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scenarios import run
from simulator import Simulation, SimulationFailure

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["steady", "kill", "partition", "lossy", "pauses", "leave"])
def test_scenarios(name: str, seed: int) -> None:
    run(name, nodes=3 + 4 * (seed - 1), seconds=20, seed=seed)


@pytest.mark.parametrize("seed", range(10, 14))
def test_storms_end_in_agreement(seed: int) -> None:
    run("mixed", nodes=4 + seed % 5, seconds=40, seed=seed)


def test_a_storm_nobody_has_seen_before() -> None:
    run("mixed", nodes=7, seconds=40, seed=time.time_ns() % 1_000_000)


@pytest.mark.parametrize("seed", [1, 2])
def test_silent_hosts_are_found_too(seed: int) -> None:
    _, results = run("kill", nodes=9, seconds=10, seed=seed, silent=True)
    assert results["known_s"] < 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_storms(seed: int) -> None:
    run("mixed", nodes=4 + seed % 9, seconds=120, seed=seed, silent=seed % 2 == 0)


@pytest.mark.slow
def test_a_hundred_nodes() -> None:
    run("kill", nodes=100, seconds=20, seed=1)


def test_one_seed_is_one_run_whatever_the_hash_seed() -> None:
    """Joins at one instant and a network without jitter: every timestamp is tied."""

    def trace(hash_seed: str, seed: int) -> str:
        command = [sys.executable, str(ROOT / "scripts" / "sim"), "--nodes", "5"]
        done = subprocess.run(
            [*command, "--seconds", "8", "--seed", str(seed)],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.rsplit("trace", 1)[1].strip()

    assert trace("1", 5) == trace("2", 5)
    assert trace("1", 5) != trace("1", 6)


def test_tied_timestamps_replay() -> None:
    def trace() -> str:
        sim = Simulation(nodes=6, seed=4)
        sim.set_network(latency_s=0.01, jitter_s=0.0)
        sim.start_all()
        sim.run(1)
        sim.kill(sim.nodes[2])
        sim.deploy(sim.nodes[0], "hello")
        sim.run(8)
        return sim.trace.hexdigest()

    assert trace() == trace()


def test_the_checker_sees_a_false_death_and_says_how_to_replay() -> None:
    sim = Simulation(nodes=3, seed=1)
    sim.start_all()
    sim.run_until(sim.converged, limit_s=10, what="joined")
    sim.run(60)
    observer, victim = sim.nodes[0], sim.nodes[1]
    sim._judge_death(observer, victim, victim.generation)
    with pytest.raises(
        SimulationFailure, match=r"n0 declared n1 down(.|\n)*scripts/sim .*--seed 1"
    ):
        sim.check_no_false_deaths()
    with pytest.raises(SimulationFailure, match="never"):
        sim.run_until(lambda: False, limit_s=0.1, what="never")
