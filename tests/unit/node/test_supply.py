"""Which of several nodes that want one artifact compiles it, as one of them decides."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from edged.errors import CompileFailed
from edged.supply import Rivals, Supply
from edged.telemetry import make_log
from protocol.building import CLAIM_S, LEISURE, PATIENCE, YIELD_S, rank_of
from protocol.ids import ArtifactKey, Digest, NodeId

MODULE, KEY = Digest("ab" * 32), ArtifactKey("cd" * 32)
NODES = [NodeId(f"{number:02x}" * 16) for number in range(1, 4)]
BEST, MIDDLE, LAST = sorted(NODES, key=lambda one: rank_of(one, MODULE, KEY, NODES))
ESTIMATE_S = 2.0
NOBODY: frozenset[NodeId] = frozenset()


class World:
    """What one node sees of its rivals, changed as a test goes on."""

    def __init__(self, own: NodeId, *, builders: int = 1) -> None:
        self.seen = Rivals(ready=NOBODY, building=NOBODY, able=frozenset(NODES) - {own})

        async def estimate(*_: Any, **__: Any) -> float:
            return ESTIMATE_S

        self.supply = Supply(
            node_id=own,
            key=KEY,
            acceptance=cast("Any", SimpleNamespace(builders_needed=builders)),
            acquisition=cast("Any", SimpleNamespace(sources=lambda _: ())),
            artifacts=cast("Any", SimpleNamespace(estimate_s=estimate)),
            rivals=lambda _: self.seen,
            rates=cast("Any", None),
            log=make_log("n"),
        )

    def see(self, *, building: NodeId | None = None, ready: NodeId | None = None) -> None:
        self.seen = Rivals(
            ready=NOBODY if ready is None else frozenset((ready,)),
            building=NOBODY if building is None else frozenset((building,)),
            able=self.seen.able,
        )

    async def step(self, *, urgent: bool) -> str:
        return (await self.supply.step(MODULE, module_bytes=1, urgent=urgent))[0]

    async def waits_s(self, *, urgent: bool) -> float:
        began_s = trio.current_time()
        while await self.step(urgent=urgent) == "wait":
            await trio.sleep(0.1)
        return trio.current_time() - began_s


async def claim(own: NodeId, *, building: NodeId | None, ready: NodeId | None = None) -> bool:
    """As the news comes while it claims."""
    world, answers = World(own), []

    async def run() -> None:
        answers.append(await world.supply.claim(MODULE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(CLAIM_S / 2)
        world.see(building=building, ready=ready)
    return answers[0]


async def test_of_two_that_began_at_once_one_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await claim(BEST, building=None)
    assert await claim(BEST, building=MIDDLE)
    assert not await claim(MIDDLE, building=BEST)
    assert await claim(MIDDLE, building=LAST)
    assert not await claim(BEST, building=None, ready=LAST), "there is one to fetch"


async def test_who_accepts_nobodys_word_claims_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    began_s = trio.current_time()
    assert await World(LAST, builders=0).supply.claim(MODULE)
    assert trio.current_time() == began_s


async def test_a_slow_builder_is_waited_for_longer_where_no_request_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for urgent, patience in ((True, PATIENCE), (False, LEISURE)):
        world = World(MIDDLE)
        world.see(building=BEST)
        waited_s = await world.waits_s(urgent=urgent)
        assert 0 <= waited_s - patience * ESTIMATE_S < 0.2


async def test_a_builder_that_gives_up_is_followed_at_once_or_in_its_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(BEST)
    world.see(building=MIDDLE)
    assert await world.step(urgent=False) == "wait"
    world.see()
    assert await world.step(urgent=False) == "build"


async def made(own: NodeId, *, building: NodeId | None, takes_s: float, estimate_s: float) -> Any:
    """What comes of a compile that a request waits for, and how long it ran."""
    world, begun_s = World(own), trio.current_time()
    ran_s: list[float] = []

    async def make() -> str:
        try:
            await trio.sleep(takes_s)
        finally:
            ran_s.append(trio.current_time() - begun_s)
        return "code"

    world.see(building=building)
    return await world.supply.first_of_all(MODULE, make, estimate_s=estimate_s), *ran_s


async def test_a_compile_that_a_request_waits_for_gives_way_to_a_better_ranked_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    long = {"takes_s": 30.0, "estimate_s": 20.0}
    assert await made(MIDDLE, building=BEST, **long) == (None, CLAIM_S)
    assert await made(MIDDLE, building=LAST, **long) == ("code", 30.0)
    assert await made(MIDDLE, building=None, **long) == ("code", 30.0)


async def test_it_does_not_where_little_is_left_to_save(
    autojump_clock: trio.testing.MockClock,
) -> None:
    found = await made(MIDDLE, building=BEST, takes_s=3.0, estimate_s=YIELD_S - 0.1)
    assert found == ("code", 3.0)
    found = await made(MIDDLE, building=BEST, takes_s=CLAIM_S / 2, estimate_s=20.0)
    assert found == ("code", CLAIM_S / 2)


async def test_a_compile_that_fails_says_so_itself(autojump_clock: trio.testing.MockClock) -> None:
    async def fail() -> str:
        await trio.sleep(0.1)
        raise CompileFailed("memory", "too large")

    with pytest.raises(CompileFailed, match="too large"):
        await World(MIDDLE).supply.first_of_all(MODULE, fail, estimate_s=20.0)
