"""A node's shaper that sends to nobody."""

from __future__ import annotations

import io
import random

from edged.eventlog import EventLog
from edged.links import EMPTY
from edged.network import Shaper
from edged.telemetry import make_log
from edged.topology import End


def memory_shaper(events: EventLog) -> Shaper:
    return Shaper(
        End("n1", "near"),
        EMPTY,
        send=lambda _data, _address: None,
        members=lambda: (),
        rng=random.Random(1),
        note=events.add,
        log=make_log("n1", stream=io.StringIO()),
    )
