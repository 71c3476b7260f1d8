"""A lost blob's wire form outlives it: it is rebuilt from, or a fetch resumes from it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from edged.errors import BlobCorrupt, BlobNotFound, Conflict, DiskFull
from edged.store import BlobStore
from protocol.ids import Digest, digest_of
from protocol.manifest import Manifest

Reopen = Callable[[], Awaitable[BlobStore]]

RAW = os.urandom(40_000) + bytes(40_000)
"""Five segments of 16 KiB."""


async def filled(store: BlobStore) -> tuple[Manifest, Digest, list[bytes]]:
    info = await store.put(RAW, kind="module")
    manifest = await store.make_manifest(info.digest)
    name = (store.info(info.digest) or info).manifest
    assert name is not None
    frames = [await store.wire_segment(info.digest, i) for i in range(manifest.segments)]
    return manifest, name, frames


def flip(path: Path, at: int = 5) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    path.chmod(mode)


def wire_file(data_dir: Path, blob: Digest) -> Path:
    return next((data_dir / "wire" / blob[:2]).iterdir())


async def check_whole(store: BlobStore, manifest: Manifest, frames: list[bytes]) -> None:
    assert await store.read(manifest.blob) == RAW
    assert await store.manifest(manifest.blob) == manifest
    for index, frame in enumerate(frames):
        assert await store.wire_segment(manifest.blob, index) == frame


async def lose_by_read(store: BlobStore, digest: Digest) -> None:
    flip(store.path(digest))
    with pytest.raises(BlobCorrupt):
        await store.read(digest)


async def lose_by_verify(store: BlobStore, digest: Digest) -> None:
    flip(store.path(digest))
    assert not await store.verify(digest)


async def lose_the_file(store: BlobStore, digest: Digest) -> None:
    store.path(digest).unlink()
    with pytest.raises(BlobNotFound):
        await store.read(digest)


Lose = Callable[[BlobStore, Digest], Awaitable[None]]
LOSSES = pytest.mark.parametrize("lose", [lose_by_read, lose_by_verify, lose_the_file])


@LOSSES
async def test_rebuilt_from_its_wire_form(
    store: BlobStore, reopen: Reopen, data_dir: Path, lose: Lose
) -> None:
    manifest, name, frames = await filled(store)
    await lose(store, manifest.blob)
    assert store.info(manifest.blob) is None
    info = await store.rebuild(manifest.blob, name)
    assert info is not None
    assert (info.digest, info.kind, info.manifest) == (manifest.blob, "module", name)
    await check_whole(store, manifest, frames)
    assert list((data_dir / "partial").iterdir()) == []
    assert await store.rebuild(manifest.blob, name) == info, "it is here: nothing to do"
    store = await reopen()
    await check_whole(store, manifest, frames)


@LOSSES
async def test_rebuilt_after_a_restart(store: BlobStore, reopen: Reopen, lose: Lose) -> None:
    manifest, name, frames = await filled(store)
    await lose(store, manifest.blob)
    store = await reopen()
    assert await store.rebuild(manifest.blob, name)
    await check_whole(store, manifest, frames)


@pytest.mark.parametrize("how", ["flip", "remove", "index too"])
async def test_lost_while_the_node_was_down(
    store: BlobStore, reopen: Reopen, data_dir: Path, how: str
) -> None:
    manifest, name, frames = await filled(store)
    path = store.path(manifest.blob)
    wire = wire_file(data_dir, manifest.blob)
    await store.close()
    os.utime(wire, (1, 1))
    if how == "flip":
        flip(path)
    else:
        path.unlink()
    if how == "index too":
        (data_dir / "index.sqlite").unlink()
    store = await reopen()
    assert store.info(manifest.blob) is None
    store = await reopen()
    assert await store.rebuild(manifest.blob, name), "however old it is, it was kept"
    await check_whole(store, manifest, frames)


async def test_a_fetch_resumes_from_what_is_left(store: BlobStore, data_dir: Path) -> None:
    manifest, name, frames = await filled(store)
    flip(wire_file(data_dir, manifest.blob), manifest.wire_offset(2) + 5)
    await lose_by_verify(store, manifest.blob)
    assert await store.rebuild(manifest.blob, name) is None, "one segment is damaged"
    partial = await store.begin_partial(manifest)
    assert partial.present == {0, 1, 3, 4}
    assert await store.rebuild(manifest.blob, name) is None
    await partial.write([(2, frames[2])])
    assert (await partial.finish()).digest == manifest.blob, "the fetch was left alone"
    await check_whole(store, manifest, frames)


async def test_without_the_manifest_a_fetch_still_resumes(store: BlobStore, reopen: Reopen) -> None:
    manifest, name, _ = await filled(store)
    await store.delete(name)
    await lose_by_verify(store, manifest.blob)
    assert await store.rebuild(manifest.blob, name) is None
    store = await reopen()
    partial = await store.begin_partial(manifest)
    assert partial.present == set(range(manifest.segments))
    await partial.finish()
    assert await store.read(manifest.blob) == RAW


async def test_what_is_left_is_added_to_a_fetch_under_way(store: BlobStore, data_dir: Path) -> None:
    """The blob came another way during the fetch, and is lost again before its end."""
    manifest, name, frames = await filled(store)
    await store.delete(manifest.blob)
    partial = await store.begin_partial(manifest)
    await partial.write([(2, frames[2])])
    await store.put(RAW, kind="module")
    assert await store.make_manifest(manifest.blob) == manifest
    flip(wire_file(data_dir, manifest.blob), manifest.wire_offset(2) + 5)
    await lose_by_verify(store, manifest.blob)
    assert not any((data_dir / "wire").rglob("*.*"))
    assert await store.rebuild(manifest.blob, name), "2 from the fetch, the others from the blob"
    await check_whole(store, manifest, frames)
    with pytest.raises(Conflict):
        await partial.write([(0, frames[0])])


async def test_nothing_to_rebuild_from(store: BlobStore) -> None:
    manifest, name, _ = await filled(store)
    absent = Digest("0" * 64)
    assert await store.rebuild(absent, absent) is None
    assert await store.rebuild(absent, name) is None, "a manifest of another blob"
    await store.delete(manifest.blob)
    assert await store.rebuild(manifest.blob, name) is None
    bare = await store.put(b"no wire form", kind="module")
    await lose_by_verify(store, bare.digest)
    assert await store.rebuild(bare.digest, name) is None


async def test_a_deleted_blob_leaves_nothing(
    store: BlobStore, reopen: Reopen, data_dir: Path
) -> None:
    manifest, _, _ = await filled(store)
    await store.delete(manifest.blob)
    await reopen()
    assert list((data_dir / "partial").iterdir()) == []
    assert not any((data_dir / "wire").rglob("*.*"))


async def test_no_space_to_rebuild(
    store: BlobStore, reopen: Reopen, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, name, frames = await filled(store)
    await lose_by_verify(store, manifest.blob)
    with monkeypatch.context() as patch:
        patch.setattr(store._core.disk, "_min_free_bytes", 2**60)
        with pytest.raises(DiskFull):
            await store.rebuild(manifest.blob, name)
    assert await store.rebuild(manifest.blob, name)
    await check_whole(store, manifest, frames)
    assert digest_of(RAW) == manifest.blob
