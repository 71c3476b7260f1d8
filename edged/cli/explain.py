"""`edged explain`: which form of a function's code a node has, or would have, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import click

from .common import EdgedCommand, NodeProblem, clean, print_json, target_options
from .show import function_path, show_holders

if TYPE_CHECKING:
    from edged.cluster.state import NodeState
    from edged.interfaces import ExplainView, PlanFlip, PlanView
    from protocol.costs import Option

CHANGES_SHOWN: Final = 5
_HERE: Final = {
    "module": "{}",
    "wire": "{}'s wire form",
    "artifact": "{}'s artifact",
    "mapped": "{}'s code in memory",
}
"""A held form, of the module or of the snapshot."""


@click.command(cls=EdgedCommand)
@click.argument("name")
@click.option(
    "--what-if",
    "what_if",
    metavar="INPUT=VALUE",
    multiple=True,
    help="Decide as if: bandwidth=1mbit, rate=10/s, init=3s … Again for more.",
)
@target_options
def explain(name: str, what_if: tuple[str, ...], as_json: bool, **where: Any) -> None:
    """Show which form of a function's code a node has, what each would cost, and why.

    Of a local cluster without --node: all nodes, one line each."""
    from .target import find_target, names_all

    path = function_path(name, "/explain")
    if what_if:
        path += "?" + urlencode({"what_if": ",".join(what_if)})
    if names_all(**where):
        _all_nodes(name, path, where["cluster"], as_json=as_json)
        return
    data = find_target(**where).control().call("GET", path)
    if as_json:
        import msgspec

        print_json(msgspec.Raw(data))
    else:
        _show(_decoded(data))


def _decoded(data: bytes) -> ExplainView:
    import msgspec

    from edged.interfaces import ExplainView

    return msgspec.json.decode(data, type=ExplainView)


# ---------------------------------------------------------------- all nodes
def _all_nodes(name: str, path: str, cluster: str | None, *, as_json: bool) -> None:
    from .target import ask_all

    found = ask_all(cluster, path)
    nodes, answers = [node for node, _ in found], [answer for _, answer in found]
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    if len(refused) == len(answers) > 0:  # then it is the question, if any says so
        raise min(refused, key=lambda error: not isinstance(error, NodeProblem))
    if as_json:
        import msgspec

        rows = [
            {"node": node.name, "region": node.region}
            | ({"view": msgspec.Raw(found)} if isinstance(found, bytes) else {"error": str(found)})
            for node, found in zip(nodes, answers, strict=True)
        ]
        print_json({"name": name, "nodes": rows})
    else:
        _show_lines(nodes, answers)


def _show_lines(nodes: Sequence[NodeState], answers: Sequence[bytes | Exception]) -> None:
    from .render import NONE, table

    rows: list[tuple[object, ...]] = []
    for node, answer in zip(nodes, answers, strict=True):
        where = (node.name, node.region)
        if not isinstance(answer, bytes):
            rows.append((*where, NONE, NONE, NONE, NONE, str(answer), NONE))
            continue
        view = _decoded(answer)
        if view.plan is None:
            rows.append((*where, NONE, NONE, NONE, view.next_start, "it plans nothing", NONE))
        else:
            rows.append((*where, *_line(view, view.plan)))
    columns = ("node", "region", "form", "ready in", "per call", "a request now", "why", "until")
    table(columns, rows, empty="no node runs")


def _line(view: ExplainView, plan: PlanView) -> tuple[str, ...]:
    from edged.planwords import NOTHING

    row = next((row for row in plan.rows if row.form == plan.form), None)
    nearest = min(plan.flips, key=_distance, default=None)
    until = "" if nearest is None else f"{nearest.input} {_flip(nearest)}"
    return (
        plan.form or NOTHING,
        _seconds(row.ready_s if row else None),
        _seconds(row.per_call_s if row else None),
        view.next_start,
        plan.why,
        until or "whatever changes",
    )


def _flip(flip: PlanFlip) -> str:
    from edged.planwords import flip_words

    return flip_words(flip.input, flip.value, flip.to_value, flip.form)


def _distance(flip: PlanFlip) -> float:
    """How many times the value it is: what has none yet comes last."""
    if not flip.value or not flip.to_value:
        return float("inf")
    return max(flip.to_value / flip.value, flip.value / flip.to_value)


# ---------------------------------------------------------------- one node
def _show(view: ExplainView) -> None:
    from .render import fields, short

    plan = view.plan
    pairs: list[tuple[str, object]] = [
        ("function", f"{view.name} {short(view.version)}"),
        ("node", f"{view.node} ({view.target}, artifact key {short(view.artifact_key)})"),
        *(_decided(plan) if plan is not None else ()),
        ("a request now", view.next_start),
    ]
    if view.optimising:
        pairs.append(("optimising", view.optimising))
    fields(pairs)
    if plan is not None:
        _show_plan(plan)
    _show_held(view)
    show_holders(view.holders)
    if view.snapshot_holders:
        click.echo("of its snapshot:")
        show_holders(view.snapshot_holders)


def _decided(plan: PlanView) -> list[tuple[str, object]]:
    from edged.planwords import NOTHING, input_value

    from .render import ago, short

    form = plan.form or NOTHING
    assumed = [row for row in plan.inputs if row.source == "what-if"]
    if assumed:
        told = ", ".join(f"{row.name} {input_value(row.name, row.value)}" for row in assumed)
        pairs: list[tuple[str, object]] = [("if", told)]
        changed = "" if plan.form == plan.held else f", instead of {plan.held or NOTHING}"
        pairs.append(("form would be", form + changed))
    else:
        since = f", chosen {ago(plan.decided_at_s)}" if plan.decided_at_s is not None else ""
        by = f" ({plan.trigger})" if since and plan.trigger else ""
        pairs = [("form", f"{form}{since}{by}" if since else f"{form}, if it is asked for")]
    pairs.append(("why", plan.why))
    if plan.preferred is not None:
        pairs.append(("preferred", f"{plan.preferred}, by this node's configuration"))
    if plan.serving is not None:
        pairs.append(("runs in", short(plan.serving)))
    return pairs


def _show_plan(plan: PlanView) -> None:
    _show_forms(plan)
    for row in plan.rows:
        if row.lacks is not None:
            click.echo(f"{row.form} cannot be had: {clean(row.lacks)}")
    for form, why in plan.failed.items():
        click.echo(f"{form} failed, and is left alone for a while: {clean(why)}")
    _show_inputs(plan)


def _show_forms(plan: PlanView) -> None:
    from .render import NONE, table

    columns = (
        *("", "form", "ready in", "queue", "rtt", "transfer", "decompress", "build", "load"),
        *("per call", "on wire", "on disk", "waiting", "calls", "price", "total"),
    )
    rows = [_form(row, plan) for row in plan.rows if row.lacks is None]
    used = [at for at in range(len(columns)) if any(row[at] != NONE for row in rows)]
    table(
        [columns[at] for at in used],
        ([row[at] for at in used] for row in rows),
        empty="no form can be had",
    )


def _form(row: Option, plan: PlanView) -> tuple[str, ...]:
    from .render import NONE, size

    return (
        "chosen" if row.form == plan.form else "cheapest" if row.form == plan.best else "",
        row.form,
        *map(_seconds, (row.ready_s, row.queue_s, row.rtt_s, row.transfer_s)),
        *map(_seconds, (row.decompress_s, row.build_s, row.load_s, row.per_call_s)),
        *(size(count) if count else NONE for count in (row.wire_bytes, row.stored_bytes)),
        *map(_seconds, (row.wait_s, row.calls_s, row.price_s, row.total_s)),
    )


def _show_inputs(plan: PlanView) -> None:
    from edged.planwords import change_words, input_value

    from .render import NONE, ago, percent, table

    flips = {flip.input: _flip(flip) for flip in plan.flips}
    table(
        ("input", "value", "known", "confidence", "age", "flips the choice"),
        (
            (
                row.name,
                input_value(row.name, row.value),
                row.source,
                percent(row.confidence),
                _seconds(row.age_s),
                flips.get(row.name, NONE),
            )
            for row in plan.inputs
        ),
        empty="it was decided from nothing",
    )
    for name in sorted(flips.keys() - {row.name for row in plan.inputs}):
        click.echo(f"{name}, of which nothing is known: {flips[name]}")
    for change in plan.changes[-CHANGES_SHOWN:]:
        click.echo(f"{ago(change.at_s)}: {change_words(change)}")


def _seconds(value: float | None) -> str:
    """Zero is nothing to read."""
    from edged.quantities import show_seconds

    from .render import NONE

    return show_seconds(value) if value else NONE


def _show_held(view: ExplainView) -> None:
    from .render import NONE, measured, short, size, table

    table(
        ("here", "size", "digest", "measured"),
        (
            (
                _HERE[form.form].format(form.code) + (f" ({form.tier})" if form.tier else ""),
                size(form.size_bytes),
                short(form.digest),
                ", ".join(map(measured, form.measured.items())) or NONE,
            )
            for form in view.forms
            if form.held
        ),
        empty="nothing of it is here",
    )
