"""Nodes do not go back and forth between forms of a function's code while nothing has changed.

Each change costs bytes, compiling or waiting: who changes their mind by noise pays for nothing.
Going back once may be due to peers that came or went; what an input that moved, a new version or
a failure explains is no flap at all.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Final, NamedTuple

from edged.lab.history import Decided, Explained, Finding, History

from .base import Invariant

NAME: Final = "no-form-flaps"
RETURNS_MAX: Final = 1
"""Within WINDOW_S, of one function on one node."""
WINDOW_S: Final = 60.0
MOVED_MIN: Final = 1.07
"""Factor by which an input must have moved: inputs that are off by less never make two forms change
places twice (protocol.planner)."""
EXPLAINED: Final = ("deploy", "failed", "pressure")
"""Triggers that are a reason by themselves."""


class _Returned(NamedTuple):
    left: Decided
    back: Decided


def check(history: History) -> list[Finding]:
    """One finding per function and node."""
    changes: dict[tuple[str, str], list[Decided]] = defaultdict(list)
    for row in history.of(Decided):
        changes[row.node, row.function].append(row)
    found = []
    for (node, function), rows in changes.items():
        window: deque[_Returned] = deque()
        for returned in _returns(rows):
            window.append(returned)
            while window[0].back.t_s < returned.back.t_s - WINDOW_S:
                window.popleft()
            if len(window) > RETURNS_MAX:
                found.append(_finding(node, function, [*window]))
                break
    return found


def _returns(rows: list[Decided]) -> list[_Returned]:
    """Changes without a reason to a form that was left less than a window ago."""
    found = []
    left: dict[str | None, Decided] = {}
    before: Decided | None = None
    for row in rows:
        if before is None or row.before != before.after:  # another version, or life of the node
            left.clear()
        known = left.get(row.after)
        if known is not None and row.t_s - known.t_s <= WINDOW_S and not _has_reason(row):
            found.append(_Returned(known, row))
        left[row.before] = row
        before = row
    return found


def _has_reason(row: Decided) -> bool:
    if row.trigger in EXPLAINED:
        return True
    if not row.input:
        return False
    low, high = sorted((row.input_before, row.input_after))
    return high > 0 and (low <= 0 or high / low >= MOVED_MIN)


def _finding(node: str, function: str, returned: list[_Returned]) -> Finding:
    last = returned[-1]
    return Finding(
        t_s=last.back.t_s,
        invariant=NAME,
        subject=function,
        detail=f"{node} went back to a form it had left {len(returned)} times in"
        f" {last.back.t_s - returned[0].left.t_s:.0f} s without a reason, the last time from"
        f" {last.back.before} to {last.back.after}",
    )


def doubts(history: History) -> list[str]:
    return [] if history.of(Explained) else ["no node told which forms it has chosen"]


FLAPPING: Final = Invariant(
    NAME, "no node changes a function's form back and forth without a reason", check, doubts
)
