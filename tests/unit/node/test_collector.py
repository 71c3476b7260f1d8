"""What is collected, when, and what is never collected, over a real store."""

from __future__ import annotations

import io
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from edged.collector import NOT_CURRENT, NOT_NAMED, RECENT_S, Collector
from edged.errors import Conflict, StoreError
from edged.eventlog import EventLog
from edged.interfaces import ArtifactRow
from edged.store import BlobStore, open_store
from edged.telemetry import Metrics, make_log
from protocol.ids import ArtifactKey, Digest
from protocol.manifest import manifest_digest

OWN, OTHER = ArtifactKey("aa" * 32), ArtifactKey("bb" * 32)


class Needs:
    """Everything that others know, as the test says."""

    def __init__(self) -> None:
        self.wanted: dict[Digest, Digest] = {}
        """Manifest by module."""
        self.named: set[Digest] = set()
        """By what is not current."""
        self.pins: set[Digest] = set()
        self.busy: set[Digest] = set()
        self.released: list[Digest] = []
        self.lonely = False

    def is_wanted(self, module: Digest) -> bool:
        return module in self.wanted

    def is_named(self, module: Digest) -> bool:
        return module in self.wanted or module in self.named

    def manifests(self) -> frozenset[Digest]:
        return frozenset(self.wanted.values())

    def pinned(self) -> frozenset[Digest]:
        return frozenset(self.pins)

    def runs_here(self, key: ArtifactKey) -> bool:
        return key == OWN

    def in_use(self, digest: Digest) -> bool:
        return digest in self.busy

    def release(self, module: Digest) -> None:
        self.released.append(module)

    def alone(self) -> bool:
        return self.lonely


class Bench:
    """A collector over a store, an hour after everything in it was stored."""

    def __init__(self, store: BlobStore, *, interval_s: float = 600.0) -> None:
        self.store = store
        self.needs = Needs()
        self.gone: list[Digest] = []
        self.events = EventLog(node="n1", generation=1)
        self.metrics = Metrics()
        self.log = io.StringIO()
        self.collector = Collector(
            store,
            self.needs,
            node="n1",
            grace_s=3600.0,
            interval_s=interval_s,
            on_gone=self.gone.append,
            note=self.events.add,
            metrics=self.metrics,
            log=make_log("n1", stream=self.log),
            wall_s=lambda: time.time() + 3600.0,
        )

    async def module(self, data: bytes, *, wanted: bool = False) -> Digest:
        info = await self.store.put(data, kind="module")
        manifest = await self.store.make_manifest(info.digest)
        if wanted:
            self.needs.wanted[info.digest] = manifest_digest(manifest)
        return info.digest

    async def artifact(self, module: Digest, key: ArtifactKey = OWN) -> Digest:
        info = await self.store.put(b"\x7fELF" + module.encode() + key.encode(), kind="artifact")
        row = ArtifactRow(module, key, info.digest, info.size_bytes, 0.1, b"word")
        await self.store.put_artifact(row)
        return info.digest

    async def collect(self, *, grace_s: float | None = 0, dry_run: bool = False) -> set[Digest]:
        view = await self.collector.collect(dry_run=dry_run, grace_s=grace_s)
        return {row.digest for row in view.collected}

    def held(self) -> set[Digest]:
        return {blob.digest for blob in self.store.blobs() if blob.kind != "manifest"}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    log = make_log("n1", stream=io.StringIO())
    store = await open_store(tmp_path / "data", zstd_level=1, min_free_bytes=0, log=log)
    yield Bench(store)
    await store.close()


async def test_why_it_goes_is_told(bench: Bench) -> None:
    gone, old = await bench.module(b"gone" * 100), await bench.module(b"old snapshot" * 100)
    bench.needs.named.add(old)
    view = await bench.collector.collect(dry_run=True, grace_s=0)
    assert {row.digest: row.why for row in view.collected} == {gone: NOT_NAMED, old: NOT_CURRENT}


async def test_only_what_nothing_needs_goes_with_all_that_hangs_on_it(bench: Bench) -> None:
    kept = await bench.module(b"kept" * 100, wanted=True)
    code = await bench.artifact(kept)
    foreign = await bench.artifact(kept, OTHER)
    old = await bench.module(b"old" * 100)
    old_code = await bench.artifact(old)
    orphan = (await bench.store.put(b"\x7fELF orphan", kind="artifact")).digest
    stray = (await bench.store.put(b"a stray manifest", kind="manifest")).digest
    everything = bench.held()
    would = await bench.collect(dry_run=True)
    assert bench.held() == everything
    gone = await bench.collect()
    assert gone == would == {foreign, old, old_code, orphan, stray}
    assert bench.held() == {kept, code}
    manifests = [blob.digest for blob in bench.store.blobs() if blob.kind == "manifest"]
    assert manifests == [bench.needs.wanted[kept]]
    assert [(row.module, row.key) for row in bench.store.artifacts()] == [(kept, OWN)]
    assert set(bench.gone) == {old, kept, orphan, stray}
    assert old in bench.needs.released
    assert kept in bench.needs.released  # its other engine's code went


async def test_code_that_modules_share_goes_with_the_last_of_them(bench: Bench) -> None:
    modules = [await bench.module(os.urandom(50), wanted=True) for _ in range(2)]
    code = await bench.store.put(b"\x7fELF the same", kind="artifact")
    for module in modules:
        row = ArtifactRow(module, OWN, code.digest, code.size_bytes, 0.1, b"word")
        await bench.store.put_artifact(row)
    del bench.needs.wanted[modules[0]]
    assert await bench.collect(dry_run=True) == await bench.collect() == {modules[0]}
    assert bench.store.info(code.digest) is not None
    del bench.needs.wanted[modules[1]]
    bench.needs.pins = {modules[0]}
    assert code.digest not in await bench.collect(dry_run=True)
    bench.needs.pins = set()
    assert await bench.collect(dry_run=True) == await bench.collect() == {modules[1], code.digest}
    assert bench.held() == set()
    assert bench.store.artifacts() == []
    assert set(modules) <= set(bench.gone)


async def test_what_is_left_of_a_fetch_that_nobody_goes_on_with(bench: Bench) -> None:
    data = os.urandom(300_000)
    blob = await bench.module(data)
    manifest = await bench.store.manifest(blob)
    wire = await bench.store.wire_segment(blob, 0)
    await bench.store.delete(blob)
    partial = await bench.store.begin_partial(manifest)
    await partial.write([(0, wire)])
    bench.needs.busy = {blob}
    assert await bench.collect() == set()
    bench.needs.busy = set()
    assert await bench.collect(grace_s=7200.0) == set()
    view = await bench.collector.collect(dry_run=True, grace_s=0)
    assert [(row.digest, row.kind) for row in view.collected] == [(blob, "partial")]
    assert view.bytes_freed >= len(wire)
    assert await bench.collect() == {blob}
    assert await bench.store.partials() == []
    with pytest.raises(Conflict):
        await partial.write([(0, wire)])
    assert (await bench.store.begin_partial(manifest)).present == frozenset()


async def test_the_grace_counts_from_when_it_was_first_seen_unneeded(
    bench: Bench, autojump_clock: trio.abc.Clock
) -> None:
    old = await bench.module(b"old" * 100)
    await trio.sleep(7200)
    first = await bench.collector.collect(dry_run=True)
    assert (first.collected, first.kept) == ((), {"in grace": 1})
    assert first.due_in_s == pytest.approx(3600)
    await trio.sleep(1800)
    bench.needs.wanted[old] = old
    await bench.collect(grace_s=None)
    del bench.needs.wanted[old]  # needed in between: it begins anew
    await bench.collect(grace_s=None)
    await trio.sleep(3599)
    assert await bench.collect(grace_s=None) == set()
    await trio.sleep(2)
    assert await bench.collect(grace_s=None) == {old}


async def test_what_was_stored_or_asked_for_just_now_stays(
    bench: Bench, autojump_clock: trio.abc.Clock
) -> None:
    old = await bench.module(b"old" * 100)
    bench.collector.touch(old)
    view = await bench.collector.collect(dry_run=False, grace_s=0)
    assert (view.collected, view.kept) == ((), {"recent": 1})
    await trio.sleep(RECENT_S + 1)
    path = bench.store.path(old)
    assert await bench.collect(dry_run=True) == {old}
    bench.collector._wall_s = time.time
    assert await bench.collect() == set()
    assert path.exists()


@pytest.mark.parametrize("reason", ["pinned", "busy"])
@pytest.mark.parametrize("what", ["module", "artifact"])
async def test_what_is_pinned_or_in_use_stays(bench: Bench, reason: str, what: str) -> None:
    module = await bench.module(b"old" * 100)
    code = await bench.artifact(module)
    chosen = bench.needs.pins if reason == "pinned" else bench.needs.busy
    chosen.add(module if what == "module" else code)
    gone = await bench.collect()
    # A module's code goes neither while the module is kept; code alone keeps no module.
    assert gone == (set() if what == "module" else {module})


async def test_a_deploy_holds_its_module(bench: Bench) -> None:
    module = await bench.module(b"new" * 100)
    async with bench.collector.keeping(module):
        view = await bench.collector.collect(dry_run=False, grace_s=0)
        assert (view.collected, view.kept) == ((), {"in use": 1})
    assert await bench.collect() == set()  # touched at the end


async def test_a_deploy_waits_for_a_removal_that_has_begun(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = await bench.module(b"old" * 100)
    began, go = trio.Event(), trio.Event()
    delete = bench.store.delete

    async def slow(digest: Digest) -> None:
        began.set()
        await go.wait()
        await delete(digest)

    monkeypatch.setattr(bench.store, "delete", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.collect)
        await began.wait()

        async def deploy() -> None:
            async with bench.collector.keeping(module):
                assert bench.store.info(module) is None  # and not: gone a moment later

        nursery.start_soon(deploy)
        with pytest.raises(Conflict):
            await bench.collect()
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert bench.gone == [module]


async def test_a_record_that_comes_between_the_look_and_the_removal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await bench.module(b"1" * 100), await bench.module(b"2" * 100)
    delete = bench.store.delete

    async def telling(digest: Digest) -> None:
        bench.needs.wanted = {first: first, second: second}
        await delete(digest)

    monkeypatch.setattr(bench.store, "delete", telling)
    gone = await bench.collect()
    assert len(gone) == 1
    assert bench.held() == {first, second} - gone


async def test_a_disk_that_fails_ends_it_and_what_went_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = [await bench.module(b"%d" % number * 100) for number in range(3)]
    delete = bench.store.delete

    async def failing(digest: Digest) -> None:
        if len(bench.held()) == 2:
            raise StoreError("no")
        await delete(digest)

    monkeypatch.setattr(bench.store, "delete", failing)
    with pytest.raises(StoreError):
        await bench.collect()
    assert len(bench.held() & set(modules)) == 2
    rows = (await bench.events.read(after=0, limit=9, wait_s=0)).events
    assert [row.kind for row in rows] == ["blobs-collected"]
    assert rows[0].detail.startswith("1 blobs")


async def test_it_runs_by_itself_but_not_while_alone(
    bench: Bench, autojump_clock: trio.abc.Clock
) -> None:
    module = await bench.module(b"old" * 100)
    bench.needs.lonely = True
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.collector.run)
        await trio.sleep(3 * 3600)
        assert bench.held() == {module}
        bench.needs.lonely = False
        while bench.held():  # this clock does not wait for the disk
            await trio.sleep(600)
        nursery.cancel_scope.cancel()
    assert b'edged_gc_collected_total{kind="module"} 1' in bench.metrics.render()


async def test_code_that_is_mapped_lives_on(bench: Bench) -> None:
    code = await bench.artifact(await bench.module(b"old" * 100))
    fd = os.open(bench.store.path(code), os.O_RDONLY)
    try:
        assert code in await bench.collect()
        assert os.read(fd, 4) == b"\x7fELF"
    finally:
        os.close(fd)
