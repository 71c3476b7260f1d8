"""Eviction and admission (protocol.caching) beside LRU on streams of requests for code.

A miss costs the seconds of having the thing again: fetching it, or compiling it for good. Compared
are the misses of what was asked for before, as no cache avoids the others, over what a node without
a cache would pay for them. Things are sized and priced as guests' native code is.
"""

from __future__ import annotations

from collections import OrderedDict
from random import Random
from typing import Final, NamedTuple

from _planner_world import COMPILE_FIXED_S, GUESTS, MBIT, World

from protocol.caching import Cache

THINGS: Final = 600
OPTIMISED_BYTES_S: Final = 0.55e6
"""Of the code section per core-second, by the optimising compiler."""
EXPONENT: Final = 0.9
DRIFTS: Final = 4
"""Times that a tenth of the ranks change places with others."""
SCAN: Final = 200
"""Things in a row that are asked for once: a list of all functions is gone through."""
SHARES: Final = (0.1, 0.3)
"""Of the bytes of all that is asked for more than once."""


class Thing(NamedTuple):
    name: str
    size_bytes: int
    cost_s: float


def thing(rng: Random, name: str) -> Thing:
    guest = rng.choice(GUESTS)
    size = rng.lognormvariate(0, 0.5)
    fetched_s = guest.artifact[0] * size / (rng.choice([1, 20, 100, 1000]) * MBIT)
    compiled_s = COMPILE_FIXED_S + guest.code_bytes * size / OPTIMISED_BYTES_S
    return Thing(name, int(guest.artifact[1] * size), 0.05 + min(fetched_s, compiled_s))


def stream(rng: Random, requests: int, *, scans: float) -> list[Thing]:
    """`scans`: share of requests that belong to one."""
    things = [thing(rng, f"thing {number}") for number in range(THINGS)]
    weights = [(rank + 1) ** -EXPONENT for rank in range(THINGS)]
    found: list[Thing] = []
    scanned = 0
    for number in range(requests):
        if number % (requests // DRIFTS) == 0 and number:
            for _ in range(THINGS // 10):
                one, other = rng.randrange(THINGS), rng.randrange(THINGS)
                things[one], things[other] = things[other], things[one]
        found += rng.choices(things, weights)
        if rng.random() < scans / SCAN:
            found += [thing(rng, f"scanned {scanned + each}") for each in range(SCAN)]
            scanned += SCAN
    return found


def of_world(world: World) -> list[Thing]:
    """A trace's requests, for the native code of what they ask for."""
    things = []
    for function in world.functions:
        guest = function.guest
        compiled_s = (COMPILE_FIXED_S + guest.code_bytes / OPTIMISED_BYTES_S) / world.speed
        fetched_s = function.rtt_s + guest.artifact[0] / world.link.bytes_s[0]
        things.append(Thing(function.name, guest.artifact[1], min(compiled_s, fetched_s)))
    return [things[which] for _, which in world.requests]


def capacity(things: list[Thing], share: float) -> int:
    sizes = {each.name: each.size_bytes for each in things if not each.name.startswith("scanned")}
    return int(sum(sizes.values()) * share)


def with_lru(things: list[Thing], room_bytes: int) -> float:
    held: OrderedDict[str, int] = OrderedDict()
    seen: set[str] = set()
    used = 0
    missed_s = asked_s = 0.0
    for each in things:
        again_s = each.cost_s if each.name in seen else 0.0
        seen.add(each.name)
        asked_s += again_s
        if each.name in held:
            held.move_to_end(each.name)
            continue
        missed_s += again_s
        if each.size_bytes > room_bytes:
            continue
        while used + each.size_bytes > room_bytes:
            used -= held.popitem(last=False)[1]
        held[each.name] = each.size_bytes
        used += each.size_bytes
    return missed_s / asked_s


def with_cache(things: list[Thing], room_bytes: int, *, admission: bool) -> float:
    """A request a second."""
    cache = Cache()
    seen: set[str] = set()
    missed_s, asked_s = 0.0, 0.0
    for now, each in enumerate(things):
        again_s = each.cost_s if each.name in seen else 0.0
        seen.add(each.name)
        asked_s += again_s
        cache.use(each.name, now)
        if each.name in cache:
            continue
        missed_s += again_s
        if each.size_bytes > room_bytes:
            continue
        free = room_bytes - cache.size_bytes
        if admission and not cache.admit(
            each.name, each.size_bytes, each.cost_s, now, room_bytes=free, evictable=anything
        ):
            continue
        for name in cache.victims(each.size_bytes - free, anything):
            cache.forget(name)
        cache.hold(each.name, each.size_bytes, each.cost_s, now)
    return missed_s / asked_s


def with_hindsight(things: list[Thing], room_bytes: int) -> float:
    """Who knows when each thing is asked for next, and lets go what saves the least for its bytes
    and the time until then: not the optimum, which nobody computes for sizes and costs that differ,
    but near it."""
    following = [len(things)] * len(things)
    later: dict[str, int] = {}
    for at in range(len(things) - 1, -1, -1):
        following[at] = later.get(things[at].name, len(things))
        later[things[at].name] = at
    held: dict[str, tuple[int, Thing]] = {}
    seen: set[str] = set()
    used = 0
    missed_s = asked_s = 0.0
    for now, each in enumerate(things):
        again_s = each.cost_s if each.name in seen else 0.0
        seen.add(each.name)
        asked_s += again_s
        if each.name not in held:
            missed_s += again_s
            if each.size_bytes > room_bytes or following[now] == len(things):
                continue
            used += each.size_bytes
        held[each.name] = following[now], each
        while used > room_bytes:
            least = min(held.values(), key=lambda one: _saves(one[1], one[0] - now))
            used -= held.pop(least[1].name)[1].size_bytes
    return missed_s / asked_s


def missed_at_least(things: list[Thing], room_bytes: int) -> float:
    """By any cache: what is kept from one request to the next takes its bytes for so long, and all
    of that together has to fit into the room times the length of the stream (Berger 2018, PFOO)."""
    last: dict[str, int] = {}
    kept: list[tuple[float, Thing, int]] = []
    asked_s = 0.0
    for now, each in enumerate(things):
        if each.name in last:
            asked_s += each.cost_s
            gap = now - last[each.name]
            if each.size_bytes <= room_bytes:
                kept.append((_saves(each, gap), each, gap))
        last[each.name] = now
    left = float(room_bytes * len(things))
    missed_s = asked_s
    for _, each, gap in sorted(kept, key=lambda one: -one[0]):
        share = min(left / (each.size_bytes * gap), 1.0)
        missed_s -= share * each.cost_s
        left -= share * each.size_bytes * gap
    return missed_s / asked_s


def _saves(each: Thing, gap: int) -> float:
    return each.cost_s / (each.size_bytes * gap)


def anything(_name: str) -> bool:
    return True
