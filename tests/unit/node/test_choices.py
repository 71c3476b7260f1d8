"""Which code a request gets while another form of it is chosen, and what makes a node choose."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
import trio
import trio.testing
from planning_support import MODULE, SNAPSHOT, function

from edged.activation import Activation
from edged.choices import Choices
from edged.errors import NotReady
from edged.interfaces import Code, FunctionView
from edged.mapped import Mapped
from edged.telemetry import make_log
from protocol.costs import PlanForm
from protocol.ids import Digest, VersionId

GET_S = 10.0


class Loaded:
    def __init__(self, code: Digest) -> None:
        self.code = code
        self.start = "loaded"
        self.uses = 0


class Table:
    def __init__(self) -> None:
        self.mapped: dict[Digest, Mapped] = {}


class World:
    """Implements Activation and choices.Plans: what is not here takes GET_S."""

    def __init__(self, *here: Digest, forwards: bool = True) -> None:
        self.here = set(here)
        self.table = Table()
        self.forms: tuple[PlanForm, ...] = ("snapshot",)
        self.form: PlanForm | None = None
        self.elsewhere = False
        self.decided: list[str] = []
        log = make_log("n", stream=io.StringIO())
        self.choices = Choices(cast(Activation, self), forwards=forwards, log=log)
        self.choices.follow(self)

    def is_near(self, digest: Digest) -> bool:
        return digest in self.here or digest in self.table.mapped

    async def ready(self, code: Code, *, timeout_s: float, way: object = None) -> Mapped:
        if not self.is_near(code.digest):
            await trio.sleep(GET_S)
        loaded: Any = self.table.mapped.setdefault(code.digest, cast(Mapped, Loaded(code.digest)))
        return cast(Mapped, loaded)

    def abandon(self, digest: Digest) -> None: ...

    def waiting(self, digest: Digest) -> int:
        return 0

    def asked(self, function: FunctionView) -> tuple[PlanForm, ...]:
        return self.wanted(function, "asked")

    def count(self, function: FunctionView) -> None: ...

    def wanted(
        self, function: FunctionView, trigger: str, *, may_forward: bool = True
    ) -> tuple[PlanForm, ...]:
        self.decided.append(trigger)
        self.form = self.forms[0]
        return self.forms

    def chosen(self, version: VersionId) -> PlanForm | None:
        return self.form

    def forwards(self, function: FunctionView, code: Digest) -> bool:
        return self.elsewhere and code == MODULE

    def failed(self, function: FunctionView, form: PlanForm, why: str) -> None: ...

    def got(self, function: FunctionView, form: PlanForm) -> None: ...

    async def code(self, view: FunctionView) -> Digest:
        mapped: Any = await self.choices.ready(view, timeout_s=1.0)
        return Digest(mapped.code)


async def test_the_module_serves_while_the_snapshot_that_was_chosen_comes(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    view, world = function(), World(MODULE)
    await nursery.start(world.choices.run)
    assert world.choices.is_near(view)
    assert await world.code(view) == MODULE
    assert await world.code(view) == MODULE
    assert world.decided == ["request"], "and nobody asks again while it is on its way"
    await trio.sleep(GET_S + 1)
    used = world.choices.use(view)
    assert used is not None
    assert cast(Any, used).code == SNAPSHOT
    assert await world.code(view) == SNAPSHOT


async def test_a_module_that_was_chosen_serves_though_the_snapshot_is_here(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    view, world = function(), World(MODULE, SNAPSHOT)
    await nursery.start(world.choices.run)
    assert await world.code(view) == SNAPSHOT
    world.form = "module"
    assert await world.code(view) == MODULE
    assert world.decided == []


async def test_who_forwards_its_own_requests_serves_those_that_peers_pass_on(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    view, world = function(), World(MODULE)
    world.elsewhere = True
    await nursery.start(world.choices.run)
    assert not world.choices.is_near(view)
    assert world.choices.has_code(view)
    assert await world.code(view) == MODULE


async def test_a_snapshot_that_went_is_got_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    view, world = function(), World(MODULE, SNAPSHOT)
    world.form = "snapshot"
    await nursery.start(world.choices.run)
    assert await world.code(view) == SNAPSHOT
    world.here = {MODULE}
    world.table.mapped.clear()
    assert await world.code(view) == MODULE
    assert world.decided == ["request"]
    await trio.sleep(GET_S + 1)
    assert await world.code(view) == SNAPSHOT


async def test_a_request_that_gives_up_leaves_the_work_going_on(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    view, world = function(), World()
    await nursery.start(world.choices.run)
    with pytest.raises(NotReady):
        await world.code(view)
    await trio.sleep(GET_S)
    assert await world.code(view) == SNAPSHOT


async def test_without_an_init_there_is_one_code() -> None:
    view, world = function(init_s=None), World()
    assert not world.choices.is_near(view)
    world.here = {MODULE}
    assert world.choices.is_near(view)
    assert world.choices.has_code(view)
    assert world.decided == []
