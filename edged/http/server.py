"""A listener: accepts, counts and reaps connections, and drains without losing a request.

`serve` runs an ASGI 3 application on bound sockets until it is drained or cancelled. hypercorn
gives the connection contract and the lifespan protocol; its worker is not used, since its shutdown
waits for shielded writes and its accept loop takes one connection per pass (p99 509 ms against
55 ms at 64 connections, FACTS §6). One `Shared` per listener, nothing global.

Drain, in this order: newcomers are ignored, what the kernel has is accepted; every answer says
`connection: close`; idle connections get a grace time for a request that is on its way, then close;
at the deadline what still runs is cancelled and told so with a 503.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Any, Final, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError

from edged.errors import ConfigError, EdgedError
from edged.telemetry import Log

from .connection import Connection
from .limits import HttpHooks, HttpLimits, HttpStatistics
from .response import Encoder
from .unsent import UnsentBudget
from .watch import HangupWatcher

_RETURNED: Final = (trio.ClosedResourceError, trio.BrokenResourceError)
"""From hypercorn's lifespan when the application's handler is over: ASGI then goes on without."""

AsgiApp = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Any]], Any]

BACKLOG: Final = 1024
ACCEPT_BATCH: Final = 64
REFUSING_MAX: Final = 64
"""Connections over the limit that are being told so; more are closed without a word."""
ACCEPT_PAUSE_S: Final = 0.1
"""Out of descriptors: as trio's serve_listeners does."""
LAST_ACCEPT_S: Final = 0.01
"""Between turning newcomers away and the last look: a handshake under way ends within it."""
_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; not in Python's socket module
_INSTRUCTION: Final = struct.Struct("=HBBI")
_DROP_SYN: Final = (
    (0x30, 0, 0, 13),  # load the byte of TCP flags
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # keep
)
"""Classic BPF over the TCP header."""
_NO_RESOURCES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))


def bind_tcp(host: str, port: int, *, key: str = "bind") -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError naming `key`."""
    try:
        info = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        sock = socket.socket(info[0], socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"{key} = {host}:{port}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(info[4])
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"{key} = {host}:{port}: {error.strerror}") from error
    return sock


def turn_away_newcomers(sock: socket.socket) -> None:
    """For a listener that nobody shares (duplicates of the descriptor are the same listener).

    Makes the kernel ignore further connection attempts, so that what it has accepted for this
    listener can be taken before the listener closes: closing resets all that still waits, and
    under load some always came since the last look. An ignored client tries again within about
    a second, and is refused then. Where the kernel knows no such filter nothing changes."""
    program = b"".join(_INSTRUCTION.pack(*each) for each in _DROP_SYN)
    held = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(held))
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


class Shared:
    """What a listener's connections share. Changed in the event loop only."""

    def __init__(self, app: AsgiApp, limits: HttpLimits, hooks: HttpHooks, log: Log) -> None:
        self.app = app
        self.limits = limits
        self.hooks = hooks
        self.log = log
        self.encoder = Encoder(hooks.wall_s)
        self.watcher = HangupWatcher()
        self.unsent = UnsentBudget(limits.unsent_bytes_max)
        self.wrapper = ASGIWrapper(cast(Any, app))
        self.config = Config()
        self.config.errorlog = None
        self.context = WorkerContext(None)
        self.state: dict[str, Any] = {}
        self.connections: set[Connection] = set()
        self.refusing = 0
        self.giving_way = 0
        self.no_spare_until = -inf
        """No connection has waited for long enough to give way before."""
        self.accepted = 0
        self.requests = 0
        self.in_flight = 0
        self.cut = 0
        self.draining = False


class HttpServer:
    """A running listener, as its owner sees it."""

    def __init__(
        self, shared: Shared, addresses: tuple[tuple[str, int], ...], *, alone: bool
    ) -> None:
        self._shared = shared
        self._alone = alone
        self.addresses = addresses
        """(host, port) of each socket, with the real port where 0 was asked for."""
        self._stop = trio.Event()
        self._ended = trio.Event()
        self._arrived = trio.Event()
        """The reaper has connections to look at."""
        self._empty = trio.Event()
        """Draining, and the last connection has closed."""
        self._drain_deadline = inf

    @property
    def port(self) -> int:
        return self.addresses[0][1]

    def statistics(self) -> HttpStatistics:
        shared = self._shared
        return HttpStatistics(
            connections=len(shared.connections),
            in_flight=shared.in_flight,
            accepted=shared.accepted,
            requests=shared.requests,
            unsent_bytes=shared.unsent.bytes,
            draining=shared.draining,
        )

    async def drain(self, deadline: float) -> int:
        """Ends the listener; `deadline` is an instant of trio's clock. Returns how many requests
        were cut at the deadline: 0 is a drain that lost nothing."""
        self._drain_deadline = min(self._drain_deadline, deadline)
        self._shared.draining = True
        self._stop.set()
        await self._ended.wait()
        return self._shared.cut

    async def serve_connected(
        self, sock: socket.socket, peer: str, *, refused: bool = False
    ) -> None:
        """Serves a connection that others have accepted and authenticated, to its end. Owns `sock`
        from now on. `refused`: it only gets an answer that says so, as does one over the limit, and
        one that comes while the listener drains or after."""
        shared = self._shared
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        refused = refused or shared.draining or self._full()
        connection = Connection(shared, sock, stream, refused=refused, peer=peer)
        if self._ended.is_set() or shared.refusing >= REFUSING_MAX:
            connection.turn_away()
        else:
            await self._handle(self._count(connection))

    # ------------------------------------------------------------ internals of serve
    async def run(
        self, sockets: Sequence[socket.socket], task_status: trio.TaskStatus[HttpServer]
    ) -> None:
        shared = self._shared
        try:
            async with trio.open_nursery() as housekeeping:
                housekeeping.start_soon(shared.watcher.run)
                housekeeping.start_soon(self._reap)
                async with trio.open_nursery() as connections:
                    async with trio.open_nursery() as acceptors:
                        for sock in sockets:
                            acceptors.start_soon(self._accept, sock, connections)
                        task_status.started(self)
                        await self._stop.wait()
                        acceptors.cancel_scope.cancel()
                    if self._alone:
                        for sock in sockets:
                            turn_away_newcomers(sock)
                        await trio.sleep(LAST_ACCEPT_S)
                    for sock in sockets:
                        self._accept_waiting(sock, connections, at_most=2 * BACKLOG)
                        sock.close()
                    await self._finish()
                    connections.cancel_scope.cancel()
                housekeeping.cancel_scope.cancel()
        finally:
            self._ended.set()

    async def _accept(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            if not self._accept_waiting(sock, nursery, at_most=ACCEPT_BATCH):
                self._shared.log.warning("http.accept", reason="out of descriptors or memory")
                await trio.sleep(ACCEPT_PAUSE_S)

    def _accept_waiting(self, sock: socket.socket, nursery: trio.Nursery, *, at_most: int) -> bool:
        """Takes what the kernel has; False: it could not for want of descriptors or memory."""
        for _ in range(at_most):
            try:
                client, _ = sock.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in _NO_RESOURCES:
                    return False
                continue  # that client gave up while it waited
            self._admit(client, nursery)
        return True

    def _admit(self, client: socket.socket, nursery: trio.Nursery) -> None:
        shared = self._shared
        shared.accepted += 1
        refused = self._full() and not self._make_room()
        if refused and shared.refusing >= REFUSING_MAX:
            shared.hooks.rejected("connections")
            client.close()
            return
        try:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        except OSError:
            client.close()
            return
        connection = Connection(shared, client, stream, refused=refused)
        nursery.start_soon(self._handle, self._count(connection))

    def _count(self, connection: Connection) -> Connection:
        shared = self._shared
        shared.connections.add(connection)
        shared.refusing += connection.refused
        self._arrived.set()
        return connection

    def _full(self) -> bool:
        shared = self._shared
        admitted = len(shared.connections) - shared.refusing - shared.giving_way
        return admitted >= shared.limits.connections_max

    def _make_room(self) -> bool:
        """Closes the connection that has waited longest for its request, if any has for long
        enough. While none has, this costs nothing."""
        shared = self._shared
        after_s = shared.limits.give_way_after_s
        now = trio.current_time()
        if shared.draining or now < shared.no_spare_until:
            return False
        waiting = [each for each in shared.connections if each.phase in ("idle", "head")]
        waiting.sort(key=lambda each: each.waiting_since)
        for connection in waiting:
            if connection.waiting_since > now - after_s:
                break
            if connection.spare:
                shared.giving_way += 1
                connection.give_way()
                return True
        fresh = (each.waiting_since for each in waiting if each.waiting_since > now - after_s)
        shared.no_spare_until = min(fresh, default=now) + after_s
        return False

    async def _handle(self, connection: Connection) -> None:
        shared = self._shared
        try:
            await connection.run()
        finally:
            shared.connections.discard(connection)
            shared.refusing -= connection.refused
            shared.giving_way -= connection.gives_way
            if shared.draining and not shared.connections:
                self._empty.set()

    async def _reap(self) -> None:
        """Enforces every connection's deadlines: one timer for all of them, none without any."""
        shared = self._shared
        tick_s = shared.limits.tick_s
        try:
            while True:
                if not shared.connections:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                await trio.sleep(tick_s)
                now = trio.current_time()
                for connection in shared.connections:
                    if connection.read_deadline <= now or connection.write_deadline <= now:
                        connection.nudge()
        finally:
            # Cancelled without a drain: handlers that wait for threads hear of it only so.
            for connection in shared.connections:
                connection.interrupt()

    async def _finish(self) -> None:
        """Until all connections have closed, or the drain's deadline."""
        shared = self._shared
        if not shared.connections:
            return
        self._empty = trio.Event()  # it was empty for a moment, maybe, before the last accept
        with trio.move_on_at(self._drain_deadline):
            with trio.move_on_after(shared.limits.drain_grace_s):
                await self._empty.wait()
            for connection in shared.connections:
                connection.drain()
            await self._empty.wait()
        for connection in shared.connections:
            shared.cut += connection.interrupt()


async def serve(
    app: AsgiApp,
    sockets: Sequence[socket.socket],
    limits: HttpLimits,
    *,
    log: Log,
    hooks: HttpHooks | None = None,
    shared_sockets: bool = False,
    task_status: trio.TaskStatus[HttpServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until `drain` (of the server that `task_status` gets) has ended, or cancelled.

    Owns `sockets` (see bind_tcp) from now on; `shared_sockets`: others, who serve on, have
    duplicates of them. Raises EdgedError if the application's lifespan says
    that it cannot start."""
    shared = Shared(app, limits, hooks or HttpHooks(), log)
    addresses = tuple(cast(tuple[str, int], sock.getsockname()[:2]) for sock in sockets)
    server = HttpServer(shared, addresses, alone=not shared_sockets)
    for sock in sockets:
        sock.setblocking(False)
    lifespan = Lifespan(cast(Any, shared.wrapper), shared.config, cast(Any, shared.state))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            with contextlib.suppress(*_RETURNED):
                await lifespan.wait_for_startup()
            await server.run(sockets, task_status)
            with contextlib.suppress(*_RETURNED):
                await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failed, others = group.split((LifespanFailureError, LifespanTimeoutError))
        if failed is None or others is not None:
            raise
        raise EdgedError(f"the application's lifespan failed: {_first(failed)}") from group
    finally:
        for sock in sockets:
            sock.close()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
