"""The world an initialiser sees: WASI's clock and random numbers, the same at every run by default.

The fixed clock starts at CLOCK_START_NS and goes on by a microsecond each time it is read, so that
who waits for time to pass sees it pass; sleeping moves it and takes no time. Random numbers are a
SHAKE-128 stream. Without `fixed` both are the machine's. What was asked for is counted.
"""

from __future__ import annotations

import hashlib
import os
import time
from ctypes import c_uint64, memmove, string_at
from struct import Struct
from typing import Final

from .call import EBADF, EFAULT, SUCCESS, Call, HostFunction
from .host import WORLD, poll

CLOCK_START_NS: Final = 1_577_836_800_000_000_000
"""2020-01-01, after any date a guest takes for "the clock is not set"."""
CLOCK_STEP_NS: Final = 1000
RANDOM_SEED: Final = b"edged/1 snapshot random"
_CHUNK_BYTES: Final = 64 * 1024
_REALTIME: Final = 0
_MONOTONIC: Final = 1
_ABSOLUTE: Final = 1
_CLOCK: Final = Struct("<I12xQ8xI")
_PAIR: Final = Struct("<I12xI")


class World:
    """Clock and random numbers of one initialisation."""

    def __init__(self, *, fixed: bool) -> None:
        self.random_bytes = 0
        self.clock_reads = 0
        self._fixed = fixed
        self._elapsed_ns = 0
        self._chunks = 0

    def functions(self) -> dict[str, tuple[str, HostFunction]]:
        """Name to letters of the parameters and what answers; for edged.runtime.host.Host."""
        answers: dict[str, HostFunction] = {
            "clock_res_get": self._clock_res_get,
            "clock_time_get": self._clock_time_get,
            "poll_oneoff": self._poll_oneoff,
            "random_get": self._random_get,
        }
        return {name: (letters, answers[name]) for name, letters in WORLD.items()}

    def _now_ns(self, clock: int) -> int:
        self.clock_reads += 1
        if not self._fixed:
            return time.time_ns() if clock == _REALTIME else time.monotonic_ns()
        self._elapsed_ns += CLOCK_STEP_NS
        return self._elapsed_ns + (CLOCK_START_NS if clock == _REALTIME else 0)

    def _clock_time_get(self, call: Call, caller: int, args: int) -> int:
        clock, _precision, out = _CLOCK.unpack(string_at(args, 36))
        return self._answer(call, caller, clock, out, self._now_ns(clock))

    def _clock_res_get(self, call: Call, caller: int, args: int) -> int:
        clock, out = _PAIR.unpack(string_at(args, 20))
        return self._answer(call, caller, clock, out, 1)

    def _answer(self, call: Call, caller: int, clock: int, out: int, value: int) -> int:
        if clock not in (_REALTIME, _MONOTONIC):
            return EBADF
        base, size = call.memory(caller)
        if out + 8 > size:
            return EFAULT
        c_uint64.from_address(base + out).value = value
        return SUCCESS

    def _random_get(self, call: Call, caller: int, args: int) -> int:
        out, length = _PAIR.unpack(string_at(args, 20))
        base, size = call.memory(caller)
        if out + length > size:
            return EFAULT
        self.random_bytes += length
        for begin in range(0, length, _CHUNK_BYTES):
            call.check_time()
            part = min(_CHUNK_BYTES, length - begin)
            memmove(base + out + begin, self._random(part), part)
        return SUCCESS

    def _random(self, length: int) -> bytes:
        if not self._fixed:
            return os.urandom(length)
        self._chunks += 1
        return hashlib.shake_128(RANDOM_SEED + self._chunks.to_bytes(8, "little")).digest(length)

    def _poll_oneoff(self, call: Call, caller: int, args: int) -> int:
        sleep = self._pass if self._fixed else call.sleep
        return poll(call, caller, args, self._wait_s, sleep)

    def _pass(self, seconds: float) -> None:
        self._elapsed_ns += int(seconds * 1e9)

    def _wait_s(
        self, _call: Call, _caller: int, _scratch_at: int, clock: int, timeout_ns: int, flags: int
    ) -> float | None:
        if clock not in (_REALTIME, _MONOTONIC):
            return None
        if flags & _ABSOLUTE:
            timeout_ns = max(timeout_ns - self._now_ns(clock), 0)
        return timeout_ns / 1e9
