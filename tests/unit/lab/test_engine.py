"""A run, on trio's autojump clock and a cluster that is not there: what is told of it, in order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import trio
from fake_field import FakeField
from lab_scenarios import scenario_of

from edged.errors import ClusterFailed
from edged.lab import history as h
from edged.lab.chaos.clock import RunClock
from edged.lab.chaos.control import Answer
from edged.lab.chaos.deploying import Modules
from edged.lab.chaos.engine import Engine
from edged.lab.chaos.faults import Fault, Unproven
from edged.lab.chaos.field import Field
from edged.lab.chaos.plan import plan
from edged.lab.history import Planned

KILL = 'action = "kill"\nat_s = 6\ntargets = ["node:n2"]\nfor_s = 3'


class KillThere(Fault):
    """The real one looks at processes and ports."""

    lasting = False

    async def begin(self) -> None:
        for name in self.targets:
            await self.field.kill(name)

    async def prove(self) -> str:
        if set(self.targets) & set(self.field.running()):
            raise Unproven("it runs")
        return "gone"

    async def end(self) -> str:
        if self.planned.duration_s is None:
            return "stays dead"
        for name in self.targets:
            await self.field.restart(name)
        return "started again"


class Lasting(KillThere):
    lasting = True

    async def prove(self) -> str:
        await trio.sleep_forever()
        raise AssertionError


class Run:
    """What an engine told."""

    def __init__(self, *faults: str, field: FakeField | None = None) -> None:
        self.scenario = scenario_of(*faults)
        self.field = field or FakeField([node.name for node in self.scenario.cluster.nodes])
        self.rows: list[h.HistoryRow] = []
        self.samples: list[h.Sample] = []
        self.flushes = 0
        self.asked: list[float] = []

    async def load(self, _field: Field, clock: RunClock) -> None:
        for second in range(5):
            await clock.until(second)
            self.asked.append(clock.now())

    def flush(self) -> None:
        self.flushes += 1

    async def run(self, kind: type[Fault] = KillThere) -> float:
        def fault_of(field: Field, planned: Planned) -> Fault:
            return kind(field, planned)

        engine = Engine(
            self.field,
            self.scenario,
            plan(self.scenario, 1),
            Modules(self.scenario),
            load=self.load,
            event=self.rows.append,
            sample=self.samples.append,
            flush=self.flush,
            fault_of=fault_of,
        )
        with trio.fail_after(600):
            return await engine.run()

    def faults(self, name: str) -> list[tuple[float, str]]:
        found = [row for row in self.rows if isinstance(row, h.Fault) and row.id == name]
        return [(round(row.t_s, 1), row.state) for row in found]

    def converged(self, after: str) -> Sequence[h.Converged]:
        return [row for row in self.rows if isinstance(row, h.Converged) and row.after == after]


async def test_a_run_in_order(autojump_clock: trio.testing.MockClock) -> None:
    run = Run(KILL)
    over_s = await run.run()
    assert run.faults("1") == [(6.0, "begun"), (6.0, "proven"), (9.4, "ended")]
    phases = [(row.t_s, row.name) for row in run.rows if isinstance(row, h.Phase)]
    assert phases == [(0.0, "warm-up"), (5.0, "faults"), (25.0, "end")]
    deploys = [row for row in run.rows if isinstance(row, h.Deploy)]
    assert [(row.label, row.begun_s) for row in deploys] == [("1", 0.0), ("2", 8.0)]
    assert all(row.acknowledged_s is not None and row.holders for row in deploys)
    assert run.asked == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert over_s >= 25.0
    assert {row.node for row in run.rows if isinstance(row, h.Catalog)} == set(run.field.names)
    assert [act for _, act, _ in run.field.log] == ["kill", "restart"]


async def test_every_node_is_sampled_once_a_second(autojump_clock: trio.testing.MockClock) -> None:
    run = Run(KILL)
    await run.run()
    of_n2 = [row for row in run.samples if row.node == "n2"]
    assert 25 <= len(of_n2) <= 29
    assert run.flushes >= 25
    assert {row.state for row in of_n2} >= {"ready", "stopped"}
    assert [row.state for row in of_n2 if 6.5 < row.t_s < 9] == ["stopped"] * 2
    n1 = next(row for row in run.samples if row.node == "n1")
    assert n1.alive == ("n1", "n2", "n3", "n4", "n5", "n6")
    assert n1.catalog == "c0"


async def test_a_silent_node_delays_no_other(autojump_clock: trio.testing.MockClock) -> None:
    class Slow(FakeField):
        async def call(self, name: str, *args: Any, **options: Any) -> Answer | None:
            if name == "n3":
                await trio.sleep(6.0)
            return await super().call(name, *args, **options)

    field = Slow(["n1", "n2", "n3", "n4", "n5", "n6"])
    run = Run(field=field)
    await run.run()
    times = [row.t_s for row in run.samples if row.node == "n1" and row.t_s < 20]
    assert max(b - a for a, b in pairwise(times)) < 1.5
    assert "unreachable" in {row.state for row in run.samples if row.node == "n3"}


async def test_convergence_is_measured_when_a_fault_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run(KILL)
    await run.run()
    after = {row.what: row for row in run.converged("1")}
    assert after.keys() == {"membership", "catalog", "replicas"}
    assert after["membership"].seconds == pytest.approx(1.2, abs=0.3), "1 s after the restart"
    assert after["catalog"].seconds == pytest.approx(0.4, abs=0.1), "once it is up"
    assert after["membership"].nodes == tuple(run.field.names)
    assert [row.seconds is None for row in run.converged("")] == [False] * 3


async def test_a_rolling_restart_converges_from_its_last_step_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run('action = "rolling-restart"\nat_s = 6\ngap_s = 2.0')
    await run.run()
    (row,) = [row for row in run.converged("1") if row.what == "membership"]
    assert row.seconds is not None
    assert row.seconds < 2.0, "of 12 s in all"


async def test_those_who_are_left_are_watched_while_a_node_is_dead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run(KILL)
    await run.run()
    while_dead = next(row for row in run.converged("1 begun") if row.what == "membership")
    assert while_dead.seconds == pytest.approx(1.0, abs=0.4)
    assert "n2" not in while_dead.nodes
    assert 6.5 < while_dead.t_s < 9


async def test_what_does_not_converge_is_told_at_its_bound(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run(KILL)
    run.field.machines["n3"].catalog = "other"
    run.field.machines["n4"].under_replicated = 2
    await run.run()
    after = {row.what: row for row in run.converged("1")}
    assert after["catalog"].seconds is None
    assert after["catalog"].waited_s >= run.scenario.bounds.catalog_s
    assert "catalogs differ" in after["catalog"].detail
    assert "{'n4': 2}" in after["replicas"].detail


async def test_the_next_fault_overtakes_a_measurement(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run(KILL, 'action = "kill"\nat_s = 9.8\ntargets = ["node:n3"]\nfor_s = 1')
    await run.run()
    first = {row.what: row for row in run.converged("1")}
    assert first["membership"].seconds is None
    assert first["membership"].waited_s < run.scenario.bounds.membership_s
    assert "overtaken" in first["membership"].detail
    assert {row.what: row.seconds is None for row in run.converged("2")} == {
        "membership": False,
        "catalog": False,
        "replicas": False,
    }


async def test_whoever_is_killed_for_good_is_missed_by_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run('action = "kill"\nat_s = 6\ntargets = ["node:n2"]')
    await run.run()
    assert run.faults("1")[-1] == (6.0, "ended")
    after = next(row for row in run.converged("1") if row.what == "membership")
    assert after.seconds == pytest.approx(1.0, abs=0.4)
    assert "n2" not in after.nodes


async def test_a_fault_without_evidence_is_unproven_and_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Nothing(KillThere):
        async def begin(self) -> None:
            return None

    run = Run(KILL)
    await run.run(Nothing)
    assert run.faults("1") == [(6.0, "begun"), (6.0, "unproven"), (9.4, "ended")]


async def test_evidence_has_to_come_while_the_fault_lasts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run(KILL)
    await run.run(Lasting)
    assert run.faults("1") == [(6.0, "begun"), (9.0, "unproven"), (9.4, "ended")]


async def test_what_cannot_be_begun_is_unproven_and_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Refused(KillThere):
        async def begin(self) -> None:
            raise ClusterFailed("it survives SIGKILL")

    run = Run(KILL)
    await run.run(Refused)
    assert run.faults("1") == [(6.0, "begun"), (6.0, "unproven"), (6.4, "ended")]


async def test_lasting_faults_end_with_the_run(autojump_clock: trio.testing.MockClock) -> None:
    run = Run('action = "clock-skew"\nat_s = 6\nskew_ms = 5000\ntargets = ["node:n2"]')
    await run.run(Lasting)
    assert run.faults("1")[-2:] == [(25.0, "unproven"), (25.0, "ended")]


async def test_a_node_that_does_not_come_back_is_a_finding(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run(KILL)
    run.field.machines["n2"].comes_back = False
    await run.run()
    finding = next(row for row in run.rows if isinstance(row, h.Finding))
    assert (finding.invariant, finding.subject) == ("comes-back", "n2")
    assert "ended while starting" in finding.detail
    assert run.faults("1")[-1][1] == "ended"


async def test_a_holder_is_one_that_runs_and_not_the_origin(
    autojump_clock: trio.testing.MockClock,
) -> None:
    corrupt = 'action = "corrupt"\nat_s = 7\nfunction = "hello"\ntargets = ["holder:hello"]'
    run = Run(KILL, corrupt)
    await run.run()
    targets = {row.targets for row in run.rows if isinstance(row, h.Fault) and row.id == "2"}
    assert targets == {("n3",)}, "n1 deployed it, and n2 is down"


async def test_nothing_begins_if_the_first_deploys_fail(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run(KILL)
    run.field.refuse_deploys = True
    with pytest.raises(ClusterFailed, match=r"deploy-hello-1 at n\d: 503 too few holders"):
        await run.run()
    assert [type(row) for row in run.rows] == [h.Deploy]
