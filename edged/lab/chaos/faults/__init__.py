"""The faults by their action: each begins, proves that it took effect, and ends."""

from __future__ import annotations

from typing import Final

from edged.lab.history import Planned

from ..field import Field
from .base import Fault, Unproven
from .inside import ClockSkew, Corrupt, DiskFull
from .network import LinkChange, Partition
from .poisoning import Poison
from .processes import Kill, Pause, Restart, RollingRestart, SlowCpu
from .regions import CutRegion

__all__ = ["FAULTS", "Fault", "Unproven", "fault_of"]

FAULTS: Final[dict[str, type[Fault]]] = {
    "kill": Kill,
    "pause": Pause,
    "restart": Restart,
    "rolling-restart": RollingRestart,
    "slow-cpu": SlowCpu,
    "clock-skew": ClockSkew,
    "disk-full": DiskFull,
    "corrupt": Corrupt,
    "poison": Poison,
    "partition": Partition,
    "link": LinkChange,
    "region-loss": Kill,
}
"""Of timelines, where flap has become partitions and heal their durations."""


def fault_of(field: Field, planned: Planned) -> Fault:
    if planned.settings.get("how") == "cut":
        return CutRegion(field, planned)
    return FAULTS[planned.action](field, planned)
