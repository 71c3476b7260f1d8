"""A new version fetched as a delta against the one that is here, and whatever may go wrong. SPEC
§10.7."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
from network_support import MakeTrust, start_serving

from edged.deltas import WAITING_MAX, WORTH_BYTES_MIN, DeltaSource
from edged.errors import BlobNotFound, Overloaded
from edged.interfaces import BlobInfo, Peer
from edged.network import ExchangeService
from edged.network import deltas as network_deltas
from edged.serving import WireSource
from edged.store import BlobStore, open_store
from edged.telemetry import Log, Metrics
from protocol.ids import ArtifactKey, Digest, digest_of
from protocol.manifest import manifest_digest
from protocol.streams import DELTA_PART_BYTES

LETTERS = bytes(random.Random(0).choices(b"abcdefgh", k=200_000))
OLD = b"\0asm\x01\0\0\0" + LETTERS + random.Random(1).randbytes(3_000_000)
NEW = OLD[:1_000_000] + random.Random(2).randbytes(700_000) + OLD[1_000_500:]
"""Its delta has three parts."""
OLD_BLOB, NEW_BLOB = digest_of(OLD), digest_of(NEW)


async def nothing_attested(_module: Digest, _key: ArtifactKey) -> bytes:
    return b""


class Cluster:
    """One holder of OLD and NEW, one node that holds OLD."""

    def __init__(self, make_trust: MakeTrust, log: Log, root: Path) -> None:
        self.make_trust = make_trust
        self.log = log
        self.root = root
        self.stores: list[BlobStore] = []
        self.peers: list[Peer] = []

    async def store(self, name: str, *blobs: bytes, zstd_level: int = 1) -> BlobStore:
        store = await open_store(
            self.root / name, zstd_level=zstd_level, min_free_bytes=0, log=self.log
        )
        self.stores.append(store)
        for blob in blobs:
            info = await store.put(blob, kind="module")
            await store.make_manifest(info.digest)
        return store

    async def holder(
        self, nursery: trio.Nursery, store: BlobStore, deltas: DeltaSource | None, name: str = "h"
    ) -> Metrics:
        trust = self.make_trust(name)
        source = WireSource(store, self.log, attested=nothing_attested)
        served = await start_serving(nursery, trust, source, self.log, deltas=deltas)
        address = served.address
        self.peers.append(Peer(trust.node_id, name, "local", address, address, "", rtt_s=None))
        return served.metrics

    async def fetcher(
        self, nursery: trio.Nursery, store: BlobStore, metrics: Metrics
    ) -> ExchangeService:
        exchange = ExchangeService(
            trust=self.make_trust("fetcher"),
            store=store,
            holders=lambda _digest: self.peers,
            find_peer=lambda _node: None,
            bases=lambda _digest: [digest_of(b"unknown"), OLD_BLOB],
            metrics=metrics,
            log=self.log,
        )
        await nursery.start(exchange.run)
        return exchange


@pytest.fixture
async def cluster(make_trust: MakeTrust, log: Log, tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(make_trust, log, tmp_path)
    yield cluster
    for store in cluster.stores:
        await store.close()


async def fetched_bytes(cluster: Cluster, deltas: DeltaSource | None, level: int = 1) -> float:
    """Wire bytes it took to get NEW, after checking that it came."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            held = cluster.stores[0] if cluster.stores else await cluster.store("holder", OLD, NEW)
            await cluster.holder(nursery, held, deltas or DeltaSource(held))
            store = await cluster.store("fetcher", OLD, zstd_level=level)
            metrics = Metrics()
            exchange = await cluster.fetcher(nursery, store, metrics)
            manifest = await held.manifest(NEW_BLOB)
            named = manifest_digest(manifest)
            info = await exchange.fetch(NEW_BLOB, named, progress=lambda done, of: None)
            assert info.digest == NEW_BLOB
            assert await store.read(NEW_BLOB) == NEW
            while (found := store.info(NEW_BLOB)) is None or found.manifest is None:
                await trio.sleep(0.01)
            assert found.manifest == named, "peers are served what the record names"
            assert await store.manifest(NEW_BLOB) == manifest
            nursery.cancel_scope.cancel()
    return metrics.fetched_bytes.value


async def test_a_new_version_comes_as_a_delta(cluster: Cluster) -> None:
    size = await fetched_bytes(cluster, None)
    assert 2 * DELTA_PART_BYTES < size < 720_000, "all but what is new is here"


async def test_another_zstd_made_the_wire_form(cluster: Cluster) -> None:
    size = await fetched_bytes(cluster, None, level=19)
    assert size > len(NEW) - len(LETTERS), "the delta, and then the wire form after all"


class Lying(DeltaSource):
    """Breaks one thing."""

    def __init__(self, store: BlobStore, lie: str) -> None:
        super().__init__(store)
        self.lie = lie
        self.asked = 0

    async def part(
        self, blob: Digest, bases: Sequence[Digest], offset: int
    ) -> tuple[Digest, int, bytes]:
        base, size, data = await super().part(blob, bases, offset)
        self.asked += 1
        match self.lie:
            case "bytes":
                data = bytes(len(data))
            case "size":
                size = size + 1 if offset else size
            case "too-large":
                size = len(NEW)
            case "short":
                data = data[:-1]
            case "empty":
                data = b""
            case "base":
                base = NEW_BLOB
            case "another":
                base, size, data = base, 4, b"1234"
            case "stall" if offset:
                await trio.sleep_forever()
            case "dead":
                await trio.sleep_forever()
        return base, size, data


LIES = ("bytes", "size", "too-large", "short", "empty", "base", "another", "stall", "dead")


@pytest.mark.parametrize("lie", LIES)
async def test_whatever_is_wrong_with_the_delta_the_blob_comes_whole(
    cluster: Cluster, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_deltas, "OFFER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(network_deltas, "PART_TIMEOUT_S", 0.5)
    store = await cluster.store("holder", OLD, NEW)
    source = Lying(store, lie)
    assert await fetched_bytes(cluster, source) >= len(NEW) - len(LETTERS)
    assert source.asked


async def test_a_holder_without_deltas_serves_the_whole(cluster: Cluster) -> None:
    store = await cluster.store("holder", NEW)
    assert await fetched_bytes(cluster, DeltaSource(store)) >= len(NEW) - len(LETTERS)


# ------------------------------------------------------------ the holder's side
async def test_a_delta_is_made_once_and_told_in_parts(cluster: Cluster) -> None:
    store = await cluster.store("holder", OLD, NEW)
    made = []
    make = store.make_delta

    async def counted(digest: Digest, base: Digest) -> bytes | None:
        made.append(digest)
        return await make(digest, base)

    store.make_delta = counted  # type: ignore[method-assign]
    source = DeltaSource(store)
    parts: dict[int, bytes] = {}

    async def ask(offset: int) -> None:
        base, size, parts[offset] = await source.part(NEW_BLOB, [digest_of(b""), OLD_BLOB], offset)
        assert base == OLD_BLOB
        assert size > 2 * DELTA_PART_BYTES

    async with trio.open_nursery() as nursery:
        for offset in (0, DELTA_PART_BYTES, 2 * DELTA_PART_BYTES):
            nursery.start_soon(ask, offset)
    assert made == [NEW_BLOB]
    manifest = await store.manifest(NEW_BLOB)
    await store.delete(NEW_BLOB)
    whole = b"".join(parts[offset] for offset in sorted(parts))
    info: BlobInfo = await store.apply_delta(manifest, OLD_BLOB, whole)
    assert info.digest == NEW_BLOB


async def test_what_is_not_worth_it_is_refused_and_remembered(cluster: Cluster) -> None:
    small = [b"\0asm" + random.Random(n).randbytes(WORTH_BYTES_MIN // 2) for n in (1, 2)]
    alien = b"\0asm" + random.Random(3).randbytes(400_000)
    store = await cluster.store("holder", OLD, alien, *small)
    source = DeltaSource(store)
    for blob, base in ((small[0], small[1]), (alien, OLD)):
        for _ in range(2):
            with pytest.raises(BlobNotFound):
                await source.part(digest_of(blob), [digest_of(base)], 0)
    for blob, bases in ((NEW, [OLD_BLOB]), (OLD, [OLD_BLOB]), (OLD, [digest_of(b"unknown")])):
        with pytest.raises(BlobNotFound):
            await source.part(digest_of(blob), bases, 0)


async def test_no_more_than_a_few_wait_for_one(cluster: Cluster) -> None:
    blobs = [OLD[:-n] for n in range(1, WAITING_MAX + 3)]
    store = await cluster.store("holder", OLD)
    for blob in blobs:
        await store.put(blob, kind="module")
    source = DeltaSource(store)
    refused = []

    async def ask(blob: bytes) -> None:
        try:
            await source.part(digest_of(blob), [OLD_BLOB], 0)
        except Overloaded:
            refused.append(blob)

    async with trio.open_nursery() as nursery:
        for blob in blobs:
            nursery.start_soon(ask, blob)
    assert len(refused) == 1


async def test_a_wire_form_is_made_again_only_if_it_is_the_one_the_record_names(
    cluster: Cluster,
) -> None:
    named = await (await cluster.store("origin", OLD, zstd_level=1)).manifest(OLD_BLOB)
    for level in (1, 19):
        store = await cluster.store(f"level-{level}", zstd_level=level)
        await store.put(OLD, kind="module")
        source = WireSource(
            store,
            cluster.log,
            attested=nothing_attested,
            manifests=lambda _module: [manifest_digest(named)],
        )
        if level == 1:
            assert await source.manifest(OLD_BLOB) == named
            continue
        with pytest.raises(BlobNotFound, match="cannot be made here"):
            await source.manifest(OLD_BLOB)
