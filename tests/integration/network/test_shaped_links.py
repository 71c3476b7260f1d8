"""Shaped links between real sockets on a virtual clock: what passes when, what a cut does, that
nothing is held for ever."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from network_support import EchoSync, MakeTrust, MemorySource
from trio.testing import MockClock

from edged.links import Document
from edged.network.server import StreamServer
from edged.network.shaping import Shaper
from edged.network.streams import Connection, dial
from edged.telemetry import Log, Metrics
from edged.topology import End, Rule
from edged.trust import Trust
from protocol.member import Address, Member, Metadata
from protocol.streams import Ping, Pong, Reply

ANY = ("*",)


def rules(**keys: object) -> Document:
    """That of every link."""
    return Document(rules=(Rule(sources=ANY, targets=ANY, **keys),))  # type: ignore[arg-type]


ALL_CUT = rules(cut="drop")
RESETTING = rules(cut="reset")
FAR = rules(latency_ms=100)


@dataclass
class Side:
    """One node: its shaper, its server, what its socket sent and when."""

    trust: Trust
    shaper: Shaper
    address: Address = ("127.0.0.1", 1)
    sent: list[tuple[float, bytes]] = field(default_factory=list)

    def change(self, document: Document) -> None:
        self.shaper.schedule(document, None)

    def peer(self, name: str) -> dict[str, object]:
        (found,) = [peer for peer in self.shaper.view().peers if peer.name == name]
        return {key: getattr(found, key) for key in found.__struct_fields__}


def member(side: Side) -> Member:
    metadata = Metadata(side.trust.name, side.address, side.address, region=side.trust.name)
    return Member(side.trust.node_id, "alive", 1, 0, metadata, None, False, 0.0)


@asynccontextmanager
async def pair(
    make_trust: MakeTrust, log: Log, document: Document = FAR
) -> AsyncIterator[tuple[Side, Side]]:
    """Two nodes that know each other: a dials, b serves."""
    sides: list[Side] = []

    def make(name: str) -> Side:
        trust, sent = make_trust(name), list[tuple[float, bytes]]()
        shaper = Shaper(
            End(name, name),
            document,
            send=lambda data, _address: sent.append((trio.current_time(), data)),
            members=lambda: [member(side) for side in sides],
            rng=random.Random(1),
            note=lambda _kind, _name, _detail: None,
            log=log,
        )
        return Side(trust, shaper, sent=sent)

    sides += [make("a"), make("b")]
    a, b = sides
    server = StreamServer(
        trust=b.trust,
        source=MemorySource(),
        sync=EchoSync(),
        metrics=Metrics(),
        log=log,
        shaper=b.shaper,
    )
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    b.address = listeners[0].socket.getsockname()
    async with trio.open_nursery() as nursery:
        await nursery.start(a.shaper.run)
        await nursery.start(b.shaper.run)
        await nursery.start(server.run, listeners)
        yield a, b
        nursery.cancel_scope.cancel()


async def connect(a: Side, b: Side) -> Connection[Reply]:
    return await dial(b.address, a.trust, expected=b.trust.node_id, shaper=a.shaper)


async def ping(connection: Connection[Reply], number: int = 1) -> float:
    begun = trio.current_time()
    await connection.send(Ping(number))
    frame = await connection.receive()
    assert frame is not None
    assert isinstance(frame[0], Pong)
    return trio.current_time() - begun


def near(seconds: float) -> object:
    return pytest.approx(seconds, abs=0.002)


async def test_a_connection_costs_its_round_trips(
    make_trust: MakeTrust, log: Log, autojump_clock: MockClock
) -> None:
    async with pair(make_trust, log) as (a, b):
        begun = trio.current_time()
        connection = await connect(a, b)
        assert trio.current_time() - begun == near(0.4)  # TCP's, and TLS's first flight and back
        assert await ping(connection) == near(0.2)
        assert a.peer("b")["streams"] == b.peer("a")["streams"] == 1
        await connection.aclose()
        await trio.sleep(1)
        assert a.peer("b")["streams"] == b.peer("a")["streams"] == 0
        assert a.shaper.held_bytes == b.shaper.held_bytes == 0
