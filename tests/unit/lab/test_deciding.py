"""What nodes decide is heard once each, over restarts and silence, and explained at the end."""

from __future__ import annotations

import json
from typing import Any

from fake_field import FakeField

from edged.lab import history as h
from edged.lab.chaos.clock import RunClock
from edged.lab.chaos.control import Answer
from edged.lab.chaos.deciding import ROWS_MAX, Deciding

CHANGE = {"at_s": 1.0, "trigger": "drift", "before": "module", "after": "snapshot"}


class Run:
    def __init__(self) -> None:
        self.field = FakeField(["n1"])
        self.rows: list[h.HistoryRow] = []
        clock = RunClock()
        clock.start()
        self.deciding = Deciding(self.field, clock, self.rows.append)

    def says(self, after: int, *, generation: int, to: int, events: list[Any]) -> None:
        view = {"generation": generation, "next_after": to, "events": events}
        self.field.answers["n1", f"/v1/events?after={after}&limit={ROWS_MAX}"] = Answer(
            200, json.dumps(view).encode()
        )

    def plans(self, plan: Any) -> None:
        body = json.dumps({"name": "f", "plan": plan}).encode()
        self.field.answers["n1", "/v1/functions/f/explain"] = Answer(200, body)


def event(function: str, plan: Any = CHANGE, kind: str = "plan-changed") -> dict[str, Any]:
    return {"kind": kind, "name": function, "plan": plan}


async def test_each_change_is_told_once(autojump_clock: object) -> None:
    run = Run()
    run.says(0, generation=1, to=7, events=[event("f"), event("f", None, "record-accepted")])
    run.says(7, generation=1, to=7, events=[])
    for _ in range(3):
        await run.deciding.hear("n1")
    (row,) = run.rows
    assert isinstance(row, h.Decided)
    assert (row.node, row.function, row.before, row.after) == ("n1", "f", "module", "snapshot")


async def test_a_node_that_began_again_is_heard_from_the_start(autojump_clock: object) -> None:
    run = Run()
    run.says(0, generation=1, to=7, events=[event("f")])
    await run.deciding.hear("n1")
    run.says(7, generation=2, to=9, events=[])
    run.says(0, generation=2, to=9, events=[event("g"), event("h")])
    await run.deciding.hear("n1")
    assert [row.function for row in run.rows if isinstance(row, h.Decided)] == ["f", "g", "h"]


async def test_silence_and_nonsense_are_no_rows(autojump_clock: object) -> None:
    run = Run()
    path = f"/v1/events?after=0&limit={ROWS_MAX}"
    for answer in (Answer(503, b""), Answer(200, b"no JSON"), Answer(200, b'{"events": 3}')):
        run.field.answers["n1", path] = answer
        await run.deciding.explain("n1", ["f"])
    run.field.paused.add("n1")
    await run.deciding.hear("n1")
    assert run.rows == []


async def test_the_last_word(autojump_clock: object) -> None:
    run = Run()
    run.says(0, generation=1, to=0, events=[])
    row = {"form": "module", "ready_s": 1.5, "wire_price_s": 1.0, "hold_price_s": 0.5}
    run.plans(
        {
            "form": "module",
            "best": "module",
            "why": "x" * 9000,
            "rows": [row, {"form": "forward", "lacks": "nobody", "ready_s": None}],
            "inputs": [{"name": "rate", "value": 2.0, "source": "prior", "confidence": 0.0}],
            "flips": [{"input": "rate", "to_value": 4.0, "form": "snapshot"}],
        }
    )
    await run.deciding.explain("n1", ["f"])
    run.plans(None)
    await run.deciding.explain("n1", ["f"])
    (row,) = run.rows
    assert isinstance(row, h.Explained)
    assert [(form.form, form.lacks, form.price_s) for form in row.forms] == [
        ("module", None, 1.5),
        ("forward", "nobody", 0.0),
    ]
    assert (row.inputs[0].flips_at, row.inputs[0].flips_to) == (4.0, "snapshot")
    assert len(row.why) == h.TEXT_MAX
