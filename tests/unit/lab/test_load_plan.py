from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import ConfigError
from edged.lab.load.plan import instants, plan, popularity, when
from edged.lab.load.spec import FunctionLoad, LoadSpec, Stage, parse_load, parse_stages

HELLO = (FunctionLoad(name="hello"),)


def test_stages_are_read_as_people_write_them() -> None:
    assert parse_stages("50:30s, 50-200:1.5m,0:500ms") == (
        Stage(rate=50.0, seconds=30.0),
        Stage(rate=50.0, to=200.0, seconds=90.0),
        Stage(rate=0.0, seconds=0.5),
    )


@pytest.mark.parametrize(
    "text", ["", "50", "50:30", "50:30d", "-5:3s", "5-:3s", "1.2.3:3s", "5:0s"]
)
def test_stages_that_are_none_are_told(text: str) -> None:
    with pytest.raises(ConfigError, match="rate"):
        parse_stages(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"routing": "close"}, "routing = 'close': write nearest, random or node:NAME"),
        ({"stages": [{"rate": 0, "seconds": 5}]}, "no rate is above 0"),
        ({"functions": [{"name": "a"}, {"name": "a"}]}, "'a' is there twice"),
        ({"functions": [{"name": "a", "path": "x"}]}, "begin with / or"),
        ({"functions": [{"name": "a", "path": "/ HTTP/1.1\r\nx: y"}]}, "begin with / or"),
        ({"functions": [{"name": "a", "headers": {"Host": "b"}}]}, "'Host'"),
        ({"functions": [{"name": "a", "headers": {"x": "b\r\nc: d"}}]}, "'x'"),
        ({"functions": [{"name": "a", "expect": {"*": "abc"}}]}, "expect"),
        ({"functions": []}, "functions"),
        ({"rate": True}, "rate = True"),
        ({"zipf": -1}, "zipf"),
        ({"speed": 1}, "speed"),
    ],
)
def test_a_wrong_load_is_told_by_its_key(change: dict[str, object], words: str) -> None:
    stages = {} if "rate" in change else {"stages": [{"rate": 5, "seconds": 1}]}
    with pytest.raises(ConfigError, match=r"^load: ") as caught:
        parse_load({"functions": [{"name": "a"}]} | stages | change)
    assert words in str(caught.value)


def test_functions_and_duration_may_come_from_whoever_embeds_a_load() -> None:
    spec = parse_load({"rate": 30}, functions=HELLO, seconds=20.0)
    assert spec.functions == HELLO
    assert spec.stages == (Stage(rate=30.0, seconds=20.0),)
    assert spec.duration_s == 20.0


def test_constant_arrivals_are_equally_spaced_and_as_many_as_the_rate_says() -> None:
    times = list(instants(parse_stages("10:1s,0:2s,4:1s"), None))
    assert times == pytest.approx([n / 10 for n in range(10)] + [3 + n / 4 for n in range(4)])


def test_a_ramp_passes_the_rates_between() -> None:
    ramp = Stage(rate=0.0, to=100.0, seconds=10.0)
    assert when(ramp, 0) == 0.0
    assert when(ramp, 125.0) == pytest.approx(5.0)
    assert when(ramp, 500.0) == pytest.approx(10.0)
    down = Stage(rate=100.0, to=0.0, seconds=10.0)
    assert when(down, 375.0) == pytest.approx(5.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 200), st.none() | st.floats(0, 200), st.floats(0.01, 5)),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 9),
)
def test_instants_ascend_and_stay_within_the_stages(
    rows: list[tuple[float, float | None, float]], seed: int
) -> None:
    stages = [Stage(rate=rate, to=to, seconds=seconds) for rate, to, seconds in rows]
    expected = sum(stage.requests for stage in stages)
    for rng in (None, Random(seed)):
        times = list(instants(stages, rng))
        assert all(a <= b for a, b in pairwise(times))
        assert all(0 <= t <= sum(s.seconds for s in stages) + 1e-9 for t in times)
        assert abs(len(times) - expected) <= (1 if rng is None else 6 * (expected**0.5 + 2))


def test_poisson_arrivals_are_spread_as_such() -> None:
    times = list(instants(parse_stages("100:100s"), Random(1)))
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.01, rel=0.05)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance**0.5 == pytest.approx(mean, rel=0.05)


def test_popularity_is_zipf_unless_a_function_says_its_weight() -> None:
    names = [FunctionLoad(name=name) for name in "abc"]
    assert popularity(names, 1.0) == pytest.approx([1, 1 / 2, 1 / 3])
    assert popularity([*names, FunctionLoad(name="d", weight=7.0)], 0.0) == [1, 1, 1, 7]
    spec = LoadSpec(functions=tuple(names), stages=parse_stages("1000:10s"), zipf=1.0)
    drawn = Counter(arrival.function.name for arrival in plan(spec, {"r": 1.0}, Random(3)))
    assert drawn["a"] / drawn["b"] == pytest.approx(2, rel=0.1)
    assert drawn["a"] / drawn["c"] == pytest.approx(3, rel=0.1)


def test_the_same_seed_plans_the_same_and_the_mix_moves_no_instant() -> None:
    spec = LoadSpec(functions=HELLO, stages=parse_stages("50:4s"))
    regions = {"a": 1.0, "b": 3.0}
    first = list(plan(spec, regions, Random(5)))
    assert first == list(plan(spec, regions, Random(5)))
    assert first != list(plan(spec, regions, Random(6)))
    more = LoadSpec(functions=(*HELLO, FunctionLoad(name="b")), stages=spec.stages)
    assert [a.intended_s for a in plan(more, regions, Random(5))] == [a.intended_s for a in first]
    assert Counter(a.region for a in first)["b"] > len(first) / 2
