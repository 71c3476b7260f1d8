"""What must hold of every run: pure checkers of a history, one file each.

A checker sees nothing but the rows, so that a run can be judged again from its folder. It says
what is wrong with subject and detail, and nothing of what it cannot know: a measurement that was
overtaken by the next fault is no finding. What it had too little to see of is its doubt.
"""

from __future__ import annotations

from typing import Final

from .acknowledged import ACKNOWLEDGED
from .answers import ANSWERS
from .base import Invariant
from .budget import BUDGET
from .code import CODE_ALLOWED, CODE_SAME
from .convergence import CATALOG, MEMBERSHIP, REPLICAS
from .crashes import CRASHES
from .flapping import FLAPPING
from .growth import GROWTH
from .left import LEFT
from .older import OLDER

__all__ = ["INVARIANTS", "Invariant"]

INVARIANTS: Final[tuple[Invariant, ...]] = (
    ACKNOWLEDGED,
    ANSWERS,
    OLDER,
    MEMBERSHIP,
    CATALOG,
    REPLICAS,
    CODE_ALLOWED,
    CODE_SAME,
    BUDGET,
    FLAPPING,
    CRASHES,
    GROWTH,
    LEFT,
)
