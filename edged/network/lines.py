"""Requests to one peer, one after the other: a connection that is dialled when it is first needed.

A line belongs to one task. After an error it is as good as new: the next request dials again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from protocol.ids import Digest
from protocol.streams import (
    Confirm,
    Confirmed,
    ErrorReply,
    Query,
    Records,
    RecordsStored,
    Replicate,
    Replicated,
    Reply,
)

from ..errors import PeerError, PeerRefused
from ..interfaces import Peer
from ..trust import Trust
from .shaping import Shaper
from .streams import Connection, dial

DIAL_TIMEOUT_S: Final = 3.0


class Line:
    """Implements interfaces.PeerLine."""

    def __init__(self, peer: Peer, connect: Callable[[Peer], Awaitable[Connection[Reply]]]) -> None:
        """`connect` raises PeerError."""
        self._peer = peer
        self._connect = connect
        self._connection: Connection[Reply] | None = None
        self._requests = 0

    async def replicate(self, blob: Digest, manifest: Digest) -> None:
        reply = await self._ask(Replicate(self._requests, blob, manifest))
        if not isinstance(reply, Replicated):
            raise PeerError("answered something else")

    async def store_records(self, bundle: bytes) -> None:
        reply = await self._ask(Records(self._requests), bundle)
        if not isinstance(reply, RecordsStored):
            raise PeerError("answered something else")

    async def confirm(self, blob: Digest) -> bool:
        reply = await self._ask(Confirm(self._requests, blob))
        if not isinstance(reply, Confirmed):
            raise PeerError("answered something else")
        return reply.held

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def _ask(self, request: Query, body: bytes = b"") -> Reply:
        """Raises PeerError; PeerRefused if that is the peer's answer."""
        answered = False
        try:
            if self._connection is None:
                self._connection = await self._dial()
            self._requests += 1
            await self._connection.send(request, body)
            frame = await self._connection.receive()
            if frame is None:
                raise PeerError("closed the connection")
            reply, _ = frame
            if reply.id != request.id:
                raise PeerError("answered another request")
            answered = True
        finally:
            if not answered:  # a late reply would be taken for the next one's
                await self.aclose()
        if isinstance(reply, ErrorReply):
            raise PeerRefused(reply.code, reply.text)
        return reply

    async def _dial(self) -> Connection[Reply]:
        with trio.move_on_after(DIAL_TIMEOUT_S):
            return await self._connect(self._peer)
        raise PeerError(f"no connection in {DIAL_TIMEOUT_S:g} s")


class Lines:
    """Makes them."""

    def __init__(self, trust: Trust, shaper: Shaper | None = None) -> None:
        self._trust = trust
        self._shaper = shaper

    def __call__(self, peer: Peer) -> Line:
        return Line(peer, self._connect)

    async def _connect(self, peer: Peer) -> Connection[Reply]:
        return await dial(
            peer.stream_address, self._trust, expected=peer.node_id, shaper=self._shaper
        )
