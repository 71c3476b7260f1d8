"""The journal keeps bounded rings and never blocks a writer."""

from __future__ import annotations

import trio

from edged.interfaces import LogLine
from edged.journal import CHARACTERS_MAX, FUNCTIONS_MAX, LINE_CHARACTERS_MAX, LINES_MAX, Journal
from protocol.ids import FunctionName, VersionId

NAME = FunctionName("f")
VERSION = VersionId("0" * 64)


def write(journal: Journal, text: str, name: FunctionName = NAME) -> None:
    journal.write(name, VERSION, "stderr", text)


def test_lines_are_split_numbered_and_stamped() -> None:
    journal = Journal(wall_s=lambda: 12.5)
    write(journal, "one\ntwo\n")
    assert journal.tail(NAME, 10) == [
        LogLine(1, 12.5, VERSION, "stderr", "one"),
        LogLine(2, 12.5, VERSION, "stderr", "two"),
    ]
    assert [line.text for line in journal.tail(NAME, 1)] == ["two"]
    assert journal.tail(NAME, 0) == []
    assert journal.tail(FunctionName("other"), 5) == []


def test_ring_is_bounded_in_lines_bytes_and_line_length() -> None:
    journal = Journal()
    for index in range(LINES_MAX + 5):
        write(journal, str(index))
    kept = journal.tail(NAME, LINES_MAX * 2)
    assert len(kept) == LINES_MAX
    assert kept[0].text == "5"
    for _ in range(2 * CHARACTERS_MAX // LINE_CHARACTERS_MAX):
        write(journal, "x" * (LINE_CHARACTERS_MAX + 1000))
    kept = journal.tail(NAME, LINES_MAX)
    assert sum(len(line.text) for line in kept) <= CHARACTERS_MAX
    assert len(kept[-1].text) == LINE_CHARACTERS_MAX + 1
    assert kept[-1].text.endswith("…")


def test_function_that_wrote_longest_ago_is_forgotten_first() -> None:
    journal = Journal()
    for index in range(FUNCTIONS_MAX + 1):
        write(journal, "x", FunctionName(f"f{index}"))
    assert journal.tail(FunctionName("f0"), 1) == []
    assert journal.tail(FunctionName("f1"), 1) != []


async def test_follow_gives_the_tail_and_then_each_new_line(autojump_clock: object) -> None:
    journal = Journal()
    write(journal, "old\nrecent")
    got: list[str] = []

    async def reader() -> None:
        async for line in journal.follow(NAME, 1):
            got.append(line.text)
            if line.text == "end":
                return

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.sleep(1)
            assert got == ["recent"]
            write(journal, "a\nb")
            await trio.sleep(1)
            assert got == ["recent", "a", "b"]
            write(journal, "end")


async def test_slow_follower_loses_the_oldest_and_survives_a_removal(
    autojump_clock: object,
) -> None:
    journal = Journal()
    follower = journal.follow(NAME, 10)
    write(journal, "first")
    with trio.fail_after(5):
        assert (await anext(follower)).text == "first"
        for index in range(LINES_MAX + 10):
            write(journal, str(index))
        assert (await anext(follower)).text == "10"
        journal.forget(NAME)
        write(journal, "of the next function of this name")
        last = [line.text async for line in follower][-1]
        assert last == str(LINES_MAX + 9)


def test_a_flood_costs_no_more_than_a_ring() -> None:
    journal = Journal()
    write(journal, "\n" * (16 * 1024 * 1024))
    kept = journal.tail(NAME, 2 * LINES_MAX)
    assert len(kept) == LINES_MAX
    assert kept[-1].seq == LINES_MAX, "lines that could not be kept were not even made"


def test_line_ends_of_both_kinds() -> None:
    journal = Journal()
    write(journal, "dos\r\n\nunix\n")
    assert [line.text for line in journal.tail(NAME, 9)] == ["dos", "", "unix"]
