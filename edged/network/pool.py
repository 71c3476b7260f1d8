"""Connections to peers that outlive what they were made for: a handshake costs both ends more than
a small blob does.

A connection has one user at a time. Given back, it is kept for a while if all replies have come; a
few small ones that are still due are waited for. Bounds: connections in all and per peer (the
oldest go first), and how long one stays.
"""

from __future__ import annotations

from typing import Final

import trio

from protocol.ids import NodeId
from protocol.streams import Reply

from ..errors import PeerError
from ..interfaces import Peer
from ..trust import Trust
from .shaping import Shaper
from .streams import Connection, dial

IDLE_MAX: Final = 64
IDLE_PER_PEER_MAX: Final = 2
IDLE_S: Final = 30.0
"""Half of what a server grants an idle connection."""
SETTLE_TIMEOUT_S: Final = 2.0
OWED_MAX: Final = 64
TICK_S: Final = 5.0


class ConnectionPool:
    """All state belongs to the node's event loop. Without `run` nothing is kept."""

    def __init__(self, trust: Trust, shaper: Shaper | None = None) -> None:
        self._trust = trust
        self._shaper = shaper
        self._idle: dict[Connection[Reply], float] = {}
        """Since when; oldest first."""
        self._nursery: trio.Nursery | None = None

    @property
    def idle(self) -> int:
        return len(self._idle)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(TICK_S)
                    old_s = trio.current_time() - IDLE_S
                    for connection in [one for one, since in self._idle.items() if since < old_s]:
                        self._forget(connection)
        finally:
            self._nursery = None
            for connection in list(self._idle):
                self._forget(connection)

    async def take(self, peer: Peer) -> Connection[Reply]:
        """One that is there, or a new one. The caller sets the timeout. Raises PeerError."""
        await trio.lowlevel.checkpoint()
        for connection in reversed(list(self._idle)):
            if connection.peer == peer.node_id:
                del self._idle[connection]
                if connection.is_quiet:
                    return connection
                connection.abort()
        return await dial(
            peer.stream_address, self._trust, expected=peer.node_id, shaper=self._shaper
        )

    def give(self, connection: Connection[Reply], *, owed: int) -> None:
        """After `owed` more replies it is good for another user."""
        if self._nursery is None or owed > OWED_MAX:
            connection.abort()
        elif owed:
            self._nursery.start_soon(self._settle, connection, owed)
        else:
            self._keep(connection)

    def drop(self, peer: NodeId) -> None:
        """It is down or has left."""
        for connection in [one for one in self._idle if one.peer == peer]:
            self._forget(connection)

    async def _settle(self, connection: Connection[Reply], owed: int) -> None:
        try:
            with trio.move_on_after(SETTLE_TIMEOUT_S):
                while owed and await connection.receive() is not None:
                    owed -= 1
        except PeerError:
            pass
        finally:
            if owed or self._nursery is None:
                connection.abort()
            else:
                self._keep(connection)

    def _keep(self, connection: Connection[Reply]) -> None:
        if not connection.is_quiet:
            connection.abort()
            return
        self._idle[connection] = trio.current_time()
        same = [one for one in self._idle if one.peer == connection.peer]
        if len(same) > IDLE_PER_PEER_MAX:
            self._forget(same[0])
        elif len(self._idle) > IDLE_MAX:
            self._forget(next(iter(self._idle)))

    def _forget(self, connection: Connection[Reply]) -> None:
        del self._idle[connection]
        connection.abort()
