"""One run from its command line, whose words are also what a failure says to replay it."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import NamedTuple

from edged.topology import Topology, load_topology
from protocol.presets import PRESETS

from .faults import MEANING, parse_faults
from .simulation import Simulation
from .stories import STORIES, Results

ROOT = Path(__file__).resolve().parents[3]
TOPOLOGIES = ROOT / "configs" / "topologies"


class Run(NamedTuple):
    sim: Simulation
    results: Results
    cpu_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenario", choices=sorted(STORIES), default="storm")
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0, help="of virtual time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="lan")
    faults = "; ".join(f"{name}: {meaning}" for name, meaning in MEANING.items())
    parser.add_argument(
        "--faults", default="", help=f"NAME[=AMOUNT],…; {faults}".replace("%", "%%")
    )
    parser.add_argument("--topology", default="", help="NAME of configs/topologies, or a path")
    parser.add_argument("--formed", action="store_true", help="all know all to begin with")


def run(options: argparse.Namespace) -> Run:
    """Raises SimulationFailure; any other exception is a bug of the machines, told with the
    command as well."""
    start_s = time.process_time()
    sim = Simulation(
        nodes=options.nodes,
        seed=options.seed,
        knobs=PRESETS[options.preset],
        topology=topology_of(options.topology),
        command=command_of(options),
    )
    try:
        results = STORIES[options.scenario](
            sim, options.seconds, parse_faults(options.faults), options.formed
        )
    except Exception as error:
        error.add_note(f"at {sim.world.elapsed_s:.2f} s; replay: {sim.command}")
        raise
    return Run(sim, results, time.process_time() - start_s)


def topology_of(name: str) -> Topology | None:
    """Raises ConfigError."""
    if not name:
        return None
    return load_topology(topology_path(name))


def topology_path(name: str) -> Path:
    return Path(name) if "/" in name else TOPOLOGIES / f"{name}.toml"


def parse(words: str) -> argparse.Namespace:
    """`words`: arguments as in a replay line, with or without scripts/sim before them."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(shlex.split(words.removeprefix("scripts/sim")))


def command_of(options: argparse.Namespace) -> str:
    words = ["scripts/sim", "--scenario", options.scenario, "--nodes", str(options.nodes)]
    words += ["--seconds", f"{options.seconds:g}", "--seed", str(options.seed)]
    if options.preset != "lan":
        words += ["--preset", options.preset]
    for name in ("topology", "faults"):
        if value := getattr(options, name):
            words += [f"--{name}", value]
    if options.formed:
        words.append("--formed")
    return shlex.join(words)
