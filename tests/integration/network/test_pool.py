"""Connections that are used again: for whom, how long, and which not. SPEC §10.1."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from network_support import MakeTrust, MemorySource, Served, start_serving

from edged.interfaces import Peer
from edged.network import ExchangeService
from edged.network import pool as pools
from edged.network.pool import IDLE_MAX, IDLE_PER_PEER_MAX, ConnectionPool
from edged.network.shaping import Shaper
from edged.network.streams import Connection
from edged.store import open_store
from edged.telemetry import Log, Metrics
from edged.trust import Trust
from protocol.ids import NodeId
from protocol.manifest import manifest_digest
from protocol.streams import Ping, Pong, Reply


class Site:
    """One peer's server, and this node's pool."""

    def __init__(self, nursery: trio.Nursery, make: MakeTrust, log: Log) -> None:
        self.nursery = nursery
        self.make = make
        self.log = log
        self.trust = make("asker")
        self.pool = ConnectionPool(self.trust)

    async def peer(self, name: str = "peer", *blobs: bytes) -> tuple[Peer, Served]:
        trust = self.make(name)
        served = await start_serving(self.nursery, trust, MemorySource(*blobs), self.log)
        at = served.address
        return Peer(trust.node_id, name, "local", at, at, "", rtt_s=None), served


@pytest.fixture
async def site(make_trust: MakeTrust, log: Log) -> AsyncIterator[Site]:
    async with trio.open_nursery() as nursery:
        site = Site(nursery, make_trust, log)
        await nursery.start(site.pool.run)
        yield site
        nursery.cancel_scope.cancel()


async def ping(connection: Connection[Reply], number: int = 1) -> None:
    await connection.send(Ping(number))
    frame = await connection.receive()
    assert frame is not None
    assert frame[0] == Pong(number)


async def test_a_connection_given_back_is_taken_again(site: Site) -> None:
    peer, _ = await site.peer()
    other, _ = await site.peer("other")
    first = await site.pool.take(peer)
    await ping(first)
    site.pool.give(first, owed=0)
    assert await site.pool.take(other) is not first
    again = await site.pool.take(peer)
    assert again is first
    assert await site.pool.take(peer) is not first, "one user at a time"
    await ping(again, 2)


async def test_what_is_still_owed_is_waited_for(site: Site) -> None:
    peer, _ = await site.peer()
    connection = await site.pool.take(peer)
    for number in range(3):
        await connection.send(Ping(number))
    site.pool.give(connection, owed=3)
    assert site.pool.idle == 0
    with trio.fail_after(5):
        while not site.pool.idle:
            await trio.sleep(0.001)
    assert await site.pool.take(peer) is connection
    await ping(connection, 9)


@pytest.mark.parametrize("owed", [1, 1000])
async def test_who_owes_what_never_comes_is_cut(
    site: Site, owed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "SETTLE_TIMEOUT_S", 0.05)
    peer, served = await site.peer()
    connection = await site.pool.take(peer)
    site.pool.give(connection, owed=owed)
    with trio.fail_after(5):
        while served.server._open:
            await trio.sleep(0.001)
    assert site.pool.idle == 0


async def test_one_that_says_something_unasked_or_has_closed_is_not_kept(site: Site) -> None:
    peer, served = await site.peer()
    talking = await site.pool.take(peer)
    await talking.send(Ping(1))
    await trio.testing.wait_all_tasks_blocked(0.05)
    site.pool.give(talking, owed=0)
    assert site.pool.idle == 0

    closed = await site.pool.take(peer)
    await ping(closed)
    site.pool.give(closed, owed=0)
    served.server.stop()
    assert await served.server.drained()
    with pytest.raises(pools.PeerError):
        await site.pool.take(peer)
    assert site.pool.idle == 0


async def test_there_are_bounds_and_the_oldest_go_first(site: Site) -> None:
    peer, _ = await site.peer()
    taken = [await site.pool.take(peer) for _ in range(IDLE_PER_PEER_MAX + 1)]
    for connection in taken:
        site.pool.give(connection, owed=0)
    assert site.pool.idle == IDLE_PER_PEER_MAX
    assert await site.pool.take(peer) is taken[-1], "the one used last is the likeliest to live"
    site.pool.drop(peer.node_id)
    assert site.pool.idle == 0
    kept = [await site.pool.take(peer) for _ in range(4)]
    for number, connection in enumerate(kept):
        connection.peer = NodeId(f"{number:032x}")  # type: ignore[misc]
        site.pool.give(connection, owed=0)
    site.pool._idle |= dict.fromkeys((Closed(n) for n in range(IDLE_MAX - 4)), 0.0)  # type: ignore[arg-type]
    one_more = await site.pool.take(peer)
    site.pool.give(one_more, owed=0)
    assert site.pool.idle == IDLE_MAX
    assert kept[0] not in site.pool._idle


class Closed:
    """Stands in for an idle connection."""

    def __init__(self, number: int) -> None:
        self.peer = NodeId(f"{number:032x}"[::-1])

    def abort(self) -> None:
        pass


async def test_none_stays_for_long(
    make_trust: MakeTrust, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "TICK_S", 0.01)
    monkeypatch.setattr(pools, "IDLE_S", 0.02)
    async with trio.open_nursery() as nursery:
        site = Site(nursery, make_trust, log)
        peer, served = await site.peer()
        await nursery.start(site.pool.run)
        site.pool.give(await site.pool.take(peer), owed=0)
        assert site.pool.idle == 1
        with trio.fail_after(5):
            while site.pool.idle or served.server._open:
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()


async def test_fetches_share_their_connections(
    make_trust: MakeTrust, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled = []
    dial = pools.dial

    async def counted(
        address: tuple[str, int],
        trust: Trust,
        *,
        expected: NodeId | None,
        shaper: Shaper | None = None,
    ) -> Connection[Reply]:
        dialled.append(address)
        return await dial(address, trust, expected=expected, shaper=shaper)

    monkeypatch.setattr(pools, "dial", counted)
    blobs = [b"\0asm" + random.Random(n).randbytes(300_000) for n in range(4)]
    store = await open_store(tmp_path / "data", zstd_level=1, min_free_bytes=0, log=log)
    async with trio.open_nursery() as nursery:
        site = Site(nursery, make_trust, log)
        peer, served = await site.peer("holder", *blobs)
        exchange = ExchangeService(
            trust=site.trust,
            store=store,
            holders=lambda _digest: [peer],
            find_peer=lambda _node: None,
            metrics=Metrics(),
            log=log,
        )
        await nursery.start(exchange.run)
        source = MemorySource(*blobs)
        for manifest, _ in source.blobs.values():
            named = manifest_digest(manifest)
            with trio.fail_after(10):
                await exchange.fetch(manifest.blob, named, progress=lambda done, of: None)
                while not exchange.pool.idle:
                    await trio.sleep(0.001)
            crowds = served.server._uploads._seeding._crowds
            with trio.fail_after(5):
                while crowds:
                    await trio.sleep(0.001)
        assert len(dialled) == 1
        nursery.cancel_scope.cancel()
    await store.close()
