"""What this node says of itself, and how often it may: changes wait for their budget. SPEC §4.6.

Owned by Gossip, which keeps the timer. The last wish counts; those in between are never told.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .budget import Budget
from .codec import encode_message
from .member import Metadata
from .messages import Alive
from .presets import Knobs
from .seal import Keyring
from .suspicion import retransmit_limit
from .table import Table

METADATA_BYTES_PER_S: Final = 256
METADATA_BYTES_BURST: Final = 16 * 1024
"""What changes of metadata may make each node send: about as much as idling. The burst is above
the longest Alive (640) times the most sends (20), so that every change goes out in the end."""
SLACK_S: Final = 0.001
"""Rounding must not make the wait a little too short again and again."""


class Description:
    def __init__(
        self, wished: Metadata, keyring: Keyring, wire: int, knobs: Knobs, now: float
    ) -> None:
        self.wished = wished
        """Without what this node fills in."""
        self.keyring = keyring
        self._wire = wire
        self._retransmit_factor = knobs.retransmit_factor
        self._budget = Budget(METADATA_BYTES_PER_S, METADATA_BYTES_BURST, now)

    def metadata(self) -> Metadata:
        return msgspec.structs.replace(
            self.wished, keyring="".join(self.keyring.ids), wire=self._wire
        )

    def ready_at(self, table: Table, now: float, *, urgent: bool) -> float:
        """`now` if it may be told (the budget is charged then), else when to ask again. What is
        `urgent` may be told in any case, and the next wait is the longer for it."""
        # The widths of id, generation and incarnation are those of any Alive.
        alive = encode_message(Alive(bytes(16), 1 << 62, 0, self.metadata()))
        cost = len(alive) * retransmit_limit(self._retransmit_factor, len(table))
        if urgent:
            self._budget.charge(cost, now)
        elif not self._budget.spend(cost, now):
            return self._budget.ready_at(cost, now) + SLACK_S
        return now
