"""How fast a transfer goes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from edged.network.pace import MARKS_MAX, WINDOW_S, Moving, Pace
from protocol.ids import Digest


async def test_the_rate_is_of_the_last_seconds(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace()
    assert pace.rate_bytes_s() == 0
    pace.reach(5_000_000)  # was on disk before
    for _ in range(100):
        await trio.sleep(0.1)
        pace.add(1000)
    assert pace.rate_bytes_s() == pytest.approx(10_000, rel=0.1)
    for _ in range(100):
        await trio.sleep(0.1)
        pace.add(100)
    assert pace.rate_bytes_s() == pytest.approx(1000, rel=0.1)
    assert pace.done_bytes == 5_110_000
    assert len(pace._marks) <= MARKS_MAX


async def test_it_stands_still_when_nothing_comes(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace()
    for _ in range(20):
        pace.add(1000)
        await trio.sleep(0.1)
    await trio.sleep(3 * WINDOW_S)
    assert pace.rate_bytes_s() == 0
    await trio.sleep(1)
    pace.add(5000)
    await trio.sleep(1)
    assert pace.rate_bytes_s() == pytest.approx(2500, rel=0.3)


@pytest.mark.parametrize(
    ("done", "total", "rate", "eta_s"),
    [(0, None, 5.0, None), (0, 100, 0.0, None), (50, 100, 10.0, 5.0), (120, 100, 10.0, 0.0)],
)
def test_eta(done: int, total: int | None, rate: float, eta_s: float | None) -> None:
    moving = Moving("fetch", Digest("0" * 64), "running", False, done, total, rate, (), 0.0)
    assert moving.eta_s == eta_s
