"""Members that many tables start from: immutable, shared, sorted by node id. SPEC §5.2.

For simulations of thousands of nodes that know each other, whose tables would not fit otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from blake3 import blake3

from .ids import NodeId
from .messages import Alive


def contribution_of(node_id: NodeId, generation: int, incarnation: int) -> int:
    """A reachable member's part of the state digest. SPEC §4.4."""
    text = f"member\x00{node_id}\x00{generation}\x00{incarnation}"
    return int.from_bytes(blake3(text.encode()).digest(8))


class Roster:
    """All of them alive."""

    def __init__(self, members: Iterable[Alive] = ()) -> None:
        rows = sorted(members, key=lambda alive: alive.node)
        self.rows: Final = tuple(rows)
        self.ids: Final = tuple(NodeId(row.node.hex()) for row in rows)
        """In order, so that they are a ring as they stand."""
        self.index: Final = {node_id: at for at, node_id in enumerate(self.ids)}
        self.addresses: Final = {
            row.metadata.gossip_address: node_id
            for row, node_id in zip(rows, self.ids, strict=True)
        }
        self.contributions: Final = tuple(
            contribution_of(node_id, row.generation, row.incarnation)
            for row, node_id in zip(rows, self.ids, strict=True)
        )
        digest = 0
        for contribution in self.contributions:
            digest ^= contribution
        self.digest: Final = digest


EMPTY: Final = Roster()
