"""Hybrid logical clock (Kulkarni et al. 2014): 48 bits of milliseconds, 16 bits of counter. §6.

Later than everything seen, close to wall time, never backwards. Whoever is too far ahead is
refused before the clock is moved, so one bad clock cannot drag the cluster along.
"""

from __future__ import annotations

from typing import Final

from .errors import RemoteProtocolError

COUNTER_BITS: Final = 16
HLC_MAX: Final = (1 << 63) - 1
"""Fits a signed 64-bit integer; lasts until the year 6429."""
SKEW_MS_MAX: Final = 60_000
"""NTP-disciplined hosts differ by milliseconds; a minute is a broken clock."""


def hlc_wall_ms(hlc: int) -> int:
    """Unix milliseconds of a timestamp."""
    return hlc >> COUNTER_BITS


def hlc_of(wall_ms: int, counter: int = 0) -> int:
    return (wall_ms << COUNTER_BITS) | counter


class HybridClock:
    def __init__(self) -> None:
        self._last = 0

    def tick(self, wall_ms: int) -> int:
        """A timestamp later than all before; a full counter carries into the milliseconds."""
        self._last = max(self._last + 1, hlc_of(wall_ms))
        return self._last

    def observe(self, hlc: int) -> None:
        """Future ticks are later than `hlc`; the caller has checked it."""
        self._last = max(self._last, hlc)

    def rewind(self, hlc: int) -> None:
        """Forgets what was later than `hlc`: the caller has dropped it."""
        self._last = hlc


def check_skew(hlc: int, wall_ms: int) -> None:
    """Raises RemoteProtocolError("record-future")."""
    ahead_ms = hlc_wall_ms(hlc) - wall_ms
    if ahead_ms > SKEW_MS_MAX:
        raise RemoteProtocolError("record-future", f"{ahead_ms} ms ahead; at most {SKEW_MS_MAX}")
