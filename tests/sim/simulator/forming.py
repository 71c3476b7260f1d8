"""A cluster that is up already: every node knows every other, by a roster that all share. A
thousand joins are a test of joining, not of what comes after, and cost a million first meetings."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from protocol import seal
from protocol.messages import Alive
from protocol.roster import Roster

from .simulation import Simulation

CIPHERS_MAX = 32_768


def share_ciphers() -> None:
    """A cipher is a pure function of its key, and all who hear a sender derive the same: a process
    that simulates them all needs it once. Of 10,000 nodes they were half the memory."""
    if not hasattr(seal.ChaCha20Poly1305, "cache_info"):
        cached = lru_cache(CIPHERS_MAX)(seal.ChaCha20Poly1305)
        seal.ChaCha20Poly1305 = cached  # type: ignore[assignment, misc]


def start_formed(sim: Simulation) -> None:
    """Starts all."""
    share_ciphers()
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
