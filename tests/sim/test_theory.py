"""The simulated protocol does what the formulas of SWIM and of epidemics say."""

from __future__ import annotations

from statistics import fmean

import pytest
from simulator import measure, theory

from protocol.presets import LAN


def test_the_formulas() -> None:
    assert theory.periods_until_probed(1000) == pytest.approx(1.582, abs=1e-3)
    assert theory.periods_until_probed(3) == pytest.approx(4 / 3)
    assert theory.until_probed_s(0.5, neighbour=True) == pytest.approx(0.368, abs=1e-3)
    assert theory.unanswered(0.2, 3) == pytest.approx(0.0742, abs=1e-3)
    assert theory.reached_at_once(3) == pytest.approx(0.9405, abs=1e-4)
    first, second, *_ = theory.untold(100, 3, 4)
    assert first == pytest.approx(0.0595, abs=1e-3)
    assert second < first / 10
    assert 0.1 < theory.last_told_s(100, 3, 0.1, 4) < theory.last_told_s(1000, 3, 0.1, 4) < 0.3


def test_idle_traffic_hardly_grows() -> None:
    small, large = measure.idle(10, 10, seed=1), measure.idle(100, 10, seed=1)
    assert small.datagrams_s == pytest.approx(4, abs=0.2)
    assert small.bytes_s < large.bytes_s < 2 * small.bytes_s


def test_a_little_loss_kills_nobody() -> None:
    deaths = measure.false_deaths(20, 30, seed=1, loss=0.1)
    assert deaths.healthy == deaths.disturbed == 0


@pytest.mark.long
@pytest.mark.parametrize("neighbour", [False, True])
def test_detection_takes_as_long_as_theory_says(neighbour: bool) -> None:
    knobs = LAN if neighbour else measure.SWIM
    found = [measure.detection(48, 16, seed, knobs=knobs) for seed in range(8)]
    expected_s = theory.until_probed_s(LAN.probe_interval_s, neighbour=neighbour)
    assert fmean(one.probed_s for one in found) == pytest.approx(expected_s, rel=0.2)
    if not neighbour:
        expected = theory.periods_until_probed(48)
        assert fmean(one.periods for one in found) == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
def test_news_spreads_as_theory_says() -> None:
    found = [measure.infection(150, 12, seed) for seed in range(2)]
    share = theory.reached_at_once(LAN.gossip_fanout)
    assert fmean(one.at_once for one in found) == pytest.approx(share, rel=0.2)
    last_s = theory.last_told_s(150, LAN.gossip_fanout, LAN.gossip_interval_s, 4)
    assert fmean(one.last_s for one in found) == pytest.approx(last_s, rel=0.2)


@pytest.mark.long
def test_pauses_harm_fewer_with_lifeguard_than_without() -> None:
    ours = measure.false_deaths(50, 60, 2, pausing=4, pause_s=8)
    off = measure.false_deaths(50, 60, 2, pausing=4, pause_s=8, knobs=measure.WITHOUT_LIFEGUARD)
    assert ours.healthy == off.healthy == 0 or ours.healthy < off.healthy
    assert ours.disturbed < off.disturbed
