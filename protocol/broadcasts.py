"""Updates on their way: each is sent a bounded number of times, the least sent first. SPEC §5.6.

One update per key: a newer one replaces it and starts again. On overflow the most sent goes; what
is lost that way is found by the state digest. An update that comes back from others is known by
its bytes, without being read: it is here already, and its senders need not be told.
"""

from __future__ import annotations

from typing import Final

from .messages import SINCE

ITEMS_MAX: Final = 2048
KNOWING_MAX: Final = 16
"""Senders remembered per update; about as many copies reach a node."""
_LOOK_MAX: Final = 48
"""Items looked at per datagram once one did not fit."""


class _Update:
    __slots__ = ("data", "knowing", "sent")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sent = 0
        self.knowing: list[bytes] = []
        """Node ids of members that sent it here."""


class Broadcasts:
    def __init__(self, items_max: int = ITEMS_MAX) -> None:
        self._items_max = items_max
        self._tiers: list[dict[str, _Update]] = [{}]
        """Index: times sent. Within a tier in order of arrival."""
        self._updates: dict[str, _Update] = {}
        self._by_data: dict[bytes, _Update] = {}
        """No two keys have equal updates: each names its subject."""
        self.dropped = 0
        """Lost by overflow."""
        self.puts = 0

    def __len__(self) -> int:
        return len(self._updates)

    def put(self, key: str, data: bytes) -> None:
        self.drop(key)
        if len(self._updates) >= self._items_max:
            tier = next(tier for tier in reversed(self._tiers) if tier)
            self.drop(next(iter(tier)))
            self.dropped += 1
        update = _Update(data)
        self._tiers[0][key] = self._updates[key] = self._by_data[data] = update
        self.puts += 1

    def drop(self, key: str) -> None:
        update = self._updates.pop(key, None)
        if update is not None:
            del self._tiers[update.sent][key]
            self._by_data.pop(update.data, None)

    def clear(self) -> None:
        self._tiers = [{}]
        self._updates = {}
        self._by_data = {}

    def heard(self, data: bytes, sender: bytes) -> bool:
        """Whether this very update is under way here; then `sender` has it as well."""
        update = self._by_data.get(data)
        if update is None:
            return False
        if len(update.knowing) < KNOWING_MAX and sender not in update.knowing:
            update.knowing.append(sender)
        return True

    def take(
        self, budget_bytes: int, count_max: int, *, limit: int, wire: int, receiver: bytes = b""
    ) -> list[bytes]:
        """Updates that fit, each counted as sent once more; after `limit` times one is done. What
        a receiver that speaks `wire` would not understand, and what came from `receiver`, is
        counted and left out."""
        taken: list[tuple[str, _Update]] = []
        told: list[bytes] = []
        looked = 0
        for tier in self._tiers:
            for key, update in tier.items():
                looked += 1
                size = len(update.data)
                if receiver in update.knowing or SINCE.get(update.data[1], 1) > wire:
                    taken.append((key, update))
                elif size <= budget_bytes:
                    budget_bytes -= size
                    taken.append((key, update))
                    told.append(update.data)
                if len(taken) >= count_max or looked >= _LOOK_MAX + len(taken):
                    break
            else:
                continue
            break
        for key, update in taken:
            self._count(key, update, limit)
        return told

    def _count(self, key: str, update: _Update, limit: int) -> None:
        if update.sent + 1 >= limit:
            self.drop(key)
            return
        del self._tiers[update.sent][key]
        update.sent += 1
        if len(self._tiers) <= update.sent:
            self._tiers.append({})
        self._tiers[update.sent][key] = update
