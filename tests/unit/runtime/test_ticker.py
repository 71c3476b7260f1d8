"""Bounded waits only: the ticker's own period is real time."""

from __future__ import annotations

import threading
import time

from edged.runtime import ticker
from edged.runtime.ticker import Ticker


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_ticks_while_something_runs_and_sleeps_after():
    ticks: list[None] = []
    subject = Ticker(lambda: ticks.append(None), name="test")
    assert threading.active_count() == 1 or not ticks
    subject.enter(1)
    subject.enter(2)
    wait_until(lambda: len(ticks) > 5)
    subject.leave(1)
    assert subject.running == 1
    subject.leave(2)
    wait_until(lambda: not subject._awake)
    still = len(ticks)
    time.sleep(10 * ticker.TICK_S)
    assert len(ticks) == still
    subject.enter(3)
    wait_until(lambda: len(ticks) > still)
    subject.leave(3)
    subject.close()


def test_close_joins_whatever_it_was_doing():
    for prepare in (lambda _: None, lambda t: t.enter(1), lambda t: (t.enter(1), t.leave(1))):
        subject = Ticker(lambda: None, name="test-close")
        prepare(subject)
        subject.close()
        assert not any(thread.name == "test-close" for thread in threading.enumerate())
        subject.enter(1)  # after close: nothing starts again
        assert not any(thread.name == "test-close" for thread in threading.enumerate())


def test_entering_while_it_falls_asleep_is_never_missed(monkeypatch):
    monkeypatch.setattr(ticker, "TICK_S", 0.0005)
    monkeypatch.setattr(ticker, "IDLE_TICKS", 1)
    ticks: list[None] = []
    subject = Ticker(lambda: ticks.append(None), name="test")
    for round_ in range(300):
        subject.enter(1)
        before = len(ticks)
        wait_until(lambda before=before: len(ticks) > before)
        subject.leave(1)
        time.sleep(0.0003 * (round_ % 7))
    subject.close()
