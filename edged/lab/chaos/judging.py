"""The verdict on a run, from its history alone.

invalid  something that must hold did not: at least one finding
unknown  nothing was found, but the run cannot show that it held: a fault without evidence that it
         took effect, a run that did not come to its end, or nobody asked anything
valid    all faults proven, all invariants judged, no finding
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.lab.history import (
    Conclusion,
    Explained,
    Fault,
    Finding,
    History,
    Judged,
    Left,
    Phase,
    Verdict,
)

from .invariants import INVARIANTS, Invariant


def judge(history: History, invariants: Sequence[Invariant] = INVARIANTS) -> Verdict:
    run = history.run
    findings = [row for row in history.rows if isinstance(row, Finding)]
    judged: list[Judged] = []
    doubts = doubts_of(history)
    for invariant in invariants:
        if invariant.name in run.bounds.skip:
            continue
        found = invariant.check(history)
        doubted = invariant.doubts(history)
        judged.append(
            Judged(
                invariant=invariant.name,
                findings=len(found),
                teaches=invariant.states,
                unseen=bool(doubted) and not found,
            )
        )
        findings += found
        doubts += doubted
    if not judged:
        doubts.append("no invariant was judged")
    conclusion: Conclusion = "invalid" if findings else "unknown" if doubts else "valid"
    return Verdict(
        scenario=run.scenario,
        seed=run.seed,
        verdict=conclusion,
        why=_why(conclusion, findings, doubts, judged),
        findings=tuple(findings),
        unproven=tuple(doubts),
        judged=tuple(judged),
        requests=len(history.requests),
        errors=sum(request.error is not None for request in history.requests),
        plans=plans_of(history),
        replay=run.replay,
    )


def plans_of(history: History) -> dict[str, dict[str, str | None]]:
    """Function -> node -> the form it has chosen at the end."""
    found: dict[str, dict[str, str | None]] = {}
    for row in history.of(Explained):
        found.setdefault(row.function, {})[row.node] = row.form
    return found


def doubts_of(history: History) -> list[str]:
    """Why nothing would follow from a run without findings."""
    doubts: list[str] = []
    faults: dict[str, dict[str, Fault]] = {}
    for fault in history.of(Fault):
        faults.setdefault(fault.id, {})[fault.state] = fault
    for name, states in faults.items():
        any_state = next(iter(states.values()))
        told = f"fault {name} ({any_state.action} {' '.join(any_state.targets)})"
        if "unproven" in states:
            doubts.append(f"{told} is not proven: {states['unproven'].detail}")
        elif "proven" not in states:
            doubts.append(f"{told} is not proven: the run ended before")
    doubts += [
        f"fault {planned.id} ({planned.action}) was planned and never begun"
        for planned in history.timeline
        if planned.action != "deploy" and planned.id not in faults
    ]
    if not any(phase.name == "end" for phase in history.of(Phase)):
        doubts.append("the run was ended before its last phase was over")
    elif not history.of(Left):
        doubts.append("what the run left behind was not looked at")
    if not history.requests:
        doubts.append("nobody asked anything")
    return doubts


def _why(
    conclusion: Conclusion,
    findings: Sequence[Finding],
    doubts: Sequence[str],
    judged: Sequence[Judged],
) -> str:
    match conclusion:
        case "invalid":
            names = dict.fromkeys(finding.invariant for finding in findings)
            return f"{len(findings)} findings against {', '.join(names)}"
        case "unknown":
            more = f" (and {len(doubts) - 1} more)" if len(doubts) > 1 else ""
            return f"{doubts[0]}{more}"
        case "valid":
            return f"every fault is proven, and {len(judged)} invariants hold"
