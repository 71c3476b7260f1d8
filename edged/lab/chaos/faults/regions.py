"""A whole region that nothing reaches. One that dies is a kill of all its nodes."""

from __future__ import annotations

from edged.links import others

from .network import Partition


class CutRegion(Partition):
    """By region, not by node: clients that act from it are cut off too."""

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        lost = self.text("region")
        return ((lost,), others((lost,)))
