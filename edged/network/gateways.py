"""Connections to peers' gateways, for requests that this node passes on. SPEC §12.

A connection carries one exchange at a time and is kept warm after it, so that the next one costs a
round trip instead of three. Bounds: exchanges in all and per peer; warm connections in all and per
peer, the oldest go first; how long one stays. What a peer that is down had is cut at once. All
state belongs to the node's event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec
import trio

from protocol.ids import NodeId

from ..errors import PeerError
from ..interfaces import Peer
from ..telemetry import Log
from ..trust import Trust
from .shaping import Shaper
from .streams import dial_gateway, why
from .tls import TlsStream

TICK_S: Final = 10.0
FIRST_TICK_S: Final = 0.25
"""After a change; then twice as long each time: who is ready shows some time after what is new."""
_LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class GatewayPoolLimits(msgspec.Struct, frozen=True, kw_only=True):
    in_flight_max: int = 256
    per_peer_max: int = 64
    """Below what a peer takes of one node (StreamLimits.gateway_per_peer_max)."""
    idle_max: int = 32
    idle_per_peer_max: int = 8
    idle_s: float = 60.0
    """Below what a peer grants an idle connection, or a request may cross its closing."""
    connect_timeout_s: float = 2.0
    """TCP and TLS; a SYN that is lost is sent again after 1 s (RFC 6298 §2.1)."""


class PooledStream:
    """Implements interfaces.GatewayStream."""

    def __init__(self, peer: NodeId, tls: TlsStream) -> None:
        self.peer: Final = peer
        self.idle_since = trio.current_time()
        self.kept = False
        self._tls = tls
        self._act: Callable[[], None] | None = None

    async def send_all(self, parts: Sequence[bytes]) -> None:
        try:
            await self._tls.send_all(parts)
        except _LOST as error:
            raise PeerError("connection lost while sending", private=why(error)) from error

    async def receive(self) -> bytes:
        try:
            return bytes(await self._tls.receive())
        except _LOST as error:
            raise PeerError("connection lost while receiving", private=why(error)) from error

    def on_doubt(self, act: Callable[[], None] | None) -> None:
        self._act = act

    def doubt(self) -> None:
        act, self._act = self._act, None
        if act is not None:
            act()

    def keep(self) -> None:
        self.kept = True

    def is_silent(self) -> bool:
        """Whether nothing has come; else an idle connection is of no more use."""
        with suppress(*_LOST):
            return self._tls.receive_now() is None
        return False

    def abort(self) -> None:
        self._tls.abort()


class GatewayPool:
    """Implements interfaces.PeerGateways."""

    def __init__(
        self,
        *,
        trust: Trust,
        log: Log,
        warm: Callable[[], Sequence[Peer]] = lambda: (),
        limits: GatewayPoolLimits | None = None,
        shaper: Shaper | None = None,
    ) -> None:
        """`warm`: peers to which there should be a connection before it is needed; bounded."""
        self._trust = trust
        self._shaper = shaper
        self._log = log
        self._warm = warm
        self._limits = limits or GatewayPoolLimits()
        self._idle: dict[PooledStream, None] = {}
        """Oldest first."""
        self._busy: dict[PooledStream, None] = {}
        self._in_flight: Counter[NodeId] = Counter()
        self._closed = False
        self._changed = trio.Event()

    @property
    def idle(self) -> int:
        return len(self._idle)

    def has_room(self, peer: Peer) -> bool:
        limits = self._limits
        return (
            self._in_flight.total() < limits.in_flight_max
            and self._in_flight[peer.node_id] < limits.per_peer_max
        )

    @asynccontextmanager
    async def stream(self, peer: Peer) -> AsyncIterator[PooledStream]:
        if self._closed or not self.has_room(peer):
            raise PeerError(f"too many requests are under way to {peer.name}")
        self._in_flight[peer.node_id] += 1
        try:
            stream = self._take(peer.node_id) or await self._dial(peer)
            self._busy[stream] = None
            try:
                yield stream
            finally:
                del self._busy[stream]
                self._put(stream)
        finally:
            self._in_flight[peer.node_id] -= 1
            if not self._in_flight[peer.node_id]:
                del self._in_flight[peer.node_id]

    def drop(self, peer: NodeId, *, down: bool) -> None:
        """`peer` has left; or is `down`: then whoever waits for it gets PeerError. One that left
        tells itself what it did not serve."""
        for stream in list(self._idle):
            if stream.peer == peer:
                self._forget(stream)
        if down:
            for stream in self._busy:
                if stream.peer == peer:
                    stream.abort()

    def look_again(self) -> None:
        """Other peers may be worth a warm connection now."""
        self._changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps `warm` peers connected and forgets what is old."""
        task_status.started()
        delay_s = TICK_S
        try:
            while True:
                with trio.move_on_after(delay_s):
                    await self._changed.wait()
                    self._changed = trio.Event()
                    delay_s = FIRST_TICK_S
                    continue
                delay_s = min(delay_s * 2, TICK_S)
                self._forget_old()
                for peer in self._warm():
                    if not any(stream.peer == peer.node_id for stream in self._idle):
                        await self._connect_ahead(peer)
        finally:
            self._closed = True
            for stream in self._idle:
                stream.abort()
            self._idle.clear()

    def doubt(self, peer: NodeId) -> None:
        """`peer` is suspect: whoever can do without it need not wait until it is down."""
        for stream in [each for each in self._busy if each.peer == peer]:
            stream.doubt()

    async def _connect_ahead(self, peer: Peer) -> None:
        try:
            stream = await self._dial(peer)
        except PeerError as error:
            self._log.debug("gateway of a peer not reached", peer=peer.name, why=str(error))
        else:
            stream.keep()
            self._put(stream)

    async def _dial(self, peer: Peer) -> PooledStream:
        timeout_s = self._limits.connect_timeout_s
        with trio.move_on_after(timeout_s):
            tls = await dial_gateway(
                peer.stream_address, self._trust, expected=peer.node_id, shaper=self._shaper
            )
            return PooledStream(peer.node_id, tls)
        raise PeerError(f"{peer.name} took no connection in {timeout_s:g} s")

    def _take(self, peer: NodeId) -> PooledStream | None:
        """The newest warm one that still stands."""
        for stream in reversed([each for each in self._idle if each.peer == peer]):
            del self._idle[stream]
            if stream.is_silent():
                stream.kept = False
                return stream
            stream.abort()
        return None

    def _put(self, stream: PooledStream) -> None:
        if self._closed or not stream.kept:
            stream.abort()
            return
        limits = self._limits
        stream.idle_since = trio.current_time()
        self._idle[stream] = None
        same = [each for each in self._idle if each.peer == stream.peer]
        if len(same) > limits.idle_per_peer_max:
            self._forget(same[0])
        elif len(self._idle) > limits.idle_max:
            self._forget(next(iter(self._idle)))

    def _forget_old(self) -> None:
        before = trio.current_time() - self._limits.idle_s
        for stream in list(self._idle):
            if stream.idle_since < before or not stream.is_silent():
                self._forget(stream)

    def _forget(self, stream: PooledStream) -> None:
        del self._idle[stream]
        stream.abort()
