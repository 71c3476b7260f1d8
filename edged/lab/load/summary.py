"""What the rows of a load come to: counts, latency quantiles, lateness, wrong bodies.

Latency is of requests that were answered well, from the intended instant; those that failed are
counted beside it, by reason, as one refused at once would make it look better than it was. What
nodes say of themselves (start types, versions) is told in at most `NAMES_MAX` kinds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from edged.lab.history import Request

from .hdr import Histogram, Interval
from .spec import LoadSpec

NAMES_MAX: Final = 32
OTHER: Final = "other"
INTERVALS_MAX: Final = 3600
LATE_S: Final = 0.01
"""A request that is sent so much too late was delayed by the client, not by the system's answer."""
LATE_SHARE_MAX: Final = 0.01
_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class Quantiles(msgspec.Struct, frozen=True):
    """In milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class Group(msgspec.Struct, frozen=True):
    requests: int
    errors: dict[str, int]
    latency_ms: Quantiles

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


class WrongBody(msgspec.Struct, frozen=True):
    function: str
    version: str
    count: int


class Summary(msgspec.Struct, frozen=True):
    duration_s: float
    """From the first intended instant to the last answer."""
    all: Group
    regions: dict[str, Group]
    """Of clients."""
    functions: dict[str, Group]
    starts: dict[str, Group]
    stages: dict[str, Group]
    """By when requests were intended."""
    lateness_ms: Quantiles
    """Sent after intended."""
    wrong_bodies: tuple[WrongBody, ...]
    warnings: tuple[str, ...]
    cut_short: bool = False
    """Somebody ended it before its time."""


class _Tally:
    def __init__(self) -> None:
        self.requests = 0
        self.errors: Counter[str] = Counter()
        self.latency = Histogram()

    def add(self, row: Request) -> None:
        self.requests += 1
        if row.error is None:
            self.latency.add(_us(row.done_s - row.intended_s))
        else:
            self.errors[_bounded(row.error, self.errors)] += 1

    def group(self) -> Group:
        return Group(self.requests, dict(sorted(self.errors.items())), quantiles(self.latency))


class Collector:
    """Takes the rows of one load, in any order."""

    def __init__(self, spec: LoadSpec, *, begun_s: float = 0.0) -> None:
        """`begun_s`: when the load began, on the rows' axis."""
        self._begun_s = begun_s
        self._spec = spec
        self._expect = {f.name: f.expect for f in spec.functions if f.expect}
        self._interval_s = max(1.0, spec.duration_s / INTERVALS_MAX)
        self._stages = stage_names(spec)
        self._last_s = begun_s
        self._all = _Tally()
        self._by: dict[str, dict[str, _Tally]] = {
            "region": {}, "function": {}, "start": {}, "stage": {},
        }  # fmt: skip
        self._lateness = Histogram()
        self._late = 0
        self._wrong: Counter[tuple[str, str]] = Counter()
        self._intervals: dict[tuple[int, str], Histogram] = {}

    def add(self, row: Request) -> None:
        self._last_s = max(self._last_s, row.done_s)
        late_s = row.sent_s - row.intended_s
        self._lateness.add(_us(late_s))
        self._late += late_s > LATE_S
        self._all.add(row)
        self._tally("region", row.region).add(row)
        self._tally("function", row.function, names_max=len(self._spec.functions)).add(row)
        self._tally("stage", self._stage(row), names_max=len(self._stages)).add(row)
        if row.start is not None:
            self._tally("start", row.start).add(row)
        if row.error is None:
            self._record(row)
            self._check(row)

    def _tally(self, kind: str, name: str, *, names_max: int = NAMES_MAX) -> _Tally:
        known = self._by[kind]
        name = _bounded(name, known, names_max)
        if name not in known:
            known[name] = _Tally()
        return known[name]

    def _stage(self, row: Request) -> str:
        left_s = row.intended_s - self._begun_s
        for name, stage in zip(self._stages, self._spec.stages, strict=True):
            left_s -= stage.seconds
            if left_s < 0:
                return name
        return self._stages[-1]

    def _record(self, row: Request) -> None:
        number = int(max(0.0, row.done_s - self._begun_s) / self._interval_s)
        key = (min(number, 2 * INTERVALS_MAX), row.region)
        if key not in self._intervals:
            self._intervals[key] = Histogram()
        self._intervals[key].add(_us(row.done_s - row.intended_s))

    def _check(self, row: Request) -> None:
        expect = self._expect.get(row.function)
        if expect is None:
            return
        right = expect.get(row.version or "", expect.get("*"))
        if right is not None and right != row.body_digest:
            names = {version for _, version in self._wrong}
            self._wrong[row.function, _bounded(row.version or "–", names)] += 1

    # ------------------------------------------------------------ what came out
    @property
    def requests(self) -> int:
        return self._all.requests

    @property
    def failed(self) -> int:
        return self._all.errors.total()

    @property
    def late(self) -> bool:
        """The client does not keep up."""
        return self._late > LATE_SHARE_MAX * self._all.requests

    @property
    def latency(self) -> Histogram:
        return self._all.latency

    def intervals(self) -> list[Interval]:
        """For a log, tagged with the clients' regions."""
        return [
            Interval(region, number * self._interval_s, self._interval_s, histogram)
            for (number, region), histogram in sorted(self._intervals.items())
        ]

    def summary(self) -> Summary:
        groups: dict[str, dict[str, Group]] = {
            kind: {name: tally.group() for name, tally in known.items()}
            for kind, known in self._by.items()
        }
        return Summary(
            duration_s=round(self._last_s - self._begun_s, 6),
            all=self._all.group(),
            regions=_sorted(groups["region"]),
            functions=groups["function"],
            starts=_sorted(groups["start"]),
            stages={
                name: groups["stage"][name] for name in self._stages if name in groups["stage"]
            },
            lateness_ms=quantiles(self._lateness),
            wrong_bodies=tuple(WrongBody(*key, n) for key, n in sorted(self._wrong.items())),
            warnings=self._warnings(),
        )

    def _warnings(self) -> tuple[str, ...]:
        told: list[str] = []
        if self.late:
            late = quantiles(self._lateness)
            told.append(
                f"this client did not keep up: {self._late / self._all.requests:.1%} of requests"
                f" were sent more than {LATE_S * 1000:.0f} ms late (p99 {late.p99:.1f} ms,"
                f" max {late.max:.1f} ms), and latencies include it; ask for less, or run it"
                " where it has a core of its own"
            )
        if clients := self._all.errors["client-fds"]:
            told.append(
                f"{clients} requests were not sent, as this process may open no more files"
                " (ulimit -n)"
            )
        return tuple(told)


def stage_names(spec: LoadSpec) -> list[str]:
    """Unique, in order."""
    names: list[str] = []
    for number, stage in enumerate(spec.stages, 1):
        rate = f"{stage.rate:g}" if stage.to is None else f"{stage.rate:g}–{stage.to:g}"
        name = stage.name or f"{rate}/s"
        names.append(name if name not in names else f"{name} ({number})")
    return names


def quantiles(histogram: Histogram) -> Quantiles:
    """Of microseconds."""
    found = {name: histogram.quantile(share) / 1000 for name, share in _QUANTILES.items()}
    return Quantiles(
        count=histogram.count,
        mean=round(histogram.mean / 1000, 3),
        max=histogram.max / 1000,
        **found,
    )


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _bounded(name: str, known: Mapping[str, object] | set[str], names_max: int = NAMES_MAX) -> str:
    return name if name in known or len(known) < names_max else OTHER


def _sorted(groups: dict[str, Group]) -> dict[str, Group]:
    return dict(sorted(groups.items()))
