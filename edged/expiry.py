"""Tells in time that this node's certificate, credential or CA ends, which only an operator can
renew: the CA's key is on no node.

From WARN_S before the end a warning is logged once a day, from URGENT_S an error, each with the
command that renews; the date itself is always in `edged status` and in the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from .interfaces import EventKind
from .telemetry import Log
from .trust import Trust

DAY_S: Final = 86_400.0
WARN_S: Final = 30 * DAY_S
URGENT_S: Final = 7 * DAY_S


class Expiry:
    def __init__(
        self,
        trust: Trust,
        *,
        note: Callable[[EventKind, str, str], None],
        log: Log,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """`note` tells the event log."""
        self._trust = trust
        self._note = note
        self._log = log
        self._wall_s = wall_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while True:
            self.look()
            await trio.sleep(DAY_S)

    def look(self) -> None:
        left_s = self._trust.expires_s - self._wall_s()
        if left_s > WARN_S:
            return
        said = say(left_s, self._trust)
        write = self._log.error if left_s <= URGENT_S else self._log.warning
        write("trust expires", left_days=round(left_s / DAY_S, 1), fix=said)
        self._note("trust-expiring", self._trust.name, said)


def say(left_s: float, trust: Trust) -> str:
    """What ends, when, and what to do."""
    when = f"ends in {left_s / DAY_S:.1f} days" if left_s > 0 else "has ended: peers refuse it"
    if trust.ca_expires_s <= trust.expires_s:
        return f"the cluster's CA {when}; make a new cluster: edged cluster init"
    return (
        f"the certificate {when}; renew it with"
        f" edged cluster issue CA_DIRECTORY {trust.name} --out TRUST_DIRECTORY, then restart"
    )
