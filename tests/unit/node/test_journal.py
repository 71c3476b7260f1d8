"""The journal keeps bounded rings and never blocks a writer."""

from __future__ import annotations

import trio

from edged.interfaces import LogLine
from edged.journal import BYTES_MAX, FUNCTIONS_MAX, LINE_BYTES_MAX, LINES_MAX, Journal
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
    for _ in range(2 * BYTES_MAX // LINE_BYTES_MAX):
        write(journal, "x" * (LINE_BYTES_MAX + 1000))
    kept = journal.tail(NAME, LINES_MAX)
    assert sum(len(line.text) for line in kept) <= BYTES_MAX
    assert len(kept[-1].text) == LINE_BYTES_MAX + 1
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
        write(journal, "of the next function")
        while (await anext(follower)).text != "of the next function":
            pass
    await follower.aclose()  # type: ignore[attr-defined]
