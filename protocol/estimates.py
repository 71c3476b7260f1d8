"""What a node has measured: a value, how sure of it, and what it says until something was measured.

Positive quantities of any unit (seconds, bytes per second, calls per second) are averaged as
logarithms: what doubles and what halves weigh the same, and no mean is ever below zero. One value
far off moves an estimate little, several in a row on the same side move it there at once: a link
that changed, not noise. `now` is any clock that does not go back. Owned by whoever measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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
OFF_MAX: Final = 10.0
DEMAND_HALF_LIFE_S: Final = 1800.0
"""Of an arrival: half an hour of one call a minute is known to within a fifth. A third of that
forgets what is called seldom, and what goes for want of room then comes back."""
LIVE_S: Final = 3600.0
"""A function that nobody has called for so long says nothing of others' demand."""
LIVE_MIN: Final = 3
CALLS_MIN: Final = 8
"""Fewer functions, or calls of all of them together, say nothing either."""
HORIZON_MIN_S: Final = 900.0
"""Of a demand that has just begun."""
RATE_OFF: Final = 2.5
"""Of a link's rate nobody has measured, natural logarithm's deviation: a factor of 12 either way,
as nodes are behind anything between 1 Mbit/s and 1 Gbit/s."""


class Reading(msgspec.Struct, frozen=True):
    """An estimate as it stood at one moment."""

    value: float
    samples: int
    age_s: float | None
    """Since the newest measurement; None: there was none, the value is the prior."""
    confidence: float
    """0, the prior, to 1."""
    prior: float
    harmonic: float
    """Of a rate: what times are to be reckoned by."""


class Estimate:
    """Of a positive quantity. The prior holds until something is measured and gains weight again
    as that gets old."""

    __slots__ = (
        "_half_life_s",
        "_log",
        "_off",
        "_outliers",
        "_prior_log",
        "_spread",
        "_updated_s",
        "samples",
    )

    def __init__(self, prior: float, *, off: float = 0.0, half_life_s: float = HALF_LIFE_S) -> None:
        """`off`: deviation of the logarithm of what is measured from that of the prior; 0: it is a
        usual value, not a guess. Raises LocalProtocolError for a prior or half-life that is not
        positive and finite."""
        if not (0 < prior < math.inf and 0 < half_life_s < math.inf):
            raise LocalProtocolError(f"prior {prior}, half-life {half_life_s}: not positive")
        if not 0 <= off <= OFF_MAX:
            raise LocalProtocolError(f"deviation {off}: not from 0 to {OFF_MAX:g}")
        self._off = off
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

    def harmonic(self, now: float) -> float:
        """Of a rate: 1/E[1/rate], what the time that something takes is to be reckoned by. With
        the confidence of age it is what was measured, else any about the prior: 1/E of a
        log-normal is its median · e^(−off²/2). Never above `value`, and much below where nothing
        is known: who guesses 100 Mbit/s waits far longer behind 1 than he wins behind 1,000."""
        value = self.value(now)
        if not self._off:
            return value
        blind = math.exp(self._prior_log - self._off * self._off / 2)
        if not self.samples:
            return blind
        known: float = 2.0 ** (-max(0.0, now - self._updated_s) / self._half_life_s)
        return min(1 / (known / math.exp(self._log) + (1 - known) / blind), value)

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
            harmonic=self.harmonic(now),
        )


class Demand:
    """How often a function is called: arrivals, each counting half after DEMAND_HALF_LIFE_S, over
    the time they were counted in, which is bounded by the same forgetting."""

    KNOWN: Final = 5.0
    """Arrivals, as they count now, of which a rate is known: to within about a half."""
    SHAPE: Final = 1.0
    """Of the gamma distribution that rates of a node's functions are taken to have where their
    mean is known: few that are called all the time, many seldom (Zipf's law over a few dozen)."""

    __slots__ = ("_began_s", "_counted", "_time_constant_s", "_updated_s", "calls")

    def __init__(self, began_s: float, *, half_life_s: float = DEMAND_HALF_LIFE_S) -> None:
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
        counted, span_s = self._left(now), self._span_s(now)
        if mean_per_s is not None and mean_per_s > 0:
            return (counted + self.SHAPE) / (span_s + self.SHAPE / mean_per_s)
        if counted < self.KNOWN:
            return None
        # All at one moment: over how long nobody knows, a second is as good as any.
        return counted / max(span_s, 1.0)

    def horizon_s(self, now: float, longest_s: float) -> float:
        """For which it may be expected to last: as long as it has lasted, within bounds."""
        age_s = max(now, self._updated_s) - self._began_s
        return min(max(age_s, HORIZON_MIN_S), longest_s)

    def faded(self, now: float) -> tuple[float, float] | None:
        """(arrivals as they count now, seconds they were counted in); None: long without any."""
        if not self.calls or now - self._updated_s > LIVE_S:
            return None
        return self._left(now), self._span_s(now)

    def _span_s(self, now: float) -> float:
        since_s = max(now, self._updated_s) - self._began_s
        return -self._time_constant_s * math.expm1(-since_s / self._time_constant_s)

    def _left(self, now: float) -> float:
        gap_s = max(0.0, now - self._updated_s)
        return self._counted * math.exp(-gap_s / self._time_constant_s)


def mean_per_s(demands: Iterable[Demand], now: float) -> float | None:
    """Calls per second of one function, on average; None: too few to say."""
    live = calls = 0
    counted = spans_s = 0.0
    for each in demands:
        if (found := each.faded(now)) is not None:
            live += 1
            calls += each.calls
            counted += found[0]
            spans_s += found[1]
    if live < LIVE_MIN or calls < CALLS_MIN:
        return None
    return counted / max(spans_s, 1.0)
