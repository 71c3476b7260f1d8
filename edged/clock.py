"""The wall clock, as one object that is passed to whoever needs it.

Durations and deadlines are trio's, which is monotonic; this one only dates what others read:
records, credentials, events, logs of functions, the Date header. Three keep the machine's own:
TLS (OpenSSL reads it), guests (wasmtime does), and the collector, which compares it with times
that the kernel wrote.
"""

from __future__ import annotations

import time


class Clock:
    """The machine's."""

    def now_s(self) -> float:
        """Unix time."""
        return time.time()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ShiftedClock(Clock):
    """A laboratory's (switches.py): wrong by `shift_ms`, from one reading to the next."""

    def __init__(self) -> None:
        self.shift_ms = 0

    def now_s(self) -> float:
        return super().now_s() + self.shift_ms / 1000

    def now_ms(self) -> int:
        return super().now_ms() + self.shift_ms
