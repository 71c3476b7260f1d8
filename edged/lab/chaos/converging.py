"""How long the cluster takes to agree again after each event, measured from outside.

Measured while no fault is open: from when the last one was undone until all running nodes see
exactly each other alive, have the same catalog, and every function has its holders. One that is
over when it is done (a kill) is no disturbance while it lasts, but an event of its own. The next
event overtakes a measurement that is not done: it then says how long was looked, which may be less
than the bound, and so proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import trio

from edged.lab.history import Bounds, Converged, Convergence

from .clock import RunClock
from .control import Detail, Members, Status
from .field import Field, on_each

POLL_S: Final = 0.25
OVERTAKEN: Final = "overtaken"
WHATS: Final[tuple[Convergence, ...]] = ("membership", "catalog", "replicas")


class Look(NamedTuple):
    running: tuple[str, ...]
    why: Mapping[Convergence, str | None]
    """What is missing; None: it has converged."""


class Converging:
    def __init__(
        self,
        field: Field,
        clock: RunClock,
        *,
        bounds: Bounds,
        replicas: Mapping[str, int],
        note: Callable[[Converged], None],
    ) -> None:
        """`replicas`: how many holders each function wants."""
        self._field = field
        self._clock = clock
        self._bounds_s: dict[Convergence, float] = {
            "membership": bounds.membership_s,
            "catalog": bounds.catalog_s,
            "replicas": bounds.replicas_s,
        }
        self._replicas = replicas
        self._note = note
        self._open: set[str] = set()
        self._due: tuple[str, float] | None = None
        """What was over last, and when, unless it has been measured."""
        self._turn = 0
        self._changed = trio.Event()
        self._settled = trio.Event()
        self._settled.set()

    def begins(self, name: str) -> None:
        """A fault: what is being measured is disturbed."""
        self._open.add(name)
        self._wake()

    def over(self, name: str, since_s: float, *, of: str = "") -> None:
        """`since_s`: when it began to be undone, on trio's clock; that a node has to start before
        it can agree is part of what is measured. `of`: what rows call it, in place of its name."""
        self._open.discard(name)
        self._due = (of or name, since_s)
        self._settled = trio.Event()
        self._wake()

    def _wake(self) -> None:
        self._turn += 1
        self._changed.set()

    async def wait_settled(self) -> None:
        """All that was over has been measured, or given up at its bound."""
        await self._settled.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._due is not None and not self._open:
                await self._measure(*self._due)
            await self._changed.wait()
            self._changed = trio.Event()

    async def _measure(self, after: str, since_s: float) -> None:
        turn = self._turn
        left: list[Convergence] = list(WHATS)
        while left:
            look = await self._look()
            waited_s = trio.current_time() - since_s
            overtaken = self._turn != turn
            for what in list(left):
                why = look.why[what]
                if why is not None and not overtaken and waited_s < self._bounds_s[what]:
                    continue
                if overtaken:
                    # What was seen may be the next event's doing: nothing is said of the bound.
                    why = f"{OVERTAKEN} by the next event" + (f"; {why}" if why else "")
                    waited_s = min(waited_s, self._bounds_s[what])
                left.remove(what)
                self._note(
                    Converged(
                        t_s=self._clock.now(),
                        what=what,
                        after=after,
                        seconds=None if why else round(waited_s, 3),
                        waited_s=round(waited_s, 3),
                        nodes=look.running,
                        detail=why or "",
                    )
                )
            if overtaken:
                return
            if left:
                await trio.sleep(POLL_S)
        self._due = None
        self._settled.set()

    async def _look(self) -> Look:
        running = await self._field.thread(self._field.running)
        members: dict[str, Members | None] = {}
        statuses: dict[str, Status | None] = {}

        async def one(name: str) -> None:
            members[name] = await self._field.ask(name, "/v1/members", Members)
            statuses[name] = await self._field.ask(name, "/v1/status", Status)

        await on_each(running, one)
        missing = await self._missing_replicas(running, statuses)
        return Look(
            running=tuple(running),
            why={
                "membership": _membership(running, members),
                "catalog": _catalog(running, statuses),
                "replicas": missing,
            },
        )

    async def _missing_replicas(
        self, running: list[str], statuses: Mapping[str, Status | None]
    ) -> str | None:
        """By every node's own count; where fewer nodes run than a function wants, which all of them
        report, by the functions themselves, at one node."""
        silent = [name for name in running if statuses[name] is None]
        if silent:
            return f"{', '.join(silent)} does not answer"
        lacking = {
            name: status.replication.under_replicated
            for name, status in statuses.items()
            if status is not None and status.replication.under_replicated
        }
        if not lacking:
            return None
        if len(running) >= max(self._replicas.values(), default=0):
            return f"modules that lack holders: {lacking}"
        for function in self._replicas:
            detail = await self._field.ask(running[0], f"/v1/functions/{function}", Detail)
            if detail is None:
                return f"{running[0]} does not know {function}"
            could = min(detail.replicas.wanted, len(running))
            if detail.replicas.holders < could:
                return f"{function} has {detail.replicas.holders} of {could} holders"
        return None


def _membership(running: list[str], members: Mapping[str, Members | None]) -> str | None:
    for name in running:
        seen = members[name]
        if seen is None:
            return f"{name} does not answer"
        if (strange := set(seen.alive) ^ set(running)) != set():
            return f"{name} is wrong about {', '.join(sorted(strange))}"
    return None


def _catalog(running: list[str], statuses: Mapping[str, Status | None]) -> str | None:
    digests = {name: status.catalog for name in running if (status := statuses[name]) is not None}
    if len(digests) < len(running):
        return f"{', '.join(sorted(set(running) - digests.keys()))} does not answer"
    if len(set(digests.values())) > 1:
        return f"catalogs differ: { {name: digest[:8] for name, digest in digests.items()} }"
    return None
