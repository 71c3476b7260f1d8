"""Guests' host calls take turns, so that those who call without end leave the GIL to the node.

A shadowed host call runs Python for some 10 µs. Dozens of guests that do nothing else kept the
event loop and the epoch ticker waiting for seconds, past the guests' own deadlines. So an
invocation has UNITS units of host work, and then passes a gate: one at a time, asleep (without the
GIL) while inside. Alone it sleeps for as short as a sleep is: enough for whoever waits for the GIL
to get it. With others at the gate it sleeps for about as long as its units took, which holds all
that queue there to about half of the GIL however many they are.

Measured on 2 cores: with 63 guests in a loop of fd_write with 1,024 iovecs the event loop's longest
wait went from 4,460 ms (in which no guest's deadline held) to 70-110.
"""

from __future__ import annotations

import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .call import Call

UNITS: Final = 64
"""Lines one by one cost 6.3 us instead of 4.2; with 128 units 5.2, but 63 hostile guests then keep
the event loop waiting three times as long."""
UNITS_ALONE: Final = 256
"""While no other guest runs: 4.8 us. One guest in a loop is no danger to the loop."""
ALONE_S: Final = 0.00002
CONTENDED_S: Final = 0.001
GATE_S_MAX: Final = 0.1
"""At the gate at most: then the deadline and the cancel flag are looked at again."""


class Turns:
    """The gate of one runtime."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._waiting: set[int] = set()

    def next(self, call: Call, thread: int) -> None:
        """Called by `thread`, the caller's own identifier. Raises Stop when `call` is out of time
        or cancelled, before or after."""
        call.units = UNITS_ALONE if call.engine.ticker.running <= 1 else UNITS
        call.check_time()
        waiting = self._waiting
        waiting.add(thread)
        inside = self._gate.acquire(timeout=max(min(GATE_S_MAX, call.deadline_at - monotonic()), 0))
        waiting.discard(thread)
        try:
            sleep(CONTENDED_S if waiting else ALONE_S)
        finally:
            if inside:
                self._gate.release()
        call.check_time()
