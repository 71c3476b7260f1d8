"""What goes when room is needed, and what is worth making room for. edged/docs/PLANNER.md.

GreedyDual-Size-Frequency (Cherkasova 1998) priced in the seconds it takes to have a thing again:
value = uses · cost_s / size_bytes, and the least goes. Its clock is a fading of the uses, each
2^(−age / half-life): all fade alike, so no value changes its place but by a use, and what is in
demand no longer is overtaken. Admission (TinyLFU, Einziger 2017) weighs a newcomer against all
that would go for it; a count-min sketch remembers the uses of what is not held.
Owned by one holder of things with names; it evicts nothing itself. Bounds: one entry per thing
held, SKETCH_CELLS numbers. The same calls give the same answers: ties go by age, hashes are keyed.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from blake3 import blake3

from .costs import Room
from .errors import LocalProtocolError

HALF_LIFE_S: Final = 2 * 3600.0
"""Of a use. Long against the time between two of what is worth holding, short against that in which
fashions change: on streams of a use a second, 2,000 s to 20,000 s miss within 5 % of each other."""
SKETCH_CELLS: Final = 1 << 11
"""Per row: 64 KiB in all. Many more names than that within a half-life, and all look used."""
SKETCH_ROWS: Final = 4
COST_MIN_S: Final = 1e-6
NEWCOMER: Final = 1.25
"""Times the uses of what is not held: it was asked for over a shorter time than what is, so its
rate is higher than its uses say. At 1.1 to 1.25 nothing misses more than at 1."""
_WORD: Final = 4
_NEVER: Final = -math.inf

Evictable = Callable[[str], bool]
"""Whether it may go now: not pinned, not in use, not below its replicas."""


class Worth(NamedTuple):
    """Of something that may go."""

    name: str
    size_bytes: int
    lost_s_per_s: float
    """Without it: uses per second times what each then costs more."""


def victims_of(worths: Iterable[Worth], bytes_needed: int) -> tuple[Worth, ...]:
    """What to let go for so many bytes, the least worth per byte first, but nothing that is not
    needed beside the others; all, if that is too little."""
    found: list[Worth] = []
    for each in sorted(worths, key=_density):
        if bytes_needed <= 0:
            break
        found.append(each)
        bytes_needed -= each.size_bytes
    kept = spared([(each.size_bytes, each.lost_s_per_s) for each in found], -bytes_needed)
    return tuple(each for at, each in enumerate(found) if at not in kept)


def spared(found: Sequence[tuple[int, float]], surplus_bytes: int) -> frozenset[int]:
    """Which of them, (bytes, worth), may stay as more goes than has to: the most worth first. The
    last to go may be far larger than what was missing, and then those before it go for nothing."""
    kept = []
    for at in sorted(range(len(found)), key=lambda at: (-found[at][1], at)):
        if found[at][0] <= surplus_bytes:
            kept.append(at)
            surplus_bytes -= found[at][0]
    return frozenset(kept)


def room_of(worths: Iterable[Worth], free_bytes: int) -> tuple[Room, ...]:
    """What room costs, by steps: what is free, and with each thing that goes."""
    steps = [Room(max(free_bytes, 0), 0.0)]
    size_bytes, lost_s_per_s = free_bytes, 0.0
    for each in sorted(worths, key=_density):
        size_bytes += each.size_bytes
        lost_s_per_s += each.lost_s_per_s
        steps.append(Room(size_bytes, lost_s_per_s))
    return tuple(steps)


def _density(worth: Worth) -> tuple[float, str]:
    return worth.lost_s_per_s / max(worth.size_bytes, 1), worth.name


def _with_one(score: float, at: float) -> float:
    """log2(2^score + 2^at): a use more. A score counts uses as if half-lives were worth a
    doubling forward instead of a halving back, so that it stays what it is while time goes on."""
    low, high = (score, at) if score < at else (at, score)
    return high + math.log2(1.0 + 2.0 ** (low - high))


class Sketch:
    """The score of every name, about: never too low, seldom too high."""

    __slots__ = ("_key", "_rows")

    def __init__(self, key: bytes = bytes(32)) -> None:
        """`key`: 32 bytes nobody else knows, where names come from who may want them to collide."""
        self._key = key
        self._rows = [array("d", [_NEVER]) * SKETCH_CELLS for _ in range(SKETCH_ROWS)]

    def score(self, name: str) -> float:
        return min(row[at] for row, at in zip(self._rows, self._cells(name), strict=True))

    def raise_to(self, name: str, score: float) -> None:
        for row, at in zip(self._rows, self._cells(name), strict=True):
            row[at] = max(row[at], score)

    def _cells(self, name: str) -> list[int]:
        digest = blake3(name.encode(), key=self._key).digest(SKETCH_ROWS * _WORD)
        return [
            int.from_bytes(digest[at : at + _WORD], "big") % SKETCH_CELLS
            for at in range(0, SKETCH_ROWS * _WORD, _WORD)
        ]


class _Entry:
    __slots__ = ("cost_s", "price", "queued", "score", "size_bytes", "turn")

    def __init__(self, score: float) -> None:
        self.score = score
        self.size_bytes = 0
        self.cost_s = 0.0
        self.price = 0.0
        """log2(cost_s / size_bytes)."""
        self.queued = math.inf
        """The value under which it stands in the queue: its own or an older, lower one."""
        self.turn = 0

    @property
    def value(self) -> float:
        return self.score + self.price


class Cache:
    """The order in which things go. `now` is any clock that does not go back."""

    def __init__(self, *, half_life_s: float = HALF_LIFE_S, key: bytes = bytes(32)) -> None:
        """Raises LocalProtocolError for a half-life that is not positive."""
        if not half_life_s > 0:
            raise LocalProtocolError(f"half-life {half_life_s}: not positive")
        self._half_life_s = half_life_s
        self._entries: dict[str, _Entry] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._sketch = Sketch(key)
        self._turns = 0
        self._bytes = 0
        self._began_s: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def size_bytes(self) -> int:
        """Of all that is held."""
        return self._bytes

    def use(self, name: str, now: float) -> None:
        """It was used as it is, or wanted and is not held. For the warm path: 1 µs."""
        at = now / self._half_life_s
        if self._began_s is None:
            self._began_s = now
        entry = self._entries.get(name)
        if entry is not None:
            entry.score = _with_one(entry.score, at)
        else:
            self._sketch.raise_to(name, _with_one(self._sketch.score(name), at))

    def hold(self, name: str, size_bytes: int, cost_s: float, now: float) -> None:
        """It has come, or what is known of it has changed; no use. `cost_s` to have it again, were
        it gone."""
        entry = self._entries.get(name)
        if entry is None:
            # As if used once, a half-life ago: what nobody has wanted yet has a value too.
            score = max(self._sketch.score(name), now / self._half_life_s - 1)
            entry = self._entries[name] = _Entry(score)
        self._bytes += size_bytes - entry.size_bytes
        entry.size_bytes = size_bytes
        entry.cost_s = max(cost_s, COST_MIN_S)
        entry.price = math.log2(entry.cost_s / max(size_bytes, 1))
        if entry.value < entry.queued:
            self._put(name, entry)

    def touch(self, name: str, size_bytes: int, cost_s: float, now: float) -> None:
        """`use` of something that is held, or comes with it."""
        self.use(name, now)
        self.hold(name, size_bytes, cost_s, now)

    def forget(self, name: str) -> None:
        """It is not held any more, for whatever reason. How it was used is remembered."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._bytes -= entry.size_bytes
            self._sketch.raise_to(name, entry.score)

    def victims(self, bytes_needed: int, evictable: Evictable) -> tuple[str, ...]:
        """What to let go for so many bytes, the least worth first, but nothing that is not needed
        beside the others; all that may go if that is too little. Nothing has changed: who removes
        one says `forget`."""
        return tuple(self._least(bytes_needed, evictable)[0])

    def worths(self, now: float, evictable: Evictable) -> list[Worth]:
        """Of all that may go, for `room_of`."""
        at, span_s = now / self._half_life_s, self._span_s(now)
        return [
            Worth(name, entry.size_bytes, math.exp2(entry.score - at) * entry.cost_s / span_s)
            for name, entry in self._entries.items()
            if evictable(name)
        ]

    def admit(
        self, name: str, size_bytes: int, cost_s: float, now: float,
        *, room_bytes: int, evictable: Evictable,
    ) -> bool:  # fmt: skip
        """Whether something that was wanted just now is worth holding: more than all that goes for
        it. `room_bytes` are free."""
        missing_bytes = size_bytes - room_bytes
        if missing_bytes <= 0:
            return True
        found, freed = self._least(missing_bytes, evictable)
        if freed < missing_bytes:
            return False
        uses = NEWCOMER * math.exp2(self._sketch.score(name) - now / self._half_life_s)
        return uses * cost_s / self._span_s(now) > self._worth(found, now)

    # ------------------------------------------------------------ the queue
    def _span_s(self, now: float) -> float:
        """Uses per this are uses per second: ∫ 2^(−t / half-life) dt since the first of all."""
        age_s = now - (now if self._began_s is None else self._began_s)
        whole_s = self._half_life_s / math.log(2)
        return max(-whole_s * math.expm1(-age_s / whole_s), 1.0)

    def _worth(self, names: Iterable[str], now: float) -> float:
        """Seconds per second."""
        at = now / self._half_life_s
        entries = [self._entries[name] for name in names]
        uses_s = [math.exp2(each.score - at) * each.cost_s for each in entries]
        return sum(uses_s) / self._span_s(now)

    def _put(self, name: str, entry: _Entry) -> None:
        self._turns += 1
        entry.turn, entry.queued = self._turns, entry.value
        heapq.heappush(self._queue, (entry.queued, entry.turn, name))
        if len(self._queue) > 2 * len(self._entries) + 64:
            entries = self._entries.items()
            self._queue = [(each.queued, each.turn, name) for name, each in entries]
            heapq.heapify(self._queue)

    def _least(self, bytes_needed: int, evictable: Evictable) -> tuple[list[str], int]:
        """(names, bytes) of the least worth that together have so many, of those that may go."""
        found: list[str] = []
        passed: list[tuple[float, int, str]] = []
        freed = 0
        while freed < bytes_needed and self._queue:
            value, turn, name = heapq.heappop(self._queue)
            entry = self._entries.get(name)
            if entry is None or entry.turn != turn:
                continue  # of one that is gone, or stands elsewhere by now
            if entry.value > value:
                self._put(name, entry)  # used since: to its place
                continue
            passed.append((value, turn, name))
            if evictable(name):
                found.append(name)
                freed += entry.size_bytes
        for each in passed:
            heapq.heappush(self._queue, each)
        return self._without_spared(found, freed, bytes_needed)

    def _without_spared(
        self, found: list[str], freed: int, bytes_needed: int
    ) -> tuple[list[str], int]:
        if freed <= bytes_needed or len(found) < 2:
            return found, freed
        entries = [self._entries[name] for name in found]
        # Relative to the most worth, as scores are far out of a float's range.
        most = max(each.score for each in entries)
        worths = [(e.size_bytes, math.exp2(e.score - most) * e.cost_s) for e in entries]
        kept = spared(worths, freed - bytes_needed)
        freed -= sum(worths[at][0] for at in kept)
        return [name for at, name in enumerate(found) if at not in kept], freed
