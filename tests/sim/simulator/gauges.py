"""How full a machine's queues are. It tells operators less than this, so its insides are read."""

from __future__ import annotations

from protocol.gossip import Gossip


def gauges(gossip: Gossip) -> dict[str, int]:
    prober = gossip._membership.prober
    return {
        "updates": len(gossip._broadcasts),
        "probes": len(prober._probes),
        "relays": len(prober._relays),
        "transmits": len(gossip._outbox._waiting),
        "timers": len(gossip._timers._live),
    }
