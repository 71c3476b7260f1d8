"""Hands a peer's HTTP from its TLS connection to the HTTP adapter, which knows sockets only.

Between the two is a pair of connected sockets, whose kernel buffers are all that is held on the
way. Either side's end becomes the other's: a peer that leaves stops its guest, and an answer cut
short ends the stream early, which its framing tells.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from .tls import TlsStream

CHUNK_BYTES: Final = 64 * 1024
FLUSH_TIMEOUT_S: Final = 20.0
"""For the peer to take what the adapter has left behind (as HttpLimits.write_stall_s)."""
LINGER_S: Final = 1.0
_LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


async def bridge(stream: TlsStream, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Until `serve`, which owns the socket it gets, has returned and the peer has its answer."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        try:
            async with trio.open_nursery() as incoming:
                incoming.start_soon(_inward, stream, ours)
                async with trio.open_nursery() as outgoing:
                    outgoing.start_soon(_outward, stream, ours)
                    await serve(theirs)
                    outgoing.cancel_scope.deadline = trio.current_time() + FLUSH_TIMEOUT_S
                incoming.cancel_scope.cancel()
            with trio.move_on_after(LINGER_S):
                await stream.say_goodbye()
                await stream.linger()
        finally:
            stream.abort()


async def _inward(stream: TlsStream, sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the adapter has closed
        while True:
            try:
                data = await stream.receive()
            except _LOST:
                data = memoryview(b"")
            if not data:
                sock.shutdown(socket.SHUT_WR)
                return
            while data:
                try:
                    data = data[sock.send(data) :]
                except BlockingIOError:
                    data = memoryview(bytes(data))  # the stream's buffer is everyone's
                    await trio.lowlevel.wait_writable(sock)


async def _outward(stream: TlsStream, sock: socket.socket) -> None:
    try:
        while True:
            try:
                data = sock.recv(CHUNK_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
                continue
            if not data:
                return
            await stream.send_all((data,))
    except OSError:  # it closed with something unread
        return
    except _LOST:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
