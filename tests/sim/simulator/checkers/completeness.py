"""Every real death is known to every reachable survivor within the bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..faultlog import FaultLog

Reachable = Callable[[int, int], int | None]
"""(observer, subject) to the generation in which the observer holds the subject reachable; None:
it does not."""


@dataclass(frozen=True)
class Missed:
    observer: int
    victim: int
    generation: int
    after_s: float


class Completeness:
    def __init__(self, log: FaultLog, bound_s: float) -> None:
        self._log = log
        self.bound_s = bound_s
        self.outstanding: dict[tuple[int, int], float] = {}
        """(victim, generation) to the time of death, until all know."""

    def died(self, victim: int, generation: int, now: float) -> None:
        self.outstanding[victim, generation] = now

    def check(self, observers: list[int], reachable: Reachable, now: float) -> list[Missed]:
        """Observers that were undisturbed for the whole bound and still see the dead."""
        missed: list[Missed] = []
        for (victim, generation), died_s in list(self.outstanding.items()):
            blind = [one for one in observers if reachable(one, victim) == generation]
            if not blind:
                del self.outstanding[victim, generation]
            for observer in blind:
                since_s = max(died_s, self._log.disturbed_s(observer))
                if now - since_s > self.bound_s:
                    missed.append(Missed(observer, victim, generation, now - since_s))
        return missed
