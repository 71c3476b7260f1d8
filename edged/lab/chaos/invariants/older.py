"""A node that has served a version never again serves an older one.

The node is the one that was asked: it says which version, wherever the answer is made. Only what
is asked after the newer answer was complete can be wrong.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from edged.lab.history import Deploy, Finding, History, Request

from .base import Invariant, surely_before

NAME: Final = "no-older-version"


def check(history: History) -> list[Finding]:
    deploys: dict[str, dict[str, Deploy]] = defaultdict(dict)
    for deploy in history.of(Deploy):
        if deploy.version is not None:
            deploys[deploy.function][deploy.version] = deploy
    asked: dict[tuple[str, str], list[Request]] = defaultdict(list)
    for row in history.requests:
        if row.error is None and row.version is not None:
            asked[row.function, row.node].append(row)
    return [
        finding
        for (function, node), rows in asked.items()
        for finding in _of_node(node, rows, deploys[function], history)
    ]


def _of_node(
    node: str, rows: list[Request], deploys: dict[str, Deploy], history: History
) -> list[Finding]:
    """One finding per pair of versions."""
    older = {
        (first, second)
        for first, one in deploys.items()
        for second, other in deploys.items()
        if first != second and surely_before(one, other, history)
    }
    done = sorted(rows, key=lambda row: row.done_s)
    served: dict[str, Request] = {}
    found: dict[tuple[str, str], Finding] = {}
    at = 0
    for row in sorted(rows, key=lambda row: row.sent_s):
        while at < len(done) and done[at].done_s <= row.sent_s:
            served.setdefault(_full(done[at], deploys), done[at])
            at += 1
        version = _full(row, deploys)
        for newer, before in served.items():
            if (version, newer) in older and (version, newer) not in found:
                found[version, newer] = Finding(
                    t_s=row.t_s,
                    invariant=NAME,
                    subject=row.function,
                    detail=f"{node} answered version {deploys[version].label}, which it was asked"
                    f" for at {row.sent_s:.2f} s, after it had answered version"
                    f" {deploys[newer].label} at {before.done_s:.2f} s",
                )
    return list(found.values())


def _full(row: Request, deploys: dict[str, Deploy]) -> str:
    """Of a version that nobody was told, what the answer says of it."""
    prefix = row.version or ""
    return next((version for version in deploys if version.startswith(prefix)), prefix)


OLDER: Final = Invariant(
    NAME, "no node answers an older version than it has answered before", check
)
