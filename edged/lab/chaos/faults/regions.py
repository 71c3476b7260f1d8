"""A whole region that nothing reaches. One that dies is a kill of all its nodes."""

from __future__ import annotations

from .network import Partition


class CutRegion(Partition):
    """By region, not by node: clients that act from it are cut off too."""

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        lost = self.text("region")
        others = dict.fromkeys(node.region for node in self.field.nodes if node.region != lost)
        return ((lost,), tuple(others))
