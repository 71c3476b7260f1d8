"""Everyone's view of the members is the truth: who runs in its partition, in which generation.

Looks only at pairs that may have changed since it last was content: those with a member that the
world, or somebody's word, has touched. So a thousand nodes are checked in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .completeness import Reachable


class Agreement:
    def __init__(self, count: int) -> None:
        self._touched: dict[int, None] = dict.fromkeys(range(count))

    def touch(self, *members: int) -> None:
        for member in members:
            self._touched[member] = None

    def wrong(
        self,
        running: Sequence[int],
        truth: Callable[[int, int], int | None],
        reachable: Reachable,
        *,
        limit: int = 1,
    ) -> list[tuple[int, int]]:
        """Up to `limit` pairs (observer, subject) where the two differ."""
        found: list[tuple[int, int]] = []
        up = set(running)
        for subject in list(self._touched):
            pairs = [(observer, subject) for observer in running]
            if subject in up:
                pairs += [(subject, other) for other in running]
            for observer, other in pairs:
                if reachable(observer, other) != truth(observer, other):
                    found.append((observer, other))
                    if len(found) >= limit:
                        return found
        if not found:
            self._touched.clear()
        return found
