"""Fetching over real TLS into a real store, from holders of all kinds. SPEC §10."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from network_support import MakeTrust, MemorySource, Served, make_blob, start_serving

from edged.errors import DiskFull, Draining, NoHolder, Overloaded, PeerError
from edged.interfaces import BlobInfo, Peer
from edged.network import ExchangeService, uploads
from edged.network.exchange import WAITING_MAX
from edged.network.streams import Connection
from edged.store import BlobStore, open_store
from edged.telemetry import Log, Metrics
from edged.trust import Trust
from protocol.exchange_events import FetchConfig
from protocol.ids import Digest, NodeId, digest_of
from protocol.manifest import Manifest, manifest_digest

DATA = b"\0asm\x01\0\0\0" + random.Random(7).randbytes(1_500_000)
MANIFEST, FRAMES = make_blob(DATA)
BLOB = MANIFEST.blob
NAMED = manifest_digest(MANIFEST)
QUICK = FetchConfig(window_bytes=300_000, retry_delay_s=0.01)
IMPATIENT = FetchConfig(connect_timeout_s=1.0, progress_timeout_s=0.5, retry_delay_s=0.01)


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture(autouse=True)
def _holders_read_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing ahead, so that a source's reads tell what the fetcher wanted."""
    monkeypatch.setattr(uploads, "AHEAD_BYTES_MAX", 0)


class Site:
    """A node that fetches; `peers` is what it believes of others."""

    def __init__(self, trust: Trust, store: BlobStore, log: Log, config: FetchConfig) -> None:
        self.store = store
        self.metrics = Metrics()
        self.peers: list[Peer] = []
        self.members: dict[NodeId, Peer] = {}
        self.exchange = ExchangeService(
            trust=trust,
            store=store,
            holders=lambda digest: list(self.peers),
            find_peer=lambda node: self.members.get(node),
            metrics=self.metrics,
            log=log,
            config=config,
        )

    def know(self, trust: Trust, address: tuple[str, int]) -> None:
        self.peers.append(
            Peer(trust.node_id, trust.name, "local", address, address, "", rtt_s=None)
        )

    def banned(self) -> float:
        return self.metrics.errors.labels("peer-bytes").value

    def fetched(self) -> float:
        return self.metrics.fetched_bytes.value


class Bench:
    """Builds sites and holders for one test."""

    def __init__(self, nursery: trio.Nursery, make: MakeTrust, log: Log, root: Path) -> None:
        self.make_trust = make
        self.log = log
        self.stores: list[BlobStore] = []
        self.nursery = nursery
        self._root = root

    async def site(
        self, name: str = "site", config: FetchConfig = QUICK, min_free_bytes: int = 0
    ) -> Site:
        store = await open_store(
            self._root / f"{name}-data",
            zstd_level=1,
            min_free_bytes=min_free_bytes,
            log=self.log,
        )
        self.stores.append(store)
        site = Site(self.make_trust(name), store, self.log, config)
        await self.nursery.start(site.exchange.run)
        return site

    async def holder(self, name: str, source: MemorySource, *sites: Site) -> Served:
        trust = self.make_trust(name)
        served = await start_serving(self.nursery, trust, source, self.log)
        for site in sites:
            site.know(trust, served.address)
        return served

    async def dead(self, name: str, site: Site) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = listeners[0].socket.getsockname()
        await listeners[0].aclose()
        site.know(self.make_trust(name), address)


@pytest.fixture(autouse=True)
def _no_reading_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The holders here change their ways after so many segments were asked for."""
    monkeypatch.setattr(uploads, "AHEAD_BYTES_MAX", 0)


@pytest.fixture
async def bench(make_trust: MakeTrust, log: Log, tmp_path: Path) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, make_trust, log, tmp_path)
        yield bench
        nursery.cancel_scope.cancel()
    for store in bench.stores:
        await store.close()


async def fetch(site: Site, progress: Callable[[int, int], None] = ignore) -> BlobInfo:
    with trio.fail_after(20):
        return await site.exchange.fetch(BLOB, NAMED, progress=progress)


async def test_a_whole_blob_arrives_verified_and_can_be_served_on(bench: Bench) -> None:
    site = await bench.site()
    await bench.holder("h", MemorySource(DATA), site)
    steps: list[tuple[int, int]] = []
    info = await fetch(site, lambda done, total: steps.append((done, total)))
    assert info == site.store.info(BLOB)
    assert info.kind == "module"
    assert await site.store.read(BLOB) == DATA
    assert await site.store.manifest(BLOB) == MANIFEST
    assert await site.store.wire_segment(BLOB, 3) == FRAMES[3]
    assert steps == sorted(steps)
    assert steps[-1] == (MANIFEST.wire_bytes, MANIFEST.wire_bytes)
    assert site.fetched() == MANIFEST.wire_bytes
    assert await fetch(site) == info, "held: nobody is asked"
    assert site.fetched() == MANIFEST.wire_bytes


async def test_a_fetch_resumes_from_what_is_on_disk(bench: Bench) -> None:
    site = await bench.site()
    partial = await site.store.begin_partial(MANIFEST)
    for index in (0, 1, 2, 7):
        await partial.write([(index, FRAMES[index])])
    source = MemorySource(DATA)
    await bench.holder("h", source, site)
    await fetch(site)
    assert sorted(source.served) == sorted(set(range(MANIFEST.segments)) - {0, 1, 2, 7})
    assert await site.store.read(BLOB) == DATA


class Corrupt(MemorySource):
    """Serves three segments, then only such with one bit changed."""

    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        wire = await super().wire_segment(digest, index)
        return wire[:-1] + bytes([wire[-1] ^ 1]) if len(self.served) > 3 else wire


class Stalled(MemorySource):
    """Serves three segments, then nothing more."""

    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        if len(self.served) >= 3:
            await trio.sleep_forever()
        return await super().wire_segment(digest, index)


class WrongManifest(MemorySource):
    async def manifest(self, digest: Digest) -> Manifest:
        return make_blob(DATA[:-1])[0]

    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        return b"another blob's"


class Slow(MemorySource):
    """Waits for `go` before each segment."""

    def __init__(self, *blobs: bytes) -> None:
        super().__init__(*blobs)
        self.asked = trio.Event()
        self.go = trio.Event()

    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        self.asked.set()
        await self.go.wait()
        return await super().wire_segment(digest, index)


async def test_a_corrupt_holder_is_banned_and_a_good_one_serves_the_rest(bench: Bench) -> None:
    site = await bench.site()
    corrupt, good = Corrupt(DATA), MemorySource(DATA)
    await bench.holder("bad", corrupt, site)
    await bench.holder("good", good, site)
    await fetch(site)
    assert await site.store.read(BLOB) == DATA
    assert site.banned() == 1
    assert {*corrupt.served[:3], *good.served} == set(range(MANIFEST.segments))
    assert len(good.served) < MANIFEST.segments, "what verified is kept"


async def test_corrupt_holders_only(bench: Bench) -> None:
    site = await bench.site()
    for name, source in (("y", WrongManifest(DATA)), ("x", Corrupt(DATA))):
        await bench.holder(name, source, site)
    with pytest.raises(NoHolder, match=BLOB) as caught:
        await fetch(site)
    assert caught.value.extra == {"digest": BLOB}
    assert re.search("x: segment: [0-9]+: bytes do not hash", caught.value.private)
    assert re.search("y: (manifest: does not hash|segment: .* bytes, not)", caught.value.private)
    assert site.banned() == 2
    assert site.store.info(BLOB) is None
    assert len((await site.store.begin_partial(MANIFEST)).present) == 3


async def test_a_stalled_holder_is_left_for_a_good_one(bench: Bench) -> None:
    site = await bench.site(config=IMPATIENT)
    good, stalled = MemorySource(DATA), Stalled(DATA)
    await bench.holder("stalled", stalled, site)
    await bench.holder("good", good, site)
    await fetch(site)
    assert await site.store.read(BLOB) == DATA
    assert len(stalled.served) <= 3
    assert len(good.served) >= MANIFEST.segments - 3
    assert site.banned() == 0


async def test_a_holder_that_accepts_and_says_nothing_is_left(bench: Bench) -> None:
    site = await bench.site(config=IMPATIENT)
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    site.know(bench.make_trust("silent"), silent[0].socket.getsockname())
    await bench.holder("good", MemorySource(DATA), site)
    await fetch(site)
    await silent[0].aclose()


async def test_all_holders_dead_is_no_holder_with_the_reasons(bench: Bench) -> None:
    site = await bench.site()
    await bench.dead("x", site)
    await bench.holder("empty", MemorySource(), site)
    with pytest.raises(NoHolder) as caught:
        await fetch(site)
    assert "x: 127.0.0.1:" in caught.value.private
    assert "empty: blob-not-found" in caught.value.private
    assert "127.0.0.1" not in str(caught.value)


async def test_no_holder_known(bench: Bench) -> None:
    with pytest.raises(NoHolder) as caught:
        await fetch(await bench.site())
    assert caught.value.private == "no holder is known"


async def test_an_impostor_at_a_holder_s_address_is_not_used(bench: Bench) -> None:
    site = await bench.site()
    served = await bench.holder("impostor", MemorySource(DATA))
    site.know(bench.make_trust("holder"), served.address)
    with pytest.raises(NoHolder) as caught:
        await fetch(site)
    assert "was expected" in caught.value.private


async def test_a_holder_that_appears_during_the_fetch_is_used(bench: Bench) -> None:
    site = await bench.site(config=IMPATIENT)
    slow = Slow(DATA)
    await bench.holder("slow", slow, site)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, site)
        await slow.asked.wait()
        await bench.holder("late", MemorySource(DATA), site)
    assert await site.store.read(BLOB) == DATA


async def test_a_holder_that_restarts_is_tried_again(bench: Bench) -> None:
    """It cut the connection after some segments: what came counts, and it is dialled again."""

    class Restarting(MemorySource):
        async def wire_segment(self, digest: Digest, index: int) -> bytes:
            if len(self.served) in (4, 9):
                self.served.append(-1)
                raise PeerError("restarting")  # ends this connection's use for the fetch
            return await super().wire_segment(digest, index)

    site = await bench.site()
    source = Restarting(DATA)
    await bench.holder("h", source, site)
    await fetch(site)
    assert await site.store.read(BLOB) == DATA
    assert source.served.count(-1) == 2


async def test_all_holders_but_one_give_the_blob_up_during_the_fetch(bench: Bench) -> None:
    """Evicted, as surplus may be, or died: the last one has it all."""

    class Evicting(MemorySource):
        async def wire_segment(self, digest: Digest, index: int) -> bytes:
            if len(self.served) == 2:
                del self.blobs[digest]
                self.served.append(-1)
            return await super().wire_segment(digest, index)

    site = await bench.site()
    going = [Evicting(DATA) for _ in range(3)]
    for index, source in enumerate(going):
        await bench.holder(f"g{index}", source, site)
    last = MemorySource(DATA)
    await bench.holder("last", last, site)
    await fetch(site)
    assert await site.store.read(BLOB) == DATA
    assert any(source.served[-1:] == [-1] for source in going)
    assert last.served


async def test_a_holder_that_gossip_does_not_know_yet_is_told_of(bench: Bench) -> None:
    site = await bench.site()
    trust = bench.make_trust("h")
    served = await start_serving(bench.nursery, trust, MemorySource(DATA), bench.log)
    address = served.address
    site.members[trust.node_id] = Peer(
        trust.node_id, "h", "local", address, address, "", rtt_s=None
    )
    with pytest.raises(NoHolder):
        await fetch(site)
    with trio.fail_after(20):
        await site.exchange.fetch(BLOB, NAMED, progress=ignore, holder=trust.node_id)
    assert await site.store.read(BLOB) == DATA


async def test_what_a_connection_does_not_take_at_once_follows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a slow link: requests go out while the same connection is read."""
    site = await bench.site()
    source = MemorySource(DATA)
    await bench.holder("h", source, site)
    post = Connection.post

    def takes_its_time(self: Connection, data: bytes) -> bool:
        post(self, data)
        return False

    monkeypatch.setattr(Connection, "post", takes_its_time)
    assert (await fetch(site)).size_bytes == len(DATA)
    assert await site.store.read(BLOB) == DATA


async def test_many_who_want_one_blob_cause_one_transfer(bench: Bench) -> None:
    site = await bench.site()
    source = Slow(DATA)
    await bench.holder("h", source, site)
    done: list[BlobInfo] = []
    totals: list[set[int]] = [set() for _ in range(5)]

    async def want(number: int) -> None:
        done.append(await fetch(site, lambda _, total: totals[number].add(total)))

    async with trio.open_nursery() as nursery:
        quitter = await nursery.start(cancellable, site)
        for number in range(5):
            nursery.start_soon(want, number)
        await source.asked.wait()
        quitter.cancel()  # the one who came first
        await trio.testing.wait_all_tasks_blocked(0.01)
        source.go.set()
    assert len(done) == 5
    assert sorted(source.served) == list(range(MANIFEST.segments))
    assert totals == [{MANIFEST.wire_bytes}] * 5


async def cancellable(site: Site, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await fetch(site)
        pytest.fail("was to be cancelled")


async def test_when_nobody_waits_any_more_the_transfer_stops_and_keeps_what_it_has(
    bench: Bench,
) -> None:
    site = await bench.site(config=FetchConfig())
    source = Slow(DATA)
    await bench.holder("h", source, site)
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(cancellable, site)
        await source.asked.wait()
        scope.cancel()
    assert site.exchange._flights == {}
    source.go.set()
    await fetch(site)
    assert await site.store.read(BLOB) == DATA


async def test_each_waiter_gets_its_own_error(bench: Bench) -> None:
    site = await bench.site()
    await bench.dead("x", site)
    errors: list[NoHolder] = []

    async def want() -> None:
        try:
            await fetch(site)
        except NoHolder as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(want)
    assert len({id(error) for error in errors}) == 3
    assert {error.extra["digest"] for error in errors} == {BLOB}


async def test_a_record_that_names_a_wrong_manifest(bench: Bench) -> None:
    site = await bench.site()
    other, _ = make_blob(DATA[:-1])
    source = WrongManifest(DATA)
    await bench.holder("h", source, site)
    with trio.fail_after(10), pytest.raises(PeerError, match="record of blob") as caught:
        await site.exchange.fetch(BLOB, manifest_digest(other), progress=ignore)
    assert "another blob's manifest" in caught.value.private
    assert site.banned() == 0


async def test_a_manifest_that_lies_about_the_blob_is_found_at_the_end(bench: Bench) -> None:
    """Every segment verifies, yet together they are another blob."""
    site = await bench.site()
    named = Digest(digest_of(b"something else"))
    lying = Manifest(
        "zstd",
        named,
        MANIFEST.raw_bytes,
        MANIFEST.segment_bytes,
        MANIFEST.wire_lengths,
        MANIFEST.wire_digests,
    )
    source = MemorySource()
    source.blobs[named] = (lying, FRAMES)
    await bench.holder("h", source, site)
    with trio.fail_after(10), pytest.raises(PeerError, match="does not describe it"):
        await site.exchange.fetch(named, manifest_digest(lying), progress=ignore)
    assert site.store.info(named) is None


async def test_a_full_disk_reaches_the_waiter(bench: Bench) -> None:
    site = await bench.site(min_free_bytes=1 << 60)
    await bench.holder("h", MemorySource(DATA), site)
    with pytest.raises(DiskFull):
        await fetch(site)


async def test_a_stopping_service_tells_who_waits(bench: Bench) -> None:
    site = await bench.site("one")
    source = Slow(DATA)
    await bench.holder("h", source, site)
    store = site.store
    trust = bench.make_trust("two")
    exchange = ExchangeService(
        trust=trust,
        store=store,
        holders=lambda digest: site.peers,
        find_peer=lambda node: None,
        metrics=Metrics(),
        log=bench.log,
    )
    with pytest.raises(Draining):
        await exchange.fetch(BLOB, NAMED, progress=ignore)
    told = trio.Event()

    async def want() -> None:
        with pytest.raises(Draining):
            await exchange.fetch(BLOB, NAMED, progress=ignore)
        told.set()

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as service:
            await service.start(exchange.run)
            nursery.start_soon(want)
            await source.asked.wait()
            service.cancel_scope.cancel()
        with trio.fail_after(5):
            await told.wait()


async def test_transfers_are_bounded(bench: Bench) -> None:
    site = await bench.site()
    source = Slow(DATA)
    await bench.holder("h", source, site)
    async with trio.open_nursery() as nursery:
        for number in range(WAITING_MAX + 100):
            digest = digest_of(number.to_bytes(4))
            try:
                site.exchange._start(
                    digest, NAMED, urgent=True, holders=lambda _digest: [], bases=()
                )
            except Overloaded:
                break
        else:
            pytest.fail("no bound")
        nursery.cancel_scope.cancel()


async def test_eight_megabytes(bench: Bench) -> None:
    data = b"\0asm\x01\0\0\0" + random.Random(8).randbytes(8_000_000)
    manifest, _ = make_blob(data)
    site = await bench.site(config=FetchConfig())
    await bench.holder("h", MemorySource(data), site)
    with trio.fail_after(30):
        info = await site.exchange.fetch(manifest.blob, manifest_digest(manifest), progress=ignore)
    assert info.size_bytes == len(data)
    assert await site.store.verify(manifest.blob)


class OneThenWait(Slow):
    """Gives one segment, and waits for `go` before the others."""

    given = 0

    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        self.given += 1
        if self.given == 1:
            return await MemorySource.wire_segment(self, digest, index)
        return await super().wire_segment(digest, index)


async def test_both_ends_tell_how_a_transfer_goes(bench: Bench) -> None:
    site = await bench.site(config=FetchConfig())
    source = OneThenWait(DATA)
    holder = await bench.holder("h", source, site)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, site)
        await source.asked.wait()
        while not (site.exchange.moving()[0].done_bytes and holder.server.moving()):
            await trio.sleep(0.001)
        fetching = site.exchange.moving()[0]
        assert (fetching.digest, fetching.state, fetching.urgent) == (BLOB, "running", True)
        assert 0 < fetching.done_bytes < fetching.total_bytes == MANIFEST.wire_bytes
        assert fetching.peers == (bench.make_trust("h").node_id,)
        sending = holder.server.moving()[0]
        assert (sending.direction, sending.total_bytes) == ("upload", MANIFEST.wire_bytes)
        assert sending.done_bytes >= fetching.done_bytes
        assert sending.peers == (bench.make_trust("site").node_id,)
        assert site.exchange.is_fetching(BLOB)
        assert holder.server.is_serving(BLOB)
        source.go.set()
    assert site.exchange.moving() == []
    while holder.server.moving():
        await trio.sleep(0.001)
    assert not holder.server.is_serving(BLOB)


class Mute(MemorySource):
    async def manifest(self, digest: Digest) -> Manifest:
        return await trio.sleep_forever()


async def test_what_waits_for_its_turn_is_queued(bench: Bench) -> None:
    site = await bench.site(config=FetchConfig())
    await bench.holder("h", Mute(), site)

    async def want(number: int) -> None:
        blob = digest_of(b"%d" % number)
        await site.exchange.fetch(blob, NAMED, progress=ignore, urgent=False)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(want, number)
        while len(moving := site.exchange.moving()) < 5 or not any(one.peers for one in moving):
            await trio.sleep(0.001)
        states = [one.state for one in moving]
        assert (states.count("running"), states.count("queued")) == (3, 2)
        assert {one.total_bytes for one in moving} == {None}
        nursery.cancel_scope.cancel()
    assert site.exchange.moving() == []
