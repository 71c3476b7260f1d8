"""Gateways of several nodes in one process. Peers are connected by pairs of sockets, whose way can
be broken at will; the TLS between is tests/integration/network's."""

from __future__ import annotations

import io
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from gateway_support import Behaviours
from http_support import PATIENT, RawClient, Response
from msgspec.structs import replace

from edged.errors import PeerError
from edged.gateway import HOPS_MAX, REFUSED, Forwarder, Gateway
from edged.http import HttpHooks, HttpServer, bind_tcp, serve
from edged.interfaces import NodeState, Peer
from edged.telemetry import Log, Metrics, make_log
from protocol.ids import NodeId

Wire = Callable[[trio.SocketStream], Awaitable[None]]


def node_id(name: str) -> NodeId:
    return NodeId(name.encode().hex() * 16)


class Stream:
    """interfaces.GatewayStream over one of a pair of sockets."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.kept = False
        self.sent = 0
        self.act: Callable[[], None] | None = None

    async def send_all(self, parts: Sequence[bytes]) -> None:
        try:
            for part in parts:
                await self.stream.send_all(part)
                self.sent += len(part)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerError("connection lost while sending") from error

    async def receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some(65536))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerError("connection lost while receiving") from error

    def on_doubt(self, act: Callable[[], None] | None) -> None:
        self.act = act

    def keep(self) -> None:
        self.kept = True


@dataclass
class Member:
    name: str
    functions: Behaviours
    metrics: Metrics
    log: io.StringIO
    state: NodeState = "ready"
    public: HttpServer | None = None
    peers: HttpServer | None = None
    wire: Wire | None = None
    """Stands in for its side of each connection from a peer."""
    unreachable: bool = False
    room: bool = True
    connections: int = 0
    kept: int = 0
    clients: list[RawClient] = field(default_factory=list)

    def forwards(self, result: str) -> int:
        return int(self.metrics.forwards.labels(result).value)

    async def connect(self) -> RawClient:
        assert self.public is not None
        client = RawClient(await trio.open_tcp_stream("127.0.0.1", self.public.port))
        self.clients.append(client)
        return client

    async def exchange(self, data: bytes, *, method: str = "GET") -> Response:
        client = await self.connect()
        await client.send(data)
        try:
            return await client.response(method=method)
        finally:
            await client.aclose()


class Net:
    """`ready`: who says that it has every function ready, nearest first."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.members: dict[str, Member] = {}
        self.ready: list[str] = []
        self.streams: list[Stream] = []
        self._nursery = nursery

    def peer(self, name: str) -> Peer:
        nowhere = ("127.0.0.1", 1)
        return Peer(node_id(name), name, "local", nowhere, nowhere, f"http://{name}", None)

    async def add(self, name: str, functions: Behaviours, *, hops_max: int = 1) -> Member:
        member = Member(name, functions, Metrics(), io.StringIO())
        log = make_log(name, stream=member.log, level="debug")
        gateway = Gateway(
            functions,
            node_name=name,
            node_id=node_id(name),
            state=lambda: member.state,
            forwarder=Forwarder(
                Gateways(self, member),
                ready=lambda _: self.holders(member),
                on_answer=lambda *_: None,
                node_name=name,
                hops_max=hops_max,
                metrics=member.metrics,
                log=log,
            ),
            metrics=member.metrics,
            log=log,
        )
        member.public = await self._listen(gateway, [bind_tcp("127.0.0.1", 0)], log)
        member.peers = await self._listen(gateway, [], log)
        self.members[name] = member
        return member

    async def _listen(self, gateway: Gateway, sockets: list[socket.socket], log: Log) -> HttpServer:
        limits = replace(PATIENT, says_farewell=not sockets)
        hooks = HttpHooks(unserved_headers=() if sockets else ((REFUSED, b"unserved"),))

        async def run(task_status: trio.TaskStatus[HttpServer]) -> None:
            await serve(gateway, sockets, limits, log=log, hooks=hooks, task_status=task_status)

        server: HttpServer = await self._nursery.start(run)
        return server

    def holders(self, asking: Member) -> list[Peer]:
        assert HOPS_MAX == 2
        return [self.peer(name) for name in self.ready if name != asking.name]

    async def connect(self, source: str, target: str) -> Stream:
        member = self.members[target]
        if member.unreachable:
            raise PeerError(f"{target} cannot be reached")
        ours, theirs = socket.socketpair()
        member.connections += 1
        wire, server = member.wire, member.peers
        assert server is not None

        async def run() -> None:
            if wire is None:
                await server.serve_connected(theirs, node_id(source))
                return
            theirs.setblocking(False)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as stream:
                await wire(stream)

        self._nursery.start_soon(run)
        ours.setblocking(False)
        self.streams.append(Stream(trio.SocketStream(trio.socket.from_stdlib_socket(ours))))
        return self.streams[-1]


class Gateways:
    """interfaces.PeerGateways: each exchange on a new connection."""

    def __init__(self, net: Net, member: Member) -> None:
        self._net = net
        self._member = member

    def has_room(self, peer: Peer) -> bool:
        return self._member.room

    @asynccontextmanager
    async def stream(self, peer: Peer) -> AsyncIterator[Stream]:
        stream = await self._net.connect(self._member.name, peer.name)
        async with stream.stream:
            yield stream
            self._member.kept += stream.kept


@asynccontextmanager
async def net() -> AsyncIterator[Net]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            made = Net(nursery)
            yield made
            for member in made.members.values():
                for client in member.clients:
                    await client.aclose()
                for server in (member.public, member.peers):
                    assert server is not None
                    await server.drain(trio.current_time() + 2)
            nursery.cancel_scope.cancel()
    for member in made.members.values():
        assert "http.bug" not in member.log.getvalue()
        assert "http.application" not in member.log.getvalue()
        assert not +member.functions.admitted, "a slot was not freed"


def cold(*names: str) -> Behaviours:
    """Functions that are known and not ready: whoever runs one says so."""
    functions = warm(*names)
    functions.far = set(names)
    return functions


def warm(*names: str) -> Behaviours:
    from gateway_support import result, spec

    functions = Behaviours()
    for name in names or ("f",):
        functions.add(name, spec(), lambda call: result(b"ran " + call.stdin))
    return functions
