"""How long peers are waited for."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from edged.network.patience import TICK_MAX_S, Patience


class Waiting:
    """What a connection does when its task waits."""

    def __init__(self) -> None:
        self.interrupted = 0

    def interrupt(self) -> None:
        self.interrupted += 1


async def test_who_is_late_is_woken_soon_and_until_it_notices(
    autojump_clock: trio.testing.MockClock,
) -> None:
    patience, late, patient = Patience(0.4), Waiting(), Waiting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patience.run)
        with patience.watch(late) as watch, patience.watch(patient) as other:
            begun = trio.current_time()
            watch.until(begun + 0.4, waits=True)
            other.until(begun + 60, waits=False)
            await trio.sleep(0.39)
            assert not watch.late
            await trio.sleep(0.12)
            assert watch.late
            assert late.interrupted
            woken = late.interrupted
            await trio.sleep(1)
            assert late.interrupted > woken
            watch.rest()
            woken = late.interrupted
            await trio.sleep(1)
            assert (late.interrupted, patient.interrupted, other.late) == (woken, 0, False)
            watch.until(trio.current_time() + 60, waits=True)
            assert not watch.late
        nursery.cancel_scope.cancel()


async def test_long_times_are_kept_within_a_tick(autojump_clock: trio.testing.MockClock) -> None:
    patience, connection = Patience(60.0), Waiting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patience.run)
        with patience.watch(connection) as watch:
            watch.until(trio.current_time() + 60, waits=True)
            await trio.sleep(60 + 1.01 * TICK_MAX_S)
            woken = connection.interrupted
            assert woken
        await trio.sleep(60)
        assert connection.interrupted == woken
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("waits", [True, False])
async def test_an_end_to_waiting_cuts_no_reply(
    autojump_clock: trio.testing.MockClock, waits: bool
) -> None:
    patience, connection = Patience(1.0), Waiting()
    with patience.watch(connection) as watch:
        watch.until(trio.current_time() + 1.0, waits=waits)
        patience.end_waits()
        assert (connection.interrupted, watch.late) == (int(waits), waits)
