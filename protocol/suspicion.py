"""How long a suspected member has, and who looks after it. SPEC §5.4; Lifeguard (Dadgar 2017).

Pure functions and one small value: no timers here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
from blake3 import blake3

from .ids import NODE_ID_BYTES, NodeId
from .messages import Finding
from .presets import Knobs


class Evidence(msgspec.Struct, frozen=True):
    """What a failed probe of this node's own saw."""

    direct_ms: int
    helpers: int
    nacks: int


def timeout_s(*, min_s: float, max_s: float, confirmations: int, expected: int) -> float:
    """max − (max − min) · log(c + 1)/log(K + 1), at least min; with K = 0 nobody could confirm, so
    min (memberlist's rule)."""
    if expected < 1:
        return min_s
    share = math.log(confirmations + 1) / math.log(expected + 1)
    return max(min_s, max_s - (max_s - min_s) * share)


def retransmit_limit(factor: int, members: int) -> int:
    """factor · ⌈log10(N + 1)⌉."""
    return factor * math.ceil(math.log10(members + 1)) if members > 0 else factor


def verifier_points(
    suspect: NodeId, generation: int, incarnation: int, count: int
) -> Iterator[NodeId]:
    """Points on the ring of node ids; the first member after each looks after this suspicion. So
    all choose the same without looking at all (consistent hashing), and `count` tries each find
    enough different ones in any cluster that has many more."""
    for number in range(4 * count):
        subject = f"{suspect}\x00{generation}\x00{incarnation}\x00{number}"
        yield NodeId(blake3(subject.encode()).hexdigest(NODE_ID_BYTES))


class Suspicion:
    """One member under suspicion, for one (generation, incarnation)."""

    __slots__ = (
        "_expected",
        "_grace_s",
        "_max_s",
        "_min_s",
        "accusers",
        "evidence",
        "looking",
        "refused",
        "stalled",
        "started_at_s",
        "told_down",
        "undecided",
    )

    def __init__(self, knobs: Knobs, *, now: float, others: int, verifier: bool) -> None:
        """`others`: members that could confirm, besides the first accuser and the suspect."""
        self.started_at_s = now
        self.accusers: dict[NodeId, None] = {}
        self.refused: dict[NodeId, None] = {}
        self.stalled: dict[NodeId, None] = {}
        """Who says that its host is there; whoever is refused later says so no more."""
        self.looking = False
        """The last look is under way."""
        self.undecided = False
        """The last look is over but for the one over TCP."""
        self.told_down = False
        """A peer holds it down already, said a sync."""
        self.evidence: Evidence | None = None
        """Of this node's latest failed probe."""
        self._expected = min(knobs.confirmations, others)
        self._min_s = knobs.suspicion_min_s
        self._max_s = knobs.suspicion_min_s * knobs.suspicion_max_factor
        self._grace_s = 0.0 if verifier else knobs.verifier_grace_s

    def accuse(self, accuser: NodeId, finding: Finding) -> bool:
        """Whether it is news worth passing on: the first K + 1 accusers are, and so are the first
        of those who were refused, and of those to whom it seems stopped."""
        news = self._note(self.accusers, accuser)
        if finding is Finding.REFUSED:
            self.stalled.pop(accuser, None)
            news |= self._note(self.refused, accuser)
        elif finding is Finding.STALLED and accuser not in self.refused:
            news |= self._note(self.stalled, accuser)
        return news

    def _note(self, who: dict[NodeId, None], accuser: NodeId) -> bool:
        if accuser in who or len(who) > self._expected:
            return False
        who[accuser] = None
        return True

    def deadline(self) -> float:
        confirmations = max(0, len(self.accusers) - 1)
        return (
            self.started_at_s
            + timeout_s(
                min_s=self._min_s,
                max_s=self._max_s,
                confirmations=confirmations,
                expected=self._expected,
            )
            + self._grace_s
        )
