"""Which forms of code the nodes of a run decide for: as they change, and explained at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import trio

from edged.lab.history import TEXT_MAX, Decided, Explained, FormCost, HistoryRow, InputValue

from .clock import RunClock
from .control import Event, Events, Explain, Plan
from .field import Field

PERIOD_S: Final = 1.0
ROWS_MAX: Final = 4096
"""Of events, in one answer."""
KIND: Final = "plan-changed"


class Deciding:
    def __init__(self, field: Field, clock: RunClock, note: Callable[[HistoryRow], None]) -> None:
        self._field = field
        self._clock = clock
        self._note = note
        self._heard: dict[str, tuple[int, int]] = {}
        """Of each node: its generation, and the number of the newest event."""

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for name in self._field.names:
                nursery.start_soon(self._follow, name)

    async def _follow(self, name: str) -> None:
        while True:
            next_s = trio.current_time() + PERIOD_S
            await self.hear(name)
            await trio.sleep_until(next_s)

    async def hear(self, name: str) -> None:
        """What it has decided since it was heard last. One that is silent is asked again later."""
        if name in self._field.paused:
            return
        generation, after = self._heard.get(name, (0, 0))
        path = f"/v1/events?after={after}&limit={ROWS_MAX}"
        found = await self._field.ask(name, path, Events)
        if found is not None and found.generation != generation and after:
            found = await self._field.ask(name, f"/v1/events?after=0&limit={ROWS_MAX}", Events)
        if found is None:
            return
        self._heard[name] = (found.generation, found.next_after)
        for event in found.events:
            self._tell(name, event)

    def _tell(self, name: str, event: Event) -> None:
        change = event.plan
        if event.kind != KIND or change is None:
            return
        self._note(
            Decided(
                t_s=self._clock.now(),
                node=name,
                function=event.name,
                before=change.before,
                after=change.after,
                trigger=change.trigger,
                input=change.input,
                input_before=change.input_before,
                input_after=change.input_after,
            )
        )

    async def explain(self, name: str, functions: Iterable[str]) -> None:
        """The last word, and the tables."""
        await self.hear(name)
        for function in functions:
            found = await self._field.ask(name, f"/v1/functions/{function}/explain", Explain)
            if found is not None and found.plan is not None:
                self._note(explained(self._clock.now(), name, function, found.plan))


def explained(t_s: float, node: str, function: str, plan: Plan) -> Explained:
    flips = {flip.input: flip for flip in plan.flips}
    inputs = [
        InputValue(
            name=each.name,
            value=each.value,
            source=each.source,
            confidence=each.confidence,
            age_s=each.age_s,
            flips_at=flips[each.name].to_value if each.name in flips else None,
            flips_to=flips[each.name].form if each.name in flips else "",
        )
        for each in plan.inputs
    ]
    forms = [
        FormCost(
            form=row.form,
            lacks=None if row.lacks is None else row.lacks[:TEXT_MAX],
            ready_s=row.ready_s,
            per_call_s=row.per_call_s,
            wire_bytes=row.wire_bytes,
            stored_bytes=row.stored_bytes,
            price_s=row.wire_price_s + row.cpu_price_s + row.hold_price_s,
            total_s=row.total_s,
        )
        for row in plan.rows
    ]
    return Explained(
        t_s=t_s,
        node=node,
        function=function,
        form=plan.form,
        best=plan.best,
        why=plan.why[:TEXT_MAX],
        forms=tuple(forms),
        inputs=tuple(inputs),
    )
