"""Everyone's list of a running node's blobs is what that node has on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set


def holdings_wrong(
    running: Sequence[int],
    disks: Mapping[int, Set[str]],
    shown: Callable[[int, int], Set[str]],
    together: Callable[[int, int], bool],
) -> list[tuple[int, int]]:
    """Pairs (observer, owner) that differ. `shown(observer, owner)`: what the observer believes;
    `together`: they should know of each other."""
    return [
        (observer, owner)
        for observer in running
        for owner in running
        if together(observer, owner) and shown(observer, owner) != disks[owner]
    ]
