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

from edged.errors import BadRequest, PeerError
from edged.links import EMPTY, Document, NodeAt, partition
from edged.network import departures
from edged.network.departures import Departures
from edged.network.server import StreamServer
from edged.network.shaping import Shaper
from edged.network.streams import Connection, dial
from edged.telemetry import Log, Metrics
from edged.topology import End, Rule
from edged.trust import Trust
from protocol.member import Address, Member, Metadata
from protocol.streams import Ping, Pong, Reply, Sync, SyncReply

ANY = ("*",)


class NoTimer:
    """The kernel's knows nothing of a clock that jumps."""

    async def wait(self, _seconds: float) -> None:
        await trio.sleep_forever()

    def close(self) -> None:
        pass


@pytest.fixture
def patient_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Jumps once nothing has happened for so long: sockets need a moment, on a busy machine too."""
    monkeypatch.setattr(departures, "FineTimer", NoTimer)
    return MockClock(autojump_threshold=0.005)


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
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
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


async def test_a_clear_link_holds_nothing_up(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    async with pair(make_trust, log, EMPTY) as (a, b):
        begun = trio.current_time()
        connection = await connect(a, b)
        assert await ping(connection) == 0
        assert trio.current_time() == begun
        a.shaper.send(b"x", b.address)
        assert a.sent == [(begun, b"x")]
        view = a.peer("b")
        assert (view["datagrams"], view["stream_bytes_delayed"]) == (1, 0)
        await connection.aclose()


async def test_datagrams_wait_and_a_cut_drops_them(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    async with pair(make_trust, log) as (a, b):
        begun = trio.current_time()
        assert a.shaper.send(b"one", b.address) is None
        a.change(ALL_CUT)
        assert a.shaper.send(b"two", b.address) is None
        assert not a.shaper.hears(b.address)
        await trio.sleep(1)
        assert [(at - begun, data) for at, data in a.sent] == [(near(0.1), b"one")]
        view = a.peer("b")
        assert view["datagrams_dropped"] == {"cut": 1, "queue": 0, "loss": 0}
        assert (view["datagrams"], view["datagrams_delayed"]) == (2, 1)
        assert a.shaper.send(b"three", ("127.0.0.1", 2)) is None, "of whom nothing is known"
        assert a.sent[-1] == (trio.current_time(), b"three")


async def test_duplicates_come_twice_and_a_full_queue_drops(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    document = rules(duplicate=1.0, bandwidth_mbit=1)
    async with pair(make_trust, log, document) as (a, b):
        for _ in range(30):
            a.shaper.send(b"x" * 1000, b.address)
        assert a.peer("b")["queue_bytes"] == pytest.approx(25_000, abs=1000)
        await trio.sleep(1)
        passed = len(a.sent) // 2
        assert passed == pytest.approx(25, abs=1)
        dropped = a.peer("b")["datagrams_dropped"]
        assert dropped == {"cut": 0, "queue": 30 - passed, "loss": 0}
        assert a.peer("b")["datagrams_duplicated"] == passed


async def test_a_stream_over_a_link_that_is_cut_goes_on_when_it_is_back(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    async with pair(make_trust, log) as (a, b):
        connection = await connect(a, b)
        answered = trio.Event()

        async def ask() -> None:
            await ping(connection)
            answered.set()

        async with trio.open_nursery() as nursery:
            a.change(ALL_CUT)
            b.change(ALL_CUT)
            nursery.start_soon(ask)
            await trio.sleep(5)
            assert not answered.is_set()
            a.change(FAR)
            b.change(FAR)
            begun = trio.current_time()
            await answered.wait()
            assert trio.current_time() - begun == near(0.2)
        await connection.aclose()


async def test_nobody_connects_over_a_link_that_is_cut(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    one_way = partition(FAR, [["b"], ["a"]], both=False)
    async with pair(make_trust, log, one_way) as (a, b):
        with trio.move_on_after(4) as waiting:
            await connect(a, b)
        assert waiting.cancelled_caught, "answers do not come back"
        assert a.peer("b")["connects_held"] == 3
        a.change(RESETTING)
        with pytest.raises(PeerError, match="cannot be reached"):
            await connect(a, b)
        assert a.peer("b")["connects_refused"] == 1


async def test_a_resetting_cut_ends_what_stands(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    async with pair(make_trust, log) as (a, b):
        one, other = await connect(a, b), await connect(a, b)
        await ping(other)
        b.change(RESETTING)
        assert b.peer("a")["streams_reset"] == 2
        with pytest.raises(PeerError):
            await one.receive()
        a.change(RESETTING)
        with pytest.raises(PeerError):
            await other.send(Ping(1))
        assert a.peer("b")["streams"] == b.peer("a")["streams"] == 0
        one.abort()


async def test_what_was_sent_before_closing_arrives_and_then_the_end(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    async with pair(make_trust, log) as (a, b):
        connection = await connect(a, b)
        await ping(connection)
        await connection.send(Sync(1), b"x" * 100_000)
        begun = trio.current_time()
        connection.abort()
        assert b.peer("a")["streams"] == 1
        while b.peer("a")["streams"]:
            await trio.sleep(0.02)
        assert 0.1 <= trio.current_time() - begun < 0.5
        assert b.peer("a")["stream_bytes"] > 100_000, "it was answered"


async def test_a_stream_that_is_closed_over_a_cut_ends_after_a_while(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    async with pair(make_trust, log) as (a, b):
        connection = await connect(a, b)
        a.change(ALL_CUT)
        connection.abort()
        await trio.sleep(30)
        assert a.peer("b")["streams"] == 1
        await trio.sleep(31)
        assert a.peer("b")["streams"] == 0


async def test_a_reader_that_reads_nothing_stops_the_writer(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    """What the kernel does not take counts against the window."""
    async with pair(make_trust, log) as (a, b):
        connection = await connect(a, b)
        with trio.move_on_after(20) as waiting:
            for number in range(64):
                await connection.send(Sync(number), b"x" * 500_000)
        assert waiting.cancelled_caught, "b answers, and nobody reads the answers"
        assert b.shaper.held_bytes <= 2 * 1024 * 1024
        connection.abort()
        await trio.sleep(120)
        assert a.shaper.held_bytes == b.shaper.held_bytes == 0


async def test_streams_share_a_bandwidth(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    async with pair(make_trust, log, rules(bandwidth_mbit=8, latency_ms=10)) as (a, b):
        connections = [await connect(a, b) for _ in range(2)]
        begun = trio.current_time()

        async def load(connection: Connection[Reply]) -> None:
            await connection.send(Sync(1), b"x" * 80_000)
            frame = await connection.receive()
            assert frame is not None
            assert isinstance(frame[0], SyncReply)
            await connection.aclose()

        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(load, connection)
        # 160 kB there; the first answer goes back meanwhile, the second after that.
        assert 0.16 < trio.current_time() - begun < 0.45


async def test_a_document_may_come_into_force_later(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    async with pair(make_trust, log, EMPTY) as (a, _):
        now_ms = a.shaper.view().changed_at_ms
        change = a.shaper.schedule(ALL_CUT, now_ms + 20_000)
        assert change.at_ms == now_ms + 20_000
        assert a.shaper.view().pending_at_ms == change.at_ms
        a.shaper.schedule(FAR, now_ms + 10_000)  # of the real clock, which goes on meanwhile
        await trio.sleep(4)
        assert a.shaper.view().document == EMPTY
        await trio.sleep(6.5)
        assert a.shaper.view().document == FAR
        await trio.sleep(20)
        assert a.shaper.view().document == FAR, "it took the place of the other"
        with pytest.raises(BadRequest, match="3600 s are allowed"):
            a.shaper.schedule(EMPTY, now_ms + 10_000_000)


async def test_a_seed_is_known_by_the_document(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    document = Document(nodes={"c": NodeAt("c", "127.0.0.1:9"), "d": NodeAt("c")})
    async with pair(make_trust, log, partition(document, [["a"], ["c"]])) as (a, _):
        a.shaper.send(b"x", ("127.0.0.1", 9))
        assert a.sent == []
        assert a.peer("c")["datagrams_dropped"] == {"cut": 1, "queue": 0, "loss": 0}


async def test_nodes_of_a_region_share_and_named_ones_do_not(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    nodes = {name: NodeAt("far", f"127.0.0.1:{port}") for port, name in enumerate("xyz", 11)}
    slow = Rule(sources=ANY, targets=("far",), bandwidth_mbit=1)
    own = Rule(sources=ANY, targets=("node:z",), latency_ms=0)
    async with pair(make_trust, log, Document(nodes=nodes, rules=(slow, own))) as (a, _):
        a.shaper.send(b"x" * 1000, ("127.0.0.1", 11))
        queues = [a.peer(name)["queue_bytes"] for name in "xyz"]
        a.shaper.send(b"x" * 1000, ("127.0.0.1", 12))
        assert a.peer("x")["queue_bytes"] == 2000
        assert queues[0] == 1000
        assert queues[2] == 0


async def test_metrics_tell_what_links_did(
    make_trust: MakeTrust, log: Log, patient_clock: MockClock
) -> None:
    async with pair(make_trust, log, ALL_CUT) as (a, b):
        a.shaper.send(b"x", b.address)
        samples = {
            (family.name, dict(sample.labels).get("reason")): sample.value
            for family in a.shaper.families()
            for sample in family.samples
        }
        assert samples["edged_link_datagrams_dropped_total", "cut"] == 1
        assert samples["edged_link_resets_total", None] == 0


async def test_what_is_due_is_done_in_order_and_on_time() -> None:
    """By the real clock and the kernel's timer."""
    done: list[tuple[str, float]] = []
    waiting = Departures()
    async with trio.open_nursery() as nursery:
        await nursery.start(waiting.run)
        begun, ended = trio.current_time(), trio.Event()
        for name, after_s in (("last", 0.03), ("first", 0.01), ("second", 0.0204), ("soon", -1.0)):
            at = begun + after_s
            waiting.at(at, lambda name=name: done.append((name, trio.current_time() - begun)))
        waiting.at(begun + 0.03, ended.set)
        with trio.fail_after(10):
            await ended.wait()
        nursery.cancel_scope.cancel()
    assert [name for name, _ in done] == ["soon", "first", "second", "last"]
    assert all(
        at >= due - 0.001 for (_, at), due in zip(done, (0, 0.01, 0.0204, 0.03), strict=True)
    )
    assert len(waiting) == 0
