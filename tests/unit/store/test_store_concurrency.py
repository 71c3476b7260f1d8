"""Many tasks on one store: reads beside writes and deletes, closing while busy."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable

import trio

from edged.errors import BlobNotFound, StoreError
from edged.store import BlobStore
from protocol.ids import digest_of

Reopen = Callable[[], Awaitable[BlobStore]]


async def test_mixed_work_on_few_blobs(store: BlobStore, reopen: Reopen) -> None:
    """Any interleaving is fine but for wrong bytes, hangs and leftovers."""
    blobs = [os.urandom(70_000) for _ in range(4)]
    outcomes: list[str] = []

    async def worker(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            data = rng.choice(blobs)
            digest = digest_of(data)
            action = rng.choice(["put", "put", "read", "delete", "wire", "segment", "fetch"])
            try:
                if action == "put":
                    assert (await store.put(data, kind="module")).digest == digest
                elif action == "read":
                    assert await store.read(digest) == data
                elif action == "delete":
                    await store.delete(digest)
                elif action == "wire":
                    assert (await store.make_manifest(digest)).blob == digest
                elif action == "segment":
                    (await store.manifest(digest)).check_segment(
                        0, await store.wire_segment(digest, 0)
                    )
                else:
                    manifest = await store.manifest(digest)
                    wires = [await store.wire_segment(digest, i) for i in range(manifest.segments)]
                    partial = await store.begin_partial(manifest)
                    for index, wire in enumerate(wires):
                        await partial.write([(index, wire)])
                    assert (await partial.finish()).digest == digest
                outcomes.append(action)
            except StoreError as error:
                assert isinstance(error, BlobNotFound), error  # noqa: PT017 - any other is a bug
            except Exception as error:
                assert type(error).__name__ == "Conflict"  # noqa: PT017 - a fetch taken over

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for seed in range(8):
                nursery.start_soon(worker, seed)
    assert {"put", "read", "delete", "wire"} <= set(outcomes)
    report = await store.scrub()
    assert report.corrupt == report.wire_lost == ()
    before = {info.digest for info in store.blobs()}
    store = await reopen()
    repair = store.repair
    assert (repair.temps_removed, repair.missing, repair.corrupt) == (0, (), ())
    assert repair.orphans_adopted == ()
    assert {info.digest for info in store.blobs()} == before


async def test_close_while_busy(store: BlobStore, reopen: Reopen) -> None:
    """A call either finished before the close, and is there, or says that the store is closed."""
    done: list[bytes] = []

    async def writer(number: int) -> None:
        data = os.urandom(200_000) + bytes([number])
        try:
            await store.put(data, kind="module")
        except StoreError as error:
            assert "closed" in str(error)  # noqa: PT017
        else:
            done.append(data)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(writer, number)
            nursery.start_soon(store.close)
            nursery.start_soon(store.close)
    store = await reopen()
    assert store.repair.temps_removed == 0
    assert store.repair.orphans_adopted == ()
    assert {info.digest for info in store.blobs()} == {digest_of(data) for data in done}


async def test_same_temp_is_never_named_twice(store: BlobStore) -> None:
    names: set[str] = set()

    def name_some() -> None:
        for _ in range(200):
            names.add(str(store.temp_path()))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(trio.to_thread.run_sync, name_some)
    assert len(names) == 1000
