"""What ends commands: SIGTERM and SIGHUP as Ctrl-C, and what a second one must not cut short."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
import trio

from edged.cli.cluster_common import terminable
from edged.cluster.signals import ENDING, undisturbed

INTERRUPTED = (KeyboardInterrupt, BaseExceptionGroup)


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """Whoever runs the tests in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", ENDING)
def test_an_event_loop_ends_as_by_ctrl_c(number: signal.Signals) -> None:
    """Had the signal's handler raised within the loop itself, that would be TrioInternalError, and
    tasks would be abandoned."""
    ended: list[str] = []

    async def works() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("in order")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(works)
            nursery.start_soon(trio.to_thread.run_sync, _strike(number))
            await trio.sleep_forever()

    with terminable(), pytest.raises(INTERRUPTED, check=_is_interrupt):
        trio.run(main)
    assert ended == ["in order"]


def _strike(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _is_interrupt(error: BaseException) -> bool:
    """And nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(KeyboardInterrupt)[1] is None
    return isinstance(error, KeyboardInterrupt)


def test_what_must_be_done_is_not_cut_short_and_says_so_once() -> None:
    told: list[str] = []
    with undisturbed(lambda: told.append("a moment")):
        for number in (*ENDING, *ENDING):
            os.kill(os.getpid(), number)
        told.append("done")
    assert told == ["a moment", "done"]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_code_outside_of_loops_raises_at_once() -> None:
    with terminable(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGHUP)
