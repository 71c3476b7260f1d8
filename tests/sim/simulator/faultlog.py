"""What was done to the cluster, and when: the only ground on which a checker excuses anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from .network import Conditions, Cuts

FOREVER_S = float("inf")


@dataclass
class Span:
    """A fault of one host, from its start to its end."""

    since_s: float
    until_s: float = FOREVER_S

    def within(self, from_s: float, to_s: float) -> float:
        """How much of it lies in between."""
        return min(self.until_s, to_s) - max(self.since_s, from_s)


@dataclass
class Life:
    """One process: from start to death."""

    generation: int
    since_s: float
    until_s: float = FOREVER_S
    left: bool = False
    """It said goodbye before it ended."""


@dataclass
class Regime:
    """Cuts and conditions that held for a while."""

    cuts: Cuts
    conditions: Conditions
    since_s: float
    until_s: float = FOREVER_S


@dataclass
class FaultLog:
    lives: dict[int, list[Life]] = field(default_factory=dict)
    pauses: dict[int, list[Span]] = field(default_factory=dict)
    regimes: list[Regime] = field(default_factory=list)
    wiped: dict[int, float] = field(default_factory=dict)
    """Host to the time its disk was lost."""
    network_changed_s: float = 0.0

    def started(self, index: int, generation: int, now: float) -> None:
        self.lives.setdefault(index, []).append(Life(generation, now))

    def died(self, index: int, now: float, *, left: bool) -> None:
        life = self.lives[index][-1]
        life.until_s, life.left = now, left

    def paused(self, index: int, now: float, until_s: float) -> None:
        self.pauses.setdefault(index, []).append(Span(now, until_s))

    def network(self, cuts: Cuts, conditions: Conditions, now: float) -> None:
        if self.regimes:
            self.regimes[-1].until_s = now
        self.regimes.append(Regime(cuts, conditions, now))
        self.network_changed_s = now

    def life(self, index: int, generation: int) -> Life | None:
        return next(
            (one for one in self.lives.get(index, ()) if one.generation == generation), None
        )

    def regimes_within(self, from_s: float, to_s: float) -> list[Regime]:
        return [one for one in self.regimes if one.until_s > from_s and one.since_s <= to_s]

    def own_disturbance_s(self, index: int) -> float:
        """When this host last was started, or went on."""
        lives, pauses = self.lives.get(index), self.pauses.get(index)
        started_s = lives[-1].since_s if lives else 0.0
        return max(started_s, pauses[-1].until_s if pauses else 0.0)

    def disturbed_s(self, index: int) -> float:
        """When this host last was not simply up, running and connected as now."""
        return max(self.own_disturbance_s(index), self.network_changed_s)
