"""What must hold of every run: pure checkers of a history, one file each.

A checker sees nothing but the rows, so that a run can be judged again from its folder. It says
what is wrong with subject and detail, and nothing of what it cannot know: a measurement that was
overtaken by the next fault is no finding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from edged.lab.history import Finding, History


class Invariant(NamedTuple):
    name: str
    """What [invariants] skip and findings call it."""
    states: str
    """In one line."""
    check: Callable[[History], list[Finding]]


INVARIANTS: Final[tuple[Invariant, ...]] = ()
