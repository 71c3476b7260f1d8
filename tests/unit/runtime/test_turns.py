"""The gate that guests pass after so many host calls."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from edged.runtime import turns
from edged.runtime.call import Stop
from edged.runtime.turns import ALONE_S, CONTENDED_S, UNITS, UNITS_ALONE, Turns


class FakeCall(SimpleNamespace):
    """What the gate uses of a Call."""

    checks = 0

    def check_time(self) -> None:
        self.checks += 1
        if self.checks >= self.stops_at:
            raise Stop


def call_of(*, running: int, left_s: float = 60.0, stops_at: int = 100) -> Any:
    engine = SimpleNamespace(ticker=SimpleNamespace(running=running))
    return FakeCall(
        engine=engine, deadline_at=time.monotonic() + left_s, units=-1, stops_at=stops_at
    )


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    naps: list[float] = []
    monkeypatch.setattr(turns, "sleep", naps.append)
    return naps


def test_alone_it_is_a_short_nap(slept: list[float]) -> None:
    gate = Turns()
    for running, units in ((1, UNITS_ALONE), (2, UNITS)):
        call = call_of(running=running)
        gate.next(call, 1)
        assert (call.units, call.checks) == (units, 2)
    assert slept == [ALONE_S, ALONE_S]


def test_the_deadline_is_looked_at_before_and_after(slept: list[float]) -> None:
    gate = Turns()
    for stops_at, naps in ((1, 0), (2, 1)):
        slept.clear()
        with pytest.raises(Stop):
            gate.next(call_of(running=1, stops_at=stops_at), 1)
        assert len(slept) == naps
    gate.next(call_of(running=1), 1)  # the gate is free again


def test_one_at_a_time_and_longer_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, inside, together, naps = Turns(), [], [], []
    first_inside, go_on = threading.Event(), threading.Event()

    def nap(seconds: float) -> None:
        inside.append(1)
        together.append(len(inside))
        naps.append(seconds)
        first_inside.set()
        assert go_on.wait(30)
        inside.pop()

    monkeypatch.setattr(turns, "sleep", nap)
    monkeypatch.setattr(turns, "GATE_S_MAX", 60.0)
    threads = [
        threading.Thread(target=gate.next, args=(call_of(running=3), thread)) for thread in range(3)
    ]
    threads[0].start()
    assert first_inside.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(gate._waiting) < 2:
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert together == [1, 1, 1]
    assert naps == [ALONE_S, CONTENDED_S, ALONE_S]


def test_nobody_waits_past_the_deadline(slept: list[float]) -> None:
    gate = Turns()
    with gate._gate:  # somebody who never leaves
        gate.next(call_of(running=2, left_s=-1.0), 1)
        gate.next(call_of(running=2, left_s=0.01), 1)
    assert len(slept) == 2
