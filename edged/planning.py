"""Which form of each function's code this node shall have: decided, kept, explained.

The decision itself is protocol.planner's, over what inputs.py gathers. Here is when: at a deploy,
at a request that finds no code, when an input of a function in use has moved, and when a form
could not be had. What was chosen is given up only for what is cheaper by a margin. Bounded:
PLANS_MAX functions, the one asked for least lately is forgotten first. Owned by the node's event
loop; a request that finds its code ready costs nothing here: such are counted together, now and
then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec
import trio

from protocol.costs import INIT_FORMS, Option, PlanForm, Rented
from protocol.ids import Digest, FunctionName, NodeId, VersionId
from protocol.planner import Decision, decide

from .errors import FunctionNotFound
from .inputs import Gathered, Gatherer
from .interfaces import FunctionView, PlanChange, PlanInput, PlanView
from .measuring import Measures, Table
from .planwords import UNITS, change_words
from .telemetry import Log, Metrics
from .whatif import deciding, flips, values_of, with_values

PLANS_MAX: Final = 2048
CHECK_S: Final = 1.0
"""Between looks at what functions in use depend on."""
CHECKED_MAX: Final = 64
"""Functions per look, 0.2 ms each; the others come with the next."""
IN_USE_S: Final = 120.0
"""Since its last request; what nobody asks for is not looked at."""
DRIFT: Final = 1.25
"""Factor by which an input must have moved to be worth a decision; the margin of one is wider."""
FAILED_S: Final = 60.0
"""What could not be had is not tried again for so long."""
CALLS_EXPECTED: Final = 10
"""Of what was just deployed here."""
CHANGES_KEPT: Final = 16
NO_FORM: Final = "none"
LAST_RESORT: Final[tuple[PlanForm, ...]] = ("module",)
"""Where nothing seems to be had: trying says why, and holders may come meanwhile."""


class Uses(Protocol):
    """What is known of requests that found their code ready."""

    def served(self) -> Mapping[FunctionName, int]:
        """How many there were so far, by function."""
        ...

    def sample(self, function: FunctionView) -> None:
        """Notes what its last invocation took."""
        ...

    def settle(self) -> None:
        """Notes how fast fetches under way are, and which code was used."""
        ...

    def change(self, function: FunctionView, forms: tuple[PlanForm, ...]) -> None:
        """Gets another form in the background and runs it from then on; the best first."""
        ...


class _Plan:
    __slots__ = (
        "asked_s",
        "available",
        "basis",
        "changes",
        "chosen",
        "decided_s",
        "elsewhere",
        "failed",
        "form",
        "forwarded",
        "function",
        "paid_s",
        "served",
        "trigger",
    )

    def __init__(self, function: FunctionView) -> None:
        self.function = function
        self.form: PlanForm | None = None
        self.basis: dict[str, float] = {}
        """Inputs at the newest decision."""
        self.chosen: dict[str, float] = {}
        """And when this form took another's place."""
        self.available: tuple[PlanForm, ...] = ()
        """Forms that could be had then."""
        self.elsewhere = False
        """A peer answers sooner than the module would."""
        self.decided_s: float | None = None
        """Unix time."""
        self.trigger = ""
        self.failed: dict[PlanForm, tuple[float, str]] = {}
        """Until when, by trio's clock, and why."""
        self.forwarded = 0
        self.paid_s = 0.0
        self.served: int | None = None
        """Requests counted so far; None: not looked yet."""
        self.asked_s = trio.current_time()
        self.changes: deque[PlanChange] = deque(maxlen=CHANGES_KEPT)


class Planning:
    """Implements interfaces.Planner."""

    def __init__(
        self,
        gatherer: Gatherer,
        measures: Measures,
        *,
        node: str,
        preferred: PlanForm | None,
        lookup: Callable[[str], FunctionView],
        uses: Uses,
        serving: Callable[[FunctionView], Digest | None],
        note: Callable[[FunctionName, PlanChange], None],
        wall_s: Callable[[], float],
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._gatherer = gatherer
        self._measures = measures
        self._node = node
        self._preferred = preferred
        self._lookup = lookup
        self._uses = uses
        self._serving = serving
        self._note = note
        self._wall_s = wall_s
        self._metrics = metrics
        self._log = log
        self._plans: Table[VersionId, _Plan] = Table(PLANS_MAX)
        self._turn = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(CHECK_S)
            self.check()

    # ------------------------------------------------------------ what others tell
    def asked(self, function: FunctionView) -> tuple[PlanForm, ...]:
        """A request came that found no code here: the forms to have, best first; forwarding first
        means that nothing is to be got yet."""
        self.count(function)
        return self.wanted(function, "request")

    def count(self, function: FunctionView) -> None:
        """A request that found no code here."""
        self._measures.demand(function.version).arrived(trio.current_time())

    def wanted(
        self, function: FunctionView, trigger: str, *, may_forward: bool = True
    ) -> tuple[PlanForm, ...]:
        """As `asked`, but nobody has come to be counted. Never empty."""
        plan = self._plan(function)
        plan.asked_s = trio.current_time()
        newcomers = 1 if trigger == "request" else 0
        rented = self._rented(plan)
        if trigger == "deploy":  # nobody has called it, and it is not deployed for nothing
            rented = msgspec.structs.replace(rented, calls=max(rented.calls, CALLS_EXPECTED))
        found = self._gatherer.gather(function, rented, newcomers=newcomers)
        forms = self._decide(plan, found, trigger)
        if not may_forward:
            forms = tuple(form for form in forms if form != "forward")
        return forms or LAST_RESORT

    def chosen(self, version: VersionId) -> PlanForm | None:
        plan = self._plans.get(version)
        return None if plan is None else plan.form

    def forwards(self, function: FunctionView, code: Digest) -> bool:
        """Whether its requests are for peers, though `code` is here: that is what was chosen, or a
        peer answers sooner than the module that is here."""
        plan, is_module = self._plans.get(function.version), code == function.spec.module
        if plan is None or plan.form is None:  # deciding is a request's that is not served here
            return is_module and function.snapshot is not None
        return plan.form == "forward" or (is_module and plan.elsewhere)

    def answered(self, peer: NodeId, function: FunctionView, took_s: float) -> None:
        """A peer answered a request of this node's."""
        self._measures.answered(peer, function.version, took_s)
        plan = self._plan(function)
        plan.forwarded += 1
        plan.paid_s += took_s

    def failed(self, function: FunctionView, form: PlanForm, why: str) -> None:
        """It could not be had, or not be used."""
        plan = self._plan(function)
        plan.failed[form] = (trio.current_time() + FAILED_S, why)
        self._log.warning("form not to be had", function=function.name, form=form, why=why)

    def got(self, function: FunctionView, form: PlanForm) -> None:
        """It is here and serves, chosen or the next best of what could be had."""
        plan = self._plan(function)
        if plan.form not in (None, form) and plan.form in plan.failed:
            self._change(plan, form, "failed", "", plan.basis)

    def _plan(self, function: FunctionView) -> _Plan:
        plan = self._plans.of(function.version, lambda: _Plan(function))
        plan.function = function
        return plan

    # ------------------------------------------------------------ looking
    def check(self) -> None:
        """Counts what has come since the last look, and decides anew where something moved."""
        self._uses.settle()
        served, now = self._uses.served(), trio.current_time()
        in_use = []
        for plan in self._plans.values():
            total = served.get(plan.function.name, 0)
            new = 0 if plan.served is None else max(total - plan.served, 0)
            plan.served = total
            if new:
                plan.asked_s = now
                self._measures.demand(plan.function.version).arrived(now, new)
            if now - plan.asked_s < IN_USE_S:
                in_use.append(plan)
        start = self._turn % max(len(in_use), 1)
        self._turn += CHECKED_MAX
        for plan in [*in_use[start:], *in_use[:start]][:CHECKED_MAX]:
            self._uses.sample(plan.function)
            if plan.function.spec.init is not None and self._is_current(plan):
                self._look(plan)

    def _is_current(self, plan: _Plan) -> bool:
        """What is rolled back or removed goes on as it is. Takes a new statement over."""
        try:
            function = self._lookup(plan.function.name)
        except FunctionNotFound:
            return False
        if function.version != plan.function.version:
            return False
        plan.function = function
        return True

    def _look(self, plan: _Plan) -> None:
        found = self._gatherer.gather(plan.function, self._rented(plan))
        before, values = plan.form, values_of(found.inputs)
        factor = _moved(plan.basis, values)
        rows = decide(found.inputs, plan.form).options
        if factor < DRIFT and _available(rows) == plan.available:
            return
        forms = self._decide(plan, found, "drift")
        if plan.form != before and plan.form not in (None, "forward"):
            self._uses.change(plan.function, forms)

    # ------------------------------------------------------------ deciding
    def _rented(self, plan: _Plan) -> Rented:
        calls = self._measures.demand(plan.function.version).calls
        return Rented(
            calls=max(calls, plan.forwarded), paid_s=plan.paid_s, forwarded=plan.forwarded
        )

    def _decide(self, plan: _Plan, found: Gathered, trigger: str) -> tuple[PlanForm, ...]:
        """What can be had, the chosen first, then by cost."""
        decision = decide(found.inputs, plan.form)
        forms = self._order(plan, decision)
        form, values = forms[0] if forms else None, values_of(found.inputs)
        available = _available(decision.options)
        self._metrics.plans.labels(form or NO_FORM).inc()
        if plan.form is None or form is None or form == plan.form:
            if form != plan.form:
                self._log.info(
                    "form chosen", function=plan.function.name, form=form, why=decision.why
                )
                plan.decided_s, plan.trigger = self._wall_s(), trigger
                plan.chosen = values
            plan.form = form
        else:
            moved = ""
            if form in plan.available:
                moved = deciding(found.inputs, left=plan.form, taken=form, then=plan.chosen)
            if trigger == "drift" and moved == "pressure":
                trigger = moved
            self._change(plan, form, trigger, moved, values)
        plan.basis, plan.available = values, available
        # A call in one of INIT_FORMS is priced so; whoever prefers one wants it to run here.
        may = self._preferred is None or form not in INIT_FORMS
        plan.elsewhere = may and _is_quicker_elsewhere(decision.options)
        return forms

    def _order(self, plan: _Plan, decision: Decision) -> tuple[PlanForm, ...]:
        now = trio.current_time()
        plan.failed = {form: known for form, known in plan.failed.items() if known[0] > now}
        rows = [
            row for row in decision.options if row.lacks is None and row.form not in plan.failed
        ]
        first = self._preferred or decision.form
        ordered = sorted(rows, key=lambda row: (row.form != first, row.total_s))
        return tuple(row.form for row in ordered)

    def _change(
        self,
        plan: _Plan,
        form: PlanForm,
        trigger: str,
        moved: str,
        values: dict[str, float],
    ) -> None:
        """`moved`: the input that did it; `values`: of them all by now."""
        before, name = plan.form, plan.function.name
        change = PlanChange(
            at_s=self._wall_s(),
            trigger=trigger,
            before=before,
            after=form,
            input=moved,
            input_before=plan.chosen.get(moved, 0.0),
            input_after=values.get(moved, 0.0),
        )
        plan.changes.append(change)
        plan.form, plan.chosen = form, values
        plan.decided_s, plan.trigger = change.at_s, trigger
        self._metrics.plan_changes.labels(before or NO_FORM, form).inc()
        self._note(name, change)
        words = change_words(change)
        self._log.info("form changed", function=name, change=words)

    # ------------------------------------------------------------ explaining
    def explain(self, name: str, what_if: Mapping[str, float]) -> PlanView:
        function = self._lookup(name)
        plan = self._plans.get(function.version) or _Plan(function)
        found = self._gatherer.gather(function, self._rented(plan))
        inputs = with_values(found.inputs, what_if)
        decision = decide(inputs, plan.form)
        forms = self._order(plan, decision)
        supposed = tuple(
            PlanInput(name, value, UNITS[name], "what-if", 1.0)
            for name, value in values_of(inputs).items()
            if name in what_if
        )
        measured = (row for row in found.readings.show(found.inputs) if row.name not in what_if)
        return PlanView(
            node=self._node,
            name=function.name,
            version=function.version,
            form=forms[0] if forms else None,
            best=decision.best,
            held=plan.form,
            margin=decision.margin,
            why=decision.why,
            preferred=self._preferred,
            serving=self._serving(function),
            decided_at_s=plan.decided_s,
            trigger=plan.trigger,
            rows=tuple(map(_finite, decision.options)),
            failed={form: why for form, (_, why) in plan.failed.items()},
            inputs=(*supposed, *measured),
            flips=flips(inputs),
            changes=tuple(plan.changes),
        )


def _finite(row: Option) -> Option:
    """JSON has no infinity; `lacks` says it all."""
    if row.lacks is None:
        return row
    return msgspec.structs.replace(row, ready_s=0.0, per_call_s=0.0, total_s=0.0)


def _is_quicker_elsewhere(rows: tuple[Option, ...]) -> bool:
    per_call_s = {row.form: row.per_call_s for row in rows if row.lacks is None}
    own_s = min(per_call_s.get(form, math.inf) for form in ("artifact", "module"))
    return per_call_s.get("forward", math.inf) < own_s


def _available(rows: tuple[Option, ...]) -> tuple[PlanForm, ...]:
    return tuple(row.form for row in rows if row.lacks is None)


def _moved(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """By which factor the input moved that moved most. How many wait is no reason by itself: it
    changes with each request."""
    most = 1.0
    for each, value in after.items():
        old = before.get(each, 0.0)
        if not before or old == value or each == "waiting":
            continue
        factor = math.inf if old <= 0 or value <= 0 else max(old / value, value / old)
        most = max(most, factor)
    return most
