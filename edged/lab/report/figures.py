"""What a report shows, computed from a run's rows. Pure; times in seconds since the run's start.

Requests count at the instant they were intended, not answered: a stall is where it began.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from edged.lab.history import Converged, Fault, History, LinkCount, Phase, Request, Sample
from edged.lab.load.hdr import Histogram

BUCKETS_MAX: Final = 180
PER_BUCKET_MIN: Final = 25
"""Requests, on average: quantiles of fewer are noise."""
WIDTHS_S: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
APART_S: Final = 0.2
"""Samples closer than this tell nothing of CPU time, which is counted in hundredths."""
NAMES_MAX: Final = 16
"""Rows or columns of a picture; the rest is left out, and the picture says so."""
TEXT_MAX: Final = 32


class Span(NamedTuple):
    """A fault, as long as it lasted."""

    fault: Fault
    """As it began."""
    begin_s: float
    end_s: float
    proof: str
    """proven, unproven, or begun where neither was told."""
    detail: str


class Window(NamedTuple):
    """A phase."""

    name: str
    begin_s: float
    end_s: float
    errors_max: float | None


class Bucket(NamedTuple):
    requests: int
    errors: int
    latency_ms: dict[str, float | None]
    """By quantile; None: nothing was answered well."""
    starts: Mapping[str, int]


class Course(NamedTuple):
    """The requests over time."""

    width_s: float
    buckets: tuple[Bucket, ...]

    def edges(self) -> list[float]:
        return [number * self.width_s for number in range(len(self.buckets) + 1)]


class Matrix(NamedTuple):
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], float]
    left_out: int = 0
    """Names that did not fit."""

    def __bool__(self) -> bool:
        return bool(self.cells)


class Settled(NamedTuple):
    """After one event: when what had converged."""

    event: str
    rows: tuple[Converged, ...]


def plain(text: str, limit: int = TEXT_MAX) -> str:
    """One short line of what prints."""
    cleaned = "".join(c if c.isprintable() else "·" for c in text)
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


# ---------------------------------------------------------------- what happened
def spans(history: History) -> list[Span]:
    found: dict[str, Span] = {}
    for row in history.of(Fault):
        if row.state == "begun":
            found[row.id] = Span(row, row.t_s, history.end_s, "begun", row.detail)
        elif row.id in found and row.state == "ended":
            found[row.id] = found[row.id]._replace(end_s=row.t_s)
        elif row.id in found:
            found[row.id] = found[row.id]._replace(proof=row.state, detail=row.detail)
    return list(found.values())


def windows(history: History) -> list[Window]:
    rows = history.of(Phase)
    last = Phase(t_s=history.end_s, name="end")
    return [
        Window(row.name, row.t_s, after.t_s, row.errors_max)
        for row, after in pairwise((*rows, last))
        if row.name != "end"
    ]


def settled(history: History) -> list[Settled]:
    by_event: dict[str, list[Converged]] = {}
    for row in history.of(Converged):
        by_event.setdefault(row.after, []).append(row)
    actions = {span.fault.id: span.fault.action for span in spans(history)}

    def name(after: str) -> str:
        """By the fault's id, as everywhere; a word may follow that says which end of it."""
        fault, _, end = after.partition(" ")
        return " ".join(filter(None, (fault or "start", actions.get(fault), end)))

    return [Settled(plain(name(after)), tuple(rows)) for after, rows in by_event.items()]


# ---------------------------------------------------------------- requests
def course(history: History) -> Course:
    """In buckets of one width, all of them full: the last would else look like a drop."""
    end_s = max((row.intended_s for row in history.requests), default=0.0)
    wanted = max(1.0, min(BUCKETS_MAX, len(history.requests) / PER_BUCKET_MIN))
    least_s = next((width for width in WIDTHS_S if end_s / width <= wanted), end_s / wanted)
    number = max(1, int(end_s / least_s))
    width_s = end_s / number or least_s
    parts: list[list[Request]] = [[] for _ in range(number)]
    for row in history.requests:
        parts[min(number - 1, int(row.intended_s / width_s))].append(row)
    return Course(width_s, tuple(map(_bucket, parts)))


def _bucket(rows: Sequence[Request]) -> Bucket:
    latency = latency_of(rows)
    found = {
        name: latency.quantile(share) / 1000 if latency.count else None
        for name, share in QUANTILES.items()
    }
    starts = Counter(row.start for row in rows if row.start is not None)
    errors = sum(row.error is not None for row in rows)
    return Bucket(len(rows), errors, found, starts)


def latency_of(rows: Iterable[Request]) -> Histogram:
    """In µs, of those answered well."""
    return Histogram(
        round((row.done_s - row.intended_s) * 1e6) for row in rows if row.error is None
    )


def starts(course: Course) -> dict[str, list[int]]:
    """Counts per bucket, the most frequent start type first."""
    total: Counter[str] = Counter()
    for bucket in course.buckets:
        total.update(bucket.starts)
    kept = [name for name, _ in total.most_common(NAMES_MAX)]
    return {name: [bucket.starts.get(name, 0) for bucket in course.buckets] for name in kept}


def by_answerer(history: History) -> Matrix:
    """Client region × region that answered -> median latency in ms."""
    regions = {node.name: node.region for node in history.run.nodes}

    def cells() -> Iterator[tuple[str, str, Request]]:
        for row in history.requests:
            if row.error is None:
                by = row.answered_by or row.node
                yield row.region, regions.get(by, by), row

    return _quantiles(cells(), 0.5)


def in_phases(history: History) -> list[tuple[Window, list[Request]]]:
    """Each phase with the requests that were intended in it."""
    phases = windows(history)
    begins = [phase.begin_s for phase in phases]
    parts: list[list[Request]] = [[] for _ in phases]
    for row in history.requests:
        at = bisect(begins, row.intended_s) - 1
        if at >= 0 and row.intended_s < phases[at].end_s:
            parts[at].append(row)
    return list(zip(phases, parts, strict=True))


def by_phase(history: History) -> Matrix:
    """Client region × phase -> 99th percentile in ms."""
    parts = in_phases(history)
    cells = (
        (row.region, phase.name, row) for phase, rows in parts for row in rows if row.error is None
    )
    return _quantiles(cells, 0.99, columns=[phase.name for phase, _ in parts])


def _quantiles(
    found: Iterable[tuple[str, str, Request]], share: float, columns: Sequence[str] = ()
) -> Matrix:
    latencies: dict[tuple[str, str], Histogram] = {}
    for source, target, row in found:
        key = (source, target)
        if key not in latencies:
            latencies[key] = Histogram()
        latencies[key].add(round((row.done_s - row.intended_s) * 1e6))
    values = {key: latency.quantile(share) / 1000 for key, latency in latencies.items()}
    return _matrix(values, columns)


def _matrix(values: dict[tuple[str, str], float], columns: Sequence[str] = ()) -> Matrix:
    rows = sorted({source for source, _ in values})
    columns = list(dict.fromkeys(columns)) or sorted({target for _, target in values})
    left_out = max(0, len(rows) - NAMES_MAX) + max(0, len(columns) - NAMES_MAX)
    rows, columns = rows[:NAMES_MAX], columns[:NAMES_MAX]
    cells = {key: value for key, value in values.items() if key[0] in rows and key[1] in columns}
    return Matrix(tuple(rows), tuple(columns), cells, left_out)


# ---------------------------------------------------------------- links
def link_bytes(history: History) -> Matrix:
    """Region × region -> bytes of streams sent in the run. A node that starts again counts from
    zero, so what it sent between its last sample and its end is not known."""
    regions = {node.name: node.region for node in history.run.nodes}
    sent: Counter[tuple[str, str]] = Counter()
    for node, peer, before, after in _steps(history):
        key = (regions.get(node, node), regions.get(peer, peer))
        sent[key] += after.stream_bytes - before.stream_bytes
    return _matrix({key: float(count) for key, count in sent.items() if count})


def dropped(history: History) -> int:
    """Datagrams that links took."""
    return sum(after.dropped - before.dropped for _, _, before, after in _steps(history))


def _steps(history: History) -> Iterator[tuple[str, str, LinkCount, LinkCount]]:
    last: dict[tuple[str, str], LinkCount] = {}
    nothing = LinkCount()
    for sample in history.samples:
        for peer, count in sample.links.items():
            before = last.get((sample.node, peer), nothing)
            # Counters that fell belong to a process that began since.
            restarted = count.datagrams < before.datagrams or (
                count.stream_bytes < before.stream_bytes or count.dropped < before.dropped
            )
            yield sample.node, peer, nothing if restarted else before, count
            last[sample.node, peer] = count


# ---------------------------------------------------------------- nodes
class Track(NamedTuple):
    """One node over time; NaN where it did not run."""

    node: str
    cpu: list[tuple[float, float]]
    """(time, cores)."""
    memory: list[tuple[float, float]]
    """(time, MiB)."""


def tracks(history: History) -> list[Track]:
    """In the order in which the cluster has its nodes, those that came later behind."""
    found = {node.name: Track(node.name, [], []) for node in history.run.nodes}
    last: dict[str, Sample] = {}
    for sample in history.samples:
        track = found.setdefault(sample.node, Track(sample.node, [], []))
        memory = math.nan if sample.rss_bytes is None else sample.rss_bytes / 2**20
        track.memory.append((sample.t_s, memory))
        track.cpu.append((sample.t_s, _cores(last.get(sample.node), sample)))
        last[sample.node] = sample
    return [track for track in found.values() if track.memory]


def _cores(before: Sample | None, after: Sample) -> float:
    """That one process used between two samples."""
    if before is None or before.cpu_s is None or after.cpu_s is None or before.pid != after.pid:
        return math.nan
    passed_s = after.t_s - before.t_s
    return max(0.0, after.cpu_s - before.cpu_s) / passed_s if passed_s >= APART_S else math.nan
