"""edged.keeping: what peers may ask of this node's copies, and how much of it at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

from edged.errors import BlobNotFound, Draining, NoHolder, Overloaded
from edged.keeping import PEER_REPLICATES_MAX, REPLICATES_MAX, Keeper
from protocol.ids import Digest, NodeId, digest_of

BLOB, MANIFEST = digest_of(b"blob"), digest_of(b"manifest")
PEER = NodeId("a" * 32)


class World:
    """Store, fetcher and the rest of a node."""

    def __init__(self) -> None:
        self.disk: set[Digest] = set()
        self.corrupt: set[Digest] = set()
        self.going: set[Digest] = set()
        self.kept: list[Digest] = []
        self.fetched: list[tuple[Digest, Digest, NodeId | None]] = []
        self.announced: list[Digest] = []
        self.state = "ready"
        self.gate = trio.Event()
        self.gate.set()
        self.keeper = Keeper(
            cast("Any", self),
            cast("Any", self),
            on_held=self.announced.append,
            keeping=self.keeping,
            promise=lambda blob: blob in self.disk and blob not in self.going,
            state=lambda: cast("Any", self.state),
        )

    @asynccontextmanager
    async def keeping(self, blob: Digest) -> AsyncIterator[None]:
        self.kept.append(blob)
        yield

    async def verify(self, blob: Digest) -> bool:
        await trio.lowlevel.checkpoint()
        if blob not in self.disk:
            raise BlobNotFound("not here")
        if blob in self.corrupt:
            self.disk.discard(blob)
            return False
        return True

    async def fetch(
        self,
        blob: Digest,
        manifest: Digest,
        *,
        progress: Callable[[int, int], None],
        holder: NodeId | None,
    ) -> None:
        await self.gate.wait()
        self.fetched.append((blob, manifest, holder))
        if manifest != MANIFEST:
            raise NoHolder("nobody has it")
        self.disk.add(blob)


async def test_it_is_fetched_from_who_asks_announced_and_kept() -> None:
    world = World()
    assert not await world.keeper.confirm(BLOB)
    await world.keeper.replicate(PEER, BLOB, MANIFEST)
    assert world.fetched == [(BLOB, MANIFEST, PEER)]
    assert world.announced == [BLOB]
    assert await world.keeper.confirm(BLOB)
    await world.keeper.replicate(PEER, BLOB, MANIFEST)
    assert len(world.fetched) == 1
    assert world.kept == [BLOB] * 4, "each time"


async def test_a_damaged_copy_is_not_confirmed_but_fetched_anew() -> None:
    world = World()
    world.disk.add(BLOB)
    world.corrupt.add(BLOB)
    assert not await world.keeper.confirm(BLOB)
    await world.keeper.replicate(PEER, BLOB, MANIFEST)
    assert len(world.fetched) == 1


async def test_what_is_just_given_up_is_not_promised() -> None:
    world = World()
    world.disk.add(BLOB)
    world.going.add(BLOB)
    assert not await world.keeper.confirm(BLOB)
    with pytest.raises(Overloaded):
        await world.keeper.replicate(PEER, BLOB, MANIFEST)


async def test_a_draining_node_takes_nothing() -> None:
    world = World()
    world.state = "draining"
    with pytest.raises(Draining):
        await world.keeper.replicate(PEER, BLOB, MANIFEST)
    assert world.fetched == []


async def test_requests_are_bounded_for_each_peer_and_in_all() -> None:
    world = World()
    world.gate = trio.Event()

    async def ask(peer: int, number: int) -> None:
        blob = digest_of(bytes((peer, number)))
        await world.keeper.replicate(NodeId(f"{peer:032x}"), blob, MANIFEST)

    async with trio.open_nursery() as nursery:
        for peer in range(REPLICATES_MAX // PEER_REPLICATES_MAX):
            for number in range(PEER_REPLICATES_MAX):
                nursery.start_soon(ask, peer, number)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Overloaded):
                await ask(peer, 99)
        with pytest.raises(Overloaded):
            await ask(99, 0)
        world.gate.set()
    await ask(0, 99)
    assert len(world.fetched) == REPLICATES_MAX + 1


async def test_a_failure_frees_its_place() -> None:
    world = World()
    for _ in range(2 * PEER_REPLICATES_MAX):
        with pytest.raises(NoHolder):
            await world.keeper.replicate(PEER, BLOB, BLOB)
