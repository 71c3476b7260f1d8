"""The queue of modules that wait for optimised code, and leaving failures alone for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from edged.backoff import FAILURES_MAX, Backoff
from edged.errors import CompileFailed, Overloaded
from edged.optimiser import QUEUE_MAX, Optimiser
from edged.telemetry import Metrics, make_log
from protocol.ids import Digest

BAD = CompileFailed("error", "broken")
Replace = Callable[[Digest], Awaitable[None]]


def digest(number: int) -> Digest:
    return Digest(f"{number:064x}")


def make(replace: Replace, wanted: Callable[[Digest], bool] = lambda _module: True) -> Optimiser:
    return Optimiser(replace, is_wanted=wanted, metrics=Metrics(), log=make_log("o"))


async def test_one_at_a_time_in_order_and_each_once(autojump_clock: MockClock) -> None:
    done: list[Digest] = []
    running = 0

    async def replace(module: Digest) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await trio.sleep(1)
        running -= 1
        done.append(module)

    optimiser = make(replace, lambda module: module != digest(2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(optimiser.run)
        for number in (3, 1, 2, 3, 0):
            optimiser.want(digest(number))
        await trio.sleep(10)
        assert done == [digest(3), digest(1), digest(0)]
        optimiser.want(digest(3))
        await trio.sleep(10)
        assert done[3:] == [digest(3)]
        optimiser.stop()


async def test_a_failure_waits_and_lets_others_pass(autojump_clock: MockClock) -> None:
    tries: list[tuple[Digest, float]] = []
    start = trio.current_time()

    async def replace(module: Digest) -> None:
        tries.append((module, trio.current_time() - start))
        if module == digest(1) and len(tries) < 4:
            raise BAD

    optimiser = make(replace)
    optimiser.want(digest(1))
    optimiser.want(digest(2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(optimiser.run)
        await trio.sleep(1)
        assert optimiser.failing(digest(1)) is BAD
        await trio.sleep(1000)
        optimiser.stop()
    assert [(module, round(at)) for module, at in tries] == [
        (digest(1), 0), (digest(2), 0), (digest(1), 5), (digest(1), 35),
    ]  # fmt: skip
    assert optimiser.failing(digest(1)) is None


@pytest.mark.parametrize("error", [Overloaded("no process left"), OSError(24, "too many files")])
async def test_what_the_node_lacked_is_not_held_against_a_module(
    autojump_clock: MockClock, error: Exception
) -> None:
    tries: list[float] = []

    async def replace(module: Digest) -> None:
        tries.append(trio.current_time())
        if len(tries) < 4:
            raise error

    optimiser = make(replace)
    optimiser.want(digest(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(optimiser.run)
        await trio.sleep(100)
        assert optimiser.failing(digest(1)) is None
        optimiser.stop()
    assert [round(at - tries[0]) for at in tries] == [0, 5, 10, 15]


async def test_stopping_ends_what_is_under_way(autojump_clock: MockClock) -> None:
    ended = trio.Event()

    async def replace(module: Digest) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    optimiser = make(replace)
    optimiser.want(digest(1))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(optimiser.run)
            await trio.sleep(1)
            optimiser.stop()
        assert ended.is_set()


async def test_the_queue_forgets_its_oldest(autojump_clock: MockClock) -> None:
    done: list[Digest] = []

    async def replace(module: Digest) -> None:
        done.append(module)

    optimiser = make(replace)
    for number in range(QUEUE_MAX + 2):
        optimiser.want(digest(number))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(optimiser.run)
        await trio.sleep(1)
        optimiser.stop()
    assert done == [digest(number) for number in range(2, QUEUE_MAX + 2)]


async def test_pauses_grow_to_a_bound_and_end_with_a_success(autojump_clock: MockClock) -> None:
    backoff = Backoff()
    pauses = [round(backoff.failed(digest(1), BAD) - trio.current_time()) for _ in range(6)]
    assert pauses == [5, 30, 120, 600, 600, 600]
    assert backoff.failing(digest(1)) is BAD
    await trio.sleep(601)
    assert backoff.failing(digest(1)) is None
    backoff.succeeded(digest(1))
    assert round(backoff.failed(digest(1), BAD) - trio.current_time()) == 5
    for number in range(2, FAILURES_MAX + 2):
        backoff.failed(digest(number), BAD)
    assert backoff.failing(digest(1)) is None
    assert backoff.failing(digest(2)) is BAD


async def test_what_another_node_is_about_to_have_is_looked_at_again_and_lets_others_pass(
    autojump_clock: MockClock,
) -> None:
    looked: list[Digest] = []

    async def replace(module: Digest) -> float | None:
        looked.append(module)
        await trio.lowlevel.checkpoint()
        return 0.1 if module == digest(1) and looked.count(digest(1)) < 4 else None

    optimiser = Optimiser(
        replace, is_wanted=lambda _module: True, metrics=Metrics(), log=make_log("o")
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(optimiser.run)
        optimiser.want(digest(1))
        optimiser.want(digest(2))
        await trio.sleep(10)
        optimiser.stop()
    assert looked == [digest(1), digest(2), digest(1), digest(1), digest(1)]
