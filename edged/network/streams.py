"""Streams to and from peers: TCP, TLS 1.3 with both certificates, frames of protocol.streams.

A connection belongs to one reading and one writing task at most. Who the peer is follows from the
key in its verified certificate. Everything a peer or the network does wrong comes out as PeerError,
after which the connection is good only for `aclose`. SPEC §10.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId
from protocol.member import Address
from protocol.streams import (
    ALPN,
    HTTP_ALPN,
    FrameReader,
    Message,
    Reply,
    Request,
    frame_head,
    reply_reader,
    request_reader,
)

from ..errors import PeerError
from ..trust import Trust, peer_node_id
from .shaping import Shaper
from .tls import Shape, TlsStream

CLOSE_TIMEOUT_S: Final = 1.0
"""For the TLS close_notify; a peer that takes none is cut."""
UNSENT_BYTES_MAX: Final = 1024 * 1024
"""Of requests and notices, beyond what the kernel holds: 90 bytes each."""

M = TypeVar("M", bound=Message)


class Connection(Generic[M]):
    """One authenticated stream that reads messages of kind M."""

    def __init__(self, stream: TlsStream, peer: NodeId, reader: FrameReader[M]) -> None:
        self.peer: Final = peer
        self.heard_at = trio.current_time()
        """When the last bytes came, by trio's clock."""
        self._stream = stream
        self._reader = reader

    @property
    def mid_frame(self) -> bool:
        return self._reader.mid_frame

    @property
    def is_quiet(self) -> bool:
        """Nothing is under way, either way: neither part of a frame nor news, nor its end."""
        try:
            return not (self.mid_frame or self._stream.unsent_bytes or self.fill_now()) and (
                self._stream.is_open
            )
        except PeerError:
            return False

    @property
    def drained(self) -> bool:
        """What was received last was all that had come: `fill_now` at once is no use."""
        return self._stream.drained

    def hold_no_longer(self) -> None:
        """`fill` gets what has come."""
        self._stream.hold_no_longer()

    def interrupt(self) -> None:
        """Who waits for the peer now gets PeerError."""
        self._stream.interrupt()

    def abort(self) -> None:
        """Closes without a goodbye."""
        self._stream.abort()

    async def send(self, message: Message, body: bytes = b"") -> None:
        """Raises PeerError."""
        await self.send_encoded((frame_head(message, len(body)), body))

    def post(self, data: bytes) -> bool:
        """Encoded frames, sent without waiting; whether all of it left. Else `flush` sends the
        rest. Raises PeerError, also when the peer takes nothing any more."""
        try:
            done = self._stream.post(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerError("connection lost while sending", private=why(error)) from error
        if self._stream.unsent_bytes > UNSENT_BYTES_MAX:
            raise PeerError("takes no requests")
        return done

    async def flush(self) -> None:
        """Raises PeerError."""
        try:
            await self._stream.flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerError("connection lost while sending", private=why(error)) from error

    async def send_encoded(self, parts: Sequence[bytes]) -> None:
        """Frames, heads and bodies apart. Raises PeerError."""
        try:
            await self._stream.send_all(parts)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerError("connection lost while sending", private=why(error)) from error

    def next_frame(self) -> tuple[M, bytes] | None:
        """Of what was received already. Raises PeerError."""
        try:
            return self._reader.next_frame()
        except RemoteProtocolError as error:
            raise PeerError(f"broke the protocol: {error}") from error

    def fill_now(self) -> bool:
        """Takes what has come; False: nothing has, or the end, which `fill` then tells. Raises
        PeerError."""
        try:
            data = self._stream.receive_now()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerError("connection lost while receiving", private=why(error)) from error
        if data is None:
            return False
        return self._feed(data)

    async def receive(self) -> tuple[M, bytes] | None:
        """The next message with its body; None when the peer closed between frames.

        Raises PeerError: it broke the protocol, closed within a frame, or is gone."""
        while True:
            frame = self.next_frame()
            if frame is not None:
                await trio.lowlevel.checkpoint()
                return frame
            if not await self.fill():
                return None

    async def fill(self, *, hold: bool = False) -> bool:
        """Waits for some bytes; `hold`: for all of a large body of which a part has come, or for
        `hold_no_longer`. False at the end of the stream. Raises PeerError."""
        try:
            data = await self._stream.receive(due_bytes=self._reader.due_bytes if hold else 0)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerError("connection lost while receiving", private=why(error)) from error
        return self._feed(data)

    def _feed(self, data: memoryview) -> bool:
        if not data:
            if self._reader.mid_frame:
                raise PeerError("closed the connection within a frame")
            return False
        self.heard_at = trio.current_time()
        self._reader.feed(data)
        return True

    async def aclose(self) -> None:
        """Says goodbye if the peer lets us within CLOSE_TIMEOUT_S; never raises for the peer."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT_S) as scope:
            await self._stream.aclose()
        if scope.cancelled_caught:
            self._stream.abort()


async def _handshake(stream: TlsStream, *protocols: str, expected: NodeId | None = None) -> NodeId:
    """Raises PeerError; the stream is then closed."""
    try:
        await stream.handshake()
        peer = _identify(stream, protocols, expected)
        if stream.shaped is not None:
            stream.shaped.identify(peer)
    except (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionResetError) as error:
        stream.abort()
        raise PeerError(f"TLS handshake failed: {why(error)}") from error
    except BaseException:
        stream.abort()
        raise
    else:
        return peer


def _identify(stream: TlsStream, protocols: Sequence[str], expected: NodeId | None) -> NodeId:
    """Raises PeerError."""
    if stream.alpn() not in protocols:
        raise PeerError(f"does not speak {protocols[0]}")
    peer = peer_node_id(stream.peer_certificate())
    if expected not in (None, peer):
        raise PeerError(f"node {peer} answered where {expected} was expected")
    return peer


async def dial(
    address: Address, trust: Trust, *, expected: NodeId | None, shaper: Shaper | None = None
) -> Connection[Reply]:
    """A connection to make requests on. The caller sets the timeout.

    Raises PeerError: unreachable, no common CA or protocol, or not the node `expected`."""
    transport = await _connect(address, shaper)
    return await shake(transport, trust, expected=expected, shaper=shaper, address=address)


async def dial_gateway(
    address: Address, trust: Trust, *, expected: NodeId, shaper: Shaper | None = None
) -> TlsStream:
    """To the gateway of node `expected`. The caller sets the timeout. Raises PeerError."""
    context = trust.gateway_ssl_context()
    transport = await _connect(address, shaper)
    stream = TlsStream(transport, context, shape=_shape(shaper, expected, address))
    await _handshake(stream, HTTP_ALPN, expected=expected)
    return stream


def _shape(
    shaper: Shaper | None, peer: NodeId | None = None, address: Address | None = None
) -> Shape | None:
    return None if shaper is None else partial(shaper.stream, peer=peer, address=address)


async def _connect(address: Address, shaper: Shaper | None) -> trio.SocketStream:
    connect = partial(trio.open_tcp_stream, *address)
    try:
        return await (connect() if shaper is None else shaper.connected(address, connect))
    except (OSError, ValueError, OverflowError) as error:  # a peer told the address
        raise PeerError(
            f"{address[0]}:{address[1]} cannot be reached", private=str(error)
        ) from error


async def shake(
    transport: trio.SocketStream,
    trust: Trust,
    *,
    expected: NodeId | None,
    shaper: Shaper | None = None,
    address: Address | None = None,
) -> Connection[Reply]:
    """The dialling side's handshake over `transport`, which is closed on failure. Raises
    PeerError."""
    shape = _shape(shaper, expected, address)
    stream = TlsStream(transport, trust.client_ssl_context(), shape=shape)
    peer = await _handshake(stream, ALPN, expected=expected)
    return Connection(stream, peer, reply_reader())


class GatewayCaller(NamedTuple):
    """An authenticated peer that speaks HTTP to this node's gateway."""

    peer: NodeId
    stream: TlsStream


async def accept(
    transport: trio.SocketStream, trust: Trust, shaper: Shaper | None = None
) -> Connection[Request] | GatewayCaller:
    """The other end of dial and dial_gateway. The caller sets the timeout. Raises PeerError."""
    context = trust.server_ssl_context()
    stream = TlsStream(transport, context, server_side=True, shape=_shape(shaper))
    peer = await _handshake(stream, ALPN, HTTP_ALPN)
    if stream.alpn() == HTTP_ALPN:
        return GatewayCaller(peer, stream)
    return Connection(stream, peer, request_reader())


def why(error: BaseException) -> str:
    """What OpenSSL or the socket said, beneath trio's wrapper."""
    return str(error.__cause__ or error) or type(error).__name__
