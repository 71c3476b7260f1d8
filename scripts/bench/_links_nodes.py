"""Several measuring nodes in one process: the sockets, shaper and TLS of a node, and nothing else.

Reads one JSON line, the plan; prints `ready`, waits for a line, measures, prints one JSON line:
round trips in ms by kind and pair of regions. Both instants of a round trip are read by one clock.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import trio

from edged.config import parse_address
from edged.errors import PeerError
from edged.links import Document, parse_document
from edged.network import GossipSockets, Shaper, bind_gossip, dial
from edged.network.streams import Connection, accept
from edged.telemetry import Log, make_log
from edged.topology import End
from edged.trust import Trust, load_trust
from protocol.ids import NodeId
from protocol.member import Address, Member, Metadata
from protocol.streams import Ping, Pong

RECEIVE_MAX = 64
ASK, ANSWER, ASK_BARE, ANSWER_BARE = b"?", b"!", b"q", b"a"
"""The bare ones go past the shaper: what this machine takes for a round trip by itself."""
STREAM_PEERS = 2
SETTLE_S = 3.0
Row = dict[str, Any]


def members_of(rows: list[Row]) -> list[Member]:
    found = []
    for row in rows:
        address = parse_address(row["address"], key="address")
        metadata = Metadata(row["name"], address, address, region=row["region"])
        found.append(Member(NodeId(row["node_id"]), "alive", 1, 0, metadata, None, False, 0.0))
    return found


def make_shaper(
    name: str, region: str, document: Document, *, sockets: GossipSockets, members: list[Member],
    log: Log,
) -> Shaper:  # fmt: skip
    return Shaper(
        End(name, region),
        document,
        send=sockets.send,
        members=lambda: members,
        rng=random.Random(name),
        note=lambda _kind, _name, _detail: None,
        log=log,
    )


class Results:
    def __init__(self) -> None:
        self.phase = ""
        self.settled = False
        """A hundred handshakes at once keep all cores busy for a while."""
        self.rtts_ms: dict[str, list[float]] = defaultdict(list)

    def add(self, kind: str, one: str, other: str, rtt_s: float) -> None:
        if self.phase and (self.settled or kind == "connect"):
            pair = "|".join(sorted((one, other)))
            self.rtts_ms[f"{self.phase} {kind} {pair}"].append(round(rtt_s * 1000, 3))


class MeasuringNode:
    def __init__(
        self, row: Row, trust: Trust, sockets: GossipSockets, shaper: Shaper, results: Results
    ) -> None:
        self.name, self.region = row["name"], row["region"]
        self._trust = trust
        self._sockets = sockets
        self.shaper = shaper
        self._results = results
        self._asked: dict[int, tuple[float, str]] = {}
        self._numbers = itertools.count()

    async def run(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.shaper.run)
        nursery.start_soon(self._hear)
        for listener in self._sockets.listeners:
            nursery.start_soon(self._listen, listener, nursery)

    def ask(self, member: Member, *, bare: bool) -> None:
        number = next(self._numbers)
        self._asked[number] = (trio.current_time(), member.metadata.region)
        send = self._sockets.send if bare else self.shaper.send
        send((ASK_BARE if bare else ASK) + b"%d" % number, member.metadata.gossip_address)

    async def _hear(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._sockets.udp)
            for data, source in self._sockets.receive(RECEIVE_MAX):
                self._take(data[:1], data[1:], source)

    def _take(self, kind: bytes, rest: bytes, source: Address) -> None:
        if kind == ASK:
            self.shaper.send(ANSWER + rest, source)
        elif kind == ASK_BARE:
            self._sockets.send(ANSWER_BARE + rest, source)
        elif (asked := self._asked.pop(int(rest), None)) is not None:
            label = "bare" if kind == ANSWER_BARE else "datagram"
            self._results.add(label, self.region, asked[1], trio.current_time() - asked[0])

    async def _listen(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        while True:
            nursery.start_soon(self._answer, await listener.accept())

    async def _answer(self, transport: trio.SocketStream) -> None:
        try:
            connection = await accept(transport, self._trust, self.shaper)
            assert isinstance(connection, Connection)
            while (frame := await connection.receive()) is not None:
                await connection.send(Pong(frame[0].id, 0))
        except PeerError:
            return

    async def converse(self, member: Member, interval_s: float) -> None:
        """Pings over one stream, one after the other."""
        begun = trio.current_time()
        address = member.metadata.stream_address
        connection = await dial(
            address, self._trust, expected=member.node_id, shaper=self.shaper
        )  # fmt: skip
        region = member.metadata.region
        self._results.add("connect", self.region, region, trio.current_time() - begun)
        try:
            for number in itertools.count():
                begun = trio.current_time()
                await connection.send(Ping(number))
                await connection.receive()
                self._results.add("stream", self.region, region, trio.current_time() - begun)
                await trio.sleep(interval_s * random.uniform(0.5, 1.5))
        except PeerError:  # the peer's process is done
            return
        finally:
            connection.abort()


async def ping_all(nodes: list[MeasuringNode], members: list[Member], hertz: float) -> None:
    """Regions evenly, so that near pairs get as many as far ones."""
    regions = sorted({member.metadata.region for member in members})
    by_region = {r: [m for m in members if m.metadata.region == r] for r in regions}
    period_s = 1 / (hertz * len(nodes))
    at = trio.current_time()
    for number in itertools.count():
        node = random.choice(nodes)
        region = node.region if number % 9 == 0 else random.choice(regions)
        others = [m for m in by_region[region] if m.name != node.name]
        member = random.choice(others or [m for m in members if m.name != node.name])
        node.ask(member, bare=number % 5 == 0)
        at += period_s
        await trio.sleep_until(at)


async def main(plan: Row) -> None:
    log = make_log("bench", level="error")
    members = members_of(plan["nodes"])
    documents = [parse_document(json.dumps(each).encode()) for each in plan["documents"]]
    results, nodes = Results(), []
    for row in plan["nodes"][plan["worker"] :: plan["workers"]]:
        sockets = await bind_gossip(*parse_address(row["address"], key="address"))
        trust = load_trust(Path(row["trust"]))
        shaper = make_shaper(
            row["name"], row["region"], documents[0], sockets=sockets, members=members, log=log
        )
        nodes.append(MeasuringNode(row, trust, sockets, shaper, results))
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await node.run(nursery)
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        nursery.start_soon(ping_all, nodes, members, plan["hertz"])
        for phase, document in zip(plan["phases"], documents, strict=True):
            for node in nodes:
                node.shaper.schedule(document, None)
            await trio.sleep(1.0)  # what was sent under the last document has arrived
            results.phase = phase
            async with trio.open_nursery() as talking:
                for node in nodes:
                    others = [member for member in members if member.name != node.name]
                    for member in random.sample(others, STREAM_PEERS):
                        talking.start_soon(node.converse, member, plan["stream_interval_s"])
                await trio.sleep(SETTLE_S)
                results.settled = True
                await trio.sleep(plan["seconds"])
                results.settled = False
                talking.cancel_scope.cancel()
            results.phase = ""
        nursery.cancel_scope.cancel()
    print(json.dumps(results.rtts_ms), flush=True)


def be_prompt() -> None:
    """Before whatever else this machine does, where that is allowed: what is measured is how late
    links are, not how long a process waits for a core."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


if __name__ == "__main__":
    be_prompt()
    random.seed(1)
    trio.run(main, json.loads(sys.stdin.readline()))
