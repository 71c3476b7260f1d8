"""Which request is made when, from where: a pure function of the spec, the regions and the rng.

An arrival process is a clock that runs at the stage's rate: event k of the constant one is due when
that clock shows k, of a Poisson process after k exponential waits of mean 1 (time rescaling: Brown
et al., 2002). So ramps are exact for both.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, count
from random import Random
from typing import Generic, NamedTuple, TypeVar

from .spec import FunctionLoad, LoadSpec, Stage

T = TypeVar("T")


class Arrival(NamedTuple):
    intended_s: float
    """Since the load's start."""
    region: str
    function: FunctionLoad
    luck: float
    """In [0, 1): decides where the routing leaves a choice."""


class Choice(Generic[T]):
    """Draws with fixed weights."""

    def __init__(self, weights: Mapping[T, float]) -> None:
        """Not empty; of positive weights."""
        self._items = list(weights)
        self._sums = list(accumulate(weights.values()))

    def draw(self, rng: Random) -> T:
        at = bisect(self._sums, rng.random() * self._sums[-1])
        return self._items[min(at, len(self._items) - 1)]


def plan(spec: LoadSpec, regions: Mapping[str, float], rng: Random) -> Iterator[Arrival]:
    """In order of time, by clients in `regions` (not empty) in proportion to the weights. The
    draws are in streams of their own: another mix of functions leaves the instants as they were."""
    when, where, what, which = (Random(rng.getrandbits(64)) for _ in range(4))  # noqa: S311
    region = Choice(regions)
    shares = popularity(spec.functions, spec.zipf)
    function = Choice(dict(zip(range(len(shares)), shares, strict=True)))
    for intended_s in instants(spec.stages, None if spec.arrivals == "constant" else when):
        chosen = spec.functions[function.draw(what)]
        yield Arrival(intended_s, region.draw(where), chosen, which.random())


def popularity(functions: Sequence[FunctionLoad], zipf: float) -> list[float]:
    """Weights: what a function says itself, else its rank's to the power -zipf."""
    return [
        function.weight if function.weight is not None else rank**-zipf
        for rank, function in enumerate(functions, 1)
    ]


def instants(stages: Sequence[Stage], rng: Random | None) -> Iterator[float]:
    """Seconds since the start; equal distances (of the clock above) without an rng."""
    begin_s = passed = 0.0
    marks = _marks(rng)
    mark = next(marks)
    for stage in stages:
        while mark < passed + stage.requests:
            yield begin_s + when(stage, mark - passed)
            mark = next(marks)
        passed += stage.requests
        begin_s += stage.seconds


def _marks(rng: Random | None) -> Iterator[float]:
    if rng is None:
        yield from map(float, count())
        return
    mark = 0.0
    while True:
        mark += rng.expovariate(1.0)
        yield mark


def when(stage: Stage, requests: float) -> float:
    """Seconds into the stage at which so many are due: rate·t + slope·t²/2 solved for t, in the
    form that does not cancel and holds for slope 0."""
    slope = (stage.end_rate - stage.rate) / stage.seconds
    root = stage.rate + math.sqrt(max(0.0, stage.rate**2 + 2 * slope * requests))
    return min(stage.seconds, 2 * requests / root if root else 0.0)
