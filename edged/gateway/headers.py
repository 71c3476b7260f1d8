"""Headers that the gateway adds to its answers, and what it takes from the client's. No I/O."""

from __future__ import annotations

import re
from typing import Final

from edged.interfaces import Phases, Tier

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}\Z")
NO_PHASES: Final = Phases()


def accepted_request_id(value: bytes) -> bytes | None:
    """A client's request id if it is short and harmless in logs, headers and URLs."""
    return value if _REQUEST_ID.match(value) else None


def server_timing(phases: Phases, total_s: float, tier: Tier | None) -> bytes:
    """W3C Server-Timing; durations in milliseconds, phases that did not happen left out. Code of
    another tier than the optimised is named."""
    if phases is NO_PHASES:
        return b"total;dur=%.3f" % (total_s * 1000)
    parts = [
        b"%b;dur=%.3f" % (name, duration * 1000)
        for name, duration in (
            (b"queue", phases.queue_s),
            (b"fetch", phases.fetch_s),
            (b"make", phases.make_s),
            (b"compile", phases.compile_s),
            (b"load", phases.load_s),
            (b"instantiate", phases.instantiate_s),
            (b"init", phases.init_s),
            (b"run", phases.run_s),
        )
        if duration is not None
    ]
    if tier is not None and tier != "optimised":
        parts.append(b"tier;desc=%b" % tier.encode())
    parts.append(b"total;dur=%.3f" % (total_s * 1000))
    return b", ".join(parts)
