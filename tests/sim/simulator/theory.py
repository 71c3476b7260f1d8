"""What theory says of SWIM-like protocols, to compare measurements with. Pure functions.

Das, Gupta, Motivala 2002 (SWIM) §3.1 and §5; Kermack & McKendrick 1927 for the epidemic's size.
"""

from __future__ import annotations

import math


def periods_until_probed(nodes: int) -> float:
    """Expected periods until somebody probes a given dead member, the one in which it died
    counted: 1/(1 − (1 − 1/(n−1))^(n−1)), which tends to e/(e − 1) = 1.58."""
    others = nodes - 1
    return 1 / (1 - (1 - 1 / others) ** others)


def until_probed_s(interval_s: float, *, neighbour: bool) -> float:
    """Expected time from a death to the first probe of the dead, whatever n. In random order n − 1
    others probe one of n − 1 members per period T, each on its own phase: exponential with mean T
    (SWIM counts the same wait in whole periods). Where every other probe goes to the neighbour on
    the ring, one member hits within 2 T, and the others half as often: (1 − t/2T)·e^(−t/2T) is
    left after t, which is 2T/e on average."""
    return 2 * interval_s / math.e if neighbour else interval_s


def unanswered(loss: float, helpers: int) -> float:
    """Chance that a probe of a living member gets no datagram back: (1 − q²)(1 − q⁴)^k with
    q = 1 − loss: two hops directly, four through each helper."""
    kept = 1 - loss
    return (1 - kept**2) * (1 - kept**4) ** helpers


def reached_at_once(fanout: int) -> float:
    """Share of a large cluster that one cascade reaches when each node that hears tells `fanout`
    others at once: z = 1 − e^(−fanout·z)."""
    share = 1.0
    for _ in range(100):
        share = 1 - math.exp(-fanout * share)
    return share


def untold(nodes: int, fanout: int, rounds: int) -> list[float]:
    """Share that has not heard after the cascade and after each further round of `fanout` sends
    by everybody who has, whom those that hear then join: u' = u·e^(−fanout·(1 − u'))."""
    shares = [1 - reached_at_once(fanout)]
    for _ in range(rounds - 1):
        former, share = shares[-1], 0.0
        for _ in range(100):
            share = former * math.exp(-fanout * (1 - share))
        shares.append(share)
    return shares


def last_told_s(nodes: int, fanout: int, interval_s: float, rounds: int) -> float:
    """Expected time until the last has heard by gossip alone: a further round is needed with the
    chance that anybody (Poisson) is left."""
    return interval_s * sum(1 - math.exp(-nodes * share) for share in untold(nodes, fanout, rounds))
