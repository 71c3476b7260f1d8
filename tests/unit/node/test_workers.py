"""Guests' threads: results, errors, order, bounds, cancellation before and after the start."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from edged.workers import Workers

WAIT_S = 10.0


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    made = Workers(2, name="test")
    yield made
    made.close()


def never() -> None:
    raise AssertionError("no started call was cancelled")


def fail() -> None:
    raise ValueError("from the thread")


async def test_results_and_errors_come_back(workers: Workers) -> None:
    with trio.fail_after(WAIT_S):
        assert await workers.run(lambda: 5, on_cancel=never) == 5
        with pytest.raises(ValueError, match="from the thread"):
            await workers.run(fail, on_cancel=never)
        assert await workers.run(threading.get_ident, on_cancel=never) != threading.get_ident()
    assert workers.unfinished == 0


async def test_many_calls_share_few_threads(workers: Workers) -> None:
    seen: set[int] = set()
    total: list[int] = []

    async def call(number: int) -> None:
        def work() -> int:
            seen.add(threading.get_ident())
            return number

        total.append(await workers.run(work, on_cancel=never))

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(call, number)
    assert sorted(total) == list(range(500))
    assert len(seen) <= 2


async def test_a_job_that_waits_is_given_up_and_one_that_runs_is_not(workers: Workers) -> None:
    go, ran = threading.Event(), []
    started = threading.Semaphore(0)

    def block() -> str:
        started.release()
        go.wait(WAIT_S)
        return "whole"

    ended: list[str] = []

    async def run_cancelled() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            ended.append(await workers.run(block, on_cancel=go.set))

    scopes: list[trio.CancelScope] = []
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_cancelled)
            nursery.start_soon(run_cancelled)
            for _ in range(2):
                await trio.to_thread.run_sync(partial(started.acquire, timeout=WAIT_S))
            with trio.move_on_after(0.05) as waiting:
                await workers.run(lambda: ran.append(1), on_cancel=never)
            assert waiting.cancelled_caught
            assert ended == []
            assert not go.is_set()
            for scope in scopes:
                scope.cancel()  # only hastens them: they run, so they end and give their result
        assert ended == ["whole", "whole"]
        assert ran == []
        assert await workers.run(lambda: "goes on", on_cancel=never) == "goes on"
    assert workers.unfinished == 0


async def test_cancelled_before_it_is_queued(workers: Workers) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await workers.run(lambda: pytest.fail("ran"), on_cancel=never)
    assert scope.cancelled_caught
    assert workers.unfinished == 0


async def test_closed_workers_take_nothing_and_their_threads_end() -> None:
    workers = Workers(2, name="closing")
    await workers.run(lambda: None, on_cancel=never)
    workers.close()
    with pytest.raises(RuntimeError, match="closed"):
        await workers.run(lambda: None, on_cancel=never)
    with trio.fail_after(WAIT_S):
        while any(thread.name.startswith("closing") for thread in threading.enumerate()):
            await trio.sleep(0.01)
