"""The wire in a simulated cluster: keys change, recordings return, idling is cheap. SPEC §4."""

from __future__ import annotations

import pytest
from simulator import Simulation
from simulator.forming import start_formed

from protocol.errors import RemoteProtocolError
from protocol.replay import WINDOW_BITS

IP_AND_UDP_BYTES = 28
SERF_IDLE_BYTES_PER_S = 271


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_keys_rotate_under_traffic_and_loss(seed: int) -> None:
    """add, use, remove; the nodes take each step up to 2 s apart, and functions are deployed all
    the while."""
    sim = Simulation(nodes=8, seed=seed)
    sim.start_all()
    sim.checks.settle("joined")
    old, new = sim.keys[0], bytes([seed]) * 32
    sim.set_network(loss=0.1, reorder=0.1, duplicate=0.05, corrupt=0.0)
    refused = sim.processes.refused.copy()
    deployed = []
    for step, keys in enumerate(([old, new], [new, old], [new])):
        for node in sorted(sim.nodes, key=lambda each: (each.index * 5 + seed) % 8):
            sim.set_keys(node, keys)
            name = f"f{step}{node.index}"
            sim.deploy(node, name)
            deployed.append(name)
            sim.run(0.25)
        sim.run(2)
        for node in sim.nodes:
            assert node.gossip is not None
            ring = {member.metadata.keyring for member in node.gossip.members()}
            assert ring == {"".join(node.gossip.keyring_ids)}, "everyone can see that all are there"
    sim.set_network(loss=0.0)
    sim.checks.settle("rotated")
    assert sim.processes.events["MemberDown"] == 0
    assert (sim.processes.refused - refused)["seal-key"] == 0
    for node in sim.nodes:
        assert node.gossip is not None
        assert all(node.gossip.catalog.lookup(name) is not None for name in deployed)


def test_all_that_was_ever_sent_returns_to_a_restarted_node() -> None:
    sim = Simulation(nodes=6, seed=4)
    tape: list[bytes] = []
    count = sim.network.count

    def record(data: bytes) -> None:
        tape.append(data)
        count(data)

    sim.network.count = record  # type: ignore[method-assign]
    sim.set_network(loss=0.1, reorder=0.1)
    sim.start_all()
    sim.run(10)
    sim.deploy(sim.nodes[2], "f")
    sim.leave(sim.nodes[5])
    sim.run(5)
    victim = sim.nodes[0]
    sim.kill(victim)
    sim.run(20)
    sim.start(victim)
    sim.set_network(loss=0.0)
    sim.checks.settle("back")
    sim.run(10)
    assert len(tape) > 1000
    assert victim.gossip is not None
    now, wall_ms = victim.clock.local(sim.now), victim.clock.wall_ms(sim.now)
    members = [(m.node_id, m.state, m.generation) for m in victim.gossip.members()]
    digest = victim.gossip.state_digest()
    opened = 0
    for index, data in enumerate(list(tape)):
        source = (f"192.0.2.{index % 250}", 7946)
        try:
            victim.gossip.receive_datagram(data, source, now, wall_ms)
        except RemoteProtocolError:
            continue
        opened += 1
        answers = []
        while (datagram := victim.gossip.poll_transmit()) is not None:
            answers.append(len(datagram.data))
        assert sum(answers) <= len(data)
    assert [(m.node_id, m.state, m.generation) for m in victim.gossip.members()] == members
    assert victim.gossip.state_digest() == digest
    assert opened < WINDOW_BITS


@pytest.mark.parametrize("nodes", [10, 30])
def test_an_idle_node_sends_less_than_serf(nodes: int) -> None:
    sim = Simulation(nodes=nodes, seed=5)
    start_formed(sim)
    for node in sim.nodes:
        assert node.gossip is not None
        node.gossip.set_load(1.0)  # the longest to say
    sim.checks.settle("formed")
    sim.run(2 * nodes * sim.knobs.probe_interval_s)  # first meetings have long headers
    before = sim.network.datagrams, sim.network.datagram_bytes
    sim.run(30)
    datagrams = sim.network.datagrams - before[0]
    total = sim.network.datagram_bytes - before[1] + IP_AND_UDP_BYTES * datagrams
    assert total / 30 / nodes <= SERF_IDLE_BYTES_PER_S
