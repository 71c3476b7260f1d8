"""A full disk for real: a small tmpfs where root may mount one, a file-size limit, the reserve."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from edged.errors import DiskFull
from edged.interfaces import RepairReport
from edged.store import BlobStore, open_store
from edged.telemetry import make_log
from protocol.ids import Digest, digest_of

TMPFS_BYTES = 4 * 1024 * 1024
CLEAN = RepairReport(0, (), (), (), index_rebuilt=False)
ROOT = Path(__file__).parents[3]


async def opened(data_dir: Path, *, min_free_bytes: int = 0) -> BlobStore:
    log = make_log("x", stream=io.StringIO())
    return await open_store(data_dir, zstd_level=1, min_free_bytes=min_free_bytes, log=log)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "small"
    target.mkdir()
    options = f"size={TMPFS_BYTES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)],
        check=False,
        capture_output=True,
        timeout=10,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield target
    subprocess.run(["umount", str(target)], check=True, timeout=10)


async def test_blobs_on_a_full_disk(small_disk: Path) -> None:
    store = await opened(small_disk / "data")
    kept: list[Digest] = []

    async def fill() -> None:
        while True:
            info = await store.put(os.urandom(300_000), kind="module")
            kept.append(info.digest)

    with pytest.raises(DiskFull, match="no space"):
        await fill()
    assert kept
    with pytest.raises(DiskFull):
        await store.make_manifest(kept[0])
    source = store.temp_path()
    fits = b"small"
    source.write_bytes(fits)
    for digest in kept:
        assert await store.verify(digest)
    assert [path for path in source.parent.iterdir() if path != source] == []
    await store.delete(kept.pop())
    info = await store.put_file(source, kind="module")
    assert info.digest == digest_of(fits)
    await store.close()
    store = await opened(small_disk / "data")
    assert store.repair == CLEAN
    for digest in [*kept, info.digest]:
        assert await store.verify(digest)
    await store.close()


async def test_records_on_a_full_disk(small_disk: Path) -> None:
    """The journal or SQLite runs out of space: what was said is kept, the rest is not there."""
    store = await opened(small_disk / "data")
    saved: dict[str, bytes] = {}

    async def fill() -> None:
        for number in range(1000):
            key, value = f"record-{number}", os.urandom(20_000)
            await store.save_records([(key, value)])
            saved[key] = value

    with pytest.raises(DiskFull):
        await fill()
    assert saved
    assert dict(store.load_records()) == saved
    with pytest.raises(DiskFull):
        await store.save_records([("large", bytes(200_000))])
    await store.close()
    store = await opened(small_disk / "data")
    assert dict(store.load_records()) == saved
    assert not store.repair.index_rebuilt
    await store.close()


async def test_fetch_on_a_full_disk_resumes(small_disk: Path, tmp_path: Path) -> None:
    origin = await opened(tmp_path / "origin")
    raw = os.urandom(1_000_000)
    blob = (await origin.put(raw, kind="module")).digest
    manifest = await origin.make_manifest(blob)
    segments = [await origin.wire_segment(blob, i) for i in range(manifest.segments)]
    await origin.close()

    store = await opened(small_disk / "data")
    fetch = await store.begin_partial(manifest)
    ballast = small_disk / "ballast"
    for index, segment in enumerate(segments):
        await fetch.write([(index, segment)])
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):
        file.write(bytes(TMPFS_BYTES))
    with pytest.raises(DiskFull):
        await fetch.finish()
    assert store.info(blob) is None
    ballast.unlink()
    assert (await fetch.finish()).digest == blob
    assert await store.read(blob) == raw
    await store.close()


async def test_a_fetch_that_cannot_fit_is_refused_at_once(small_disk: Path) -> None:
    store = await opened(small_disk / "data", min_free_bytes=TMPFS_BYTES // 2)
    with pytest.raises(DiskFull, match=r"min_free_bytes"):
        await store.put(bytes(TMPFS_BYTES), kind="module")
    await store.close()


async def test_the_reserve(tmp_path: Path) -> None:
    """Blob bytes respect it; records, which the reserve is for, do not ask."""
    store = await opened(tmp_path / "data")
    kept = await store.put(b"before", kind="module")
    await store.close()
    store = await opened(tmp_path / "data", min_free_bytes=2**60)
    with pytest.raises(DiskFull, match=r"store\.min_free_bytes") as caught:
        await store.put(b"after", kind="module")
    assert str(tmp_path) not in str(caught.value)
    source = store.temp_path()
    source.write_bytes(b"compiled")
    with pytest.raises(DiskFull):
        await store.put_file(source, kind="artifact")
    assert not source.exists()
    with pytest.raises(DiskFull):
        await store.make_manifest(kept.digest)
    await store.save_records([("key", b"value")])
    assert await store.put(b"before", kind="module") == kept, "already here: needs no space"
    await store.close()


LIMITED = """
import io, os, resource, sys, trio
from pathlib import Path
from edged.errors import DiskFull
from edged.store import open_store
from edged.telemetry import make_log

async def main():
    store = await open_store(Path(sys.argv[1]), zstd_level=1, min_free_bytes=0,
                             log=make_log("x", stream=io.StringIO()))
    small = await store.put(b"small", kind="module")
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    try:
        await store.put(os.urandom(1_000_000), kind="module")
    except DiskFull as error:
        print("refused:", error)
    assert list(store.temp_path().parent.iterdir()) == []
    assert await store.verify(small.digest)
    saved = 0
    try:
        for saved in range(100):
            await store.save_records([(f"r{saved}", os.urandom(20_000))])
    except DiskFull:
        print("saved:", saved)
    await store.close()

trio.run(main)
"""


def test_a_limit_on_file_size(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "data")],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
    )
    refused, saved = done.stdout.splitlines()
    assert "no space left while storing a blob (File too large)" in refused

    async def check() -> None:
        store = await opened(tmp_path / "data")
        assert store.repair == CLEAN
        assert len(list(store.load_records())) == int(saved.split()[1])
        await store.close()

    trio.run(check)
