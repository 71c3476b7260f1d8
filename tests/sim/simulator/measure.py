"""What the benchmark and the slow tests measure, each in a fresh simulation of one seed."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import msgspec

from protocol.presets import LAN, Knobs

from .faults import parse_faults
from .forming import start_formed
from .network import Conditions
from .simulation import Simulation
from .stories import STORIES, Results

LAN_NETWORK = Conditions(latency_s=0.0005, jitter_s=0.0005)
OVERHEAD_BYTES = 28
"""IPv4 and UDP headers of a datagram."""
FIRST_MEETINGS_S = 60.0
"""Members that have not met yet speak in long headers; in a large cluster that goes on for long."""
SWIM: Knobs = msgspec.structs.replace(LAN, neighbour_probes=False)
"""Random order alone, as the paper has it."""
WITHOUT_LIFEGUARD: Knobs = msgspec.structs.replace(
    LAN,
    health_max=0,
    suspicion_max_factor=1.0,
    confirmations=0,
    verifier_grace_s=0.0,
    last_look=False,
    stream_probe=False,
    buddy=False,
    stall_s=1e9,
)
"""SWIM with suspicion only: no local health, no dynamic timeout, no grace, no last look, no stream,
no buddy, nothing made of having been stopped."""


def formed(
    nodes: int, seed: int, *, knobs: Knobs = LAN, network: Conditions = LAN_NETWORK
) -> Simulation:
    sim = Simulation(nodes=nodes, seed=seed, knobs=knobs, network=network)
    start_formed(sim)
    sim.run(2)
    return sim


class Idle(NamedTuple):
    bytes_s: float
    """Per node, with IP and UDP headers."""
    datagrams_s: float


def idle(nodes: int, seconds: float, seed: int) -> Idle:
    sim = formed(nodes, seed)
    sim.run(min(2 * nodes * LAN.probe_interval_s, FIRST_MEETINGS_S, 3 * seconds))
    bytes_, datagrams = sim.network.datagram_bytes, sim.network.datagrams
    sim.run(seconds)
    bytes_, datagrams = sim.network.datagram_bytes - bytes_, sim.network.datagrams - datagrams
    per = nodes * seconds
    return Idle((bytes_ + OVERHEAD_BYTES * datagrams) / per, datagrams / per)


class Detection(NamedTuple):
    periods: float
    """Mean number of periods until the first suspicion's probe, the one of the death counted."""
    probed_s: float
    """Mean time until that probe."""
    samples: int


def detection(nodes: int, deaths: int, seed: int, *, knobs: Knobs = LAN) -> Detection:
    """Silent deaths, one after the other."""
    sim = formed(nodes, seed, knobs=knobs, network=replace(LAN_NETWORK, refuses=False))
    rng = sim.world.rng("deaths")
    waits_s: list[float] = []
    for victim in rng.sample(sim.nodes, deaths):
        sim.run(rng.random() * knobs.probe_interval_s)
        sim.kill(victim)
        died_s = sim.now
        first = sim.checks.first_suspected_s
        suspected = partial(first.__contains__, victim.index)
        sim.run_until(suspected, limit_s=30, what="suspected")
        waits_s.append(first[victim.index] - died_s)
    probed_s = [max(0.0, wait_s - knobs.probe_window_s) for wait_s in waits_s]
    rounds = [max(1, math.ceil(wait_s / knobs.probe_interval_s)) for wait_s in probed_s]
    return Detection(statistics.fmean(rounds), statistics.fmean(probed_s), deaths)


class Infection(NamedTuple):
    at_once: float
    """Share that a record reaches before the second round of gossip."""
    last_s: float
    """Mean time until the last has it."""
    p50_ms: float
    p99_ms: float


def infection(nodes: int, records: int, seed: int, *, knobs: Knobs = LAN) -> Infection:
    sim = formed(nodes, seed, knobs=knobs)
    rng = sim.world.rng("records")
    accepted = sim.processes.accepted_s
    shares: list[float] = []
    lasts: list[float] = []
    delays_s: list[float] = []
    for number in range(records):
        sim.run(1 + rng.random())
        origin = rng.choice(sim.nodes)
        accepted.clear()
        sim.deploy(origin, f"f{number % 50}")
        start_s = sim.now
        sim.run_until(lambda: len(accepted) >= nodes - 1, limit_s=10, what="all have it")
        waits = [at_s - start_s for at_s in accepted.values()]
        early = sum(wait_s < 0.9 * knobs.gossip_interval_s for wait_s in waits)
        shares.append((early + 1) / nodes)
        lasts.append(max(waits))
        delays_s += waits
    ranked = sorted(delays_s)
    return Infection(
        statistics.fmean(shares),
        statistics.fmean(lasts),
        1000 * ranked[len(ranked) // 2],
        1000 * ranked[int(len(ranked) * 0.99)],
    )


class FalseDeaths(NamedTuple):
    healthy: int
    """Declarations of nodes that nothing was the matter with."""
    disturbed: int
    """Declarations of running nodes that paused at times."""
    suspicions: int


def false_deaths(
    nodes: int,
    seconds: float,
    seed: int,
    *,
    loss: float = 0.0,
    pausing: int = 0,
    pause_s: float = 2.0,
    knobs: Knobs = LAN,
) -> FalseDeaths:
    """`pausing` of the nodes stop at random for up to `pause_s`, half of the time."""
    sim = formed(nodes, seed, knobs=knobs, network=replace(LAN_NETWORK, loss=loss))
    sim.checks.strict = False
    rng = sim.world.rng("pauses")
    disturbed = rng.sample(sim.nodes, pausing)
    until_s = sim.now + seconds

    def stop(index: int) -> None:
        for_s = rng.random() * pause_s
        sim.pause(sim.nodes[index], for_s)
        if sim.now < until_s:
            sim.world.at(sim.now + for_s + rng.random() * pause_s, stop, index)

    for node in disturbed:
        sim.world.at(sim.now + rng.random() * pause_s, stop, node.index)
    sim.run(seconds)
    marked = {node.index for node in disturbed}
    deaths = sim.checks.accuracy.deaths
    return FalseDeaths(
        sum(death.victim not in marked for death in deaths),
        sum(death.victim in marked for death in deaths),
        sum(sim.checks.suspected.values()),
    )


def scale(nodes: int, seconds: float, seed: int) -> Results:
    """A formed cluster that works: see the story of this name."""
    sim = Simulation(nodes=nodes, seed=seed, network=LAN_NETWORK)
    return STORIES["scale"](sim, seconds, parse_faults(""), True)
