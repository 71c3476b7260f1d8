"""What compiling and fetching cost on this node, measured, and guessed until then; and which
requests' compiles wait and run."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from protocol.estimates import Estimate, Reading
from protocol.ids import Digest

from .interfaces import Tier

WEIGHT: Final = 0.3
"""Of the newest measurement."""
CODE_BYTES_PER_S: Final[dict[Tier, float]] = {"optimised": 0.55e6, "fast": 4.4e6}
"""Of the code section per core: Cranelift 0.45 to 0.7 MB/s from tiny guests to Ruby, Winch eight
times that."""
COMPILE_FIXED_S: Final = 0.03
"""Of any compile: handing it to a worker, at best one that stands by."""
LINK_BYTES_PER_S: Final = 12.5e6
"""100 Mbit/s, until something was fetched."""
COMPILE_SAMPLE_BYTES: Final = 64 * 1024
FETCH_SAMPLE_BYTES: Final = 256 * 1024
"""Less says more of fixed costs than of the rate."""
SECTIONS_MAX: Final = 1000
_CODE_SECTION: Final = 10


class Rates:
    """All state belongs to the node's event loop."""

    def __init__(
        self, *, compiles_max: int = 1, now: Callable[[], float] = trio.current_time
    ) -> None:
        """`compiles_max`: for requests, at once."""
        self._now = now
        self._compiles_max = compiles_max
        self._jobs: list[tuple[Digest, float]] = []
        self._moved_s = 0.0
        """When a job ended last, or began with nobody before it."""
        self._compile = {tier: Estimate(rate) for tier, rate in CODE_BYTES_PER_S.items()}
        self._link = LINK_BYTES_PER_S

    def compile_s(self, code_bytes: int, tier: Tier) -> float:
        return COMPILE_FIXED_S + code_bytes / self._compile[tier].value(self._now())

    def compile_rate(self, tier: Tier) -> Reading:
        """Bytes of code section per core-second."""
        return self._compile[tier].read(self._now())

    def compiled(self, code_bytes: int, tier: Tier, cpu_s: float) -> None:
        if code_bytes >= COMPILE_SAMPLE_BYTES and cpu_s > 0:
            self._compile[tier].observe(code_bytes / cpu_s, self._now())

    @contextmanager
    def job(self, code: Digest, estimate_s: float) -> Iterator[None]:
        """While a request's compile waits or runs."""
        job = code, estimate_s
        if not self._jobs:
            self._moved_s = self._now()
        self._jobs.append(job)
        try:
            yield
        finally:
            if self._jobs[0] is job:
                self._moved_s = self._now()
            self._jobs.remove(job)

    def queue_s(self, codes: Collection[Digest]) -> float:
        """Until a compile of one of `codes` could begin: what came before it, or all if none of
        them has come."""
        ahead_s = []
        for code, estimate_s in self._jobs:
            if code in codes:
                break
            ahead_s.append(estimate_s)
        if len(ahead_s) < self._compiles_max:
            return 0.0
        passed_s = self._now() - self._moved_s
        return max(sum(ahead_s) / self._compiles_max - passed_s, 0.0)

    def fetch_s(self, wire_bytes: int) -> float:
        return wire_bytes / self._link

    def fetched(self, wire_bytes: int, took_s: float) -> None:
        if wire_bytes >= FETCH_SAMPLE_BYTES and took_s > 0:
            self._link += WEIGHT * (wire_bytes / took_s - self._link)

    def too_slow(self, wire_bytes: int, took_s: float) -> None:
        """A fetch that was given up: however little came, it tells."""
        if took_s > 0:
            self._link = min(self._link, max(wire_bytes / took_s, 1.0))


def code_bytes(module: Path) -> int:
    """Of the code section: what a compile's time is proportional to. Blocking. 0 if it has none, or
    is no wasm module. Raises OSError."""
    fd = os.open(module, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = 8
        for _ in range(SECTIONS_MAX):
            head = os.pread(fd, 6, at)
            if len(head) < 2:
                return 0
            size, length = _leb128(head[1:])
            if head[0] == _CODE_SECTION:
                return size
            at += 1 + length + size
        return 0
    finally:
        os.close(fd)


def _leb128(data: bytes) -> tuple[int, int]:
    """(value, bytes it takes)."""
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, index + 1
    return value, len(data)
