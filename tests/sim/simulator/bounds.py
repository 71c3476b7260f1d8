"""How long things may take, from the knobs alone. The checkers compare with these.

Each is a bound that holds but for a chance of about MISS: probes and gossip are random.
"""

from __future__ import annotations

import math

from protocol.presets import Knobs
from protocol.streamprobes import LOOK_S

MISS = 1e-9
STALL_EXTENSION_S = 12.0
"""How long stall evidence may keep a suspicion open, from its start."""


def probe_rounds(nodes: int, loss: float = 0.0) -> int:
    """Periods until somebody has probed a given member: nobody does in one with probability 1/e,
    so ln(1/MISS) periods; and never more than two whole rounds of a round robin."""
    share = (1 - loss) ** 2
    return min(math.ceil(-math.log(MISS) / share), max(2 * nodes - 1, 3))


def spread_s(knobs: Knobs, nodes: int, loss: float = 0.0) -> float:
    """Until news has reached everybody: its rounds of gossip, and then what the digests find:
    quiet time, a few probe periods until a pair compares, and the sync. Syncs chain: each corrects
    one node, so the residual needs some more of them than one."""
    rounds = math.ceil(math.log10(nodes + 1)) * knobs.retransmit_factor
    quiet_s = knobs.sync_quiet_s * 5 + knobs.sync_interval_s * 2
    periods = probe_rounds(nodes, loss) / 2
    return rounds * knobs.gossip_interval_s + quiet_s + periods * knobs.probe_interval_s


def verdict_s(knobs: Knobs) -> float:
    """From the first suspicion to the last declaration by whoever draws it himself."""
    longest_s = knobs.suspicion_min_s * knobs.suspicion_max_factor
    look_s = 4 * knobs.direct_timeout_max_s + knobs.probe_window_s + LOOK_S
    return max(longest_s, STALL_EXTENSION_S) + knobs.verifier_grace_s + look_s


def detection_s(knobs: Knobs, nodes: int, loss: float = 0.0) -> float:
    """From a real death to the last survivor's knowing it. Local health may have doubled the
    period."""
    found_s = probe_rounds(nodes, loss) * knobs.probe_interval_s * 2 + 2 * knobs.probe_window_s
    return found_s + verdict_s(knobs) + spread_s(knobs, nodes, loss)


def explains_s(knobs: Knobs) -> float:
    """How long after its end a fault may still explain a death: the verdict it brought about may
    have been on its way, and the rumour of it may travel."""
    return verdict_s(knobs) + 2 * knobs.probe_window_s + 2.0


def heal_s(knobs: Knobs, nodes: int, loss: float = 0.0) -> float:
    """From the end of all faults to one state: somebody down is knocked at within a few
    reconnect periods (each node tries with a chance of at least 4/N per period, so four knocks
    per period), or the faults' last victims are found; then syncs carry what is new."""
    knocks = math.ceil(-math.log(MISS) / 4) * knobs.reconnect_s
    return max(knocks, detection_s(knobs, nodes, loss)) + 2 * spread_s(knobs, nodes, loss)
