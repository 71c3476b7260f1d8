"""Clients follow what a health check finds ready."""

from __future__ import annotations

from random import Random

import trio
from fake_field import FakeField

from edged.lab.chaos.loading import follow_health, target_of
from edged.lab.load.around import Around
from edged.links import EMPTY


async def test_targets_are_the_nodes_that_are_ready(autojump_clock: trio.testing.MockClock) -> None:
    field = FakeField(["n1", "n2", "n3"])
    around = Around([target_of(field, name) for name in field.names], EMPTY, Random(1))

    def targets() -> list[str]:
        return [target.name for target in around.targets]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_health, field, around, 0.5)
        field.machines["n2"].runs = False
        assert targets() == ["n1", "n2", "n3"], "nobody knows at once"
        await trio.sleep(0.7)
        assert targets() == ["n1", "n3"]
        field.paused.add("n1")
        await trio.sleep(0.7)
        assert targets() == ["n3"]
        field.machines["n2"].runs = True
        field.paused.clear()
        await trio.sleep(0.7)
        assert targets() == ["n1", "n2", "n3"]
        nursery.cancel_scope.cancel()
