"""Every byte is looked at again, and what is damaged is repaired, over a real store."""

from __future__ import annotations

import io
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from edged.errors import BlobCorrupt, BlobNotFound, DiskFull, Draining, NoHolder, StoreError
from edged.eventlog import EventLog
from edged.interfaces import ArtifactRow, BlobInfo, VerifyView
from edged.scrubber import DAY_S, LOOK_S, Scrubber
from edged.store import BlobStore, open_store
from edged.telemetry import Metrics, make_log
from protocol.ids import ArtifactKey, Digest
from protocol.manifest import manifest_digest

KEY = ArtifactKey("aa" * 32)


class Bench:
    """A scrubber with peers that hold whatever `lend` was told."""

    def __init__(self, store: BlobStore, root: Path) -> None:
        self.store = store
        self.root = root
        self.wanted: dict[Digest, Digest] = {}
        self.placed: list[Digest] = []
        self.lent: dict[Digest, bytes] = {}
        self.made_of: dict[Digest, bytes] = {}
        """Snapshots, as their modules would give them."""
        self.announced: list[Digest] = []
        self.unmapped: list[Digest] = []
        self.events = EventLog(node="n1", generation=1)
        self.skew_s = 0.0
        self.scrubber = self.make()
        store.on_lost = lambda digest, what: self.scrubber.lost(digest, what)

    def make(self, *, interval_days: float = 7.0, bytes_per_s: int = 10_000_000) -> Scrubber:
        return Scrubber(
            self.store,
            self,
            self,
            node="n1",
            interval_days=interval_days,
            bytes_per_s=bytes_per_s,
            note=self.events.add,
            metrics=Metrics(),
            log=make_log("n1", stream=io.StringIO()),
            wall_s=lambda: time.time() + self.skew_s,
        )

    # ------------------------------------------------------------ Repairs and Fetcher
    def manifest(self, module: Digest) -> Digest | None:
        return self.wanted.get(module)

    def absent(self) -> list[Digest]:
        return [digest for digest in self.placed if self.store.info(digest) is None]

    async def remake(self, module: Digest) -> bool:
        if module not in self.made_of:
            return False
        await self.store.put(self.made_of[module], kind="module", expected=module)
        return True

    def announce(self, module: Digest) -> None:
        self.announced.append(module)

    def unmap(self, module: Digest) -> None:
        self.unmapped.append(module)

    async def fetch(
        self,
        digest: Digest,
        manifest_digest: Digest,
        *,
        progress: Callable[[int, int], None],
        urgent: bool = True,
    ) -> BlobInfo:
        assert not urgent
        if digest not in self.lent:
            raise NoHolder(f"no reachable peer holds blob {digest}")
        return await self.store.put(self.lent[digest], kind="module", expected=digest)

    # ------------------------------------------------------------ for tests
    async def module(self, data: bytes, *, wanted: bool = True) -> Digest:
        info = await self.store.put(data, kind="module")
        manifest = await self.store.make_manifest(info.digest)
        if wanted:
            self.wanted[info.digest] = manifest_digest(manifest)
        return info.digest

    def damage(self, path: Path) -> None:
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0xFF]))

    def wire(self, digest: Digest) -> Path:
        return next((self.root / "wire").glob(f"*/{digest}.*"))

    async def check(self) -> VerifyView:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.scrubber.run)
            self.scrubber.start()
            while self.scrubber.view().state == "running":
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        return self.scrubber.view()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    log = make_log("n1", stream=io.StringIO())
    root = tmp_path / "data"
    store = await open_store(root, zstd_level=1, min_free_bytes=0, log=log)
    yield Bench(store, root)
    await store.close()


async def test_a_whole_store(bench: Bench) -> None:
    assert bench.scrubber.view().state == "never"
    await bench.module(os.urandom(200_000))
    view = await bench.check()
    assert (view.state, view.findings, view.blobs_checked, view.blobs) == ("done", (), 2, 2)
    assert view.bytes_checked == view.bytes > 400_000
    assert view.last_complete_at_s == pytest.approx(time.time(), abs=60)


async def test_each_kind_of_damage(bench: Bench) -> None:
    data = {name: os.urandom(100_000) for name in ("blob", "wire", "both", "lost", "unneeded")}
    module = {name: await bench.module(text) for name, text in data.items()}
    del bench.wanted[module["unneeded"]]
    store = bench.store
    info = await store.put(b"\x7fELF" + bytes(5000), kind="artifact")
    await store.put_artifact(ArtifactRow(module["wire"], KEY, info.digest, 5004, 0.1, b"word"))
    bench.damage(store.path(module["blob"]))
    bench.damage(bench.wire(module["wire"]))
    for name in ("both", "lost", "unneeded"):
        bench.damage(store.path(module[name]))
        bench.damage(bench.wire(module[name]))
    bench.damage(store.path(info.digest))
    bench.damage(store.path(bench.wanted[module["wire"]]))  # a manifest
    bench.lent[module["both"]] = data["both"]
    bench.placed = [module["both"], module["lost"]]
    view = await bench.check()
    found = {f.digest: (f.found, f.repaired, f.outcome) for f in view.findings}
    assert len(found) == len(view.findings), "each loss is one finding"
    assert found == {
        module["blob"]: ("corrupt", True, "rebuilt from its wire form"),
        module["wire"]: ("wire-lost", True, "its wire form was made again"),
        module["both"]: ("corrupt", True, "fetched from peers"),
        module["lost"]: ("corrupt", False, f"no reachable peer holds blob {module['lost']}"),
        module["unneeded"]: ("corrupt", False, "nothing needs it"),
        info.digest: ("corrupt", True, "dropped; it is fetched or made again when it is needed"),
        bench.wanted[module["wire"]]: (
            *("corrupt", True, "made again with the wire form it belongs to"),
        ),
    }
    for name in ("blob", "wire", "both"):
        assert await store.read(module[name]) == data[name]
        assert module[name] in bench.announced
    assert bench.unmapped == [module["wire"]]
    assert store.artifacts() == []
    kinds = [row.kind for row in (await bench.events.read(after=0, limit=99, wait_s=0)).events]
    assert kinds == ["blob-damaged"] * 7 + ["store-verified"]
    again = await bench.check()
    assert [(f.digest, f.found, f.repaired) for f in again.findings] == [
        (module["lost"], "absent", False)
    ]


async def test_a_snapshot_that_no_peer_has_is_made_again(bench: Bench) -> None:
    data = os.urandom(50_000)
    snapshot, module = await bench.module(data), await bench.module(os.urandom(50_000))
    bench.made_of[snapshot] = data
    for one in (snapshot, module):
        bench.damage(bench.store.path(one))
        bench.wire(one).unlink()
    view = await bench.check()
    found = {one.digest: (one.repaired, one.outcome) for one in view.findings}
    assert found[snapshot] == (True, "made again of its module")
    assert found[module][0] is False
    assert await bench.store.verify(snapshot)


async def test_what_others_find_is_told_once_and_fetched_by_a_check(bench: Bench) -> None:
    data = {name: os.urandom(60_000) for name in ("read", "gone", "spare", "wire")}
    module = {name: await bench.module(text) for name, text in data.items()}
    bench.placed = [module["read"], module["gone"]]
    for name in ("read", "gone", "spare"):
        bench.damage(bench.store.path(module[name]))
        shutil.rmtree(bench.wire(module[name]).parent)
        for _ in range(2):
            with pytest.raises((BlobCorrupt, BlobNotFound)):
                await bench.store.read(module[name])
    bench.damage(bench.wire(module["wire"]))
    segments = (await bench.store.manifest(module["wire"])).segments
    with pytest.raises(BlobNotFound):
        await bench.store.wire_segments(module["wire"], range(segments))
    rows = (await bench.events.read(after=0, limit=99, wait_s=0)).events
    assert [(row.kind, row.name, row.detail) for row in rows] == [
        ("blob-damaged", module[name], text)
        for name, text in {
            "read": "module corrupt: it belongs here and is fetched again",
            "gone": "module corrupt: it belongs here and is fetched again",
            "spare": "module corrupt: fetched or made again when it is needed",
            "wire": "wire form corrupt: edged verify makes it again",
        }.items()
    ]
    bench.lent[module["read"]] = data["read"]
    view = await bench.check()
    assert {f.digest: (f.found, f.repaired, f.outcome) for f in view.findings} == {
        module["read"]: ("absent", True, "fetched from peers"),
        module["gone"]: ("absent", False, f"no reachable peer holds blob {module['gone']}"),
    }
    assert module["read"] in bench.announced
    rows = (await bench.events.read(after=len(rows), limit=99, wait_s=0)).events
    assert [row.kind for row in rows] == ["store-verified"]
    assert rows[0].detail.endswith("0 damaged, 2 absent, 1 not repaired")


async def test_what_a_start_finds_is_told_once(bench: Bench) -> None:
    blob, wire = await bench.module(os.urandom(60_000)), await bench.module(os.urandom(60_000))
    gone = await bench.module(os.urandom(60_000))
    bench.damage(bench.store.path(blob))
    bench.wire(wire).unlink()
    bench.store.path(gone).unlink()
    await bench.store.close()
    log = make_log("n1", stream=io.StringIO())
    bench.store = await open_store(bench.root, zstd_level=1, min_free_bytes=0, log=log)
    try:
        bench.placed = [gone]
        bench.scrubber = bench.make()
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(bench.scrubber.run)
                nursery.cancel_scope.cancel()
    finally:
        await bench.store.close()
    rows = (await bench.events.read(after=0, limit=99, wait_s=0)).events
    assert {row.name: (row.kind, row.detail) for row in rows} == {
        blob: ("blob-damaged", "module corrupt: fetched or made again when it is needed"),
        wire: ("blob-damaged", "wire form missing: edged verify makes it again"),
        gone: ("blob-damaged", "module missing: it belongs here and is fetched again"),
    }
    assert len(rows) == 3


async def test_files_that_vanished(bench: Bench) -> None:
    data = os.urandom(50_000)
    module = await bench.module(data)
    bench.store.path(module).unlink()
    view = await bench.check()
    assert [(f.found, f.repaired) for f in view.findings] == [("missing", True)]
    assert await bench.store.read(module) == data
    gone = await bench.module(os.urandom(50_000), wanted=False)
    shutil.rmtree(bench.wire(gone).parent)
    bench.store.path(gone).unlink()
    assert (await bench.check()).findings == ()  # as if it had been removed meanwhile


def _directory(path: Path) -> None:
    path.mkdir()
    (path / "something").write_bytes(b"of somebody")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            bound.bind(f"/proc/self/fd/{here}/s")  # the whole path would be too long
        finally:
            os.close(here)
    path.with_name("s").rename(path)


@pytest.mark.parametrize(
    "put",
    [_directory, os.mkfifo, _socket, lambda path: path.symlink_to("/dev/zero")],
    ids=["directory", "fifo", "socket", "symlink"],
)
async def test_something_else_in_place_of_files(bench: Bench, put: Callable[[Path], None]) -> None:
    data = [os.urandom(60_000) for _ in range(3)]
    blob, wire, both = [await bench.module(text) for text in data]
    bench.lent[both] = data[2]
    paths = [bench.store.path(blob), bench.wire(wire), bench.store.path(both), bench.wire(both)]
    for path in paths:
        path.unlink()
        put(path)
    with trio.fail_after(30):
        view = await bench.check()
    assert (view.state, view.blobs_checked) == ("done", 6)
    assert {f.digest: (f.found, f.outcome) for f in view.findings} == {
        blob: ("corrupt", "rebuilt from its wire form"),
        wire: ("wire-lost", "its wire form was made again"),
        both: ("corrupt", "fetched from peers"),
    }
    assert view.quarantine_files == 4
    for digest, text in zip((blob, wire, both), data, strict=True):
        assert await bench.store.read(digest) == text


async def test_one_that_cannot_be_read_does_not_end_a_check(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = await bench.module(os.urandom(50_000)), await bench.module(os.urandom(50_000))
    verify = bench.store.verify
    error: StoreError = StoreError("verifying a blob failed: Permission denied")

    async def failing(digest: Digest) -> bool:
        if digest == bad:
            raise error
        return await verify(digest)

    monkeypatch.setattr(bench.store, "verify", failing)
    view = await bench.check()
    assert (view.state, view.stopped_by, view.blobs_checked) == ("done", None, 4)
    assert [(f.digest, f.found, f.repaired, f.outcome) for f in view.findings] == [
        (bad, "unreadable", False, str(error))
    ]
    assert bench.store.info(bad) is not None
    assert bench.store.info(good) is not None
    error = DiskFull("no space left")
    view = await bench.check()
    assert (view.state, view.stopped_by) == ("stopped", "no space left")


async def test_by_itself_when_it_is_due_and_slowly(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    for _ in range(4):
        await bench.module(os.urandom(100_000))
    size = sum(b.size_bytes + (b.wire_bytes or 0) for b in bench.store.blobs())
    bench.scrubber = bench.make(bytes_per_s=1000)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.scrubber.run)
        await trio.sleep(LOOK_S - 1)
        assert bench.scrubber.view().state == "never"
        began = trio.current_time()
        await trio.sleep(1)
        while bench.scrubber.view().state != "done":
            await trio.sleep(1)
        assert trio.current_time() - began >= 0.99 * size / 1000
        assert bench.scrubber.view().trigger == "schedule"
        await trio.sleep(3 * LOOK_S)
        first = bench.scrubber.view()
        bench.skew_s = 6.9 * DAY_S
        await trio.sleep(2 * LOOK_S)
        assert bench.scrubber.view() == first
        bench.skew_s = 7.1 * DAY_S
        await trio.sleep(LOOK_S)
        second = bench.scrubber.view()
        assert (second.state, second.trigger) == ("running", "schedule")
        bench.scrubber.start()  # an operator does not wait for a slow one
        assert bench.scrubber.view().trigger == "operator"
        while bench.scrubber.view().state == "running":
            await trio.sleep(1)
        third = bench.scrubber.view()
        assert (third.state, third.trigger) == ("done", "operator")
        nursery.cancel_scope.cancel()
    with pytest.raises(Draining):
        bench.scrubber.start()


async def test_never_by_itself(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    bench.scrubber = bench.make(interval_days=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.scrubber.run)
        await trio.sleep(30 * DAY_S)
        nursery.cancel_scope.cancel()
    assert bench.scrubber.view().state == "never"
