"""What a look over TCP finds: real sockets, a listener that nobody serves for a stopped process."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from network_support import EchoSync, MakeTrust, MemorySource, gossiping, serving, until

from edged.network import streamprobes
from edged.network.server import StreamServer
from edged.network.shaping import Shaper
from edged.network.streamprobes import StreamProber
from edged.telemetry import Log, Metrics
from edged.trust import Trust
from protocol.events import MemberDown, StreamOutcome, StreamProbe
from protocol.ids import NodeId
from protocol.member import Address, Member, Metadata


def probe_of(
    node_id: NodeId, address: Address, probe_id: int = 1, *, generation: int = 1
) -> StreamProbe:
    metadata = Metadata("b", address, address)
    member = Member(node_id, "alive", generation, 0, metadata, None, False, 0.0)
    return StreamProbe(probe_id, member)


class Looking:
    def __init__(self, trust: Trust, nursery: trio.Nursery) -> None:
        self.outcomes: list[StreamOutcome] = []
        self._nursery = nursery
        self.prober = StreamProber(trust, numeric=lambda address: address, report=self._report)

    def _report(self, probe_id: int, outcome: StreamOutcome) -> None:
        self.outcomes.append(outcome)

    def start(self, probe: StreamProbe) -> None:
        self.prober.start(self._nursery, probe)

    async def wait(self, *outcomes: StreamOutcome) -> None:
        await until(lambda: self.outcomes == list(outcomes))


@asynccontextmanager
async def looking(trust: Trust) -> AsyncIterator[Looking]:
    async with trio.open_nursery() as nursery:
        yield Looking(trust, nursery)
        nursery.cancel_scope.cancel()


async def test_a_member_that_serves_answers(make_trust: MakeTrust, log: Log) -> None:
    a, b = make_trust("a"), make_trust("b")
    async with serving(b, MemorySource(), log, generation=1) as server, looking(a) as look:
        look.start(probe_of(b.node_id, server.address))
        await look.wait("stalled", "pong")
        look.prober.end(1)
        look.outcomes.clear()
        look.start(probe_of(b.node_id, server.address, generation=2))
        await look.wait("stalled", "refused")
        look.outcomes.clear()
        look.start(probe_of(a.node_id, server.address))
        await look.wait("stalled", "stalled", "silent")


async def test_a_stopped_process_is_stalled_until_it_dies(make_trust: MakeTrust) -> None:
    a, b = make_trust("a"), make_trust("b")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with looking(a) as look:
        look.start(probe_of(b.node_id, listener.socket.getsockname()))
        await look.wait("stalled")
        await trio.sleep(2 * streamprobes.PATIENCE_S)
        assert look.outcomes == ["stalled"]
        await listener.aclose()
        await look.wait("stalled", "refused")


async def test_a_stopped_process_is_seen_to_wake(make_trust: MakeTrust, log: Log) -> None:
    a, b = make_trust("a"), make_trust("b")
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = StreamServer(
        trust=b, source=MemorySource(), sync=EchoSync(), metrics=Metrics(), log=log
    )
    async with looking(a) as look, trio.open_nursery() as nursery:
        look.start(probe_of(b.node_id, listeners[0].socket.getsockname()))
        await look.wait("stalled")
        await trio.sleep(2 * streamprobes.PATIENCE_S)
        await nursery.start(server.run, listeners)
        await look.wait("stalled", "pong")
        nursery.cancel_scope.cancel()


async def test_nobody_there_and_ended_probes(make_trust: MakeTrust) -> None:
    a = make_trust("a")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()
    async with looking(a) as look:
        look.start(probe_of(a.node_id, address, 5))
        await look.wait("stalled")
        look.prober.end(5)
        look.prober.end(6)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
        look.outcomes.clear()
        look.start(probe_of(a.node_id, address))
        await look.wait("refused")
        look.start(probe_of(a.node_id, ("nul\0", 1)))
        await look.wait("refused", "silent")


async def test_a_host_that_takes_no_connection_is_silent(
    make_trust: MakeTrust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamprobes, "CONNECT_TIMEOUT_S", 0.05)
    a = make_trust("a")
    with socket.socket() as crowded, socket.socket() as first, socket.socket() as second:
        crowded.bind(("127.0.0.1", 0))
        crowded.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(crowded.getsockname())
        async with looking(a) as look:
            look.start(probe_of(a.node_id, crowded.getsockname()))
            await look.wait("silent")


async def test_a_dial_that_nothing_comes_of_is_not_waited_for(
    make_trust: MakeTrust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a lost SYN."""
    dials, attempt = 0, streamprobes._attempt

    async def attempt_lost_first(
        address: Address,
        found: list[trio.SocketStream | StreamOutcome],
        others: trio.CancelScope,
        shaper: Shaper | None,
    ) -> None:
        nonlocal dials
        dials += 1
        if dials == 1:
            await trio.sleep_forever()
        await attempt(address, found, others, shaper)

    monkeypatch.setattr(streamprobes, "_attempt", attempt_lost_first)
    monkeypatch.setattr(streamprobes, "REDIAL_S", 0.01)
    a, b = make_trust("a"), make_trust("b")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, looking(a) as look:
        look.start(probe_of(b.node_id, listener.socket.getsockname()))
        await look.wait("stalled")
        assert dials >= 2


async def test_dials_end_with_their_look(
    make_trust: MakeTrust, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make_trust("a")
    cancelled = 0

    async def hang(*_: object) -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        finally:
            cancelled += 1

    monkeypatch.setattr(streamprobes, "_attempt", hang)
    monkeypatch.setattr(streamprobes, "REDIAL_S", 0.01)
    monkeypatch.setattr(streamprobes, "CONNECT_TIMEOUT_S", 0.05)
    async with looking(a) as look:
        look.start(probe_of(a.node_id, ("127.0.0.1", 1)))
        await look.wait("silent")
        assert 1 <= cancelled <= 5, "no more of them than there is time for"
        before = cancelled
        monkeypatch.setattr(streamprobes, "CONNECT_TIMEOUT_S", 60.0)
        look.start(probe_of(a.node_id, ("127.0.0.1", 1)))
        await trio.testing.wait_all_tasks_blocked()
        look.prober.end(1)
        await trio.testing.wait_all_tasks_blocked()
        assert cancelled > before
        assert look.outcomes == ["silent"]


async def test_a_member_whose_datagrams_are_lost_lives(make_trust: MakeTrust, log: Log) -> None:
    """Its stream answers: counted, and nobody is suspected for it."""
    trusts = [make_trust(name) for name in "ab"]
    async with gossiping(log, *trusts) as (a, b):
        b.service.join([a.seed])
        await until(lambda: len(a.states()) == len(b.states()) == 2)
        a.sockets.send = lambda data, address: "send-test"  # type: ignore[method-assign]
        await until(lambda: a.gossip.statistics().probing.acks_stream >= 2)
        assert a.states()["b"] == "alive"
        assert not any(isinstance(event, MemberDown) for event in a.events)
