"""In each phase no more requests fail than its budget says, counted by when they were due."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from edged.lab.history import Finding, History, Phase, Request

from .base import Invariant

NAME: Final = "error-budget"
KINDS_SHOWN_MAX: Final = 4


class _Span(NamedTuple):
    phase: Phase
    requests: list[Request]


def _spans(history: History) -> list[_Span]:
    """Phases that have a budget."""
    phases = history.of(Phase)
    spans: list[_Span] = []
    for at, phase in enumerate(phases):
        if phase.errors_max is None:
            continue
        end_s = phases[at + 1].t_s if at + 1 < len(phases) else history.end_s
        due = [row for row in history.requests if phase.t_s <= row.intended_s < end_s]
        spans.append(_Span(phase, due))
    return spans


def check(history: History) -> list[Finding]:
    findings: list[Finding] = []
    for phase, requests in _spans(history):
        failed = [row for row in requests if row.error is not None]
        assert phase.errors_max is not None
        if len(failed) <= phase.errors_max * len(requests):
            continue
        kinds = Counter(f"{row.error} at {row.node}" for row in failed).most_common(KINDS_SHOWN_MAX)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds)
        findings.append(
            Finding(
                t_s=failed[0].t_s,
                invariant=NAME,
                subject=phase.name,
                detail=f"{len(failed)} of {len(requests)} requests failed, and"
                f" {phase.errors_max:.2%} may: {told}",
            )
        )
    return findings


def doubts(history: History) -> list[str]:
    return [
        f"nobody asked anything in phase {span.phase.name}, which has a budget of errors"
        for span in _spans(history)
        if not span.requests
    ]


BUDGET: Final = Invariant(NAME, "no phase has more failed requests than its budget", check, doubts)
