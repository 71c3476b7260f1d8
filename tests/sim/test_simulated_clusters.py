"""The gossip core in a simulated world; a failure prints the command that replays it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulator import Conditions, Simulation, SimulationFailure
from simulator.many import command_for
from simulator.runs import ROOT, Run, command_of, parse, run

REGRESSIONS = Path(__file__).with_name("seeds.txt")


def replay(words: str) -> Run:
    return run(parse(words))


def regressions() -> list[str]:
    lines = REGRESSIONS.read_text(encoding="utf-8").splitlines()
    return [line.split("#")[0].strip() for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["steady", "kill", "partition", "lossy", "pauses", "leave"])
def test_stories(name: str, seed: int) -> None:
    replay(f"--scenario {name} --nodes {3 + 4 * (seed - 1)} --seconds 20 --seed {seed}")


@pytest.mark.parametrize("seed", range(10, 16))
def test_storms_end_in_agreement(seed: int) -> None:
    done = replay(f"--nodes {4 + seed % 5} --seconds 30 --seed {seed}")
    assert done.results["deaths_true"] > 0


@pytest.mark.parametrize("words", regressions())
def test_what_went_wrong_once(words: str) -> None:
    replay(words)


@pytest.mark.parametrize("topology", ["aws8", "lan", "metro", "satellite"])
def test_every_topology_carries_a_cluster(topology: str) -> None:
    preset = "lan" if topology == "lan" else "wan"
    words = f"--scenario kill --nodes 8 --seconds 5 --preset {preset} --topology {topology}"
    assert replay(words).results["known_s"] < 40


def test_silent_hosts_are_found_too() -> None:
    for seed in (1, 2):
        done = replay(f"--scenario kill --nodes 9 --seconds 10 --seed {seed} --faults silent")
        assert 1 < done.results["known_s"] < 6


def test_a_formed_cluster_is_one() -> None:
    done = replay("--scenario kill --nodes 30 --seconds 5 --formed")
    assert done.sim.processes.events["MemberUp"] <= 29 + 29 + 29  # the victim's return
    assert done.results["known_s"] < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [*range(100, 108), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(108, 120))],
)
def test_long_storms(seed: int) -> None:
    replay(f"--nodes {8 + seed % 9} --seconds 120 --seed {seed}")


@pytest.mark.slow
def test_a_hundred_nodes() -> None:
    replay("--scenario kill --nodes 100 --seconds 20")


def test_the_replay_line_says_everything() -> None:
    for seed in range(20):
        command = command_for(seed)
        assert command_of(parse(command)) == command


def test_a_failure_says_how_to_replay() -> None:
    sim = Simulation(nodes=3, seed=1)
    sim.start_all()
    with pytest.raises(SimulationFailure, match=r"never(.|\n)*replay: scripts/sim .*--seed 1"):
        sim.run_until(lambda: False, limit_s=0.1, what="never")


def sim_output(*words: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "sim"), *words],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_one_seed_is_one_run_whatever_the_hash_seed() -> None:
    """With every fault there is; joins at one instant tie timestamps."""

    def trace(hash_seed: str, seed: int) -> str:
        words = ["--nodes", "6", "--seconds", "10", "--seed", str(seed)]
        done = sim_output(*words, hash_seed=hash_seed)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.rsplit("trace", 1)[1].strip()

    assert trace("1", 5) == trace("2", 5)
    assert trace("1", 5) != trace("1", 6)


@pytest.mark.parametrize("jitter_s", [0.0, 0.01])
def test_runs_repeat_with_tied_timestamps_and_without(jitter_s: float) -> None:
    def trace() -> str:
        network = Conditions(latency_s=0.01, jitter_s=jitter_s)
        sim = Simulation(nodes=6, seed=4, network=network)
        sim.start_all()
        sim.run(1)
        sim.kill(sim.nodes[2])
        sim.deploy(sim.nodes[0], "hello")
        sim.run(8)
        return sim.world.trace.hexdigest()

    assert trace() == trace()


def test_the_command_line() -> None:
    many = sim_output("--seeds", "2", "--fresh", "2", "--jobs", "2")
    assert many.returncode == 0, many.stdout + many.stderr
    assert "2 fixed and 2 fresh seeds: 4 passed, 0 failed" in many.stdout
    assert sim_output("--faults", "flood").returncode == 2
    assert "cannot read topology" in sim_output("--topology", "atlantis").stderr
