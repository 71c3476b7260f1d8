"""`on_lost`: the node hears of every blob it can no longer serve, once, in its own thread."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from edged.errors import BlobCorrupt, BlobNotFound
from edged.store import BlobStore
from protocol.ids import Digest

RAW = os.urandom(150_000)


class Losses:
    """What on_lost was told, and in which thread."""

    def __init__(self, store: BlobStore) -> None:
        self.digests: list[Digest] = []
        self.told: list[str] = []
        self.threads: set[int] = set()
        store.on_lost = self

    def __call__(self, digest: Digest, what: str) -> None:
        self.digests.append(digest)
        self.told.append(what)
        self.threads.add(threading.get_ident())

    async def settled(self) -> list[Digest]:
        """After everything that was sent to the loop until now."""
        with trio.fail_after(10):
            done = trio.Event()
            trio.lowlevel.current_trio_token().run_sync_soon(done.set)
            await done.wait()
        assert self.threads <= {threading.get_ident()}
        return self.digests


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


async def read(store: BlobStore, digest: Digest) -> None:
    with pytest.raises((BlobCorrupt, BlobNotFound)):
        await store.read(digest)


async def verify(store: BlobStore, digest: Digest) -> None:
    try:
        assert not await store.verify(digest)
    except BlobNotFound:
        assert store.info(digest) is None


async def make_manifest(store: BlobStore, digest: Digest) -> None:
    with pytest.raises((BlobCorrupt, BlobNotFound)):
        await store.make_manifest(digest)


@pytest.mark.parametrize("notice", [read, verify])
@pytest.mark.parametrize("harm", [damage, Path.unlink], ids=["damaged", "vanished"])
async def test_told_once_for_each_loss(
    store: BlobStore,
    notice: Callable[[BlobStore, Digest], Awaitable[None]],
    harm: Callable[[Path], None],
) -> None:
    losses = Losses(store)
    info = await store.put(RAW, kind="module")
    harm(store.path(info.digest))
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(notice, store, info.digest)
    assert await losses.settled() == [info.digest]
    await store.put(RAW, kind="module")
    harm(store.path(info.digest))
    await notice(store, info.digest)
    assert await losses.settled() == [info.digest] * 2


@pytest.mark.parametrize("harm", [damage, Path.unlink], ids=["damaged", "vanished"])
async def test_told_when_making_a_wire_form_finds_it(
    store: BlobStore, harm: Callable[[Path], None]
) -> None:
    losses = Losses(store)
    info = await store.put(RAW, kind="module")
    harm(store.path(info.digest))
    await make_manifest(store, info.digest)
    assert await losses.settled() == [info.digest]
    assert losses.told == [f"module {'corrupt' if harm is damage else 'missing'}"]


@pytest.mark.parametrize("harm", [damage, Path.unlink], ids=["damaged", "vanished"])
async def test_told_of_a_wire_form_that_cannot_be_served(
    store: BlobStore, data_dir: Path, harm: Callable[[Path], None]
) -> None:
    losses = Losses(store)
    info = await store.put(RAW, kind="module")
    manifest = await store.make_manifest(info.digest)
    harm(next((data_dir / "wire" / info.digest[:2]).iterdir()))
    for _ in range(2):
        for index in range(manifest.segments):
            with contextlib.suppress(BlobNotFound):
                await store.wire_segment(info.digest, index)
    assert await losses.settled() == [info.digest]
    assert losses.told == [f"wire form {'corrupt' if harm is damage else 'missing'}"]
    assert store.info(info.digest) is not None, "the blob itself is there"


async def test_not_told_of_deletes_nor_without_a_listener(store: BlobStore) -> None:
    losses = Losses(store)
    info = await store.put(RAW, kind="module")
    await store.make_manifest(info.digest)
    await store.delete(info.digest)
    assert await losses.settled() == []
    store.on_lost = None
    info = await store.put(RAW, kind="module")
    damage(store.path(info.digest))
    await verify(store, info.digest)
    await losses.settled()
    assert store.info(info.digest) is None


async def test_a_listener_may_rebuild(store: BlobStore) -> None:
    info = await store.put(RAW, kind="module")
    await store.make_manifest(info.digest)
    name = (store.info(info.digest) or info).manifest
    assert name is not None
    rebuilt = trio.Event()
    async with trio.open_nursery() as nursery:

        async def rebuild(digest: Digest) -> None:
            assert await store.rebuild(digest, name)
            rebuilt.set()

        store.on_lost = lambda digest, _what: nursery.start_soon(rebuild, digest)
        damage(store.path(info.digest))
        await verify(store, info.digest)
        with trio.fail_after(10):
            await rebuilt.wait()
    assert await store.read(info.digest) == RAW
