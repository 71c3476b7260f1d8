"""Thirty nodes that lose members and disks: the number is always restored, nothing is lost while
fewer than `replicas` go at once, and what is given up is never missed. SPEC §11."""

from __future__ import annotations

import pytest
from replica_sim import CONFIG, Simulation

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))]
RESTORED_S = 3 * CONFIG.repair_after_s
"""Detection, grace with its jitter, and transfers two at a time."""


def test_a_quiet_cluster_does_nothing() -> None:
    sim = Simulation(1, nodes=30, blobs=50)
    sim.run(3600)
    assert (sim.repairs, sim.drops) == (0, 0)
    assert all(node.machine.next_deadline() is None for node in sim.nodes)


def test_a_node_that_comes_back_in_time_moves_nothing() -> None:
    sim = Simulation(2, nodes=30, blobs=50)
    for node in sim.nodes:
        sim.kill(node)
        sim.run(2.0)
        sim.restart(node)
        sim.run(5.0)
    sim.run(3600)
    assert (sim.repairs, sim.drops) == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_disks_lost_at_a_time_lose_nothing(seed: int) -> None:
    sim = Simulation(seed, nodes=36, blobs=40)
    alive = list(sim.nodes)
    for _ in range(8):
        for node in sim.rng.sample(alive, 2):
            alive.remove(node)
            sim.kill(node, disk_too=True)
        sim.run(RESTORED_S)
        assert list(sim.lacking()) == []
        assert all(node.machine.lacking() == [] for node in alive)
    sim.run(20 * CONFIG.surplus_after_s)
    assert list(sim.misplaced()) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_comes_and_goes_the_number_is_restored_and_no_more(seed: int) -> None:
    """Crashes and restarts with the disk intact, at random, for half an hour."""
    sim = Simulation(100 + seed, nodes=32, blobs=24)
    for _ in range(200):
        node = sim.rng.choice(sim.nodes)
        if node.up:
            sim.kill(node)
        else:
            sim.restart(node)
        sim.run(12 * sim.rng.random())
    assert sim.repairs > 20
    for node in sim.nodes:
        if not node.up:
            sim.restart(node)
    sim.run(RESTORED_S)
    assert list(sim.lacking()) == []
    sim.run(20 * CONFIG.surplus_after_s)
    assert list(sim.misplaced()) == []
    assert sim.drops > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_drops_under_false_beliefs_leave_enough(seed: int) -> None:
    """Members flap in the eyes of each node on its own, copies are everywhere, and all want to be
    rid of theirs at once: Simulation.dropped checks what is left each time."""
    sim = Simulation(200 + seed, nodes=12, blobs=20)
    for node in sim.nodes:
        for blob in sim.wanted:
            node.disk[blob] = None
            node.machine.touch(blob, sim.now)
        node.settle()
    for _ in range(1000):
        node, other = sim.rng.choice(sim.nodes), sim.rng.choice(sim.nodes)
        node.see(other, up=sim.rng.random() < 0.6)
        sim.run(0.5 * sim.rng.random())
    assert sim.drops > 30
    for node in sim.nodes:
        for other in sim.nodes:
            node.see(other, up=True)
    sim.run(30 * CONFIG.surplus_after_s)
    assert list(sim.misplaced()) == []


def test_a_region_is_lost_and_the_others_take_over() -> None:
    sim = Simulation(7, nodes=30, blobs=50)
    for node in sim.nodes:
        if node.site.region == "eu":
            sim.kill(node, disk_too=True)
    sim.run(10 * CONFIG.repair_after_s)
    assert list(sim.lacking()) == []
    for blob in sim.wanted:
        assert {node.site.region for node in sim.copies(blob)} == {"us", "ap"}


def test_what_is_in_use_stays() -> None:
    sim = Simulation(8, nodes=9, blobs=20)
    user = sim.nodes[0]
    for blob in sim.wanted:
        user.disk[blob] = None
        user.used.add(blob)
        user.machine.touch(blob, sim.now)
    user.settle()
    sim.run(10 * CONFIG.surplus_after_s)
    assert sim.drops == 0
    user.used.clear()
    sim.run(20 * CONFIG.surplus_after_s)
    assert list(sim.misplaced()) == []
