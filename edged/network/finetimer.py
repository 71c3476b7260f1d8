"""A timer finer than trio's, whose waits end in whole milliseconds, rounded up: half of one late on
average, which is as long as some links. Linux's timerfd is a descriptor that becomes readable on
time, within 0.1 ms; Python has it from 3.13 on, so it is called through ctypes here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Final

import trio

CLOCK_MONOTONIC: Final = 1
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
"""TFD_NONBLOCK and TFD_CLOEXEC are defined as these."""
_NEVER_S: Final = 86_400.0
"""The longest it is set to."""


class _TimeSpec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("it_interval", _TimeSpec), ("it_value", _TimeSpec))


class FineTimer:
    """One waiter at a time."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, _FLAGS)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    async def wait(self, seconds: float) -> None:
        """So long, or a whole day."""
        nanoseconds = max(1, int(min(seconds, _NEVER_S) * 1e9))
        value = _TimeSpec(*divmod(nanoseconds, 1_000_000_000))
        setting = _TimerSpec(_TimeSpec(0, 0), value)
        if self._libc.timerfd_settime(self._fd, 0, ctypes.byref(setting), None):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        await trio.lowlevel.wait_readable(self._fd)
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._fd)
        os.close(self._fd)
