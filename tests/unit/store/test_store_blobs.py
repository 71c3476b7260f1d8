"""Blobs: put, read, verify, delete; what is on disk; what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio

from edged.errors import BlobCorrupt, BlobNotFound, DigestMismatch, StoreError
from edged.store import BlobStore
from edged.store.locks import KeyedLocks
from protocol.ids import Digest, digest_of

ABSENT = Digest("0" * 64)


def temps(store: BlobStore) -> list[Path]:
    return list(store.temp_path().parent.iterdir())


def damage(path: Path) -> None:
    """One flipped bit, same size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


async def test_put_read_path_info(store: BlobStore) -> None:
    data = os.urandom(100_000)
    info = await store.put(data, kind="module")
    assert info.digest == digest_of(data)
    assert (info.size_bytes, info.kind, info.wire_bytes, info.manifest) == (
        100_000,
        "module",
        None,
        None,
    )
    assert await store.read(info.digest) == data
    assert store.info(info.digest) == info
    assert store.blobs() == [info]
    path = store.path(info.digest)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert await store.verify(info.digest)
    assert temps(store) == []


async def test_empty_blob(store: BlobStore) -> None:
    info = await store.put(b"", kind="module")
    assert await store.read(info.digest) == b""
    with pytest.raises(StoreError, match="empty"):
        await store.make_manifest(info.digest)


async def test_expected_digest_is_checked(store: BlobStore) -> None:
    with pytest.raises(DigestMismatch):
        await store.put(b"data", kind="module", expected=ABSENT)
    assert store.blobs() == []
    await store.put(b"data", kind="module", expected=digest_of(b"data"))


async def test_the_same_blob_at_once_is_one_file(store: BlobStore) -> None:
    data = os.urandom(300_000)
    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(lambda: store.put(data, kind="artifact"))
    inode = store.path(digest_of(data)).stat().st_ino
    await store.put(data, kind="module")
    assert len(store.blobs()) == 1
    assert store.blobs()[0].kind == "artifact"
    assert store.path(digest_of(data)).stat().st_ino == inode, "never written again"
    assert temps(store) == []


async def test_put_again_mends_a_damaged_or_missing_file(store: BlobStore) -> None:
    data = os.urandom(5000)
    info = await store.put(data, kind="module")
    damage(store.path(info.digest))
    await store.put(data, kind="module")
    assert await store.read(info.digest) == data
    store.path(info.digest).unlink()
    await store.put(data, kind="module")
    assert await store.read(info.digest) == data


async def test_put_file_consumes_what_a_compiler_wrote(store: BlobStore) -> None:
    source = store.temp_path()
    await trio.run_process(["/bin/sh", "-c", f"printf native > '{source}'"])
    info = await store.put_file(source, kind="artifact")
    assert info.digest == digest_of(b"native")
    assert not source.exists()
    assert stat.S_IMODE(store.path(info.digest).stat().st_mode) == 0o444


async def test_put_file_refuses(store: BlobStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    with pytest.raises(StoreError, match="temp_path"):
        await store.put_file(outside, kind="artifact")
    assert outside.exists(), "not ours to consume"
    link = store.temp_path()
    link.symlink_to(outside)
    with pytest.raises(StoreError):
        await store.put_file(link, kind="artifact")
    fifo = store.temp_path()
    os.mkfifo(fifo)
    with pytest.raises(StoreError, match="storing a file failed"):
        await store.put_file(fifo, kind="artifact")
    with pytest.raises(StoreError):
        await store.put_file(store.temp_path(), kind="artifact")
    wrong = store.temp_path()
    wrong.write_bytes(b"y")
    with pytest.raises(DigestMismatch):
        await store.put_file(wrong, kind="artifact", expected=ABSENT)
    assert temps(store) == []
    assert store.blobs() == []


async def test_damage_is_seen_on_read_and_quarantined(store: BlobStore, data_dir: Path) -> None:
    info = await store.put(os.urandom(5000), kind="module")
    damage(store.path(info.digest))
    with pytest.raises(BlobCorrupt, match=info.digest):
        await store.read(info.digest)
    assert store.info(info.digest) is None
    with pytest.raises(BlobNotFound):
        await store.read(info.digest)
    assert [path.name.split("-")[1] for path in (data_dir / "quarantine").iterdir()] == [
        f"{info.digest}.module"
    ]


async def test_verify_says_no_once_then_not_found(store: BlobStore) -> None:
    info = await store.put(os.urandom(5000), kind="module")
    damage(store.path(info.digest))
    assert not await store.verify(info.digest)
    with pytest.raises(BlobNotFound):
        await store.verify(info.digest)


async def test_a_file_removed_behind_our_back(store: BlobStore) -> None:
    info = await store.put(b"gone", kind="module")
    store.path(info.digest).unlink()
    with pytest.raises(BlobNotFound):
        await store.read(info.digest)
    assert store.info(info.digest) is None


async def test_absent_blobs(store: BlobStore) -> None:
    for call in (store.read, store.verify, store.make_manifest, store.manifest):
        with pytest.raises(BlobNotFound):
            await call(ABSENT)
    with pytest.raises(BlobNotFound):
        store.path(ABSENT)
    assert store.info(ABSENT) is None
    await store.delete(ABSENT)


async def test_delete_leaves_nothing_but_an_open_file_stays_readable(
    store: BlobStore, data_dir: Path
) -> None:
    data = os.urandom(200_000)
    info = await store.put(data, kind="module")
    await store.make_manifest(info.digest)
    with store.path(info.digest).open("rb") as file:
        await store.delete(info.digest)
        assert file.read() == data
    assert store.blobs() == []
    left = [p for tree in ("blobs", "wire") for p in (data_dir / tree).rglob("*") if p.is_file()]
    assert left == []


async def test_closed_store_refuses_and_close_is_idempotent(store: BlobStore) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.put(b"x", kind="module")
    with pytest.raises(StoreError, match="closed"):
        await store.set_meta("k", b"v")


async def test_cancelled_put_is_whole_or_absent(store: BlobStore) -> None:
    data = os.urandom(2_000_000)
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.put(data, kind="module")
    assert store.blobs() == []
    assert temps(store) == []


def test_keyed_locks_forget_keys() -> None:
    locks = KeyedLocks()
    with locks.holding("a"), locks.holding("b"):
        assert len(locks) == 2
    assert len(locks) == 0
