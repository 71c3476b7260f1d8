"""A run's plan and events in words, one line each, for terminals."""

from __future__ import annotations

from typing import Final, assert_never

from edged.lab.history import (
    Catalog,
    Converged,
    Decided,
    Deploy,
    Explained,
    Fault,
    Finding,
    HistoryRow,
    Left,
    Phase,
    Planned,
    Run,
    Verdict,
)
from edged.planwords import NOTHING, change_words

FINDINGS_SHOWN: Final = 20
"""The rest is in verdict.json."""


def told(row: HistoryRow) -> str:
    match row:
        case Run():
            where = f" over {row.topology}" if row.topology else ""
            return f"run of {row.scenario}, seed {row.seed}: {len(row.nodes)} nodes{where}"
        case Phase():
            budget = "" if row.errors_max is None else f", {row.errors_max:.2%} may fail"
            return f"phase {row.name}{budget}"
        case Fault():
            head = f"fault {row.id} {row.action} {' '.join(row.targets)}: {row.state}"
            return f"{head}, {row.detail}" if row.detail else head
        case Deploy():
            head = f"deploy {row.function} version {row.label} at {row.node}"
            if row.acknowledged_s is None:
                return f"{head}: not acknowledged, {row.error}"
            return f"{head}: on {', '.join(row.holders)} after {row.t_s - row.begun_s:.2f} s"
        case Converged():
            head = f"{row.what} after {row.after or 'the start'}"
            if row.seconds is None:
                return f"{head}: not within {row.waited_s:.1f} s; {row.detail}"
            return f"{head}: the same on {len(row.nodes)} nodes in {row.seconds:.2f} s"
        case Catalog():
            return f"catalog of {row.node}: {len(row.functions)} functions, {row.digest[:12]}"
        case Decided():
            return f"plan of {row.function} on {row.node}: {change_words(row)}"
        case Explained():
            return f"{row.function} on {row.node}: {row.form or NOTHING}; {row.why}"
        case Left():
            things = [*row.processes, *row.files]
            return f"torn down; left behind: {', '.join(things) or 'nothing'}"
        case Finding():
            return f"finding: {row.invariant}, {row.subject}: {row.detail}"
        case _:
            assert_never(row)


def planned_words(row: Planned) -> str:
    settings = "".join(f" {key}={value}" for key, value in row.settings.items())
    ends = "" if row.duration_s is None else f", for {row.duration_s:g} s"
    return f"{row.id}: {row.action} {' '.join(row.targets)}{settings}{ends}"


def verdict_lines(verdict: Verdict) -> list[str]:
    lines = [
        f"{verdict.scenario}, seed {verdict.seed}: {verdict.verdict.upper()}: {verdict.why}",
        f"  {verdict.requests} requests, {verdict.errors} of them failed",
    ]
    for judged in verdict.judged:
        mark = "NOT" if judged.findings else " ? " if judged.unseen else "ok "
        lines.append(f"  {mark} {judged.invariant}: {judged.teaches}")
    lines += [f"  not proven: {text}" for text in verdict.unproven[:FINDINGS_SHOWN]]
    for finding in verdict.findings[:FINDINGS_SHOWN]:
        lines.append(
            f"  {finding.t_s:.2f} s  {finding.invariant}, {finding.subject}: {finding.detail}"
        )
    if (more := len(verdict.findings) - FINDINGS_SHOWN) > 0:
        lines.append(f"  … and {more} findings more")
    return [*lines, f"replay: {verdict.replay}"]
