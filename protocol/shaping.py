"""One direction of a path between two nodes: what it does to what is sent over it."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Jitter = Literal["uniform", "normal", "pareto"]
"""uniform: within ± jitter; normal: jitter is the standard deviation; pareto: now and then very
late (shape 3). The median delay is the latency, whichever it is."""
Cut = Literal["drop", "reset"]
"""drop: silence, and connections hang; reset: they are refused, and those that stand are reset."""


class Link(msgspec.Struct, frozen=True):
    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    """Share of datagrams; streams pay for it in time."""
    bandwidth_bytes_s: float | None = None
    """None: unlimited."""
    jitter: Jitter = "uniform"
    correlation: float = 0.0
    """Of each delay with the one before, and of each loss, 0 to below 1."""
    duplicate: float = 0.0
    reorder: float = 0.0
    """Share of datagrams that come so late that later ones overtake them."""
    cut: Cut | None = None


CLEAR: Final = Link()
"""What is sent arrives at once."""
