"""Which forms of code the nodes chose, at the end of a run and on the way there."""

from __future__ import annotations

from typing import Final

from edged.lab.history import Decided, Explained, FormCost, History, InputValue
from edged.planwords import NOTHING, change_words, flip_words, input_value
from edged.quantities import show_seconds

from .figures import counted
from .markup import Cell, Html, table, text, titled
from .plots import bytes_words

TABLES_MAX: Final = 100
"""Of forms, one for a function on a node; the folder has all."""


def plans(history: History) -> Html:
    """A line for each function and node, and behind it the table that it was decided from."""
    rows = history.of(Explained)
    if not rows:
        return Html("")
    regions = {node.name: node.region for node in history.run.nodes}
    head = ("function", "node", "region", "form", "ready in", "per call", "why")
    lines = ((row.function, row.node, regions.get(row.node, ""), *_chosen(row)) for row in rows)
    parts = [table(head, lines), *map(_details, rows[:TABLES_MAX])]
    if len(rows) > TABLES_MAX:
        more = counted(len(rows) - TABLES_MAX, "table")
        parts.append(Html(f'<p class="dim">and {more} more in the folder</p>'))
    return titled("Forms of code at the end", Html("".join(parts)))


def _chosen(row: Explained) -> tuple[Cell, ...]:
    form = next((each for each in row.forms if each.form == row.form), None)
    ready_s, per_call_s = (None, None) if form is None else (form.ready_s, form.per_call_s)
    return (row.form or NOTHING, _seconds(ready_s), _seconds(per_call_s), row.why)


def _details(row: Explained) -> Html:
    forms = table(
        ("form", "", "ready in", "per call", "on wire", "on disk", "price", "total"),
        (_form(form, row) for form in row.forms),
    )
    inputs = table(
        ("input", "value", "known", "confidence", "age", "flips the choice"),
        map(_input, row.inputs),
    )
    name = text(f"{row.function} on {row.node}: {row.form or NOTHING}")
    return Html(f"<details><summary>{name}</summary>{forms}{inputs}</details>")


def _form(form: FormCost, row: Explained) -> tuple[Cell, ...]:
    if form.lacks is not None:
        return (form.form, form.lacks, None, None, None, None, None, None)
    mark = "chosen" if form.form == row.form else "cheapest" if form.form == row.best else ""
    return (
        form.form,
        mark,
        _seconds(form.ready_s),
        _seconds(form.per_call_s),
        bytes_words(form.wire_bytes),
        bytes_words(form.stored_bytes),
        _seconds(form.price_s),
        _seconds(form.total_s),
    )


def _input(value: InputValue) -> tuple[Cell, ...]:
    flips = None
    if value.flips_at is not None:
        flips = flip_words(value.name, value.value, value.flips_at, value.flips_to)
    return (
        value.name,
        input_value(value.name, value.value),
        value.source,
        f"{value.confidence:.0%}",
        _seconds(value.age_s),
        flips,
    )


def decisions(history: History) -> Html:
    rows = history.of(Decided)
    if not rows:
        return Html("")
    cells = ((row.t_s, row.function, row.node, change_words(row)) for row in rows)
    return titled("Changes of form", table(("t (s)", "function", "node", "change"), cells))


def _seconds(value: float | None) -> str | None:
    return show_seconds(value) if value else None
