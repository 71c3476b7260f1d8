"""The event log: order, bounds, waiting, and what it makes of the gossip machine's events."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from edged import eventlog
from edged.errors import Overloaded
from edged.eventlog import EventLog
from protocol.events import (
    Accused,
    HoldingsChanged,
    IdentityClash,
    MemberDown,
    MemberLeft,
    MemberRefuted,
    MemberSuspect,
    MemberUp,
    MemberUpdated,
    Reason,
    RecordsAccepted,
    RecordsPurged,
)
from protocol.ids import NodeId
from protocol.member import Member, Metadata

REASON = Reason(
    accuser="n7", accusers=2, refusals=1, direct_ms=50, helpers=3, nacks=2, stream="refused"
)


def ticking() -> Callable[[], float]:
    now_s = 1_000.0

    def wall_s() -> float:
        nonlocal now_s
        now_s += 0.00025
        return now_s

    return wall_s


def make_member(name: str = "n2") -> Member:
    return Member(
        node_id=NodeId("22" * 16),
        state="alive",
        generation=7,
        incarnation=3,
        metadata=Metadata(name, ("127.0.0.1", 1), ("127.0.0.1", 1)),
        rtt_s=None,
        is_self=False,
        changed_at_s=0.0,
    )


@pytest.fixture
def log() -> EventLog:
    return EventLog(node="n1", generation=5, wall_s=ticking())


async def test_rows_have_order_and_precise_times(log: EventLog) -> None:
    for number in range(5):
        log.add("record-accepted", f"f{number}", f"a/f{number}")
    view = await log.read(after=0, limit=100, wait_s=0)
    assert [row.seq for row in view.events] == [1, 2, 3, 4, 5]
    assert view.events[1].at_ms - view.events[0].at_ms == pytest.approx(0.25)
    assert (view.node, view.generation, view.next_after, view.missed) == ("n1", 5, 5, 0)
    assert {row.node for row in view.events} == {"n1"}


@pytest.mark.parametrize(
    ("after", "limit", "expected"),
    [
        (None, 2, [4, 5]),
        (None, 0, []),
        (None, 9, [1, 2, 3, 4, 5]),
        (0, 2, [1, 2]),
        (2, 2, [3, 4]),
        (4, 9, [5]),
        (5, 9, []),
        (6, 9, [1, 2, 3, 4, 5]),  # of a run before this one
        (2**53 - 1, 9, [1, 2, 3, 4, 5]),
    ],
)
async def test_which_rows(
    log: EventLog, after: int | None, limit: int, expected: list[int]
) -> None:
    for _ in range(5):
        log.add("node-ready", "n1")
    view = await log.read(after=after, limit=limit, wait_s=0)
    assert [row.seq for row in view.events] == expected
    assert view.next_after == (expected[-1] if expected else 5)


async def test_the_ring_is_bounded_and_tells_what_it_dropped(log: EventLog) -> None:
    for _ in range(eventlog.ROWS_MAX + 10):
        log.add("node-ready", "n1")
    view = await log.read(after=3, limit=1, wait_s=0)
    assert (view.missed, view.events[0].seq, view.next_after) == (7, 11, 11)
    whole = await log.read(after=10, limit=2 * eventlog.ROWS_MAX, wait_s=0)
    assert (whole.missed, len(whole.events)) == (0, eventlog.ROWS_MAX)


async def test_a_reader_waits_for_the_next_row(
    log: EventLog, autojump_clock: trio.abc.Clock
) -> None:
    log.add("node-ready", "n1")

    async def later() -> None:
        await trio.sleep(5)
        log.add("node-draining", "n1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        view = await log.read(after=1, limit=10, wait_s=60)
    assert [row.kind for row in view.events] == ["node-draining"]
    assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_waiting_ends_with_its_time_and_with_the_log(
    log: EventLog, autojump_clock: trio.abc.Clock
) -> None:
    assert (await log.read(after=0, limit=10, wait_s=3)).events == ()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: log.read(after=0, limit=10, wait_s=1e9))
        await trio.testing.wait_all_tasks_blocked()
        log.close()
    assert (await log.read(after=0, limit=10, wait_s=1e9)).events == ()
    assert trio.current_time() < 10


async def test_waiters_are_bounded(log: EventLog, autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(eventlog.WAITERS_MAX):
            nursery.start_soon(lambda: log.read(after=0, limit=10, wait_s=60))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="readers"):
            await log.read(after=0, limit=10, wait_s=60)
        assert (await log.read(after=0, limit=10, wait_s=0)).events == ()
        log.add("node-ready", "n1")  # frees all
    assert len((await log.read(after=0, limit=10, wait_s=60)).events) == 1


async def test_what_the_gossip_machine_tells(log: EventLog) -> None:
    member = make_member()
    for event in (
        MemberUp(member),
        MemberUpdated(member),
        MemberSuspect(member, REASON),
        MemberRefuted(member, REASON),
        MemberSuspect(member, REASON),
        MemberDown(member, REASON),
        MemberUp(member),
        MemberUpdated(member),
        MemberLeft(member),
        RecordsAccepted((("v/hello/ab", b""), ("a/hello", b""))),
        RecordsPurged(("a/gone",)),
        HoldingsChanged(member.node_id),
        IdentityClash(9),
        Accused("n7", "suspect"),
    ):
        log.note(event)
    rows = (await log.read(after=0, limit=100, wait_s=0)).events
    assert [(row.kind, row.name) for row in rows] == [
        ("member-up", "n2"),
        ("member-updated", "n2"),
        ("member-suspect", "n2"),
        ("member-refuted", "n2"),
        ("member-suspect", "n2"),
        ("member-down", "n2"),
        ("member-up", "n2"),
        ("member-updated", "n2"),
        ("member-left", "n2"),
        ("record-accepted", "hello"),
        ("record-accepted", "hello"),
        ("record-forgotten", "gone"),
        ("identity-clash", "n1"),
        ("accused", "n1"),
    ]
    assert rows[9].detail == "v/hello/ab"
    assert rows[5].detail == (
        "accused by n7 and 1 more; own ping unanswered for 50 ms; "
        "3 helpers asked: 2 heard nothing, 1 were silent; stream refused; refused to 1"
    )


def test_reasons_last_as_long_as_the_suspicion(log: EventLog) -> None:
    member = make_member()
    assert log.reason(member.node_id) == ""
    log.note(MemberSuspect(member, REASON))
    log.note(MemberDown(member, REASON))
    assert log.reason(member.node_id) == REASON.text
    log.note(MemberUp(member))
    assert log.reason(member.node_id) == ""
