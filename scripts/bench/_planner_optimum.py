"""What the best plan with hindsight costs: a lower bound that no policy in the world can beat.

Exact for each function alone, by dynamic programming over its requests: the state is the form that
is ready, a step answers one request in it, or by a peer, and at each request any other form may
begin to be acquired, all later requests and bandwidths being known. It is a bound for a node, as
its functions do not get in each other's way here: no disk quota, no waiting for the link or a core.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Final

from _planner_world import (
    CPU_PRICE,
    HOLD_PRICE,
    LOAD_S,
    NAMES,
    WIRE_PRICE,
    Function,
    World,
)

from protocol.costs import PlanForm

PRICES: Final = (0.0, 1e-12, 3e-12, 1e-11, 3e-11, 1e-10)
"""Of a byte of disk and second, on top of what holding it costs anyway: any of them gives a bound
(Lagrange's dual of the quota), the highest is the best."""


def optimum_s(world: World) -> float:
    best = 0.0
    for price in PRICES:
        bound = -price * world.quota_bytes * world.duration_s
        used = [each for each in world.functions if each.times_s]
        bound += sum(function_s(world, each, price) for each in used)
        if bound < best:
            break  # concave in the price: it only falls from here
        best = bound
    return best


def function_s(world: World, function: Function, disk_price: float = 0.0) -> float:
    times = function.times_s
    count = len(times)
    forms: list[PlanForm | None] = [None, *function.forms]
    forward = [world.forward_s(function, now_s) for now_s in times]
    call = {form: world.per_call_s(function, form) if form else math.inf for form in forms}
    hold = {form: function.stored_bytes(form) * (HOLD_PRICE + disk_price) for form in forms}
    gaps = [later - now for now, later in zip(times, [*times[1:], world.duration_s], strict=True)]
    # value[form][i]: the rest's cost, with that form ready just before request i.
    value: dict[PlanForm | None, list[float]] = {form: [0.0] * (count + 1) for form in forms}
    for at in range(count - 1, -1, -1):
        free = value[None][at + 1]
        for form in forms:
            keep = min(value[form][at + 1] + hold[form] * gaps[at], free)
            best = min(call[form], forward[at]) + keep
            for other in forms:
                if other is None or other == form:
                    continue
                if call[other] >= call[form] and hold[other] >= hold[form]:
                    continue
                began = _acquired_s(
                    world, function, form, other, at, times, forward, call, hold, value
                )
                best = min(best, began)
            value[form][at] = best
    return value[None][0]


def _acquired_s(
    world: World,
    function: Function,
    form: PlanForm | None,
    other: PlanForm,
    at: int,
    times: tuple[float, ...],
    forward: list[float],
    call: dict[PlanForm | None, float],
    hold: dict[PlanForm | None, float],
    value: dict[PlanForm | None, list[float]],
) -> float:
    """From request `at` on, where `other` begins to be acquired."""
    here = NAMES.get(form, ()) if form else ()
    size = world.wire_bytes(function, other, here)
    cpu_s = world.build_cpu_s(function, other, here)
    ready_s = world.fetched_s(function, other, size, times[at]) + cpu_s + LOAD_S
    spent = size * WIRE_PRICE + cpu_s * CPU_PRICE
    after = bisect_left(times, ready_s, at + 1)
    then_s = call[other]
    for index in range(at, after):
        spent += min(call[form], forward[index], ready_s - times[index] + then_s)
    until_s = times[after] if after < len(times) else world.duration_s
    end_s = min(ready_s, until_s)
    spent += hold[form] * (end_s - times[at])
    kept = hold[other] * (until_s - end_s) + value[other][after]
    return spent + min(kept, value[None][after])
