"""Time to the first answer by form and link: the planner's own cost model, and where it flips.

A node that holds nothing, one peer that has every form, no round trip and no other work: what is
left is bytes, compiling and init. `protocol.costs` makes the table, from what was measured here.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from _snapshot_facts import Blob as FormBlob
from _snapshot_facts import Facts

from protocol.costs import Blob, Inputs, Option, PlanForm, Sources, options

LINKS_MBIT = (1.0, 20.0, 100.0, 1000.0)
SWEEP_MBIT = tuple(10 ** (step / 40) for step in range(-40, 161))
"""0.1 Mbit/s to 10 Gbit/s."""
FORMS: tuple[PlanForm, ...] = (
    "module", "artifact", "snapshot", "snapshot-delta", "snapshot-here", "snapshot-artifact",
)  # fmt: skip
COMPILED: tuple[PlanForm, ...] = ("module", "snapshot", "snapshot-delta", "snapshot-here")
"""What is left where nobody has native code for this machine."""
QUESTIONS = (
    ("first answer", FORMS, 1),
    ("first answer, no artifacts", COMPILED, 1),
    ("100 answers", FORMS, 100),
    ("100 answers, no artifacts", COMPILED, 100),
)
"""What is asked of each bandwidth: of which forms, after how many calls."""
BYTES_PER_MBIT = 125_000
LABEL_CHARS = 25
DECOMPRESS_BYTES_S = 700e6
LOAD_S = 0.0005
"""Both: FACTS §1 and §5."""


class Flip(NamedTuple):
    mbit: float
    """Above it `to` is first, below it `before`."""
    before: PlanForm
    to: PlanForm


def rows(facts: Facts, mbit: float) -> dict[PlanForm, Option]:
    """The planner's table for one request that waits.

    What answers first is the fast compiler's code, which optimised code replaces later. The planner
    knows one speed of compiling; a snapshot's data makes it slower (160 MB/s), so its rows are made
    with its own."""
    found: dict[PlanForm, Option] = {}
    for code in (facts.module, facts.snapshot):
        made = options(_inputs(facts, mbit, code.fast.cpu_s))
        own = [row for row in made if row.form.startswith("snapshot") == (code is facts.snapshot)]
        found |= {row.form: row for row in own}
    return found


def _inputs(facts: Facts, mbit: float, compile_s: float) -> Inputs:
    link = mbit * BYTES_PER_MBIT
    source = Sources(0.0, link)

    def blob(form: FormBlob) -> Blob:
        return Blob(wire_bytes=form.wire_bytes, size_bytes=form.size_bytes, sources=source)

    module, snapshot = facts.module, facts.snapshot
    before, after = facts.starts["module"], facts.starts["snapshot"]
    return Inputs(
        module=blob(module.blob),
        artifact=blob(module.artifact),
        snapshot=blob(snapshot.blob),
        delta=Blob(wire_bytes=facts.delta_bytes, sources=source) if facts.delta_offered else None,
        snapshot_artifact=blob(snapshot.artifact),
        code_bytes=module.code_bytes,
        link_bytes_s=link,
        decompress_bytes_s=DECOMPRESS_BYTES_S,
        compile_bytes_s=module.code_bytes / compile_s,
        load_s=LOAD_S,
        init_s=facts.init_s,
        make_snapshot_s=facts.report.cpu_s - facts.report.init_cpu_s,
        instantiate_s=before.instantiate_s,
        instantiate_snapshot_s=after.instantiate_s,
        run_s=max(after.cpu_s - after.instantiate_s, 0.0),
        waiting=1,
        rate_per_s=0.0,
        horizon_s=0.0,
    )


def answered_s(row: Option, calls: int = 1) -> float:
    """Until so many calls, one after the other, are answered."""
    return row.ready_s + calls * row.per_call_s


def winner(
    facts: Facts, mbit: float, forms: tuple[PlanForm, ...] = FORMS, *, calls: int = 1
) -> PlanForm:
    found = rows(facts, mbit)
    there = [form for form in forms if form in found]
    return min(there, key=lambda form: answered_s(found[form], calls))


def flips(facts: Facts, forms: tuple[PlanForm, ...] = FORMS, *, calls: int = 1) -> list[Flip]:
    """Where, from slow links to fast ones, another form has answered first."""
    found = []
    for low, high in itertools.pairwise(SWEEP_MBIT):
        before, to = (winner(facts, mbit, forms, calls=calls) for mbit in (low, high))
        if before != to:
            found.append(Flip((low * high) ** 0.5, before, to))
    return found


def calls_until_paid(facts: Facts, mbit: float) -> float:
    """After how many calls here the snapshot (full, compiled here) has cost less waiting in all
    than the module; 1: its first answer is sooner."""
    found = rows(facts, mbit)
    module, snapshot = found["module"], found["snapshot"]
    saved_s = module.per_call_s - snapshot.per_call_s
    return max(1.0, (snapshot.ready_s - module.ready_s) / saved_s)


def show(found: list[Facts]) -> None:
    print("\nFirst answer on a node that holds nothing, by the planner's model, s (*: the soonest)")
    print(heads() + f" {'calls until paid':>17}")
    for facts in found:
        for mbit in LINKS_MBIT:
            table = rows(facts, mbit)
            told = {form: answered_s(row) for form, row in table.items() if form in FORMS}
            print(f"{cells(facts, mbit, told)} {calls_until_paid(facts, mbit):17.1f}")
    print("calls until paid: by then the snapshot, compiled there, has made callers wait less")
    print("in all than the module, compiled there and initialised by each call")
    print("\nWhere the decision flips, from slow links to fast ones")
    for facts in found:
        print(facts.case.name)
        for title, forms, calls in QUESTIONS:
            print(f"  {title:32} {_path(facts, forms, calls)}")
    print("no artifacts: where no peer has native code for this machine")


def heads() -> str:
    return f"{'':{LABEL_CHARS}} " + " ".join(f"{form:>17}" for form in FORMS)


def cells(facts: Facts, mbit: float, told: dict[PlanForm, float]) -> str:
    """A row; the least of `told`, which may lack forms, is marked."""
    best = min(told, key=lambda form: told[form])
    shown = [
        f"{'-':>17}" if form not in told
        else f"{told[form]:15.3f} *" if form == best else f"{told[form]:17.3f}"
        for form in FORMS
    ]  # fmt: skip
    label = f"{facts.case.name}, {mbit:g} Mbit/s"
    return f"{label:{LABEL_CHARS}} {' '.join(shown)}"


def _path(facts: Facts, forms: tuple[PlanForm, ...], calls: int) -> str:
    changes = flips(facts, forms, calls=calls)
    first = winner(facts, SWEEP_MBIT[0], forms, calls=calls)
    return first + "".join(f" ─ {flip.mbit:.3g} Mbit/s ─▶ {flip.to}" for flip in changes)


def summary(facts: Facts) -> dict[str, Any]:
    return {
        "first_answer_s": {
            f"{mbit:g}": {
                form: round(answered_s(row), 4)
                for form, row in rows(facts, mbit).items()
                if form in FORMS
            }
            for mbit in LINKS_MBIT
        },
        "calls_until_paid": {
            f"{mbit:g}": round(calls_until_paid(facts, mbit), 2) for mbit in LINKS_MBIT
        },
        "flips": {
            title: [flip._asdict() for flip in flips(facts, forms, calls=calls)]
            for title, forms, calls in QUESTIONS
        },
    }
