"""Builders that an audit caught, and an operator's way to believe them again."""

from __future__ import annotations

import pytest
from protocol_support import node_id

from edged.errors import BadRequest, BuilderNotFound, DiskFull
from edged.interfaces import BuilderView
from tests.unit.control.memory_builders import MemoryBuilders


async def test_who_is_trusted_again_stays_so() -> None:
    world = MemoryBuilders()
    first, second = await world.distrust("b1", "b2")
    assert world.service.view().distrusted == (BuilderView(first, "b1"), BuilderView(second, "b2"))
    assert await world.service.trust("b1") == BuilderView(first, "b1")
    assert world.acceptance.distrusted == (second,)
    assert world.restarted().distrusted == (second,)
    assert world.anew == 1, "what was judged and audited before counts no more"
    assert world.noted == [("builder-trusted", "b1", first)]


async def test_one_that_no_member_bears_the_name_of_is_named_by_its_id() -> None:
    world = MemoryBuilders()
    (gone,) = await world.distrust("gone", known=False)
    with pytest.raises(BuilderNotFound):
        await world.service.trust("gone")
    with pytest.raises(BuilderNotFound, match="distrusts no builder"):
        await world.service.trust(gone[:7])
    assert (await world.service.trust(gone[:8])).node_id == gone


async def test_several_of_one_name_are_told_apart_by_id() -> None:
    world = MemoryBuilders()
    first, second = await world.distrust("b1", "b2")
    world.names = dict.fromkeys((first, second), "b")
    with pytest.raises(BadRequest, match=first):
        await world.service.trust("b")
    assert (await world.service.trust(second)).node_id == second
    assert world.acceptance.distrusted == (first,)


async def test_one_that_nobody_distrusts_is_told_so() -> None:
    world = MemoryBuilders()
    await world.distrust("b1")
    with pytest.raises(BuilderNotFound):
        await world.service.trust(node_id("b2"))
    assert world.anew == 0


async def test_what_is_not_on_disk_is_not_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    world = MemoryBuilders()
    (first,) = await world.distrust("b1")

    async def full(_key: str, _value: bytes) -> None:
        raise DiskFull("no space")

    monkeypatch.setattr(world.store, "set_meta", full)
    with pytest.raises(DiskFull):
        await world.service.trust("b1")
    assert world.acceptance.distrusted == (first,)
    assert (world.anew, world.noted) == (0, [])
