"""Requests to one peer, one after the other, on a connection that the pool lends when it is first
needed and gets back in the end.

A line belongs to one task. After an error it is as good as new: the next request takes another one.
"""

from __future__ import annotations

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
from .pool import ConnectionPool
from .streams import Connection

DIAL_TIMEOUT_S: Final = 3.0


class Line:
    """Implements interfaces.PeerLine."""

    def __init__(self, peer: Peer, pool: ConnectionPool) -> None:
        self._peer = peer
        self._pool = pool
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
        """Between requests, so that nothing is owed."""
        await trio.lowlevel.checkpoint()
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give(connection, owed=0)

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
            if not answered and self._connection is not None:
                self._connection.abort()  # a late reply would be taken for the next one's
                self._connection = None
        if isinstance(reply, ErrorReply):
            raise PeerRefused(reply.code, reply.text)
        return reply

    async def _dial(self) -> Connection[Reply]:
        with trio.move_on_after(DIAL_TIMEOUT_S):
            return await self._pool.take(self._peer)
        raise PeerError(f"no connection in {DIAL_TIMEOUT_S:g} s")
