"""No healthy node is declared down: each declaration is true, or a fault in the log explains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol.presets import Knobs

from ..bounds import explains_s
from ..faultlog import FaultLog, Regime

PAUSE_TOLERATED_S = 8.0
"""A stop of this length kills nobody: a connection from anybody shows that its host lives."""
LOSS_TOLERATED = 0.25
"""Loss, corruption included, at which nobody may be declared down."""


@dataclass(frozen=True)
class Death:
    at_s: float
    observer: int
    victim: int
    generation: int
    why: str
    """"" if nothing explains it; "dead" and "left" are true deaths."""

    @property
    def true(self) -> bool:
        return self.why in ("dead", "left")


class Accuracy:
    def __init__(
        self,
        log: FaultLog,
        knobs: Knobs,
        running: Callable[[], Iterable[int]],
        *,
        pause_tolerated_s: float = PAUSE_TOLERATED_S,
    ) -> None:
        """`running`: the hosts whose process runs now."""
        self._log = log
        self._running = running
        self._window_s = explains_s(knobs)
        self.pause_tolerated_s = pause_tolerated_s
        self.deaths: list[Death] = []

    @property
    def unexplained(self) -> list[Death]:
        return [death for death in self.deaths if not death.why]

    @property
    def false(self) -> list[Death]:
        """Of running nodes, explained or not."""
        return [death for death in self.deaths if not death.true]

    def declared(self, observer: int, victim: int, generation: int, now: float) -> Death:
        why = self._true(victim, generation, now) or self._excuse(observer, victim, now)
        death = Death(now, observer, victim, generation, why)
        self.deaths.append(death)
        return death

    def _true(self, victim: int, generation: int, now: float) -> str:
        life = self._log.life(victim, generation)
        if life is None or life.until_s > now:
            return ""
        return "left" if life.left else "dead"

    def _excuse(self, observer: int, victim: int, now: float) -> str:
        from_s = now - self._window_s
        regimes = self._log.regimes_within(from_s, now)
        for pause in self._log.pauses.get(victim, ()):
            if pause.within(from_s, now) > self.pause_tolerated_s:
                return "paused"
        for regime in regimes:
            conditions = regime.conditions
            if 1 - (1 - conditions.loss) * (1 - conditions.corrupt) > LOSS_TOLERATED:
                return "loss"
            if regime.cuts.any and self._cut_off(regime, observer, victim):
                return "partition"
        return ""

    def _cut_off(self, regime: Regime, observer: int, victim: int) -> bool:
        """Whoever declares tells others, also after the healing: so it is enough that the victim
        was apart from anybody. A helper that was itself stopped or started meanwhile is none."""
        others = [index for index in self._running() if index != victim]
        helpers = [index for index in others if self._log.own_disturbance_s(index) < regime.since_s]
        return any(
            regime.cuts.apart(one, victim, [via for via in helpers if via != one])
            for one in (observer, *others)
        )
