"""Updates on their way: each is sent a bounded number of times, the least sent first. SPEC §5.6.

One update per key: a newer one replaces it and starts again. On overflow the most sent goes; what
is lost that way is found by the state digest.
"""

from __future__ import annotations

from typing import Final

from .messages import SINCE

ITEMS_MAX: Final = 2048
_LOOK_MAX: Final = 48
"""Items looked at per datagram once one did not fit."""


class Broadcasts:
    def __init__(self, items_max: int = ITEMS_MAX) -> None:
        self._items_max = items_max
        self._tiers: list[dict[str, bytes]] = [{}]
        """Index: times sent. Within a tier in order of arrival."""
        self._sent: dict[str, int] = {}
        self.dropped = 0
        """Lost by overflow."""
        self.puts = 0

    def __len__(self) -> int:
        return len(self._sent)

    def put(self, key: str, data: bytes) -> None:
        self.drop(key)
        if len(self._sent) >= self._items_max:
            tier = next(tier for tier in reversed(self._tiers) if tier)
            self.drop(next(iter(tier)))
            self.dropped += 1
        self._tiers[0][key] = data
        self._sent[key] = 0
        self.puts += 1

    def drop(self, key: str) -> None:
        sent = self._sent.pop(key, None)
        if sent is not None:
            del self._tiers[sent][key]

    def clear(self) -> None:
        self._tiers = [{}]
        self._sent = {}

    def take(self, budget_bytes: int, count_max: int, *, limit: int, wire: int) -> list[bytes]:
        """Updates that fit, each counted as sent once more; after `limit` times one is done. What
        a receiver that speaks `wire` would not understand is counted and left out."""
        taken: list[tuple[str, bytes, int]] = []
        looked = 0
        for sent, tier in enumerate(self._tiers):
            for key, data in tier.items():
                looked += 1
                if len(data) <= budget_bytes:
                    budget_bytes -= len(data)
                    taken.append((key, data, sent))
                if len(taken) >= count_max or looked >= _LOOK_MAX + len(taken):
                    break
            else:
                continue
            break
        for key, data, sent in taken:
            self.drop(key)
            if sent + 1 < limit:
                while len(self._tiers) <= sent + 1:
                    self._tiers.append({})
                self._tiers[sent + 1][key] = data
                self._sent[key] = sent + 1
        return [data for _, data, _ in taken if SINCE.get(data[1], 1) <= wire]
