"""A run while the cluster is up: deploys, load, faults by the timeline, looks, the end.

Nothing here judges. Every fault that begins gets its row proven or unproven, and ended, in this
order, whatever other faults do; a bug ends the run. Owns the run's clock and its event rows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec
import trio

from edged.errors import ClusterFailed, EdgedError
from edged.lab.history import (
    Catalog,
    Deploy,
    Fault,
    FaultState,
    Finding,
    HistoryRow,
    Phase,
    Planned,
    Sample,
)

from . import faults
from .clock import RunClock
from .control import Detail, Functions, Status, Versions
from .converging import Converging
from .deciding import Deciding
from .deploying import Modules
from .faults import Unproven
from .faults.base import PROOF_TIMEOUT_S
from .field import Field, on_each
from .sampling import Sampler
from .scenario import Scenario

FIRST_CONVERGENCE_S: Final = 60.0
"""Until every node knows what was deployed before the load."""
SETTLE_EXTRA_S: Final = 10.0
"""Beyond the longest bound: a look at a silent node takes a while."""
HOLDER: Final = "holder:"
TEXT_MAX: Final = 1000

Load = Callable[[Field, RunClock], Awaitable[None]]
"""All requests of the run, from the clock's zero on; returns when the last is answered."""
FaultOf = Callable[[Field, Planned], faults.Fault]


class Engine:
    def __init__(
        self,
        field: Field,
        scenario: Scenario,
        timeline: tuple[Planned, ...],
        modules: Modules,
        *,
        load: Load,
        event: Callable[[HistoryRow], None],
        sample: Callable[[Sample], None],
        flush: Callable[[], None],
        fault_of: FaultOf = faults.fault_of,
    ) -> None:
        """`event`, `sample`, `flush`: of the run's folder."""
        self._field = field
        self._scenario = scenario
        self._timeline = timeline
        self._modules = modules
        self._load = load
        self._event = event
        self._fault_of = fault_of
        self._clock = RunClock()
        self._sampler = Sampler(field, self._clock, sample, flush)
        self._deciding = Deciding(field, self._clock, event)
        self._converging = Converging(
            field,
            self._clock,
            bounds=scenario.bounds,
            replicas={function.name: function.replicas for function in scenario.functions},
            note=event,
        )

    async def run(self) -> float:
        """Until all is over and looked at; when that was. Raises ClusterFailed: what was to be
        deployed before the load could not be."""
        before = [row for row in self._timeline if row.settings.get("before_load")]
        for planned in before:
            deploy = await self._modules.deploy(self._field, planned, self._clock)
            self._event(deploy)
            if deploy.acknowledged_s is None:
                raise ClusterFailed(f"{planned.id} at {deploy.node}: {deploy.error}")
        await self._wait_deployed()
        self._clock.start()
        async with trio.open_nursery() as watching:
            watching.start_soon(self._sampler.run)
            watching.start_soon(self._deciding.run)
            watching.start_soon(self._converging.run)
            self._converging.over("", trio.current_time())
            async with trio.open_nursery() as works:
                works.start_soon(self._load, self._field, self._clock)
                works.start_soon(self._phases)
                for planned in self._timeline[len(before) :]:
                    works.start_soon(self._happening, planned)
            await self._last_look()
            watching.cancel_scope.cancel()
        return self._clock.now()

    async def _wait_deployed(self) -> None:
        """Every node lists every function that the load asks for."""
        wanted = {
            str(row.settings["function"])
            for row in self._timeline
            if row.settings.get("before_load")
        }
        with trio.move_on_after(FIRST_CONVERGENCE_S):
            for name in self._field.names:
                while True:
                    listed = await self._field.ask(name, "/v1/functions", Functions)
                    if listed is not None and wanted <= {each.name for each in listed.functions}:
                        break
                    await trio.sleep(0.1)
            return
        raise ClusterFailed(f"not every node knows {', '.join(sorted(wanted))}")

    async def _phases(self) -> None:
        begin_s = 0.0
        for phase in self._scenario.phases:
            await self._clock.until(begin_s)
            self._event(Phase(t_s=begin_s, name=phase.name, errors_max=phase.errors_max))
            begin_s += phase.for_s
        await self._clock.until(begin_s)
        self._event(Phase(t_s=begin_s, name="end"))

    # ------------------------------------------------------------ what happens
    async def _happening(self, planned: Planned) -> None:
        await self._clock.until(planned.t_s)
        if planned.action == "deploy":
            self._event(await self._deploy(planned))
        else:
            await self._fault(planned)

    async def _deploy(self, planned: Planned) -> Deploy:
        begun_s = trio.current_time()
        self._converging.begins(planned.id)
        try:
            return await self._modules.deploy(self._field, planned, self._clock)
        finally:
            self._converging.over(planned.id, begun_s)

    async def _fault(self, planned: Planned) -> None:
        try:
            planned = await self._resolved(planned)
        except Unproven as error:
            self._note(planned, "begun")
            self._note(planned, "unproven", str(error))
            self._note(planned, "ended")
            return
        fault = self._fault_of(self._field, planned)
        since_s = trio.current_time()
        self._converging.begins(planned.id)
        self._note(planned, "begun")
        try:
            await fault.begin()
        except (Unproven, EdgedError) as error:
            self._note(planned, "unproven", str(error))
        else:
            if not fault.lasting and planned.duration_s is not None:
                # The others can agree on what is left while it lasts.
                self._converging.over(planned.id, since_s, of=f"{planned.id} begun")
            await self._go_on(fault)
        if fault.lasting or planned.duration_s is not None:
            since_s = trio.current_time()
            self._converging.begins(planned.id)
        elif fault.step_s is not None:
            since_s = fault.step_s
        await self._end(fault)
        self._converging.over(planned.id, since_s)

    async def _go_on(self, fault: faults.Fault) -> None:
        """Proven meanwhile, until its time is over, which counts from when it is in force."""
        planned = fault.planned
        end_s = self._scenario.for_s
        if planned.duration_s is not None:
            end_s = min(end_s, self._clock.now() + planned.duration_s)
        elif not fault.lasting:
            end_s = self._clock.now()
        async with trio.open_nursery() as sustaining:
            sustaining.start_soon(fault.sustain)
            await self._prove(fault, end_s)
            await self._clock.until(end_s)
            sustaining.cancel_scope.cancel()

    async def _prove(self, fault: faults.Fault, end_s: float) -> None:
        limit_s = trio.current_time() + PROOF_TIMEOUT_S
        if fault.lasting:
            limit_s = max(self._clock.at(end_s), trio.current_time() + 0.1)
        with trio.move_on_at(limit_s):
            try:
                self._note(fault.planned, "proven", await fault.prove())
            except (Unproven, EdgedError) as error:
                self._note(fault.planned, "unproven", str(error))
            return
        self._note(fault.planned, "unproven", "its time was over before there was evidence")

    async def _end(self, fault: faults.Fault) -> None:
        planned = fault.planned
        try:
            detail = await fault.end()
        except ClusterFailed as error:
            detail = str(error)
            self._event(
                Finding(
                    t_s=self._clock.now(),
                    invariant="comes-back",
                    subject=str(error.extra.get("node") or " ".join(fault.targets)),
                    detail=f"after {planned.action} ({planned.id}): {detail}"[:TEXT_MAX],
                )
            )
        except EdgedError as error:
            # What goes on is another run than the one that was planned.
            detail = f"it could not be undone: {error}"
            self._note(planned, "unproven", detail)
        self._note(planned, "ended", detail)

    async def _resolved(self, planned: Planned) -> Planned:
        """`holder:F` as a node that runs and has F's module now: not the origin if another has it,
        and the same one of several in every run that has the same placement. Raises Unproven."""
        targets: list[str] = []
        for target in planned.targets:
            if not target.startswith(HOLDER):
                targets.append(target)
                continue
            function = target.removeprefix(HOLDER)
            running = await self._field.thread(self._field.running)
            detail = None
            for name in running:
                detail = await self._field.ask(name, f"/v1/functions/{function}", Detail)
                if detail is not None:
                    break
            held = () if detail is None else detail.holders
            holders = {holder.node for holder in held if holder.form != "artifact"}
            there = [name for name in running if name in holders]
            if detail is None or not there:
                raise Unproven(f"nobody who runs is known to hold {function}")
            others = [name for name in there if name != detail.summary.deployed_by]
            targets.append((others or there)[0])
        return msgspec.structs.replace(planned, targets=tuple(targets))

    def _note(self, planned: Planned, state: FaultState, detail: str = "") -> None:
        self._event(
            Fault(
                t_s=self._clock.now(),
                id=planned.id,
                action=planned.action,
                targets=planned.targets,
                state=state,
                detail=detail[:TEXT_MAX],
            )
        )

    # ------------------------------------------------------------ the end
    async def _last_look(self) -> None:
        bounds = self._scenario.bounds
        longest_s = max(bounds.membership_s, bounds.catalog_s, bounds.replicas_s)
        with trio.move_on_after(longest_s + SETTLE_EXTRA_S):
            await self._converging.wait_settled()
        await self._sampler.once()
        running = await self._field.thread(self._field.running)
        await on_each(running, self._list)
        functions = [function.name for function in self._scenario.functions]
        await on_each(running, partial(self._deciding.explain, functions=functions))

    async def _list(self, name: str) -> None:
        status = await self._field.ask(name, "/v1/status", Status)
        listed = await self._field.ask(name, "/v1/functions", Functions)
        if status is None or listed is None:
            return
        versions: dict[str, tuple[str, ...]] = {}
        for each in listed.functions:
            found = await self._field.ask(name, f"/v1/functions/{each.name}/versions", Versions)
            if found is not None:
                versions[each.name] = tuple(row.version for row in found.versions)
        self._event(
            Catalog(
                t_s=self._clock.now(),
                node=name,
                after="end",
                digest=status.catalog,
                functions={each.name: each.version for each in listed.functions},
                versions=versions,
            )
        )
