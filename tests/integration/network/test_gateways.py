"""HTTP between gateways: over the peer port, to the adapter's socket and back, warm and bounded."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import trio
from network_support import EchoSync, MakeTrust, MemorySource, Served, until

from edged.errors import PeerError
from edged.interfaces import Peer
from edged.network.gateways import GatewayPool, GatewayPoolLimits
from edged.network.server import StreamLimits, StreamServer
from edged.telemetry import Log, Metrics
from edged.trust import Trust
from protocol.ids import NodeId


@dataclass
class Echo:
    """A gateway that gives back what it reads, in capitals, until the other side has ended."""

    accepted: list[tuple[NodeId, bool]] = field(default_factory=list)
    ended: int = 0
    answer_bytes: int = 0
    """Sent before anything is read."""

    async def serve_connected(self, sock: socket.socket, peer: NodeId, *, refused: bool) -> None:
        self.accepted.append((peer, refused))
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        sock.setblocking(False)
        async with stream:
            if refused:
                await stream.send_all(b"refused")
                return
            await stream.send_all(b"x" * self.answer_bytes)
            async for data in stream:
                if data == b"close":
                    break
                await stream.send_all(bytes(data).upper())
        self.ended += 1


@asynccontextmanager
async def serving(
    trust: Trust,
    log: Log,
    gateway: Echo | None,
    is_member: Callable[[NodeId], bool] | None = None,
    limits: StreamLimits | None = None,
) -> AsyncIterator[Served]:
    metrics = Metrics()
    server = StreamServer(
        trust=trust,
        source=MemorySource(),
        sync=EchoSync(),
        is_member=is_member or (lambda _: True),
        metrics=metrics,
        log=log,
        limits=limits,
    )
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listeners[0].socket.getsockname()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[None]) -> None:
                await server.run(listeners, gateway=gateway, task_status=task_status)

            await nursery.start(run)
            yield Served(server, metrics, (host, port))
            nursery.cancel_scope.cancel()


def peer_of(trust: Trust, served: Served) -> Peer:
    return Peer(
        node_id=trust.node_id,
        name=trust.name,
        region="local",
        gossip_address=served.address,
        stream_address=served.address,
        gateway_url="http://x",
        rtt_s=None,
    )


async def converse(pool: GatewayPool, peer: Peer, text: bytes, *, keep: bool = True) -> bytes:
    async with pool.stream(peer) as stream:
        await stream.send_all((text,))
        got = b""
        while len(got) < len(text):
            data = await stream.receive()
            if not data:
                return got
            got += data
        if keep:
            stream.keep()
        return got


async def test_a_connection_is_used_again_and_its_peer_is_named(
    make_trust: MakeTrust, log: Log
) -> None:
    a, b = make_trust("a"), make_trust("b")
    echo = Echo()
    async with serving(a, log, echo) as served:
        pool = GatewayPool(trust=b, log=log)
        peer = peer_of(a, served)
        for _ in range(3):
            assert await converse(pool, peer, b"hello") == b"HELLO"
        assert echo.accepted == [(b.node_id, False)]
        assert await converse(pool, peer, b"bye", keep=False) == b"BYE"
        assert await converse(pool, peer, b"again") == b"AGAIN"
        assert len(echo.accepted) == 2


async def test_megabytes_go_through_and_who_leaves_is_noticed(
    make_trust: MakeTrust, log: Log
) -> None:
    a, b = make_trust("a"), make_trust("b")
    echo = Echo(answer_bytes=3_000_000)
    async with serving(a, log, echo) as served:
        pool = GatewayPool(trust=b, log=log)
        async with pool.stream(peer_of(a, served)) as stream:
            got = 0
            while got < 3_000_000:
                got += len(await stream.receive())
            await stream.send_all((b"y" * 100_000,))
            assert (await stream.receive())[:1] == b"Y"
        await until(lambda: echo.ended == 1)


async def test_a_connection_that_ended_while_idle_is_not_taken(
    make_trust: MakeTrust, log: Log
) -> None:
    a, b = make_trust("a"), make_trust("b")
    echo = Echo()
    async with serving(a, log, echo) as served:
        pool = GatewayPool(trust=b, log=log)
        peer = peer_of(a, served)
        async with pool.stream(peer) as stream:
            await stream.send_all((b"close",))
            stream.keep()
            assert await stream.receive() == b""
        assert await converse(pool, peer, b"new") == b"NEW"
        assert len(echo.accepted) == 2


async def test_strangers_are_answered_that_they_are_refused(
    make_trust: MakeTrust, log: Log
) -> None:
    a, b = make_trust("a"), make_trust("b")
    echo = Echo()
    async with serving(a, log, echo, is_member=lambda _: False) as served:
        pool = GatewayPool(trust=b, log=log)
        assert await converse(pool, peer_of(a, served), b"get it!!") == b"refused"
        assert echo.accepted == [(b.node_id, True)]
        assert served.refused("no-member") == 1
    async with serving(a, log, None) as served:
        with suppress(PeerError):  # or a plain end
            assert await converse(pool, peer_of(a, served), b"get it") == b""
        await served.wait_refused("no-gateway")


@pytest.mark.parametrize("limit", ["per_peer", "connections"])
async def test_connections_to_the_gateway_are_bounded(
    make_trust: MakeTrust, log: Log, limit: str
) -> None:
    a, b = make_trust("a"), make_trust("b")
    echo = Echo()
    limits = StreamLimits(
        gateway_connections_max=1 if limit == "connections" else 9, gateway_per_peer_max=1
    )
    async with serving(a, log, echo, limits=limits) as served:
        pool, peer = GatewayPool(trust=b, log=log), peer_of(a, served)
        async with pool.stream(peer) as first:
            await first.send_all((b"one",))
            assert await first.receive() == b"ONE"
            if limit == "per_peer":
                assert await converse(pool, peer, b"another") == b"refused"
                await served.wait_refused("per-peer")
            else:
                with suppress(PeerError):  # or a plain end
                    assert await converse(pool, peer, b"another") == b""
                await served.wait_refused("crowded")


async def test_only_the_expected_node_is_spoken_to_and_a_dead_one_costs_little(
    make_trust: MakeTrust, log: Log
) -> None:
    a, b, c = make_trust("a"), make_trust("b"), make_trust("c")
    async with serving(a, log, Echo()) as served:
        pool = GatewayPool(trust=b, log=log)
        with pytest.raises(PeerError, match="answered where"):
            await converse(pool, peer_of(c, served), b"hello")
        gone = peer_of(a, Served(served.server, served.metrics, ("127.0.0.1", 1)))
        with pytest.raises(PeerError, match="cannot be reached"):
            await converse(pool, gone, b"hello")
        assert pool.has_room(gone)


async def test_exchanges_and_warm_connections_are_bounded(make_trust: MakeTrust, log: Log) -> None:
    a, b = make_trust("a"), make_trust("b")
    limits = GatewayPoolLimits(per_peer_max=3, idle_per_peer_max=2)
    async with serving(a, log, Echo()) as served:
        pool = GatewayPool(trust=b, log=log, limits=limits)
        peer = peer_of(a, served)
        async with pool.stream(peer) as one, pool.stream(peer) as two, pool.stream(peer) as three:
            assert not pool.has_room(peer)
            with pytest.raises(PeerError, match="too many"):
                await converse(pool, peer, b"hello")
            for stream in (one, two, three):
                stream.keep()
        assert (pool.idle, pool.has_room(peer)) == (2, True)


async def test_a_peer_that_is_down_is_cut_and_warm_ones_are_connected_ahead(
    make_trust: MakeTrust, log: Log, autojump_clock: object
) -> None:
    a, b = make_trust("a"), make_trust("b")
    echo = Echo()
    async with serving(a, log, echo) as served, trio.open_nursery() as nursery:
        peer = peer_of(a, served)
        pool = GatewayPool(trust=b, log=log, warm=lambda: [peer])
        await nursery.start(pool.run)
        while not pool.idle:
            await trio.sleep(1)
        async with pool.stream(peer) as stream:
            assert len(echo.accepted) == 1
            doubts: list[str] = []
            stream.on_doubt(lambda: doubts.append("doubted"))
            pool.doubt(b.node_id)
            assert doubts == []
            pool.doubt(a.node_id)
            pool.doubt(a.node_id)
            assert doubts == ["doubted"], "once"
            pool.drop(a.node_id, down=False)
            await stream.send_all((b"still",))
            assert await stream.receive() == b"STILL"
            pool.drop(a.node_id, down=True)
            with pytest.raises(PeerError):
                await stream.receive()
        assert pool.idle == 0
        nursery.cancel_scope.cancel()
