"""Verdicts: one finding is enough for invalid; without evidence nothing is valid."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from test_run_folder import EVENTS, PLANNED, REQUEST, RUN, SAMPLE, written

from edged.cli.main import edged
from edged.lab import history as h
from edged.lab.chaos.invariants import Invariant
from edged.lab.chaos.judging import judge
from edged.lab.chaos.telling import verdict_lines

HOLDS = Invariant("holds", "all is well", lambda _: [])
BREAKS = Invariant(
    "breaks",
    "nothing is well",
    lambda _: [h.Finding(t_s=1.0, invariant="breaks", subject="n1", detail="it did")],
)
PROVEN = h.Fault(t_s=2.1, id="1", action="kill", targets=("n2",), state="proven")
BEGUN = h.Fault(t_s=2.0, id="1", action="kill", targets=("n2",), state="begun")
END = h.Phase(t_s=9.0, name="end")
LEFT = h.Left(t_s=10.0, fds_before=9, fds_after=9)


def history_of(*rows: h.HistoryRow, requests: tuple[h.Request, ...] = (REQUEST,)) -> h.History:
    return h.History(
        run=RUN, timeline=(PLANNED,), rows=(RUN, *rows), requests=requests, samples=(SAMPLE,)
    )


def test_valid() -> None:
    verdict = judge(history_of(BEGUN, PROVEN, END, LEFT), [HOLDS])
    assert verdict.verdict == "valid"
    assert verdict.why == "every fault is proven, and 1 invariants hold"
    assert (verdict.requests, verdict.errors, verdict.replay) == (1, 0, RUN.replay)


def test_a_finding_makes_it_invalid_whatever_else_is_unknown() -> None:
    verdict = judge(history_of(BEGUN), [HOLDS, BREAKS])
    assert verdict.verdict == "invalid"
    assert verdict.why == "1 findings against breaks"
    assert [row.invariant for row in verdict.findings] == ["breaks"]
    assert [row.findings for row in verdict.judged] == [0, 1]
    assert any("breaks, n1: it did" in line for line in verdict_lines(verdict))


def test_what_saw_nothing_is_not_called_ok() -> None:
    blind = Invariant("blind", "nobody knows", lambda _: [], lambda _: ["it was dark"])
    verdict = judge(history_of(BEGUN, PROVEN, END, LEFT), [HOLDS, blind])
    assert (verdict.verdict, [row.unseen for row in verdict.judged]) == ("unknown", [False, True])
    assert {"  ok  holds: all is well", "   ?  blind: nobody knows"} <= set(verdict_lines(verdict))


def test_findings_of_the_run_itself_count() -> None:
    finding = h.Finding(t_s=5.0, invariant="comes-back", subject="n2", detail="it did not")
    verdict = judge(history_of(BEGUN, PROVEN, END, LEFT, finding), [HOLDS])
    assert (verdict.verdict, verdict.findings) == ("invalid", (finding,))


def test_what_a_scenario_skips_is_not_judged() -> None:
    run = msgspec.structs.replace(RUN, bounds=h.Bounds(skip=("breaks",)))
    rows = (run, BEGUN, PROVEN, END, LEFT)
    history = msgspec.structs.replace(history_of(), run=run, rows=rows)
    verdict = judge(history, [HOLDS, BREAKS])
    assert verdict.verdict == "valid"
    assert [row.invariant for row in verdict.judged] == ["holds"]


@pytest.mark.parametrize(
    ("rows", "requests", "words"),
    [
        (
            (BEGUN, msgspec.structs.replace(PROVEN, state="unproven", detail="it runs"), END, LEFT),
            (REQUEST,),
            "fault 1 (kill n2) is not proven: it runs",
        ),
        ((BEGUN, END, LEFT), (REQUEST,), "fault 1 (kill n2) is not proven: the run ended before"),
        ((END, LEFT), (REQUEST,), "fault 1 (kill) was planned and never begun"),
        ((BEGUN, PROVEN, LEFT), (REQUEST,), "the run was ended before its last phase was over"),
        ((BEGUN, PROVEN, END), (REQUEST,), "what the run left behind was not looked at"),
        ((BEGUN, PROVEN, END, LEFT), (), "nobody asked anything"),
    ],
)
def test_unknown(
    rows: tuple[h.HistoryRow, ...], requests: tuple[h.Request, ...], words: str
) -> None:
    verdict = judge(history_of(*rows, requests=requests), [HOLDS])
    assert verdict.verdict == "unknown"
    assert verdict.unproven == (words,)
    assert f"  not proven: {words}" in verdict_lines(verdict)


def test_a_run_that_nobody_judged_is_unknown() -> None:
    verdict = judge(history_of(BEGUN, PROVEN, END, LEFT), [])
    assert verdict.unproven == ("no invariant was judged",)


def test_the_command_judges_from_the_folder(tmp_path: Path) -> None:
    done = CliRunner().invoke(edged, ["chaos", "judge", str(written(tmp_path))])
    assert done.exit_code == 1
    assert "s, seed 7: INVALID: " in done.output
    assert done.output.endswith(f"replay: {RUN.replay}\n")
    assert (tmp_path / "verdict.json").is_file()
    shown = CliRunner().invoke(edged, ["chaos", "show", str(tmp_path)])
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) == len(EVENTS)
