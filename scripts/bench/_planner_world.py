"""The world in which the planner's benchmark runs: guests, a node's link, who asks for what when.

True values only: what a policy may know of them it measures itself (_planner_policies.py). A trace
is one node's hour or so, a function of its seed; times in seconds, sizes in bytes. Guests are those
of real measurements (wasmtime 50, zstd; sizes marked ~ are estimates), each with its own sizes
around them. A node acquires one form of a function at a time, beginning at a request for it; what
the form does not use goes when it is ready.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from edged.topology import Topology
from protocol.costs import PlanForm

MBIT: Final = 125_000.0
LINK_MBIT: Final = (1.0, 1000.0)
LINK_CHANGES_S: Final = 900.0
"""Mean time from one bandwidth of the link to the next."""
DECOMPRESS_BYTES_S: Final = 800e6
COMPILE_BYTES_S: Final = 4.4e6
"""Of the code section, by the fast compiler."""
COMPILE_FIXED_S: Final = 0.03
LOAD_S: Final = 0.0003
ROUNDS: Final = 2
ARTIFACT_ROUNDS: Final = 3
REWRITE_BYTES_S: Final = 100e6
WIRE_PRICE: Final = 2e-8
"""Seconds per byte: 20 s of waiting are worth a gigabyte sent."""
CPU_PRICE: Final = 0.01
HOLD_PRICE: Final = 1e-12
"""Seconds per byte and second: a gigabyte held for an hour is 3.6 s."""
ROOMY_BYTES: Final = 1 << 40
NAMES: Final[dict[PlanForm, tuple[str, ...]]] = {
    "module": ("module", "artifact"),
    "artifact": ("artifact",),
    "snapshot": ("snapshot", "snapshot_artifact"),
    "snapshot-delta": ("module", "snapshot", "snapshot_artifact"),
    "snapshot-here": ("module", "snapshot", "snapshot_artifact"),
    "snapshot-artifact": ("snapshot_artifact",),
}
"""What is on disk in each form."""


class Guest(NamedTuple):
    name: str
    module: tuple[int, int]
    """(wire bytes, bytes)."""
    artifact: tuple[int, int]
    code_bytes: int
    instantiate_s: float
    run_s: float
    init_s: float = 0.0
    snapshot: tuple[int, int] = (0, 0)
    delta: tuple[int, int] = (0, 0)
    snapshot_artifact: tuple[int, int] = (0, 0)
    instantiate_snapshot_s: float = 0.0


K, M = 1000, 1_000_000
GUESTS: Final = (
    Guest("hello", (10 * K, 24 * K), (35 * K, 102 * K), 11 * K, 0.0001, 0.0001),
    Guest("quickjs", (237 * K, 730 * K), (881 * K, 2200 * K), 570 * K, 0.0004, 0.003),
    Guest("sqlite", (420 * K, 1070 * K), (1300 * K, 3400 * K), 790 * K, 0.0003, 0.002),
    Guest("go", (1400 * K, 4400 * K), (3 * M, 9800 * K), 3200 * K, 0.001, 0.0015),
    Guest(
        "ua-aho", (11 * K, 24 * K), (33 * K, 97 * K), 11 * K, 0.00012, 0.00005, 0.0022,
        (72 * K, 592 * K), (42 * K, 0), (300 * K, 2500 * K), 0.0001,
    ),
    Guest(  # ~ wire sizes
        "ua-regex", (1100 * K, 3100 * K), (2600 * K, 9300 * K), 2500 * K, 0.0006, 0.001, 0.026,
        (5 * M, 35_700 * K), (4200 * K, 0), (7 * M, 45 * M), 0.0004,
    ),
    Guest(
        "quickjs-table", (256 * K, 730 * K), (881 * K, 2200 * K), 570 * K, 0.0004, 0.0005, 0.0335,
        (999 * K, 7200 * K), (691 * K, 0), (1900 * K, 10_700 * K), 0.00022,
    ),
    Guest(  # ~ its snapshot
        "python", (10_100 * K, 26_300 * K), (10_500 * K, 27_300 * K), 7 * M, 0.001, 0.004, 0.06,
        (11 * M, 30 * M), (900 * K, 0), (11_600 * K, 31 * M), 0.001,
    ),
    Guest(
        "ruby", (4470 * K, 16_700 * K), (15_500 * K, 54_800 * K), 12_300 * K, 0.001, 0.002, 0.044,
        (4720 * K, 17_600 * K), (301 * K, 0), (15_800 * K, 55_700 * K), 0.0009,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Function:
    name: str
    guest: Guest
    rtt_s: float
    """To who has its blobs, and answers for it."""
    has_artifact: bool
    """Peers have native code for this node's engine."""
    forward_from_s: float
    """When a peer is ready to answer for it."""
    payload_bytes: int
    remote_s: float
    """Of a call at the peer."""
    times_s: tuple[float, ...] = ()

    @property
    def forms(self) -> tuple[PlanForm, ...]:
        forms: list[PlanForm] = ["artifact"] if self.has_artifact else []
        forms.append("module")
        if self.guest.init_s:
            if self.has_artifact:
                forms.append("snapshot-artifact")
            forms += ["snapshot-delta", "snapshot", "snapshot-here"]
        return tuple(forms)

    def blob(self, name: str) -> tuple[int, int]:
        found: tuple[int, int] = getattr(self.guest, name)
        return found

    def stored_bytes(self, form: PlanForm | None) -> int:
        return sum(self.blob(name)[1] for name in NAMES[form]) if form in NAMES else 0

    def wire_parts(self, form: PlanForm) -> tuple[str, ...]:
        if form == "snapshot-delta":
            return ("module", "delta")
        return {"snapshot-here": ("module",), "module": ("module",)}.get(
            form, (form.replace("-", "_"),)
        )


class Link:
    """Bandwidth by time, and the integral that says when bytes have come."""

    def __init__(self, rng: Random, duration_s: float) -> None:
        self.since_s, self.bytes_s = [0.0], [self._draw(rng)]
        while (at := self.since_s[-1] + rng.expovariate(1 / LINK_CHANGES_S)) < duration_s:
            self.since_s.append(at)
            self.bytes_s.append(self._draw(rng))

    @staticmethod
    def _draw(rng: Random) -> float:
        low, high = map(math.log, LINK_MBIT)
        return math.exp(rng.uniform(low, high)) * MBIT

    def at(self, now_s: float) -> float:
        return self.bytes_s[bisect.bisect_right(self.since_s, now_s) - 1]

    def done_s(self, begin_s: float, size: float) -> float:
        """When `size` bytes that begin to come at `begin_s` are here."""
        index = bisect.bisect_right(self.since_s, begin_s) - 1
        now_s = begin_s
        while index + 1 < len(self.since_s):
            could = (self.since_s[index + 1] - now_s) * self.bytes_s[index]
            if could >= size:
                break
            size -= could
            index += 1
            now_s = self.since_s[index]
        return now_s + size / self.bytes_s[index]

    def bytes_between(self, begin_s: float, end_s: float) -> float:
        index = bisect.bisect_right(self.since_s, begin_s) - 1
        came, now_s = 0.0, begin_s
        while now_s < end_s:
            last = index + 1 == len(self.since_s)
            until_s = end_s if last else min(end_s, self.since_s[index + 1])
            came += (until_s - now_s) * self.bytes_s[index]
            now_s, index = until_s, index + 1
        return came


@dataclass
class World:
    seed: int
    duration_s: float
    functions: list[Function]
    requests: list[tuple[float, int]]
    """(when, of which function), in order."""
    link: Link
    speed: float
    """Of this node's core, times the reference's."""
    quota_bytes: int
    noise: Random = field(repr=False, default_factory=Random)

    # ------------------------------------------------------------ what is true
    def per_call_s(self, function: Function, form: PlanForm) -> float:
        guest = function.guest
        if form.startswith("snapshot"):
            return (guest.instantiate_snapshot_s + guest.run_s) / self.speed
        return (guest.instantiate_s + guest.init_s + guest.run_s) / self.speed

    def forward_s(self, function: Function, now_s: float) -> float:
        """With the time until a peer is ready."""
        payload = function.payload_bytes
        waited_s = max(function.forward_from_s - now_s, 0.0)
        waited_s += function.rtt_s + function.remote_s + payload / self.link.at(now_s)
        return waited_s + payload * WIRE_PRICE

    def least_s(self, function: Function) -> float:
        """Of a call in the quickest form: what no policy avoids."""
        return min(self.per_call_s(function, form) for form in function.forms)

    def wire_bytes(self, function: Function, form: PlanForm, here: Iterable[str]) -> int:
        if function.blob(NAMES[form][-1])[1] and NAMES[form][-1] in here:
            return 0
        parts = function.wire_parts(form)
        if form.startswith("snapshot") and "snapshot" in here and form != "snapshot-artifact":
            parts = tuple(part for part in parts if part not in ("delta", "module"))
        return sum(function.blob(part)[0] for part in parts if part not in here)

    def fetched_s(self, function: Function, form: PlanForm, size: int, begin_s: float) -> float:
        """When `size` wire bytes for that form are here and decompressed."""
        if not size:
            return begin_s
        came_s = self.link.done_s(begin_s, size)
        return self.unpacked_s(function, form, size, begin_s, came_s)

    def unpacked_s(
        self, function: Function, form: PlanForm, size: int, begin_s: float, came_s: float
    ) -> float:
        """When the bytes that were on the link from `begin_s` to `came_s` are decompressed."""
        rounds = ARTIFACT_ROUNDS if form.endswith("artifact") else ROUNDS
        parts = function.wire_parts(form)
        unpack_s = sum(function.blob(part)[1] for part in parts) / DECOMPRESS_BYTES_S
        segments = max(size // (256 * K), 1)
        longer, shorter = max(came_s - begin_s, unpack_s), min(came_s - begin_s, unpack_s)
        done_s = begin_s + rounds * function.rtt_s + longer + shorter / segments
        if form == "snapshot-delta":
            done_s += function.guest.snapshot[1] / DECOMPRESS_BYTES_S
        return done_s

    def build_cpu_s(self, function: Function, form: PlanForm, here: Iterable[str]) -> float:
        if form.endswith("artifact") or NAMES[form][-1] in here:
            return 0.0
        guest = function.guest
        compile_s = COMPILE_FIXED_S + guest.code_bytes / COMPILE_BYTES_S
        if form == "snapshot-here" and "snapshot" not in here:
            compile_s = 2 * compile_s + guest.init_s + guest.snapshot[1] / REWRITE_BYTES_S
        return compile_s / self.speed


# ---------------------------------------------------------------- traces
def make_world(seed: int, topology: Topology) -> World:
    rng = Random(seed)
    duration_s = rng.choice([1800.0, 3600.0, 7200.0])
    region = rng.choice(topology.regions)
    functions = [_function(rng, topology, region, at) for at in range(rng.randint(12, 48))]
    link = Link(rng, duration_s)
    requests = _requests(rng, len(functions), duration_s)
    return _world(seed, rng, duration_s, functions, requests, link)


def _world(
    seed: int, rng: Random, duration_s: float, functions: list[Function],
    requests: list[tuple[float, int]], link: Link,
) -> World:  # fmt: skip
    by_function: list[list[float]] = [[] for _ in functions]
    for when_s, at in requests:
        by_function[at].append(when_s)
    functions = [
        replace(
            each,
            times_s=tuple(times),
            forward_from_s=each.forward_from_s and times[0] + each.forward_from_s,
        )
        if times
        else each
        for each, times in zip(functions, by_function, strict=True)
    ]
    used = [each for each in functions if each.times_s]
    largest = [max(each.stored_bytes(form) for form in each.forms) for each in used]
    quota = max(int(sum(largest) * rng.uniform(0.3, 1.0)), *largest)
    speed = math.exp(rng.gauss(0, 0.3))
    return World(
        seed=seed, duration_s=duration_s, functions=functions, requests=requests, link=link,
        speed=speed, quota_bytes=quota, noise=Random(seed + 1_000_003),
    )  # fmt: skip


def _function(rng: Random, topology: Topology, region: str, number: int) -> Function:
    base = rng.choice(GUESTS)
    size = math.exp(rng.gauss(0, 0.3))
    time = math.exp(rng.gauss(0, 0.3))

    def sized(pair: tuple[int, int]) -> tuple[int, int]:
        return int(pair[0] * size), int(pair[1] * size)

    guest = base._replace(
        module=sized(base.module), artifact=sized(base.artifact), snapshot=sized(base.snapshot),
        delta=sized(base.delta), snapshot_artifact=sized(base.snapshot_artifact),
        code_bytes=int(base.code_bytes * size), init_s=base.init_s * time,
        run_s=base.run_s * math.exp(rng.gauss(0, 0.7)),
    )  # fmt: skip
    others = [other for other in topology.regions if other != region]
    holders = rng.sample(others, 3)
    rtt_s = min(
        topology.link(region, at).latency_s + topology.link(at, region).latency_s for at in holders
    )
    return Function(
        name=f"{base.name}-{number}", guest=guest, rtt_s=rtt_s,
        has_artifact=rng.random() < 0.8,
        forward_from_s=0.0 if rng.random() < 0.9 else rng.uniform(5, 120),
        payload_bytes=int(rng.choice([300, 2000, 20_000])),
        remote_s=(guest.instantiate_snapshot_s or guest.instantiate_s) + guest.run_s,
    )  # fmt: skip


def _requests(rng: Random, functions: int, duration_s: float) -> list[tuple[float, int]]:
    """Poisson arrivals over Zipf ranks that partly change places once; some functions are
    deployed later."""
    rate = math.exp(rng.uniform(math.log(0.1), math.log(1.0))) * 3600 / duration_s
    exponent = rng.uniform(0.7, 1.3)
    weights = [(rank + 1) ** -exponent for rank in range(functions)]
    order = list(range(functions))
    begins = [rng.uniform(0, duration_s / 2) if rng.random() < 0.3 else 0.0 for _ in order]
    change_s = rng.uniform(0.2, 0.8) * duration_s
    now_s, changed = 0.0, False
    found: list[tuple[float, int]] = []
    while (now_s := now_s + rng.expovariate(rate)) < duration_s:
        if now_s > change_s and not changed:
            changed = True
            for _ in range(functions // 4):
                one, other = rng.randrange(functions), rng.randrange(functions)
                order[one], order[other] = order[other], order[one]
        which = rng.choices(order, weights)[0]
        if now_s >= begins[which]:
            found.append((now_s, which))
    return found or [(0.0, 0)]


def recorded_world(file: Path, seed: int, topology: Topology) -> list[World]:
    """One per node that was asked in a run's requests.jsonl: its requests as they came, of guests
    that are dealt to the functions' names by the seed."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    names = sorted({row["function"] for row in rows})
    worlds = []
    for number, node in enumerate(sorted({row["node"] for row in rows})):
        rng = Random(seed + number)
        region = rng.choice(topology.regions)
        functions = [_function(rng, topology, region, at) for at in range(len(names))]
        requests = sorted(
            (float(row["intended_s"]), names.index(row["function"]))
            for row in rows
            if row["node"] == node
        )
        duration_s = requests[-1][0] + 1.0
        link = Link(rng, duration_s)
        world = _world(seed + number, rng, duration_s, functions, requests, link)
        worlds.append(replace(world, quota_bytes=ROOMY_BYTES))
    return worlds
