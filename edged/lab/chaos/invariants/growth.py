"""A node that has warmed up does not grow: memory, descriptors, threads of one process.

Medians of the first and the last third of its samples are compared: one look in the middle of a
compile or a burst of requests is no growth.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Final, NamedTuple

from edged.lab.history import Finding, History, Phase, Sample

from .base import Invariant

NAME: Final = "no-growth"
WARM_UP_S: Final = 5.0
"""Of a process, after its first sample; at least the run's first phase."""
SAMPLES_MIN: Final = 9
KIB: Final = 1024


class _Measure(NamedTuple):
    what: str
    unit: str
    scale: int
    bound: int
    values: list[int]


def _lives(history: History) -> list[list[Sample]]:
    """Samples of one process each, once it is warm."""
    phases = history.of(Phase)
    warm_s = phases[1].t_s if len(phases) > 1 else 0.0
    lives: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in history.samples:
        if sample.pid is not None and sample.rss_bytes is not None:
            lives[sample.node, sample.pid].append(sample)
    warm = (
        [each for each in samples if each.t_s >= max(warm_s, samples[0].t_s + WARM_UP_S)]
        for samples in lives.values()
    )
    return [samples for samples in warm if len(samples) >= SAMPLES_MIN]


def _measures(samples: list[Sample], history: History) -> list[_Measure]:
    bounds = history.run.bounds
    rss = [each.rss_bytes for each in samples if each.rss_bytes is not None]
    fds = [each.fds for each in samples if each.fds is not None]
    threads = [each.threads for each in samples if each.threads is not None]
    return [
        _Measure("memory", " KiB", KIB, bounds.memory_growth_bytes, rss),
        _Measure("open descriptors", "", 1, bounds.fds_growth, fds),
        _Measure("threads", "", 1, bounds.threads_growth, threads),
    ]


def check(history: History) -> list[Finding]:
    findings: list[Finding] = []
    for samples in _lives(history):
        for measure in _measures(samples, history):
            if len(measure.values) < SAMPLES_MIN:
                continue
            third = len(measure.values) // 3
            first, last = median(measure.values[:third]), median(measure.values[-third:])
            if last - first <= measure.bound:
                continue
            begin, end = (round(value / measure.scale) for value in (first, last))
            findings.append(
                Finding(
                    t_s=samples[-1].t_s,
                    invariant=NAME,
                    subject=samples[0].node,
                    detail=f"{measure.what} of process {samples[0].pid} went from {begin} to"
                    f" {end}{measure.unit} between {samples[0].t_s:.0f} and"
                    f" {samples[-1].t_s:.0f} s; {measure.bound // measure.scale}{measure.unit}"
                    " more are allowed",
                )
            )
    return findings


def doubts(history: History) -> list[str]:
    return [] if _lives(history) else ["no node ran for long enough to see it grow"]


GROWTH: Final = Invariant(NAME, "no node grows once it is warm", check, doubts)
