"""Which form of a function's code a node shall have. edged/docs/PLANNER.md.

Pure: the same inputs give the same decision, and whoever asks keeps what was decided. The table is
protocol.costs'; here are the rules on top of it: the cheapest wins; what is held is given up only
for what is cheaper by a margin, which is wider the less is known; a demand whose rate is unknown is
judged by what it has cost so far (ski rental).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from .costs import Inputs, Option, PlanForm, Prices, options
from .errors import LocalProtocolError

MARGIN: Final = 0.15
"""Of the cost of what is held: by so much another form must be cheaper. Inputs that are each off by
7 % either way never make two forms change places twice (tests/property/test_planner.py)."""
MARGIN_UNSURE: Final = 0.25
"""More, where nothing is known at all: this times (1 − confidence)."""
MARGIN_S: Final = 1e-6
"""At least: what is less than a clock can tell is no reason."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    form: PlanForm | None
    """None: there is none to be had."""
    held: PlanForm | None
    """Before."""
    best: PlanForm | None
    """The cheapest; not chosen where it is not cheaper by the margin than what is held."""
    margin: float
    """Share of the cost of what is held."""
    options: tuple[Option, ...]
    why: str

    @property
    def changed(self) -> bool:
        return self.form != self.held


def decide(inputs: Inputs, held: PlanForm | None = None) -> Decision:
    """`held`: what was decided last; None: nothing was."""
    rows = options(inputs)
    margin = margin_of(inputs, held)
    chosen, best = pick(rows, held, margin)
    if chosen is None or best is None:
        return Decision(
            form=None, held=held, best=None, margin=margin, options=rows,
            why="; ".join(f"{row.form}: {row.lacks}" for row in rows),
        )  # fmt: skip
    return Decision(
        form=chosen.form, held=held, best=best.form, margin=margin, options=rows,
        why=_why(inputs, rows, chosen, best, margin),
    )  # fmt: skip


def pick(
    rows: tuple[Option, ...], held: PlanForm | None, margin: float
) -> tuple[Option | None, Option | None]:
    """(what is chosen, the cheapest); None: there is nothing to be had."""
    best = min(rows, key=_rank)
    if best.lacks is not None:
        return None, None
    if held is not None and held != best.form:
        for row in rows:
            if row.form == held and not _gives_way(row, best, margin):
                return row, best
    return best, best


def margin_of(inputs: Inputs, held: PlanForm | None) -> float:
    """0 where forwarding ends by what it has cost: that sum only grows, so it cannot flap, and
    twice the optimum is kept only if buying waits no longer."""
    if held is None or (held == "forward" and inputs.rate_per_s is None):
        return 0.0
    return MARGIN + MARGIN_UNSURE * (1 - inputs.confidence)


def _gives_way(own: Option, best: Option, margin: float) -> bool:
    if own.lacks is not None:
        return True
    if not best.wire_bytes and not best.build_s and best.per_call_s == own.per_call_s:
        margin = 0.0  # the same code without what it was made from: there is nothing to regret
    return best.total_s < own.total_s - max(margin * own.total_s, MARGIN_S)


def _rank(row: Option) -> tuple[float, float]:
    """While nobody knows the rate, forms that peers stand in for differ by when they are ready."""
    return row.total_s, row.ready_s


def _why(
    inputs: Inputs, rows: tuple[Option, ...], chosen: Option, best: Option, margin: float
) -> str:
    if inputs.rate_per_s is None:
        over = f"after {inputs.rented.calls} calls, at an unknown rate"
    else:
        over = f"over {inputs.horizon_s:g} s at {inputs.rate_per_s:.3g}/s"
    if chosen is not best:
        held, other = f"{chosen.total_s:.3g}", f"{best.total_s:.3g}"
        if held == other:
            return f"{chosen.form} is held: it costs {held} s {over}, as does {best.form}"
        return (
            f"{chosen.form} is held: {best.form} would cost {other} s instead of {held} s {over}, "
            f"and must be cheaper by {margin:.0%}"
        )
    others = [row for row in rows if row is not chosen and row.lacks is None]
    if not others:
        return f"{chosen.form} alone can be had"
    second = min(others, key=_rank)
    costs = f"{chosen.form} costs {chosen.total_s:.3g} s {over}"
    if second.total_s == chosen.total_s and second.ready_s > chosen.ready_s:
        return (
            f"{costs}, as does {second.form}, and is ready in {chosen.ready_s:.3g} s instead of "
            f"{second.ready_s:.3g} s"
        )
    return f"{costs}, {second.form} {second.total_s:.3g} s"


# ---------------------------------------------------------------- at deploy
CALLS_UNKNOWN: Final = 1000.0
"""Per version and all nodes, where nobody says how many are expected: few functions are deployed
for less."""


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a snapshot is worth making. All in seconds, for all nodes together."""

    saved_s: float
    making_s: float
    storing_s: float
    moving_s: float
    calls_even: float
    """Calls after which it pays; infinite: it never does."""
    worth: bool


def worth_making(
    *,
    init_s: float,
    instantiate_s: float,
    instantiate_snapshot_s: float,
    making_cpu_s: float,
    extra_wire_bytes: int,
    extra_stored_bytes: int,
    nodes: int,
    horizon_s: float,
    link_bytes_s: float,
    prices: Prices,
    calls: float | None = None,
) -> Worth:
    """`extra_wire_bytes`: that a node fetches more to have the snapshot (its delta, where there is
    one), `extra_stored_bytes` that it then holds more; `nodes`: that are expected to run it;
    `calls`: expected of all of them over `horizon_s`. Each node still decides for itself: this is
    only whether it shall have the choice. Raises LocalProtocolError."""
    amounts = (
        init_s, instantiate_s, instantiate_snapshot_s, making_cpu_s, extra_wire_bytes,
        extra_stored_bytes, nodes, horizon_s, calls or 0.0,
    )  # fmt: skip
    if not (min(amounts) >= 0 and sum(amounts) < math.inf and link_bytes_s > 0):
        raise LocalProtocolError("a rate must be positive, an amount finite and not negative")
    per_call_s = instantiate_s + init_s - instantiate_snapshot_s
    making_s = making_cpu_s * prices.cpu_s_per_s
    storing_s = nodes * extra_stored_bytes * prices.stored_s_per_byte_s * horizon_s
    # One request per node waits for the bytes, or is answered otherwise while they come.
    moved_s = extra_wire_bytes / link_bytes_s + extra_wire_bytes * prices.wire_s_per_byte
    moving_s = nodes * moved_s
    spent_s = making_s + storing_s + moving_s
    expected = CALLS_UNKNOWN if calls is None else calls
    calls_even = spent_s / per_call_s if per_call_s > 0 else math.inf
    return Worth(
        saved_s=per_call_s * expected,
        making_s=making_s,
        storing_s=storing_s,
        moving_s=moving_s,
        calls_even=calls_even,
        worth=calls_even < expected,
    )
