"""Start-up: the lock, what is swept, adopted, missed, quarantined; index and journal damage."""

from __future__ import annotations

import errno
import io
import mmap
import os
import shutil
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from edged.errors import BlobNotFound, DataDirLocked, StoreError
from edged.interfaces import ArtifactRow, RepairReport
from edged.store import BlobStore, disk, open_store, quarantine
from edged.telemetry import make_log
from protocol.ids import ArtifactKey, Digest, digest_of

Reopen = Callable[[], Awaitable[BlobStore]]
CLEAN = RepairReport(0, (), (), (), index_rebuilt=False)
KEY = ArtifactKey("k" * 64)
MODULE = os.urandom(200_000)


async def filled(store: BlobStore) -> ArtifactRow:
    """One of everything."""
    module = await store.put(MODULE, kind="module")
    await store.make_manifest(module.digest)
    native = await store.put(b"\x7fELF native", kind="artifact")
    row = ArtifactRow(module.digest, KEY, native.digest, native.size_bytes, 1.5, b"signed")
    await store.put_artifact(row)
    await store.save_records([("a", b"1"), ("b", b"2")])
    await store.save_records([("a", b"3")])
    await store.set_meta("generation", b"7")
    return row


async def check_filled(store: BlobStore, row: ArtifactRow) -> None:
    assert await store.read(row.module) == MODULE
    assert (await store.manifest(row.module)).blob == row.module
    assert await store.wire_segment(row.module, 0)
    assert store.artifact(row.module, KEY) == row
    assert store.artifacts() == [row]
    assert dict(store.load_records()) == {"a": b"3", "b": b"2"}
    assert store.get_meta("generation") == b"7"
    kinds = {info.kind for info in store.blobs()}
    assert kinds == {"module", "artifact", "manifest"}


async def test_everything_is_there_again(store: BlobStore, reopen: Reopen) -> None:
    row = await filled(store)
    before = sorted(store.blobs(), key=lambda info: info.digest)
    store = await reopen()
    assert store.repair == CLEAN
    await check_filled(store, row)
    assert sorted(store.blobs(), key=lambda info: info.digest) == before


async def test_artifact_rows(store: BlobStore, reopen: Reopen) -> None:
    row = await filled(store)
    with pytest.raises(BlobNotFound):
        await store.put_artifact(ArtifactRow(row.module, KEY, Digest("0" * 64), 1, 0.0, b""))
    assert store.artifact(row.module, KEY) == row
    await store.delete_artifact(row.module, KEY)
    await store.delete_artifact(row.module, KEY)
    assert store.artifact(row.module, KEY) is None
    await store.put(b"\x7fELF native", kind="artifact")
    await store.put_artifact(row)
    await store.delete(row.digest)
    assert store.artifacts() == []
    assert (await reopen()).artifacts() == []


async def test_an_artifacts_blob_goes_with_its_last_row(
    store: BlobStore, reopen: Reopen, data_dir: Path
) -> None:
    row = await filled(store)
    other = msgspec.structs.replace(row, key=ArtifactKey("o" * 64))
    as_module = ArtifactRow(row.module, ArtifactKey("m" * 64), row.module, 1, 0.0, b"")
    await store.put_artifact(other)
    await store.put_artifact(as_module)
    await store.delete_artifact(row.module, KEY)
    assert store.info(row.digest) is not None, "another row names it"
    with (
        store.path(row.digest).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        await store.delete_artifact(row.module, other.key)
        assert mapped[:] == b"\x7fELF native", "who has it mapped keeps it"
    assert store.info(row.digest) is None
    assert not any((data_dir / "blobs").rglob("*.artifact"))
    await store.delete_artifact(row.module, as_module.key)
    assert store.info(row.module) is not None, "a module is not native code"
    assert store.artifacts() == []
    store = await reopen()
    assert store.repair == CLEAN
    assert store.artifacts() == []
    assert store.info(row.digest) is None


async def test_a_second_process_is_refused_and_names_the_first(
    store: BlobStore, data_dir: Path
) -> None:
    log = make_log("x", stream=io.StringIO())
    with pytest.raises(DataDirLocked, match=f"process {os.getpid()} ") as caught:
        await open_store(data_dir, zstd_level=3, min_free_bytes=0, log=log)
    assert str(data_dir) not in str(caught.value), "clients see no host path"
    await store.put(b"still works", kind="module")


async def test_leftovers_are_swept(store: BlobStore, reopen: Reopen, data_dir: Path) -> None:
    row = await filled(store)
    store.temp_path().write_bytes(b"half")
    store.temp_path().write_bytes(b"an artifact")
    (data_dir / "partial" / f"{row.module}.{'0' * 64}").write_bytes(b"of a blob that is here")
    (data_dir / "partial" / "junk").write_bytes(b"")
    old = data_dir / "partial" / f"{'1' * 64}.{'2' * 64}"
    old.write_bytes(b"")
    os.utime(old, (1, 1))
    recent = data_dir / "partial" / f"{'3' * 64}.{'4' * 64}"
    recent.write_bytes(b"")
    stray = data_dir / "wire" / row.module[:2] / f"{row.module}.{'0' * 64}"
    stray.write_bytes(b"not its manifest")
    store = await reopen()
    assert store.repair == RepairReport(2, (), (), (), index_rebuilt=False)
    assert list((data_dir / "partial").iterdir()) == [recent]
    assert not stray.exists()
    await check_filled(store, row)


async def test_orphans_missing_and_corrupt(
    store: BlobStore, reopen: Reopen, data_dir: Path
) -> None:
    row = await filled(store)
    corrupt = await store.put(b"c" * 1000, kind="module")
    truncated = await store.put(b"t" * 1000, kind="module")
    touched = await store.put(b"same bytes, new file", kind="module")
    store.path(row.digest).unlink()
    for digest, data in ((corrupt.digest, b"C" * 1000), (truncated.digest, b"t" * 10)):
        store.path(digest).chmod(0o600)
        store.path(digest).write_bytes(data)
    copy = store.temp_path()
    shutil.copyfile(store.path(touched.digest), copy)
    copy.replace(store.path(touched.digest))
    orphan = digest_of(b"orphan")
    fake = Digest("ab" + "0" * 62)
    for digest in (orphan, fake):
        shard = data_dir / "blobs" / digest[:2]
        shard.mkdir(exist_ok=True)
        (shard / f"{digest}.artifact").write_bytes(b"orphan")
    (shard / "README").write_bytes(b"what is this")
    store = await reopen()
    assert store.repair.missing == (row.digest,)
    assert set(store.repair.corrupt) == {corrupt.digest, truncated.digest, fake}
    assert store.repair.orphans_adopted == (orphan,)
    assert not store.repair.index_rebuilt
    assert store.artifacts() == [], "its native code is gone"
    assert await store.read(orphan) == b"orphan"
    assert await store.read(touched.digest) == b"same bytes, new file"
    assert len(list((data_dir / "quarantine").iterdir())) == 4
    assert (await reopen()).repair == CLEAN


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    at = min(int(len(data) * where), len(data) - 1)
    data[at : at + 8] = os.urandom(len(data[at : at + 8]))
    path.write_bytes(data)


def older_sqlite(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (x)")
    connection.close()


def one_row_changed(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET value = x'99'")
    connection.commit()
    connection.close()


def lying_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(os.urandom(50_000)),
        lambda path: os.truncate(path, 5000),
        lambda path: os.truncate(path, 10),
        lambda path: os.truncate(path, 0),
        lambda path: path.unlink(),
        lambda path: flip(path, 0.0),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + os.urandom(16_384)),
        older_sqlite,
        one_row_changed,
        lying_version,
    ],
    ids=[
        "random bytes",
        "truncated",
        "cut in the header",
        "empty",
        "removed",
        "header",
        "pages",
        "other schema",
        "a row",
        "version",
    ],
)
async def test_a_broken_index_loses_nothing(
    store: BlobStore, reopen: Reopen, data_dir: Path, harm: Callable[[Path], None]
) -> None:
    row = await filled(store)
    await store.close()
    harm(data_dir / "index.sqlite")
    store = await reopen()
    assert store.repair.index_rebuilt
    assert store.repair.corrupt == store.repair.missing == ()
    assert set(store.repair.orphans_adopted) == {info.digest for info in store.blobs()}
    await check_filled(store, row)
    store = await reopen()
    assert store.repair == CLEAN
    await check_filled(store, row)


@pytest.mark.parametrize("where", [0.0, 0.02, 0.1, 0.5, 0.95, None, "gone", "empty"])
async def test_a_broken_journal_loses_nothing(
    store: BlobStore, reopen: Reopen, data_dir: Path, where: float | str | None
) -> None:
    row = await filled(store)
    await store.close()
    journal = data_dir / "journal"
    if where == "gone":
        journal.unlink()
    elif where == "empty":
        os.truncate(journal, 0)
    elif where is None:
        os.truncate(journal, journal.stat().st_size - 3)
    else:
        assert isinstance(where, float)
        flip(journal, where)
    store = await reopen()
    assert not store.repair.index_rebuilt
    await check_filled(store, row)
    await store.set_meta("generation", b"8")
    await store.set_meta("generation", b"7")
    await store.close()
    # The rewritten journal alone carries everything again.
    (data_dir / "index.sqlite").unlink()
    await check_filled(await reopen(), row)


async def test_a_lost_wal_is_made_good_by_the_journal(
    store: BlobStore, reopen: Reopen, data_dir: Path
) -> None:
    row = await filled(store)
    image = data_dir.with_name("image")
    shutil.copytree(data_dir, image, copy_function=shutil.copy2)
    (image / "index.sqlite-wal").unlink()
    await store.close()
    shutil.rmtree(data_dir)
    image.rename(data_dir)
    await check_filled(await reopen(), row)


async def test_a_newer_index_is_refused_untouched(
    store: BlobStore, reopen: Reopen, data_dir: Path
) -> None:
    await filled(store)
    await store.close()
    connection = sqlite3.connect(data_dir / "index.sqlite")
    connection.execute("PRAGMA user_version = 2")
    connection.execute("UPDATE about SET version = 2")
    connection.execute("CREATE TABLE of_the_future (x)")
    connection.commit()
    connection.close()
    before = (data_dir / "journal").read_bytes()
    with pytest.raises(StoreError, match="newer edged"):
        await reopen()
    assert (data_dir / "journal").read_bytes() == before
    assert list((data_dir / "quarantine").iterdir()) == []


async def test_after_a_machine_crash_recent_blobs_are_hashed(
    store: BlobStore, reopen: Reopen, data_dir: Path
) -> None:
    recent = await store.put(b"r" * 1000, kind="module")
    await store.close()
    path = data_dir / "blobs" / recent.digest[:2] / f"{recent.digest}.module"
    stat = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"R" * 1000)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    store = await reopen()
    assert store.repair == CLEAN, "size, time and inode match: believed until it is read"
    await store.close()
    (data_dir / "lock").write_text("pid 1\nboot another\nstate open\n")
    store = await reopen()
    assert store.repair.corrupt == (recent.digest,)
    assert store.info(recent.digest) is None


async def test_an_unreadable_blob_does_not_keep_the_node_down(
    store: BlobStore, reopen: Reopen, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await filled(store)
    bad = await store.put(b"on a bad sector", kind="module")
    os.utime(store.path(bad.digest), (1, 1))
    await store.close()

    def unreadable(fd: int) -> tuple[Digest, int]:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "hash_fd", unreadable)
        store = await reopen()
    assert store.repair.corrupt == (bad.digest,)
    await check_filled(store, row)


async def test_quarantine_is_bounded(store: BlobStore, reopen: Reopen, data_dir: Path) -> None:
    for number in range(80):
        (data_dir / "quarantine" / f"{number:03}-x").write_bytes(b"")
    await reopen()
    left = sorted(path.name for path in (data_dir / "quarantine").iterdir())
    assert (len(left), left[0]) == (64, "016-x")


async def test_quarantine_is_bounded_while_the_store_is_open(
    store: BlobStore, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "BYTES_MAX", 250)
    for number in range(4):
        info = await store.put(bytes([number]) * 100, kind="module")
        path = store.path(info.digest)
        path.chmod(0o600)
        path.write_bytes(b"x" * 100)
        assert not await store.verify(info.digest)
        assert store.quarantined() == (min(number + 1, 2), min(number + 1, 2) * 100)
    assert path.name in max(kept.name for kept in (data_dir / "quarantine").iterdir())


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
async def test_something_else_in_place_of_files(
    store: BlobStore, reopen: Reopen, data_dir: Path, put: Callable[[Path], None]
) -> None:
    row = await filled(store)
    wire = next((data_dir / "wire").glob("*/*"))
    native = store.path(row.digest)
    wire.unlink()
    native.unlink()
    put(wire)
    put(native)
    put(data_dir / "partial" / f"{'ab' * 32}.{'cd' * 32}")
    with pytest.raises(BlobNotFound):
        store.path(row.digest)
    with trio.fail_after(30):
        store = await reopen()
    assert store.repair.missing == (row.digest,)
    assert store.info(row.module) is not None
    assert store.quarantined()[0] == 3


async def test_the_journal_is_rewritten_when_superseded(
    store: BlobStore, reopen: Reopen, data_dir: Path
) -> None:
    row = await filled(store)
    for number in range(30):
        await store.set_meta("large", bytes([number]) * 100_000)
    assert (data_dir / "journal").stat().st_size < 1_200_000
    store = await reopen()
    assert store.repair == CLEAN
    await check_filled(store, row)
    assert store.get_meta("large") == bytes([29]) * 100_000
    await store.close()
    (data_dir / "index.sqlite").unlink()
    await check_filled(await reopen(), row)


async def test_dropped_records_are_gone_for_good(
    store: BlobStore, reopen: Reopen, data_dir: Path
) -> None:
    row = await filled(store)
    await store.save_records([("dead", b"1"), ("gone", b"2")])
    await store.drop_records(["dead", "gone", "gone", "never was"])
    size_bytes = (data_dir / "journal").stat().st_size
    await store.drop_records(["dead", "gone"])
    await store.drop_records([])
    assert (data_dir / "journal").stat().st_size == size_bytes, "nothing to write"
    await check_filled(store, row)
    store = await reopen()
    await check_filled(store, row)
    await store.close()
    (data_dir / "index.sqlite").unlink()
    store = await reopen()
    await check_filled(store, row)
    await store.save_records([("dead", b"again")])
    assert dict((await reopen()).load_records())["dead"] == b"again"


async def test_the_journal_shrinks_when_records_are_dropped(
    store: BlobStore, reopen: Reopen, data_dir: Path
) -> None:
    row = await filled(store)
    tombstones = [(f"record-{number}", bytes(1000)) for number in range(3000)]
    await store.save_records(tombstones)
    store = await reopen()
    journal = data_dir / "journal"
    assert journal.stat().st_size > 3_000_000
    await store.drop_records([key for key, _ in tombstones])
    assert journal.stat().st_size < 10_000
    await check_filled(await reopen(), row)


async def test_restarts_do_not_let_the_journal_grow(reopen: Reopen, data_dir: Path) -> None:
    """What is superseded is told from what is live also in a journal of an earlier life."""
    for _ in range(5):
        store = await reopen()
        for number in range(7):
            await store.set_meta("large", bytes([number]) * 100_000)
    assert (data_dir / "journal").stat().st_size < 1_300_000


async def test_lock_dies_with_its_process(data_dir: Path, reopen: Reopen) -> None:
    code = (
        "import sys, os, io, signal, trio\n"
        "from pathlib import Path\n"
        "from edged.store import open_store\n"
        "from edged.telemetry import make_log\n"
        "async def main():\n"
        "    s = await open_store(Path(sys.argv[1]), zstd_level=1, min_free_bytes=0,\n"
        "                         log=make_log('x'))\n"
        "    await s.set_meta('k', b'v')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(main)\n"
    )
    with trio.fail_after(30):
        await trio.run_process([sys.executable, "-c", code, str(data_dir)], check=False)
    store = await reopen()
    assert store.get_meta("k") == b"v"
    assert store.repair == CLEAN
