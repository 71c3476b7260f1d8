"""What a laboratory may turn wrong inside a node, and how it is proven."""

from __future__ import annotations

from typing import Annotated, Final, Protocol

import msgspec

CLOCK_SKEW_MS_MAX: Final = 366 * 86_400 * 1000
"""Beyond every credential of a local cluster; more would show nothing else."""


class LabWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of PUT /v1/lab: all switches; one that is left out is turned off."""

    clock_skew_ms: Annotated[int, msgspec.Meta(ge=-CLOCK_SKEW_MS_MAX, le=CLOCK_SKEW_MS_MAX)] = 0
    """How far the node's wall clock is ahead of the machine's."""
    disk_full: bool = False
    """Whatever the store would write is refused, as ENOSPC."""


class LabView(msgspec.Struct, frozen=True):
    clock_skew_ms: int
    disk_full: bool
    clock_ms: int
    """Unix time as the node has it now."""
    machine_ms: int
    """And as the machine has it."""
    writes_refused: int
    """Since the node's start."""


class Lab(Protocol):
    def view(self) -> LabView: ...

    def set(self, wanted: LabWish) -> LabView: ...
