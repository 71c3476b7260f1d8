"""A cluster that is up already: every node knows every other. A thousand joins are a test of
joining, not of what comes after, and cost a million first meetings."""

from __future__ import annotations

from protocol.codec import encode_sync
from protocol.gossip import Gossip
from protocol.messages import Alive, MemberRow
from protocol.syncmessages import SYNC_ROWS_MAX, SyncExchange

from .node import Node
from .simulation import Simulation


def start_formed(sim: Simulation) -> None:
    """Starts all; each is told of all others before it does anything."""
    gossips = [(node, sim.make(node)) for node in sim.nodes]
    words = [_alive(node, gossip) for node, gossip in gossips]
    pushes = [
        encode_sync(SyncExchange(b"", b"", b"", members=rows, records=(), holdings=()))
        for rows in _rows(words)
    ]
    teller = sim.nodes[0].node_id
    for node, gossip in gossips:
        for push in pushes:
            gossip.sync_answer(push, teller, node.clock.local(sim.now), node.clock.wall_ms(sim.now))
        while gossip.poll_event() is not None:
            pass
        sim.begin(node, gossip)


def _rows(words: list[Alive]) -> list[tuple[MemberRow, ...]]:
    rows = [MemberRow("alive", word) for word in words]
    return [tuple(rows[at : at + SYNC_ROWS_MAX]) for at in range(0, len(rows), SYNC_ROWS_MAX)]


def _alive(node: Node, gossip: Gossip) -> Alive:
    """What the node says of itself."""
    own = gossip.member(node.node_id)
    assert own is not None
    return Alive(bytes.fromhex(node.node_id), own.generation, own.incarnation, own.metadata)
