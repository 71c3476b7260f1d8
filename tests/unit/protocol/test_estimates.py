"""protocol.estimates: what was measured, robustly, and how sure of it one may be."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError
from protocol.estimates import (
    CALLS_MIN,
    DEMAND_HALF_LIFE_S,
    HALF_LIFE_S,
    HORIZON_MIN_S,
    LIVE_S,
    OFF_MAX,
    Demand,
    Estimate,
    mean_per_s,
)

VALUES = st.floats(1e-6, 1e9)


def test_the_prior_holds_until_something_is_measured_and_comes_back_with_age() -> None:
    link = Estimate(12.5e6)
    assert link.value(0.0) == pytest.approx(12.5e6)
    assert (link.confidence(0.0), link.read(0.0).age_s) == (0.0, None)
    link.observe(1e6, 10.0)
    assert link.value(10.0) == pytest.approx(1e6)
    reading = link.read(10.0 + HALF_LIFE_S)
    assert reading.value == pytest.approx(math.sqrt(1e6 * 12.5e6))
    assert (reading.samples, reading.age_s) == (1, HALF_LIFE_S)
    assert reading.prior == pytest.approx(12.5e6)


def test_confidence_grows_with_samples_and_fades() -> None:
    estimate, seen = Estimate(1.0), [0.0]
    for second in range(20):
        estimate.observe(2.0, float(second))
        seen.append(estimate.confidence(float(second)))
    assert seen == sorted(seen)
    assert 0.85 < seen[-1] < 1
    assert estimate.confidence(19.0 + HALF_LIFE_S) == pytest.approx(seen[-1] / 2)


def test_noise_is_averaged() -> None:
    rng = random.Random(7)
    off = []
    for _ in range(50):
        estimate = Estimate(1.0)
        for second in range(30):
            estimate.observe(100 * math.exp(rng.gauss(0, 0.3)), float(second))
        off.append(abs(math.log(estimate.value(30.0) / 100)))
    assert sum(off) / len(off) < 0.15


def test_one_value_far_off_moves_it_little_three_move_it_there() -> None:
    link = Estimate(1e6)
    for second in range(20):
        link.observe(1e6, float(second))
    link.observe(1e9, 20.0)
    assert link.value(20.0) < 1.5e6
    link.observe(1e6, 21.0)
    assert link.value(21.0) < 1.5e6
    for second in range(22, 25):
        link.observe(1e4, float(second))
    assert link.value(24.0) == pytest.approx(1e4)


@given(VALUES, st.lists(st.tuples(VALUES, st.floats(0, 1000)), max_size=30))
def test_it_stays_within_what_was_seen(prior: float, seen: list[tuple[float, float]]) -> None:
    estimate, now = Estimate(prior), 0.0
    for value, gap_s in seen:
        now += gap_s
        estimate.observe(value, now)
    every = [prior, *[value for value, _ in seen]]
    assert min(every) * 0.999 <= estimate.value(now) <= max(every) * 1.001
    assert 0 <= estimate.confidence(now) <= 1


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_what_cannot_be_measured_changes_nothing(value: float) -> None:
    estimate = Estimate(3.0)
    estimate.observe(value, 1.0)
    assert estimate.read(1.0).samples == 0
    with pytest.raises(LocalProtocolError):
        Estimate(value)


def test_a_rate_is_known_once_a_few_have_come() -> None:
    demand = Demand(0.0)
    for second in range(4):
        demand.arrived(float(second))
    assert demand.rate_per_s(4.0) is None
    for second in range(4, 60):
        demand.arrived(float(second))
    assert demand.rate_per_s(60.0) == pytest.approx(1.0, rel=0.1)
    assert demand.calls == 60


def test_a_steady_rate_is_found_and_one_that_ends_is_forgotten() -> None:
    demand = Demand(0.0)
    for tick in range(20_000):
        demand.arrived(tick / 4)
    assert demand.rate_per_s(5000.0) == pytest.approx(4.0, rel=0.05)
    half_s = demand.rate_per_s(5000.0 + DEMAND_HALF_LIFE_S)
    assert half_s == pytest.approx(2.0 * (1 - 2 ** (-5000 / DEMAND_HALF_LIFE_S)), rel=0.1)
    assert demand.rate_per_s(5000.0 + 13 * DEMAND_HALF_LIFE_S) is None
    with pytest.raises(LocalProtocolError):
        Demand(0.0, half_life_s=0.0)


def test_with_others_mean_a_rate_is_expected_from_the_first_call() -> None:
    demand = Demand(0.0)
    demand.arrived(0.0)
    assert demand.rate_per_s(0.0, 0.1) == pytest.approx(2 * 0.1)
    assert demand.rate_per_s(100.0, 0.1) == pytest.approx(2 / (100 + 1 / 0.1), rel=0.05)
    for second in range(1, 400):
        demand.arrived(float(second))
    assert demand.rate_per_s(400.0, 0.1) == pytest.approx(demand.rate_per_s(400.0), rel=0.05)


def test_a_demand_is_expected_to_last_as_long_as_it_has_lasted() -> None:
    demand = Demand(100.0)
    demand.arrived(100.0)
    assert demand.horizon_s(100.0, 3600.0) == HORIZON_MIN_S
    assert demand.horizon_s(2100.0, 3600.0) == 2000.0
    assert demand.horizon_s(9100.0, 3600.0) == 3600.0
    assert demand.horizon_s(100.0, 60.0) == 60.0


def test_the_mean_of_functions_is_of_those_that_are_called() -> None:
    demands = [Demand(0.0) for _ in range(3)]
    for second in range(100):
        demands[0].arrived(float(second))
    for second in range(0, 100, 10):
        demands[1].arrived(float(second))
    assert mean_per_s(demands, 100.0) is None  # two of three: too few
    demands[2].arrived(50.0)
    expected = (100 + 10 + 1) / 300
    assert mean_per_s(demands, 100.0) == pytest.approx(expected, rel=0.05)
    idle = Demand(0.0)
    idle.arrived(0.0)
    live = mean_per_s([*demands, idle], 100.0)
    assert live is not None
    assert live < expected
    for each in demands:
        each.arrived(2 * LIVE_S)
    with_idle = mean_per_s([*demands, idle], 2 * LIVE_S)
    assert with_idle == mean_per_s(demands, 2 * LIVE_S)
    few = [Demand(0.0) for _ in range(3)]
    for each in few:
        each.arrived(0.0, (CALLS_MIN - 1) // 3)
    assert mean_per_s(few, 1.0) is None


def test_times_are_reckoned_by_less_than_a_guess_of_a_rate() -> None:
    link = Estimate(12.5e6, off=2.0)
    blind = 12.5e6 * math.exp(-2.0)
    assert link.harmonic(0.0) == pytest.approx(blind)
    link.observe(1e6, 0.0)
    assert link.harmonic(0.0) == pytest.approx(1e6)
    half = 1 / (0.5 / 1e6 + 0.5 / blind)
    assert link.read(HALF_LIFE_S).harmonic == pytest.approx(half)
    assert link.harmonic(1e9) == pytest.approx(blind)
    usual = Estimate(3.0)
    assert usual.harmonic(0.0) == usual.value(0.0)
    for wrong in (-0.1, OFF_MAX * 2, math.nan):
        with pytest.raises(LocalProtocolError):
            Estimate(1.0, off=wrong)


@given(VALUES, st.lists(VALUES, max_size=8), st.floats(0, 1e5), st.floats(0, OFF_MAX))
def test_a_harmonic_is_never_above_the_value(
    prior: float, values: list[float], age_s: float, off: float
) -> None:
    link = Estimate(prior, off=off)
    for value in values:
        link.observe(value, 0.0)
    assert 0 < link.harmonic(age_s) <= link.value(age_s) * (1 + 1e-9)
