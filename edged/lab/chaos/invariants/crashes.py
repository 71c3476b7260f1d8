"""No node's process ends, or is another one suddenly, but by a fault that ends processes."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from edged.lab.history import Finding, History, Sample

from .base import Invariant, windows

NAME: Final = "nobody-crashes"
ENDING: Final = frozenset({"kill", "region-loss", "restart", "rolling-restart", "poison"})
SLACK_S: Final = 1.0
"""A sample is written when the node has answered."""


def check(history: History) -> list[Finding]:
    looks: dict[str, list[Sample]] = defaultdict(list)
    for sample in history.samples:
        looks[sample.node].append(sample)
    ended = [window for window in windows(history) if window.fault.action in ENDING]
    findings: list[Finding] = []
    for name, samples in looks.items():
        causes = [window for window in ended if name in window.fault.targets]
        running: Sample | None = None
        for sample in samples:
            if running is not None and sample.pid != running.pid:
                since_s, until_s = running.t_s - SLACK_S, sample.t_s + SLACK_S
                if not any(window.touches(since_s, until_s) for window in causes):
                    findings.append(_finding(name, running, sample))
            running = sample if sample.pid is not None else None
    return findings


def _finding(name: str, before: Sample, after: Sample) -> Finding:
    became = f"is {after.state}" if after.pid is None else f"is process {after.pid}"
    return Finding(
        t_s=after.t_s,
        invariant=NAME,
        subject=name,
        detail=f"process {before.pid} ran at {before.t_s:.1f} s, and the node {became} at"
        f" {after.t_s:.1f} s: nothing has ended it",
    )


CRASHES: Final = Invariant(NAME, "no node ends but by a fault that ends it", check)
