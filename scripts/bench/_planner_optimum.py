"""What the best plan with hindsight costs at least: a bound that no policy in the world can beat.

Exact for each function alone, by dynamic programming over its requests: the state is the form that
is ready, a step answers one request in it, or by a peer, and at each request any other form may
begin to be acquired, all later requests and bandwidths being known. What functions do to each other
is in it as far as the disk's quota goes: bytes of disk have a price that changes in time, and any
such prices give a bound (Lagrange's dual); subgradient steps raise it. Not in it: that functions
wait for each other's transfers, and that what fits on average over a span may not fit at once.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Final, NamedTuple

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

CONSTANT: Final = (0.0, 1e-12, 3e-12, 1e-11, 3e-11, 1e-10)
"""Of a byte of disk and second, on top of what holding it costs anyway: where steps begin."""
SPANS: Final = 12
"""Of a trace, each with a price of its own."""
STEPS: Final = 16
REACH: Final = 0.05
"""Share of the bound that the first step would add if the slope stayed what it is."""
FORMS: Final[tuple[PlanForm | None, ...]] = (None, *NAMES)


class Prices:
    """Of a byte of disk and second, for each span of a trace."""

    def __init__(self, per_span: list[float], duration_s: float) -> None:
        self.per_span = per_span
        self.span_s = duration_s / len(per_span)
        self._before = [0.0]
        for each in per_span:
            self._before.append(self._before[-1] + each * self.span_s)

    def until(self, now_s: float, span: int) -> float:
        """Of a byte, from the beginning."""
        return self._before[span] + self.per_span[span] * (now_s - span * self.span_s)

    @property
    def whole(self) -> float:
        return self._before[-1]


class Move(NamedTuple):
    """To another form, begun at one request."""

    other: PlanForm
    both_bytes: int
    """On disk until it is ready."""
    after: int
    """The first request that finds it ready."""
    spent_s: float
    """Until that request: by others, for bytes and cores, for disk."""
    end_s: float
    span: int
    """Of `end_s`."""


class Alone:
    """One function, as if no other were there."""

    def __init__(self, world: World, function: Function) -> None:
        times, self._span_s = function.times_s, world.duration_s / SPANS
        self._times = [*times, world.duration_s]
        self._spans = [self._span(now_s) for now_s in self._times]
        self._forms = FORMS if function.guest.init_s else FORMS[: FORMS.index("artifact") + 1]
        forward = [world.forward_s(function, now_s) for now_s in times]
        call = {form: world.per_call_s(function, form) if form else math.inf for form in FORMS}
        self._stored = {form: function.stored_bytes(form) for form in self._forms}
        self._answer = {form: [min(call[form], each) for each in forward] for form in self._forms}
        self._moves: dict[PlanForm | None, list[list[Move]]] = {}
        """By what is held, and the request they begin at."""
        for form in self._forms:
            others = [
                other
                for other in self._forms
                if other is not None and other != form
                and (call[other] < call[form] or self._stored[other] < self._stored[form])
                # Native code that no peer has is left over where what it was made from goes.
                and (other in function.forms or (form and NAMES[other][-1] in NAMES[form]))
            ]  # fmt: skip
            self._moves[form] = [
                [self._move(world, function, form, other, at, call) for other in others]
                for at in range(len(times))
            ]

    def _span(self, now_s: float) -> int:
        return min(int(now_s / self._span_s), SPANS - 1)

    def _move(
        self, world: World, function: Function, form: PlanForm | None, other: PlanForm, at: int,
        call: dict[PlanForm | None, float],
    ) -> Move:  # fmt: skip
        here = NAMES[form] if form else ()
        size = world.wire_bytes(function, other, here)
        cpu_s = world.build_cpu_s(function, other, here)
        begun_s = self._times[at]
        ready_s = world.fetched_s(function, other, size, begun_s) + cpu_s + LOAD_S
        after = bisect_left(self._times, ready_s, at + 1, len(self._times) - 1)
        spent_s = size * WIRE_PRICE + cpu_s * CPU_PRICE
        for index in range(at, after):
            waits_s = ready_s - self._times[index] + call[other]
            spent_s += min(self._answer[form][index], waits_s)
        end_s = min(ready_s, self._times[after])
        both_bytes = sum(function.blob(name)[1] for name in dict.fromkeys((*here, *NAMES[other])))
        spent_s += both_bytes * HOLD_PRICE * (end_s - begun_s)
        spent_s += self._stored[other] * HOLD_PRICE * (self._times[after] - end_s)
        return Move(other, both_bytes, after, spent_s, end_s, self._span(end_s))

    def plan(self, prices: Prices) -> tuple[float, list[float]]:
        """(its cost, the bytes that are on disk in each span, on average)."""
        count = len(self._times) - 1
        until = list(map(prices.until, self._times, self._spans))
        value = {form: [0.0] * (count + 1) for form in self._forms}
        chosen: dict[PlanForm | None, list[tuple[Move | None, bool]]] = {
            form: [(None, False)] * count for form in self._forms
        }
        gone = value[None]
        for at in range(count - 1, -1, -1):
            free, gap_s = gone[at + 1], self._times[at + 1] - self._times[at]
            byte_s = gap_s * HOLD_PRICE + until[at + 1] - until[at]
            for form in self._forms:
                keep = value[form][at + 1] + self._stored[form] * byte_s
                best, taken = self._answer[form][at] + min(keep, free), (None, free < keep)
                for move in self._moves[form][at]:
                    ready = prices.until(move.end_s, move.span)
                    keep = value[move.other][move.after]
                    keep += self._stored[move.other] * (until[move.after] - ready)
                    cost = move.spent_s + move.both_bytes * (ready - until[at])
                    cost += min(keep, gone[move.after])
                    if cost < best:
                        best, taken = cost, (move, gone[move.after] < keep)
                value[form][at], chosen[form][at] = best, taken
        return gone[0], self._held(chosen)

    def _held(self, chosen: dict[PlanForm | None, list[tuple[Move | None, bool]]]) -> list[float]:
        held = [0.0] * SPANS
        form: PlanForm | None = None
        at = 0
        while at < len(self._times) - 1:
            move, goes = chosen[form][at]
            since_s = self._times[at]
            at += 1
            if move is not None:
                self._occupy(held, move.both_bytes, since_s, move.end_s)
                form, since_s, at = move.other, move.end_s, move.after
            if goes:
                form = None
            elif form:
                self._occupy(held, self._stored[form], since_s, self._times[at])
        return held

    def _occupy(self, held: list[float], size_bytes: int, since_s: float, until_s: float) -> None:
        for span in range(self._span(since_s), self._span(until_s) + 1):
            begin_s, end_s = span * self._span_s, (span + 1) * self._span_s
            overlap_s = min(until_s, end_s) - max(since_s, begin_s)
            held[span] += size_bytes * max(overlap_s, 0.0) / self._span_s


def optimum_s(world: World) -> float:
    functions = [Alone(world, each) for each in world.functions if each.times_s]

    def bound(per_span: list[float]) -> tuple[float, list[float]]:
        prices = Prices(per_span, world.duration_s)
        plans = [each.plan(prices) for each in functions]
        held = [sum(each[span] for _, each in plans) for span in range(SPANS)]
        return sum(cost_s for cost_s, _ in plans) - prices.whole * world.quota_bytes, held

    best, per_span, over = -math.inf, [0.0] * SPANS, [0.0] * SPANS
    for constant in CONSTANT:
        found, held = bound([constant] * SPANS)
        if found <= best:
            break  # concave in the price: it only falls from here
        best, per_span = found, [constant] * SPANS
        over = [each - world.quota_bytes for each in held]
    return _raised(bound, best, per_span, over, world)


def _raised(
    bound: Callable[[list[float]], tuple[float, list[float]]],
    best: float,
    per_span: list[float],
    over: list[float],
    world: World,
) -> float:
    """By steps towards prices at which what is held fits; `over`: by so much it does not."""
    span_s, reach = world.duration_s / SPANS, REACH
    for _ in range(STEPS):
        slope = [
            each if each > 0 or price else 0.0 for each, price in zip(over, per_span, strict=True)
        ]
        square = sum(each * each for each in slope) * span_s
        if square <= 0:
            break
        step = reach * best / square
        tried = [max(price + step * each, 0.0) for price, each in zip(per_span, slope, strict=True)]
        found, held = bound(tried)
        if found > best:
            best, per_span = found, tried
            over = [each - world.quota_bytes for each in held]
        else:
            reach /= 2
    return best
