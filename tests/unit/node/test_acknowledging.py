"""edged.acknowledging: whom a change asks, who replaces whom, and when it is given up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from edged.acknowledging import Nodes
from edged.errors import Outdone, PeerError, PeerRefused, UnderReplicated
from edged.interfaces import Peer
from protocol.ids import Digest, NodeId, digest_of
from protocol.records import decode_bundle
from protocol.replicas import Site, placement, ranking

BLOB, MANIFEST = digest_of(b"blob"), digest_of(b"manifest")
Behaviour = Callable[[], Awaitable[None]]


class Cluster:
    """Peers that behave as they are told; node 0 is this one."""

    def __init__(self, count: int) -> None:
        self.alive = [Site(NodeId(f"{index:032x}"), "eu") for index in range(count)]
        self.me = self.alive[0].node_id
        self.blobs: dict[NodeId, Behaviour] = {}
        self.records: dict[NodeId, Behaviour] = {}
        self.have: list[NodeId] = []
        self.stored: dict[NodeId, list[bytes]] = {}
        self.open = 0

    def nodes(self) -> Nodes:
        return Nodes(
            me=self.me,
            sites=lambda: self.alive,
            find_peer=lambda node: Peer(node, node, "eu", ("h", 1), ("h", 1), "", None),
            name=lambda node: node,
            dial=lambda peer: Wire(self, peer.node_id),
        )

    def order(self) -> list[NodeId]:
        return [site.node_id for site in ranking(BLOB, self.alive)]

    def others(self) -> list[NodeId]:
        return [node for node in self.order() if node != self.me]

    def die(self, node: NodeId) -> None:
        self.alive = [site for site in self.alive if site.node_id != node]


class Wire:
    """A PeerLine."""

    def __init__(self, cluster: Cluster, node: NodeId) -> None:
        self._cluster = cluster
        self._node = node
        cluster.open += 1

    async def replicate(self, blob: Digest, manifest: Digest) -> None:
        assert (blob, manifest) == (BLOB, MANIFEST)
        await self._cluster.blobs.get(self._node, trio.lowlevel.checkpoint)()
        self._cluster.have.append(self._node)

    async def store_records(self, bundle: bytes) -> None:
        await self._cluster.records.get(self._node, trio.lowlevel.checkpoint)()
        assert self._node in self._cluster.have
        self._cluster.stored.setdefault(self._node, []).extend(decode_bundle(bundle))

    async def confirm(self, blob: Digest) -> bool:
        raise AssertionError

    async def aclose(self) -> None:
        self._cluster.open -= 1
        await trio.lowlevel.checkpoint()


async def unreachable() -> None:
    await trio.sleep(0.01)
    raise PeerError("connection refused")


async def full() -> None:
    await trio.lowlevel.checkpoint()
    raise PeerRefused("disk-full", "no space")


async def outdone() -> None:
    await trio.sleep(0.01)
    raise PeerRefused("outdone", "a later one is in force")


async def change(cluster: Cluster, replicas: int, wire_bytes: int = 0) -> tuple[str, ...]:
    async with cluster.nodes().change(BLOB, replicas, wire_bytes=wire_bytes) as one:
        await one.spread(MANIFEST)
        return await one.store([b"version", b"alias"])


async def test_the_placement_has_both_before_it_returns(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(9)
    placed = [site.node_id for site in placement(BLOB, cluster.alive, 3)]
    assert await change(cluster, 3) == tuple(sorted(placed))
    elsewhere = {node for node in placed if node != cluster.me}
    assert set(cluster.have) == set(cluster.stored) == elsewhere
    assert all(rows == [b"version", b"alias"] for rows in cluster.stored.values())
    assert cluster.open == 0
    assert trio.current_time() == 0


async def test_alone_is_enough_where_there_is_nobody_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(1)
    assert await change(cluster, 3) == (cluster.me,)


async def test_the_next_in_order_replaces_one_whose_disk_is_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(9)
    cluster.me = cluster.order()[-1]
    first, second, third, fourth = cluster.order()[:4]
    cluster.blobs[second] = full
    assert set(await change(cluster, 3)) == {first, third, fourth}
    assert trio.current_time() < 0.1


async def test_one_that_knows_a_later_change_ends_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(9)
    cluster.me = cluster.order()[-1]
    _, second, third = cluster.order()[:3]
    cluster.records[second] = outdone
    cluster.records[third] = trio.sleep_forever
    with pytest.raises(Outdone, match="a later one") as caught:
        await change(cluster, 3)
    assert str(caught.value).startswith(cluster.nodes().name(second))
    assert trio.current_time() < 0.1
    assert cluster.open == 0


async def test_one_that_is_slow_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    cluster = Cluster(9)
    cluster.me = cluster.order()[-1]
    first, second, third, fourth = cluster.order()[:4]
    cluster.blobs[first] = trio.sleep_forever
    assert set(await change(cluster, 3)) == {second, third, fourth}
    assert 2 <= trio.current_time() < 2.5


async def test_large_blobs_are_given_longer(autojump_clock: trio.testing.MockClock) -> None:
    cluster = Cluster(9)
    cluster.me = cluster.order()[-1]
    slow = cluster.order()[0]
    cluster.blobs[slow] = trio.sleep_forever
    assert slow not in await change(cluster, 3, wire_bytes=25_000_000)
    assert 12 <= trio.current_time() < 12.5


async def test_one_that_dies_between_blob_and_records_is_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(9)
    cluster.me = cluster.order()[-1]
    first, second, third, fourth = cluster.order()[:4]
    cluster.records[third] = unreachable
    assert set(await change(cluster, 3)) == {first, second, fourth}
    assert cluster.have.count(fourth) == 1, "it got the blob first"


async def test_a_member_that_turns_out_dead_is_not_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(3)
    dead = cluster.others()[0]
    cluster.blobs[dead] = unreachable
    async with trio.open_nursery() as nursery:

        async def notice() -> None:
            await trio.sleep(1.5)
            cluster.die(dead)

        nursery.start_soon(notice)
        assert dead not in await change(cluster, 3)
    assert 1.5 <= trio.current_time() < 2.5


async def test_one_that_comes_back_in_time_counts(autojump_clock: trio.testing.MockClock) -> None:
    cluster = Cluster(3)
    away = cluster.others()[0]

    async def until_it_is_back() -> None:
        if trio.current_time() < 3:
            await unreachable()

    cluster.blobs[away] = until_it_is_back
    assert len(await change(cluster, 3)) == 3
    assert 3 <= trio.current_time() < 6


async def test_too_few_that_would_is_told_at_once_and_by_name(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(3)
    refusing, other = cluster.others()
    cluster.blobs[refusing] = full
    with pytest.raises(UnderReplicated) as caught:
        await change(cluster, 3)
    assert caught.value.extra["wanted"] == 3
    assert set(caught.value.extra["holders"]) == {cluster.me, other}
    assert caught.value.extra["failed"] == {refusing: "disk-full: no space"}
    assert str(caught.value) == (
        f"2 of 3 nodes have it on disk so far ({refusing}: disk-full: no space);"
        " nothing was acknowledged, 2 replicas at most can be had until that changes"
    )
    assert cluster.stored == {}, "nothing was changed"
    assert trio.current_time() < 1
    assert cluster.open == 0


async def test_who_is_at_it_may_finish_for_a_moment_when_too_many_have_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(7)
    refusing, quick, *slow = cluster.others()

    async def quickly() -> None:
        await trio.sleep(0.3)

    cluster.blobs = {refusing: full, quick: quickly} | dict.fromkeys(slow, trio.sleep_forever)
    with pytest.raises(UnderReplicated, match=r"has not answered yet; .*6 replicas") as caught:
        await change(cluster, 7)
    assert set(caught.value.extra["holders"]) == {cluster.me, quick}
    assert 0.5 <= trio.current_time() < 1


async def test_nobody_waits_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    cluster = Cluster(3)
    for node in cluster.others():
        cluster.blobs[node] = trio.sleep_forever
    with pytest.raises(UnderReplicated) as caught:
        await change(cluster, 3)
    assert caught.value.extra["holders"] == [cluster.me]
    assert set(caught.value.extra["failed"].values()) == {"has not answered yet"}
    assert 20 <= trio.current_time() < 20.5


async def test_whoever_is_slow_still_counts_when_there_is_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(3)

    async def slowly() -> None:
        await trio.sleep(10)

    cluster.blobs[cluster.others()[0]] = slowly
    assert len(await change(cluster, 3)) == 3
    assert 10 <= trio.current_time() < 11
