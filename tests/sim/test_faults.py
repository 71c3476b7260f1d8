"""The world's own parts: clocks, disks, networks, and what `--faults` means."""

from __future__ import annotations

import random

import pytest
from simulator import Conditions, Simulation
from simulator.faults import DEFAULTS, MEANING, STORM, parse_faults
from simulator.network import Cuts
from simulator.node import SOCKET_BYTES, Clock, Disk

from protocol.ids import digest_of


def running(nodes: int = 4, **network: float) -> Simulation:
    sim = Simulation(nodes=nodes, seed=3, network=Conditions(**network))  # type: ignore[arg-type]
    sim.start_all()
    sim.checks.settle("joined")
    return sim


def test_faults_are_parsed_and_written() -> None:
    assert set(DEFAULTS) == set(MEANING)
    assert str(parse_faults("kill,loss=0.25,pause=4")) == "kill,loss=0.25,pause=4"
    assert str(parse_faults("loss=0.1")) == "loss"
    assert str(parse_faults(STORM)) == STORM
    assert parse_faults("").amounts == {}
    for wrong in ("flood", "loss=much", "pause=-1"):
        with pytest.raises(ValueError, match="fault"):
            parse_faults(wrong)


def test_a_drifting_clock_never_goes_back() -> None:
    clock = Clock()
    seen = [clock.local(at_s) for at_s in (1.0, 2.0)]
    clock.drift(0.5, 2.0)
    seen += [clock.local(at_s) for at_s in (2.0, 4.0)]
    assert seen == [1.0, 2.0, 2.0, 3.0]
    assert clock.world(3.0) == 4.0
    assert clock.local(4.0, 3.25) == 3.25
    assert clock.local(4.1) == 3.25


def test_a_torn_write_leaves_a_beginning() -> None:
    outcomes = set()
    for seed in range(40):
        disk = Disk()
        disk.waiting.append((("a", b"first"), ("b", b"second"), ("c", None)))
        disk.waiting.append((("d", b"never"),))
        disk.crash(random.Random(seed))
        assert not disk.waiting
        assert "d" not in disk.records
        outcomes.add(tuple(sorted(disk.records.items())))
    assert () in outcomes
    assert (("a", b"first"), ("b", b"second")) in outcomes
    assert any(
        b"first".startswith(value) and value != b"first"
        for ((_, value), *_) in (outcome for outcome in outcomes if len(outcome) == 1)
    )


def test_a_clean_crash_loses_what_waits() -> None:
    disk = Disk(records={"a": b"old"})
    disk.waiting.append((("a", b"new"),))
    disk.crash(None)
    assert disk.records == {"a": b"old"}


def test_an_accepted_record_is_on_disk_a_moment_later() -> None:
    sim = running()
    sim.deploy(sim.nodes[0], "hello")
    other = sim.nodes[1]
    assert other.gossip is not None
    for _ in range(100):
        if other.gossip.catalog.lookup("hello") is not None:
            break
        sim.run(0.001)
    assert other.gossip.catalog.lookup("hello") is not None
    assert not other.disk.records
    sim.run(1)
    assert set(other.disk.records) == set(sim.nodes[0].disk.records)


def test_a_process_that_dies_deploying_acknowledged_nothing() -> None:
    for seed in range(8):
        sim = Simulation(nodes=3, seed=seed)
        sim.start_all()
        sim.checks.settle("joined")
        sim.die_deploying(sim.nodes[1], "half")
        sim.run(1)
        sim.start(sim.nodes[1])
        sim.checks.settle("whatever was saved is everybody's")


def test_a_lost_disk_is_filled_again() -> None:
    sim = running()
    sim.deploy(sim.nodes[0], "hello")
    sim.checks.settle("spread")
    sim.kill(sim.nodes[2])
    sim.wipe(sim.nodes[2])
    sim.run(3)
    sim.start(sim.nodes[2])
    sim.checks.settle("back")
    sim.run(1)
    assert sim.nodes[2].disk.records == sim.nodes[0].disk.records


def test_cuts_have_a_direction() -> None:
    cuts = Cuts(oneway=[(frozenset({0}), frozenset({1, 2}))])
    assert cuts.blocked(0, 1)
    assert not cuts.blocked(1, 0)
    assert not cuts.mutual(0, 1)
    assert cuts.apart(0, 1, [2])
    assert not cuts.apart(0, 1, [2, 3])
    assert cuts.apart(0, 1, [])


def test_a_stopped_process_reads_its_socket_later() -> None:
    sim = running()
    sim.pause(sim.nodes[1], 1.5)
    sim.deploy(sim.nodes[0], "hello")
    sim.run(1)
    paused = sim.nodes[1]
    assert paused.inbox
    assert paused.gossip is not None
    assert paused.gossip.catalog.lookup("hello") is None
    sim.run(1)
    assert not paused.inbox
    assert paused.gossip.catalog.lookup("hello") is not None


def test_a_full_socket_drops() -> None:
    sim = running()
    node = sim.nodes[1]
    sim.pause(node, 1.0)
    while node.enqueue(sim.nodes[0], bytes(1000)):
        assert node.inbox_bytes <= SOCKET_BYTES
    assert 100 < len(node.inbox) < 300


def test_flipped_bits_are_refused_and_nothing_else_happens() -> None:
    sim = running(corrupt=0.3)
    sim.run(10)
    assert sim.network.corrupted > 20
    refused = sim.processes.refused
    assert refused["seal-open"] > 10
    assert not sim.checks.accuracy.deaths


def test_late_datagrams_overtake_and_all_are_taken() -> None:
    sim = running(reorder=0.3, duplicate=0.2)
    sim.deploy(sim.nodes[0], "hello")
    sim.checks.settle("spread")
    assert sim.processes.refused["seal-replay"] > 0


def test_clocks_that_are_wrong_harm_nobody() -> None:
    sim = Simulation(nodes=4, seed=1)
    for node, skew_ms, drift in zip(
        sim.nodes, (-5000, 0, 5000, 20), (0.05, -0.05, 0, 0.01), strict=True
    ):
        sim.skew(node, skew_ms, drift)
    sim.start_all()
    sim.checks.settle("joined")
    first = sim.deploy(sim.nodes[2], "hello")
    sim.run(1)
    second = sim.deploy(sim.nodes[0], "hello")
    sim.checks.settle("spread")
    for node in sim.nodes:
        assert node.gossip is not None
        current = node.gossip.catalog.lookup("hello")
        assert current is not None
        assert current.version == second != first
    sim.run(30)
    assert not sim.checks.accuracy.deaths


def test_a_host_that_moved_is_the_same_member() -> None:
    sim = running()
    node = sim.nodes[3]
    sim.kill(node)
    sim.run(0.5)
    sim.move(node, ("10.9.9.9", 7946))
    sim.start(node)
    sim.checks.settle("moved")


def test_a_name_may_return_with_another_identity() -> None:
    sim = running()
    sim.kill(sim.nodes[3])
    sim.run(5)
    again = sim.add("n3")
    sim.start(again)
    sim.hold(again, digest_of(b"blob"))
    sim.checks.settle("the new n3 is a member")
