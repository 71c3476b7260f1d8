"""A token bucket on the caller's clock."""

from __future__ import annotations


class Budget:
    __slots__ = ("_at_s", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        """`rate` tokens come in per second, up to `burst`; it starts full."""
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at_s = now

    def spend(self, tokens: float, now: float) -> bool:
        """False, and nothing is spent, if there are fewer."""
        self._refill(now)
        if tokens > self._tokens:
            return False
        self._tokens -= tokens
        return True

    def charge(self, tokens: float, now: float) -> None:
        """Spends them even if they have yet to come in."""
        self._refill(now)
        self._tokens -= tokens

    def ready_at(self, tokens: float, now: float) -> float:
        """When `spend` will do; for more than the burst, when the bucket is full."""
        self._refill(now)
        return now + max(0.0, min(tokens, self._burst) - self._tokens) / self._rate

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at_s) * self._rate)
        self._at_s = now
