"""A cluster that is up already: every node knows every other, by a roster that all share. A
thousand joins are a test of joining, not of what comes after, and cost a million first meetings."""

from __future__ import annotations

import msgspec

from protocol.messages import Alive
from protocol.roster import Roster

from .simulation import Simulation


def start_formed(sim: Simulation) -> None:
    """Starts all."""
    for node in sim.nodes:
        sim.next_generation(node)
    # What a node adds of itself to its metadata is the same on all: one of them tells.
    first = sim.nodes[0]
    told = sim.make(first).member(first.node_id)
    assert told is not None
    keyring, wire = told.metadata.keyring, told.metadata.wire
    roster = Roster(
        Alive(
            bytes.fromhex(node.node_id),
            node.disk.generation,
            0,
            msgspec.structs.replace(sim.metadata(node), keyring=keyring, wire=wire),
        )
        for node in sim.nodes
    )
    for node in sim.nodes:
        sim.begin(node, sim.make(node, roster))
