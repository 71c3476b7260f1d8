"""protocol.caching: the order in which things go is that of uses · cost / size, faded; nothing goes
that may not; a newcomer has to be worth what goes for it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.caching import SKETCH_CELLS, Cache, Sketch, Worth, victims_of
from protocol.errors import LocalProtocolError

HALF_LIFE_S = 100.0
NAMES = [f"n{number}" for number in range(12)]


def anything(_name: str) -> bool:
    return True


def nothing(_name: str) -> bool:
    return False


class Model:
    """The same by a list of uses and a full look each time."""

    def __init__(self) -> None:
        self.uses: dict[str, list[float]] = {}
        self.held: dict[str, tuple[int, float]] = {}

    def weight(self, name: str, now: float) -> float:
        return sum(2.0 ** ((at - now) / HALF_LIFE_S) for at in self.uses[name])

    def value(self, name: str, now: float) -> float:
        size_bytes, cost_s = self.held[name]
        return self.weight(name, now) * cost_s / size_bytes


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["use", "touch", "touch", "hold", "forget"]),
        st.sampled_from(NAMES),
        st.integers(1, 10_000),
        st.floats(0.001, 100),
        st.floats(0, 300),
    ),
    max_size=60,
)


@settings(max_examples=60)
@given(STEPS, st.integers(1, 50_000), st.sets(st.sampled_from(NAMES)))
def test_the_least_worth_goes_first_as_a_full_look_finds(
    steps: list[tuple[str, str, int, float, float]], needed: int, pinned: set[str]
) -> None:
    cache, model, now = Cache(half_life_s=HALF_LIFE_S), Model(), 0.0
    for what, name, size_bytes, cost_s, gap_s in steps:
        now += gap_s
        if what == "forget":
            cache.forget(name)
            model.held.pop(name, None)
        elif what == "use":
            cache.use(name, now)
            model.uses.setdefault(name, []).append(now)
        elif what == "hold" and name in model.held:
            cache.hold(name, size_bytes, cost_s, now)
            model.held[name] = (size_bytes, cost_s)
        elif what == "touch":
            cache.touch(name, size_bytes, cost_s, now)
            model.uses.setdefault(name, []).append(now)
            model.held[name] = (size_bytes, cost_s)
    assert len(cache) == len(model.held)
    assert cache.size_bytes == sum(size for size, _ in model.held.values())
    found = cache.victims(needed, lambda name: name not in pinned)
    assert found == cache.victims(needed, lambda name: name not in pinned)
    free = sorted(model.held.keys() - pinned, key=lambda name: model.value(name, now))
    least, freed = [], 0
    for name in free:
        if freed < needed:
            least.append(name)
            freed += model.held[name][0]
    values = [model.value(name, now) for name in found]
    assert values == pytest.approx(sorted(values), rel=1e-6)
    assert len(found) <= len(least)
    if least:
        assert max(values) <= model.value(least[-1], now) * (1 + 1e-6)
    sizes = [model.held[name][0] for name in found]
    # Enough, and no more than has to.
    assert sum(sizes) >= needed > sum(sizes) - min(sizes, default=0) or len(found) == len(free)


def test_what_is_in_demand_no_longer_is_overtaken() -> None:
    cache = Cache(half_life_s=HALF_LIFE_S)
    for _ in range(50):
        cache.touch("old", 1000, 1.0, 0.0)
    cache.touch("new", 1000, 1.0, 300.0)
    assert cache.victims(1, anything) == ("new",)
    cache.touch("new", 1000, 1.0, 700.0)
    assert cache.victims(1, anything) == ("old",)


def test_dear_and_small_things_stay() -> None:
    cache = Cache()
    cache.touch("dear", 1000, 30.0, 0.0)
    cache.touch("cheap", 1000, 0.1, 0.0)
    cache.touch("large", 100_000, 0.1, 0.0)
    assert cache.victims(150_000, anything) == ("large", "cheap", "dear")


def test_nothing_goes_that_is_not_needed_beside_the_others() -> None:
    worths = [Worth("small", 10, 0.001), Worth("dear", 30, 0.09), Worth("large", 1000, 9.0)]
    assert [each.name for each in victims_of(worths, 5)] == ["small"]
    assert [each.name for each in victims_of(worths, 1000)] == ["large"]
    assert [each.name for each in victims_of(worths, 1005)] == ["small", "large"]
    assert [each.name for each in victims_of(worths, 1020)] == ["dear", "large"]
    cache = Cache()
    for worth in worths:
        cache.touch(worth.name, worth.size_bytes, worth.lost_s_per_s, 0.0)
    assert cache.victims(1000, anything) == ("large",)
    assert cache.victims(1020, anything) == ("dear", "large")


def test_what_may_not_go_is_no_victim() -> None:
    cache = Cache()
    for name in NAMES:
        cache.touch(name, 10, 1.0, 0.0)
    assert cache.victims(1000, nothing) == ()
    assert cache.worths(0.0, nothing) == []
    cache.use("x", 0.0)
    assert not cache.admit("x", 10, 1e9, 0.0, room_bytes=0, evictable=nothing)
    assert cache.admit("x", 10, 1e9, 0.0, room_bytes=10, evictable=nothing)


def test_a_scan_does_not_get_in_and_what_is_asked_for_again_does() -> None:
    cache = Cache(half_life_s=HALF_LIFE_S)
    for second in range(20):
        cache.touch("wanted", 1000, 1.0, float(second))
    for number in range(500):
        name = f"scan{number}"
        cache.use(name, 20.0)
        assert not cache.admit(name, 1000, 1.0, 20.0, room_bytes=0, evictable=anything)
    asked = 0
    while not cache.admit("newer", 1000, 1.0, 21.0, room_bytes=0, evictable=anything):
        cache.use("newer", 21.0)
        asked += 1
    assert 15 <= asked <= 25


def test_uses_are_remembered_of_what_went_and_came_back() -> None:
    cache = Cache(half_life_s=HALF_LIFE_S)
    for _ in range(10):
        cache.touch("back", 10, 1.0, 0.0)
    cache.forget("back")
    cache.hold("back", 10, 1.0, 0.0)
    cache.touch("other", 10, 2.0, 0.0)
    assert cache.victims(1, anything) == ("other",)


def test_the_worth_of_room_is_uses_per_second_times_their_cost() -> None:
    cache = Cache(half_life_s=HALF_LIFE_S)
    for second in range(2000):
        cache.touch("steady", 1000, 3.0, second / 2)
    (worth,) = cache.worths(1000.0, anything)
    assert worth.lost_s_per_s == pytest.approx(2 * 3.0, rel=0.01)
    assert worth.size_bytes == 1000


def test_a_sketch_never_says_too_little_and_seldom_too_much() -> None:
    sketch, rng = Sketch(bytes(range(32))), random.Random(4)
    scores = {f"name {number}": rng.uniform(0, 100) for number in range(SKETCH_CELLS // 4)}
    for name, score in scores.items():
        sketch.raise_to(name, score)
    assert all(sketch.score(name) >= score for name, score in scores.items())
    wrong = sum(sketch.score(name) > score for name, score in scores.items())
    assert wrong < len(scores) / 100
    assert sketch.score("never seen") == -math.inf


def test_its_memory_is_bounded_by_what_is_held() -> None:
    cache = Cache()
    for number in range(3000):
        name = f"n{number}"
        cache.touch(name, 10, 1.0, float(number))
        cache.hold(name, 10, 0.5, float(number))
        if number >= 10:
            cache.forget(f"n{number - 10}")
    assert len(cache) == 10
    assert len(cache._queue) <= 100


def test_a_half_life_is_positive() -> None:
    with pytest.raises(LocalProtocolError):
        Cache(half_life_s=0.0)
