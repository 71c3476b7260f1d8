"""A stopped process (SIGSTOP) whose kernel still takes its connections: a short stop is nobody's
death, a long one is, and whoever wakes accuses none of those that were well all the time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_cluster import Member, Members, cluster, wait_until

BACK_S = 2.0
SLACK_S = 8.0
"""Of this machine, which may be busy: added to waits, never to what is promised of order."""


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Members]:
    with cluster(tmp_path, ["lan"] * 3) as made:
        yield made


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Members]:
    with cluster(tmp_path, ["lan"] * 5) as made:
        yield made


def stop_for(member: Member, seconds: float) -> None:
    member.signal(signal.SIGSTOP)
    time.sleep(seconds)
    member.signal(signal.SIGCONT)


def deaths(members: Members) -> list[tuple[str, str]]:
    """(who declared, whom)."""
    return [(m.name, row["name"]) for m in members.all for row in m.events("member-down")]


def test_a_stop_of_two_seconds_is_no_death(three: Members) -> None:
    stop_for(three.all[1], 2.0)
    three.wait_whole()
    time.sleep(1.0)  # what was said meanwhile would have been heard by now
    assert deaths(three) == []
    assert all(member.alive() == three.names for member in three.all)


@pytest.mark.long
def test_stops_of_up_to_eight_seconds_are_no_deaths(five: Members) -> None:
    for seconds in (1.0, 2.0, 4.0, 8.0):
        stop_for(five.all[2], seconds)
        five.wait_whole()
        time.sleep(3.0)
        assert deaths(five) == [], f"after {seconds:g} s"


@pytest.mark.long
def test_a_stop_of_twenty_seconds_is_a_death_until_the_process_wakes(five: Members) -> None:
    stopped, others = five.all[2], [five.all[i] for i in (0, 1, 3, 4)]
    stopped.signal(signal.SIGSTOP)
    since_s = time.monotonic()
    try:
        for member in others:
            wait_until(lambda m=member: stopped.name not in m.alive(), 20.0 + SLACK_S)
            wait_until(
                lambda m=member: [row["name"] for row in m.events("member-down")] == [stopped.name],
                20.0 + SLACK_S,
            )
        time.sleep(max(0.0, since_s + 20.0 - time.monotonic()))
    finally:
        stopped.signal(signal.SIGCONT)
    for member in others:
        wait_until(lambda m=member: stopped.name in m.alive(), BACK_S + SLACK_S)
    five.wait_whole()
    time.sleep(3.0)
    assert stopped.events("member-down") == []
    assert {name for _, name in deaths(five)} == {stopped.name}
