"""The laboratory's switches: what an experiment can turn wrong inside a running node.

They exist only where `[lab] enabled = true`; else the node has the machine's clock and the disk as
it is, and nothing of this file is made. What they did can be proven: `view` tells the clock that
the node uses now and how many writes were refused. A restart turns all of them off.
"""

from __future__ import annotations

from collections.abc import Callable

from .clock import Clock, ShiftedClock
from .interfaces import EventKind, LabView, LabWish
from .store import FullDisk
from .telemetry import Log


class Switches:
    """Implements interfaces.Lab. Belongs to the node's event loop; the disk's side of it is read by
    the store's threads."""

    def __init__(self, log: Log) -> None:
        self.clock = ShiftedClock()
        self.disk = FullDisk()
        self._log = log
        self._machine = Clock()
        self.note: Callable[[EventKind, str, str], None] = lambda _kind, _name, _detail: None
        """Tells the event log, which is made later than this."""

    def view(self) -> LabView:
        return LabView(
            clock_skew_ms=self.clock.shift_ms,
            disk_full=self.disk.full,
            clock_ms=self.clock.now_ms(),
            machine_ms=self._machine.now_ms(),
            writes_refused=self.disk.refused,
        )

    def set(self, wanted: LabWish) -> LabView:
        self.clock.shift_ms = wanted.clock_skew_ms
        self.disk.full = wanted.disk_full
        self._log.warning(
            "lab switches", clock_skew_ms=wanted.clock_skew_ms, disk_full=wanted.disk_full
        )
        told = f"clock_skew_ms {wanted.clock_skew_ms}, disk_full {str(wanted.disk_full).lower()}"
        self.note("lab-switched", "lab", told)
        return self.view()
