"""Nothing grows without bound: datagrams, queues, timers, events of one input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DATAGRAM_BYTES_MAX = 1200


@dataclass(frozen=True)
class Limits:
    """Of one node that knows `members`."""

    updates: int = 2048
    probes: int = 64
    relays: int = 256
    transmits: int = 8192
    timers_base: int = 64 + 2 * 256
    timers_per_member: int = 2
    events_base: int = 256
    events_per_member: int = 4

    def broken(self, gauges: Mapping[str, int]) -> list[str]:
        """`gauges`: any of updates, probes, relays, transmits, timers, events, and members."""
        members = gauges.get("members", 0)
        bounds = {
            "datagram": DATAGRAM_BYTES_MAX,
            "updates": self.updates,
            "probes": self.probes,
            "relays": self.relays,
            "transmits": self.transmits,
            "timers": self.timers_base + self.timers_per_member * members,
            "events": self.events_base + self.events_per_member * members,
        }
        return [
            f"{name}: {gauges[name]}, at most {bound}"
            for name, bound in bounds.items()
            if gauges.get(name, 0) > bound
        ]
