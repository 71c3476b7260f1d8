"""How long nothing has needed a blob, over runs of the node."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock

from edged.errors import DiskFull
from edged.grace import COALESCE_S, SAVED_MAX, UNNEEDED, Grace
from edged.telemetry import make_log
from protocol.ids import digest_of

OLD, FRESH = digest_of(b"old"), digest_of(b"fresh")


class MemoryMeta:
    def __init__(self) -> None:
        self.meta: dict[str, bytes] = {}
        self.writes = 0
        self.full = False

    def get_meta(self, key: str) -> bytes | None:
        return self.meta.get(key)

    async def set_meta(self, key: str, value: bytes) -> None:
        if self.full:
            raise DiskFull("no space")
        self.meta[key] = value
        self.writes += 1


@asynccontextmanager
async def run_of(store: MemoryMeta, log: io.StringIO | None = None) -> AsyncIterator[Grace]:
    """One run of the node."""
    grace = Grace(store, log=make_log("n1", stream=log or io.StringIO()))
    async with trio.open_nursery() as nursery:
        await nursery.start(grace.run)
        yield grace
        nursery.cancel_scope.cancel()


async def saved() -> None:
    await trio.sleep(COALESCE_S + 0.01)


async def test_it_goes_on_after_a_restart_but_not_while_the_node_is_off(
    autojump_clock: MockClock,
) -> None:
    store = MemoryMeta()
    async with run_of(store) as grace:
        grace.look([OLD])
        await trio.sleep(2000)
        grace.look([OLD])
        await saved()
    await trio.sleep(50_000)
    async with run_of(store) as grace:
        await trio.sleep(1000)
        grace.look([OLD, FRESH])
        assert grace.unneeded_s(OLD) == pytest.approx(3000, abs=2)
        assert grace.unneeded_s(FRESH) == 0


@pytest.mark.parametrize("in_the_next_run", [False, True])
async def test_what_was_wanted_begins_anew(
    autojump_clock: MockClock, in_the_next_run: bool
) -> None:
    store = MemoryMeta()
    async with run_of(store) as grace:
        grace.look([OLD])
        await trio.sleep(2000)
        if not in_the_next_run:
            grace.begin_anew(OLD)
        grace.begin_anew(FRESH)
        await saved()
    if in_the_next_run:
        async with run_of(store) as grace:
            grace.begin_anew(OLD)
            await saved()
    async with run_of(store) as grace:
        grace.look([OLD])
        assert grace.unneeded_s(OLD) < 2


async def test_what_was_needed_in_between_begins_anew(autojump_clock: MockClock) -> None:
    store = MemoryMeta()
    async with run_of(store) as grace:
        grace.look([OLD])
        await trio.sleep(2000)
        grace.look([])
        await saved()
    assert store.meta == {UNNEEDED: b""}
    async with run_of(store) as grace:
        grace.look([OLD])
        assert grace.unneeded_s(OLD) == 0


@pytest.mark.parametrize(
    "damaged", [b"no msgpack", msgspec.msgpack.encode({OLD: -1.0}), msgspec.msgpack.encode([1])]
)
async def test_a_damaged_account_is_none(autojump_clock: MockClock, damaged: bytes) -> None:
    store, log = MemoryMeta(), io.StringIO()
    store.meta[UNNEEDED] = damaged
    async with run_of(store, log) as grace:
        grace.look([OLD])
        assert grace.unneeded_s(OLD) == 0
        assert "damaged" in log.getvalue()


async def test_a_full_disk_costs_nothing_but_the_account(autojump_clock: MockClock) -> None:
    store = MemoryMeta()
    store.full = True
    async with run_of(store) as grace:
        grace.look([OLD])
        await trio.sleep(100)
        store.full = False
        grace.look([OLD])
        await saved()
        assert grace.unneeded_s(OLD) > 100
    assert store.writes == 1


async def test_of_very_many_those_are_saved_that_are_unneeded_longest(
    autojump_clock: MockClock,
) -> None:
    store = MemoryMeta()
    many = [digest_of(str(number).encode()) for number in range(SAVED_MAX)]
    async with run_of(store) as grace:
        grace.look([OLD])
        await trio.sleep(100)
        grace.look([*many, OLD])
        await saved()
    ages = msgspec.msgpack.decode(store.meta[UNNEEDED], type=dict[str, float])
    assert len(ages) == SAVED_MAX
    assert ages[OLD] > 100


async def test_nothing_unneeded_is_nothing_written(autojump_clock: MockClock) -> None:
    store = MemoryMeta()
    async with run_of(store) as grace:
        grace.look([])
        await saved()
    assert store.writes == 0
