"""A node says in time that its certificate ends."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import trio

from edged.eventlog import EventLog
from edged.expiry import DAY_S, Expiry
from edged.telemetry import make_log
from edged.trust import Trust, create_ca, issue_node, load_trust

MADE_S = 1_800_000_000.0


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    create_ca(tmp_path / "ca", wall_s=MADE_S)
    issue_node(tmp_path / "ca", tmp_path / "n1", name="n1", days=100, wall_s=MADE_S)
    return load_trust(tmp_path / "n1", wall_s=MADE_S)


@pytest.mark.parametrize(
    ("day", "level", "said"),
    [
        (69.9, None, ""),
        (70.5, "warning", "ends in 29.5 days"),
        (94, "error", "ends in 6.0 days"),
        (101, "error", "has ended: peers refuse it"),
    ],
)
def test_levels(trust: Trust, day: float, level: str | None, said: str) -> None:
    out, events = io.StringIO(), EventLog(node="n1", generation=1)
    log = make_log("n1", stream=out)
    assert trust.expires_s == MADE_S + 100 * DAY_S
    Expiry(trust, note=events.add, log=log, wall_s=lambda: MADE_S + day * DAY_S).look()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ([level] if level else [])
    assert all(said in line["fix"] and "cluster issue" in line["fix"] for line in lines)


async def test_once_a_day(trust: Trust, autojump_clock: trio.abc.Clock) -> None:
    events = EventLog(node="n1", generation=1)
    log = make_log("n1", stream=io.StringIO())
    expiry = Expiry(trust, note=events.add, log=log, wall_s=lambda: MADE_S + 99 * DAY_S)
    async with trio.open_nursery() as nursery:
        await nursery.start(expiry.run)
        await trio.sleep(3.5 * DAY_S)
        nursery.cancel_scope.cancel()
    rows = (await events.read(after=0, limit=10, wait_s=0)).events
    assert [(row.kind, row.name) for row in rows] == [("trust-expiring", "n1")] * 4
