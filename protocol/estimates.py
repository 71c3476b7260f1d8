"""What a node has measured: a value, how sure of it, and what it says until something was measured.

Positive quantities of any unit (seconds, bytes per second, calls per second) are averaged as
logarithms: what doubles and what halves weigh the same, and no mean is ever below zero. One value
far off moves an estimate little, several in a row on the same side move it there at once: a link
that changed, not noise. `now` is any clock that does not go back. Owned by whoever measures.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from .errors import LocalProtocolError

WEIGHT: Final = 0.3
"""Of the newest of many measurements; of the n-th of few, 1/n."""
SPREAD: Final = 0.3
"""Natural logarithm's deviation that is assumed until it is measured: a third either way."""
OUTLIER: Final = 3.0
"""Deviations from which a measurement counts as one of so many only."""
OUTLIERS_MOVE: Final = 3
"""In a row on one side, and the value has changed."""
HALF_LIFE_S: Final = 600.0
"""In which an estimate loses half of its confidence if nothing is measured."""
SAMPLES_SURE: Final = 2.0
"""Measurements that give as much confidence as the prior has: n / (n + SAMPLES_SURE)."""


class Reading(msgspec.Struct, frozen=True):
    """An estimate as it stood at one moment."""

    value: float
    samples: int
    age_s: float | None
    """Since the newest measurement; None: there was none, the value is the prior."""
    confidence: float
    """0, the prior, to 1."""
    prior: float


class Estimate:
    """Of a positive quantity. The prior holds until something is measured and gains weight again
    as that gets old."""

    __slots__ = (
        "_half_life_s",
        "_log",
        "_outliers",
        "_prior_log",
        "_spread",
        "_updated_s",
        "samples",
    )

    def __init__(self, prior: float, *, half_life_s: float = HALF_LIFE_S) -> None:
        """Raises LocalProtocolError for a prior or half-life that is not positive and finite."""
        if not (0 < prior < math.inf and 0 < half_life_s < math.inf):
            raise LocalProtocolError(f"prior {prior}, half-life {half_life_s}: not positive")
        self._prior_log = self._log = math.log(prior)
        self._half_life_s = half_life_s
        self._spread = SPREAD
        self._outliers: list[float] = []
        self._updated_s = 0.0
        self.samples = 0

    def observe(self, value: float, now: float) -> None:
        """What is not positive and finite is no measurement, and changes nothing."""
        if not 0 < value < math.inf:
            return
        log = math.log(value)
        if not self.samples:
            self._log = log
        else:
            self._learn(log, now)
        self.samples += 1
        self._updated_s = max(now, self._updated_s)

    def _learn(self, log: float, now: float) -> None:
        off = log - self._log
        reach = OUTLIER * self._spread
        if abs(off) > reach:
            if self._outliers and (self._outliers[-1] > self._log) != (off > 0):
                self._outliers.clear()
            self._outliers.append(log)
            if len(self._outliers) >= OUTLIERS_MOVE:
                self._log = sorted(self._outliers)[len(self._outliers) // 2]
                self._outliers.clear()
                return
            off = math.copysign(reach, off)
        else:
            self._outliers.clear()
        # What was known before a gap is as old as the gap.
        kept = 2.0 ** (-max(0.0, now - self._updated_s) / self._half_life_s)
        weight = max(WEIGHT, 1 / (self.samples + 1), 1 - kept)
        self._log += weight * off
        # Of a normal distribution |off| is 0.8 deviations on average.
        self._spread += WEIGHT / 2 * (max(abs(off) / 0.8, SPREAD / 4) - self._spread)

    def confidence(self, now: float) -> float:
        if not self.samples:
            return 0.0
        age_s = max(0.0, now - self._updated_s)
        known: float = 2.0 ** (-age_s / self._half_life_s)
        return known * self.samples / (self.samples + SAMPLES_SURE)

    def value(self, now: float) -> float:
        """The prior by so much as confidence has been lost to age; a first measurement counts."""
        if not self.samples:
            return math.exp(self._prior_log)
        known = 2.0 ** (-max(0.0, now - self._updated_s) / self._half_life_s)
        return math.exp(self._prior_log + known * (self._log - self._prior_log))

    def read(self, now: float) -> Reading:
        return Reading(
            value=self.value(now),
            samples=self.samples,
            age_s=max(0.0, now - self._updated_s) if self.samples else None,
            confidence=self.confidence(now),
            prior=math.exp(self._prior_log),
        )


class Demand:
    """How often a function is called: arrivals, each counting half after HALF_LIFE_S, over the
    time they were counted in, which is bounded by the same forgetting."""

    KNOWN: Final = 5.0
    """Arrivals, as they count now, of which a rate is known: to within about a half."""
    SHAPE: Final = 0.5
    """Of the gamma distribution that rates of a node's functions are taken to have where their
    mean is known: few that are called all the time, many seldom (Zipf's law over a few dozen)."""

    __slots__ = ("_began_s", "_counted", "_time_constant_s", "_updated_s", "calls")

    def __init__(self, began_s: float, *, half_life_s: float = HALF_LIFE_S) -> None:
        """`began_s`: since when arrivals are counted; of a function that nobody has called, its
        first call. Raises LocalProtocolError for a half-life that is not positive."""
        if not half_life_s > 0:
            raise LocalProtocolError(f"half-life {half_life_s}: not positive")
        self._time_constant_s = half_life_s / math.log(2)
        self._began_s = self._updated_s = began_s
        self._counted = 0.0
        self.calls = 0
        """All, since the beginning."""

    def arrived(self, now: float, calls: int = 1) -> None:
        self._counted = self._left(now) + calls
        self._updated_s = max(now, self._updated_s)
        self.calls += calls

    def rate_per_s(self, now: float, mean_per_s: float | None = None) -> float | None:
        """`mean_per_s`: of such functions, where that is known: what is expected of a rate drawn
        from theirs after these arrivals. None: without it, too few have come to say."""
        counted = self._left(now)
        since_s = max(now, self._updated_s) - self._began_s
        span_s = -self._time_constant_s * math.expm1(-since_s / self._time_constant_s)
        if mean_per_s is not None and mean_per_s > 0:
            return (counted + self.SHAPE) / (span_s + self.SHAPE / mean_per_s)
        if counted < self.KNOWN:
            return None
        # All at one moment: over how long nobody knows, a second is as good as any.
        return counted / max(span_s, 1.0)

    def _left(self, now: float) -> float:
        gap_s = max(0.0, now - self._updated_s)
        return self._counted * math.exp(-gap_s / self._time_constant_s)
