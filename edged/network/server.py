"""What this node serves to peers on streams: blobs (uploads.py), syncs, pings. SPEC §10. Who speaks
HTTP is handed to the gateway (SPEC §12).

One task per connection, replies in the order of the requests; requests for segments that follow
each other are answered together. Bounds: connections in all, in handshake, and per peer; requests
and bytes taken ahead; time for a handshake, for a frame, between requests, and for a peer to take a
reply. Whatever a peer does ends its own task.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import trio

from protocol.errors import RemoteProtocolError
from protocol.ids import Digest, NodeId
from protocol.rng import Rng
from protocol.streams import (
    ERROR_TEXT_MAX,
    AttestationsReply,
    Confirm,
    Confirmed,
    DeltaPart,
    ErrorReply,
    GetAny,
    GetAttestations,
    GetDelta,
    GetManifest,
    GetSegment,
    Ping,
    Pong,
    Records,
    RecordsStored,
    Replicate,
    Replicated,
    Reply,
    Request,
    Sync,
    SyncReply,
    Want,
    frame_head,
)

from ..errors import BlobNotFound, EdgedError, PeerError, info_of
from ..interfaces import BlobSource, DeltaSource
from ..telemetry import Log, Metrics
from ..trust import Trust
from .bridge import bridge
from .pace import Moving
from .patience import Patience, Watch
from .shaping import Shaper
from .streams import Connection, GatewayCaller, accept
from .uploads import Fetching, Session, Uploads

Other = (
    Ping | Sync | GetManifest | Want | GetDelta | GetAttestations | Replicate | Records | Confirm
)

BODIES_AHEAD_MAX: Final = 1024 * 1024
"""Bytes of requests taken from one connection before they are answered."""
REQUESTS_AHEAD_MAX: Final = 256
FRAMES_AHEAD_MAX: Final = 1024
"""Notices among them: others want to be served too."""


class SyncResponder(Protocol):
    async def answer_sync(self, peer: NodeId, body: bytes) -> bytes:
        """The reply to one message of a sync. Raises PeerError."""
        ...

    async def store_records(self, body: bytes) -> None:
        """Durable when it returns. Raises PeerError, StoreError."""
        ...


class ReplicaKeeper(Protocol):
    """What peers may ask of this node's replicas. SPEC §11."""

    async def replicate(self, peer: NodeId, blob: Digest, manifest: Digest) -> None:
        """Durable when it returns. Raises EdgedError."""
        ...

    async def confirm(self, blob: Digest) -> bool:
        """Whether it is on disk, and promised to stay for a while. Raises EdgedError."""
        ...


class GatewayServer(Protocol):
    async def serve_connected(self, sock: socket.socket, peer: NodeId, *, refused: bool) -> None:
        """HTTP of an authenticated peer, to its end. Owns `sock`. `refused`: it is only told so."""
        ...


@dataclass(frozen=True, slots=True)
class StreamLimits:
    connections_max: int = 256
    handshakes_max: int = 64
    """One more cuts the oldest: who connects and says nothing crowds out neither peers that are
    authenticated nor, as an honest handshake takes milliseconds, those that are about to be."""
    per_peer_max: int = 16
    """Twice the transfers a node runs at once, plus syncs."""
    gateway_connections_max: int = 512
    """HTTP connections, which count here only; the gateway refuses half of them, and says so."""
    gateway_per_peer_max: int = 80
    """More are refused likewise."""
    handshake_timeout_s: float = 5.0
    idle_timeout_s: float = 60.0
    frame_timeout_s: float = 30.0
    """The largest request, a 1 MiB sync, at 300 kbit/s."""
    write_timeout_s: float = 60.0
    """For one reply to be taken, as protocol.exchange gives a holder to send it."""
    drain_timeout_s: float = 5.0


@contextmanager
def _counted(counts: Counter[NodeId], peer: NodeId) -> Iterator[None]:
    counts[peer] += 1
    try:
        yield
    finally:
        counts[peer] -= 1
        if not counts[peer]:
            del counts[peer]


class StreamServer:
    """Serves until cancelled, or until `stop` and then the replies under way."""

    def __init__(
        self,
        *,
        trust: Trust,
        source: BlobSource,
        deltas: DeltaSource | None = None,
        fetching: Fetching | None = None,
        sync: SyncResponder,
        is_member: Callable[[NodeId], bool] = lambda _: True,
        replicas: ReplicaKeeper | None = None,
        metrics: Metrics,
        log: Log,
        limits: StreamLimits | None = None,
        generation: int = 0,
        known_generation: Callable[[NodeId], int] = lambda _: 0,
        rng: Rng | None = None,
        shaper: Shaper | None = None,
    ) -> None:
        """`fetching`: what this node fetches itself and shares meanwhile; `is_member`: who may use
        the gateway; `generation`: of this process, told to whoever pings, with the one that is
        known of himself; without `replicas` it keeps none for others."""
        self._trust = trust
        self._source = source
        self._uploads = Uploads(source, fetching, metrics, rng or random.SystemRandom())
        self._deltas = deltas
        self._sync = sync
        self._is_member = is_member
        self._gateway: GatewayServer | None = None
        self._replicas = replicas
        self._metrics = metrics
        self._log = log
        self._limits = limits or StreamLimits()
        self._generation = generation
        self._known_generation = known_generation
        self._shaper = shaper
        self._open = 0
        self._handshakes: dict[trio.CancelScope, None] = {}
        self._per_peer: Counter[NodeId] = Counter()
        self._gateway_per_peer: Counter[NodeId] = Counter()
        self._patience = Patience(
            min(
                self._limits.idle_timeout_s,
                self._limits.frame_timeout_s,
                self._limits.write_timeout_s,
            )
        )
        self._stop = trio.Event()
        self._ended = trio.Event()
        self._ended.set()

    async def run(
        self,
        listeners: list[trio.SocketListener],
        *,
        gateway: GatewayServer | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Owns the listeners: they are closed when it ends."""
        self._ended = trio.Event()
        self._gateway = gateway
        try:
            async with trio.open_nursery() as watching:
                watching.start_soon(self._patience.run)
                async with trio.open_nursery() as connections:
                    async with trio.open_nursery() as accepting:
                        serve = partial(trio.serve_listeners, handler_nursery=connections)
                        await accepting.start(serve, self._serve, listeners)
                        task_status.started()
                        await self._stop.wait()
                        accepting.cancel_scope.cancel()
                    limit_s = trio.current_time() + self._limits.drain_timeout_s
                    connections.cancel_scope.deadline = limit_s
                    self._patience.end_waits()
                watching.cancel_scope.cancel()
        finally:
            self._ended.set()

    def is_serving(self, blob: Digest) -> bool:
        return self._uploads.is_serving(blob)

    def moving(self) -> list[Moving]:
        """Uploads under way."""
        return self._uploads.moving()

    def stop(self) -> None:
        """Accept nothing more, finish the replies under way, then `run` returns."""
        self._stop.set()

    async def drained(self) -> bool:
        """After `stop`: waits until `run` has ended, for drain_timeout_s at most. Whether it has;
        if not, the last connections are being cut."""
        with trio.move_on_after(self._limits.drain_timeout_s):
            await self._ended.wait()
        return self._ended.is_set()

    async def _serve(self, transport: trio.SocketStream) -> None:
        limits = self._limits
        async with transport:
            if len(self._handshakes) >= limits.handshakes_max:
                next(iter(self._handshakes)).cancel()
            if self._open >= limits.connections_max:
                self._refuse("crowded", "", None)
                return
            self._open += 1
            try:
                caller = await self._admit(transport)
            finally:
                self._open -= 1
            if caller is not None:
                await self._pass_on(caller)

    async def _admit(self, transport: trio.SocketStream) -> GatewayCaller | None:
        """Serves one connection, but not one to the gateway, which it returns."""
        connection: Connection[Request] | GatewayCaller | None = None
        shaking = trio.move_on_after(self._limits.handshake_timeout_s)
        self._handshakes[shaking] = None
        try:
            with shaking:
                connection = await accept(transport, self._trust, self._shaper)
        except PeerError as error:
            self._refuse("handshake", str(error), None)
            return None
        finally:
            del self._handshakes[shaking]
        if connection is None:
            self._refuse("handshake", "too slow, or crowded out", None)
            return None
        if isinstance(connection, GatewayCaller):
            return connection
        peer = connection.peer
        try:
            with _counted(self._per_peer, peer):
                if self._per_peer[peer] > self._limits.per_peer_max:
                    self._refuse("per-peer", "", peer)
                else:
                    await self._converse(connection)
        except PeerError as error:
            self._refuse("protocol", str(error), peer)
        finally:
            await connection.aclose()
        return None

    async def _pass_on(self, caller: GatewayCaller) -> None:
        """To the gateway, which answers also those that it refuses: a caller must know that its
        request was not delivered."""
        peer, gateway = caller.peer, self._gateway
        crowded = self._gateway_per_peer.total() >= self._limits.gateway_connections_max
        if gateway is None or crowded:
            self._refuse("crowded" if crowded else "no-gateway", "", peer)
            caller.stream.abort()
            return
        with _counted(self._gateway_per_peer, peer):
            refused = ""
            if not self._is_member(peer):
                refused = "no-member"
            elif self._gateway_per_peer[peer] > self._limits.gateway_per_peer_max:
                refused = "per-peer"
            if refused:
                self._refuse(refused, "", peer)
            serve = partial(gateway.serve_connected, peer=peer, refused=bool(refused))
            await bridge(caller.stream, serve)

    async def _converse(self, connection: Connection[Request]) -> None:
        session = self._uploads.begin(connection.peer)
        try:
            with self._patience.watch(connection) as watch:
                look = False
                while not self._stop.is_set():
                    taken = self._take_ahead(connection, session, look=look)
                    if taken:
                        watch.frame_deadline = None
                    look = bool(session.queue)
                    if look:
                        await self._serve_some(connection, session, watch)
                    elif taken == FRAMES_AHEAD_MAX:
                        await trio.lowlevel.checkpoint()
                    elif not await self._more(connection, watch):
                        return
        except RemoteProtocolError as error:
            raise PeerError(f"broke the protocol: {error}") from error
        finally:
            self._uploads.end(session)

    async def _more(self, connection: Connection[Request], watch: Watch) -> bool:
        """Waits for some bytes; False when the peer has nothing more to ask, or the server stops.
        Raises PeerError."""
        now, limits = trio.current_time(), self._limits
        if not connection.mid_frame:
            watch.until(now + limits.idle_timeout_s, waits=True)
        else:
            if watch.frame_deadline is None:
                watch.frame_deadline = now + limits.frame_timeout_s
            watch.until(watch.frame_deadline, waits=True)
        try:
            return await connection.fill()
        except PeerError:
            if self._stop.is_set():
                return False
            if not watch.late:
                raise
            if connection.mid_frame:
                raise PeerError(f"did not finish a frame in {limits.frame_timeout_s:g} s") from None
            return False
        finally:
            watch.rest()

    def _take_ahead(self, connection: Connection[Request], session: Session, *, look: bool) -> int:
        """What else has come: segments are read many at a time, and a notice (Cancel) counts for
        requests that came before it. `look`: time has passed since the last. How many frames."""
        for taken in range(FRAMES_AHEAD_MAX):
            if len(session.queue) >= REQUESTS_AHEAD_MAX or session.body_bytes >= BODIES_AHEAD_MAX:
                return taken
            while (frame := connection.next_frame()) is None:
                if (connection.drained and not look) or not connection.fill_now():
                    return taken
                look = False
            session.add(*frame)
        return FRAMES_AHEAD_MAX

    async def _serve_some(
        self, connection: Connection[Request], session: Session, watch: Watch
    ) -> None:
        request, body = session.queue[0]
        if isinstance(request, GetSegment | GetAny):
            size, parts = await self._uploads.next_segments(session)
        else:
            session.pop()
            reply, answer = await self._reply(session, request, body)
            size, parts = 0, [frame_head(reply, len(answer)), answer]
        begun = trio.current_time()
        watch.until(begun + self._limits.write_timeout_s, waits=False)
        try:
            await connection.send_encoded(parts)
        except PeerError:
            if not watch.late:
                raise
            text = f"took no reply in {self._limits.write_timeout_s:g} s"
            raise PeerError(text) from None
        finally:
            watch.rest()
            self._uploads.sent(session, size, trio.current_time() - begun)

    async def _reply(self, session: Session, request: Other, body: bytes) -> tuple[Reply, bytes]:
        try:
            match request:
                case Ping():
                    known = self._known_generation(session.peer)
                    return Pong(request.id, self._generation, known), b""
                case Sync():
                    return SyncReply(request.id), await self._sync.answer_sync(session.peer, body)
                case GetDelta():
                    return await self._delta(request)
                case GetAttestations():
                    attested = await self._source.attested(request.module, request.key)
                    return AttestationsReply(request.id), attested
                case Records():
                    await self._sync.store_records(body)
                    return RecordsStored(request.id), b""
                case Replicate() | Confirm():
                    return await self._keep(session.peer, request), b""
                case _:
                    return await self._uploads.answer(session, request, body)
        except EdgedError as error:
            code = info_of(error).code
            self._log.debug(
                "stream request refused", peer=session.peer, code=code, detail=str(error)
            )
            return ErrorReply(request.id, code, str(error)[:ERROR_TEXT_MAX]), b""

    async def _delta(self, request: GetDelta) -> tuple[Reply, bytes]:
        """Raises BlobNotFound, Overloaded."""
        if self._deltas is None:
            raise BlobNotFound("this node makes no deltas", digest=request.blob)
        base, size, data = await self._deltas.part(request.blob, request.bases, request.offset)
        self._metrics.served_bytes.inc(len(data))
        return DeltaPart(request.id, base, size), data

    async def _keep(self, peer: NodeId, request: Replicate | Confirm) -> Reply:
        if self._replicas is None:
            raise PeerError("keeps no replicas for others")
        if isinstance(request, Confirm):
            return Confirmed(request.id, await self._replicas.confirm(request.blob))
        await self._replicas.replicate(peer, request.blob, request.manifest)
        return Replicated(request.id)

    def _refuse(self, reason: str, detail: str, peer: NodeId | None) -> None:
        self._metrics.streams_refused.labels(reason).inc()
        self._log.debug("stream refused", reason=reason, detail=detail, peer=peer)
