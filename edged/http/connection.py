"""One client connection: reading heads, writing bytes, deadlines, keep-alive, closing.

hypercorn's connection class with its innards replaced (pinned version; hypercorn/trio/tcp_server.py
says what is expected of it). Invariants: one task per connection runs everything, the application
included; a request costs no task, timer or cancel scope, as deadlines are plain numbers that the
listener's reaper looks at and enforces by waking the waiting socket (`nudge`). Nothing a peer sends
raises out of `run`. Every close that may have unread input lingers, so that the peer gets its
answer instead of a reset.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import trio
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.utils import parse_socket_addr

from edged.errors import (
    BadRequest,
    Draining,
    EdgedError,
    HeadersTooLarge,
    Overloaded,
    RequestTimeout,
    info_of,
)

from .exchange import Exchange
from .head import END, Head, check_first_byte, parse_head
from .response import problem_response
from .wire import (
    JOIN_BYTES_MAX,
    RECV_BODY_BYTES,
    RECV_HEAD_BYTES,
    ClientGone,
    ReadTimeout,
    Woken,
)

if TYPE_CHECKING:
    from .server import Shared

_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_CR: Final = 0x0D
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Phase = Literal["idle", "head", "request", "linger"]


class Connection(TCPServer):
    """Runs until the connection is closed; `refused` ones only get an answer."""

    def __init__(
        self,
        shared: Shared,
        sock: socket.socket,
        stream: trio.SocketStream,
        *,
        refused: bool,
        peer: str | None = None,
    ) -> None:
        # hypercorn's annotation knows TLS streams only; its code takes both.
        super().__init__(
            shared.wrapper, shared.config, shared.context, shared.state, cast(Any, stream)
        )
        self.shared = shared
        self.sock = sock
        self.refused = refused
        self.peer = peer
        """Node id of whoever is at the other end, if it has been authenticated."""
        self.buffer = b""
        """Received and not yet used."""
        self.phase: Phase = "idle"
        self.read_deadline = inf
        self.write_deadline = inf
        self.waiting_since = trio.current_time()
        """Idle, or within a head, since then."""
        self.gives_way = False
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None
        self._unsent = b""
        self._exchange: Exchange | None = None
        self._served = False
        self._aborted = False
        self._draining = False
        self._waited = True
        """Others had a turn since the present request began."""
        self._slack_s = shared.limits.write_stall_s
        """How much longer the client may be slower with its answer than the minimum rate."""
        self._write_cut = False
        self._head_at = self.waiting_since

    # ------------------------------------------------------------ life
    async def run(self) -> None:
        shared = self.shared
        try:
            self.client = parse_socket_addr(self.sock.family, self.sock.getpeername())
            self.server = parse_socket_addr(self.sock.family, self.sock.getsockname())
            if self.refused:
                shared.hooks.rejected("connections")
                await self.write(self._unserved(Overloaded("too many connections")))
                await self._linger()
            else:
                await self._requests()
        except (OSError, trio.ClosedResourceError):
            shared.hooks.rejected("client-gone")
        except Exception:
            # One connection's bug must not end the others.
            shared.log.error("http.bug", client=self.client, exc_info=True)
        finally:
            self.stream.socket.close()

    async def _requests(self) -> None:
        while True:
            try:
                head = await self._read_head()
            except EdgedError as error:
                self.shared.hooks.rejected(info_of(error).code)
                await self.answer_error(error)
                await self._linger()
                return
            if head is None:
                return
            self.phase = "request"
            self._head_at = trio.current_time()
            self._slack_s = self.shared.limits.write_stall_s
            self.shared.in_flight += 1
            self.shared.requests += 1
            exchange = self._exchange = Exchange(self, head)
            try:
                keep = await exchange.run()
            finally:
                self.shared.in_flight -= 1
                self._exchange = None
            if not keep or self._aborted:
                await self._close_gently(unread=exchange.unread)
                return
            if self.buffer or not self._waited:
                # A client whose next request is always here takes its turn with the others.
                await trio.lowlevel.checkpoint()
            self._waited = False
            self.phase = "idle"

    # ------------------------------------------------------------ reading
    async def _read_head(self) -> Head | None:
        """The next request's head, or None: close. Raises BadRequest, HeadersTooLarge,
        PayloadTooLarge, RequestTimeout."""
        limits = self.shared.limits
        searched = 0
        blank = False
        self.waiting_since = trio.current_time()
        self.read_deadline = self.waiting_since + (
            limits.idle_timeout_s if self._served else limits.header_timeout_s
        )
        self._served = True
        while True:
            buffer = self.buffer
            if buffer and buffer[0] == _CR and not blank:
                # One empty line is forgiven (RFC 9112 §2.2): old clients end a body with it.
                blank = buffer.startswith(b"\r\n")
                if blank:
                    buffer = self.buffer = buffer[2:]
            if buffer:
                end = buffer.find(END, searched, limits.header_bytes_max + len(END))
                if end >= 0:
                    self.buffer = buffer[end + 4 :]
                    self.read_deadline = inf
                    return parse_head(buffer[: end + 4], limits)
                if blank or buffer != b"\r":
                    self._check_partial(buffer, searched)
                if self.phase == "idle":
                    self.phase = "head"
                    self._head_at = self.waiting_since = trio.current_time()
                    self.read_deadline = self._head_at + limits.header_timeout_s
                elif searched:
                    await trio.lowlevel.checkpoint()
                searched = max(len(buffer) - 3, 0)
            try:
                data = await self.receive_some(RECV_HEAD_BYTES)
            except ReadTimeout:
                if self.phase == "idle":
                    self.shared.hooks.rejected("idle")
                    return None
                raise RequestTimeout("the request's headers did not come in time") from None
            except Woken:
                if self._draining and self.shared.limits.says_farewell:
                    self.write_now(self._unserved(Draining("this node is shutting down")))
                return None
            if not data or self.gives_way:
                return None
            self.buffer = buffer + data if buffer else data

    def _check_partial(self, buffer: bytes, searched: int) -> None:
        """Refuses what no further bytes can turn into a request; `searched`: where the search for
        the head's end began."""
        check_first_byte(buffer)
        limit = self.shared.limits.header_bytes_max
        if len(buffer) > limit:
            raise HeadersTooLarge(f"request line and headers are over {limit} bytes")
        if _BARE_LF.search(buffer, searched) is not None:
            raise BadRequest("a line ends in a bare LF")

    async def receive_some(self, size_bytes: int) -> bytes:
        """Up to `size_bytes`; b"" at the end of the stream.

        Raises OSError, ReadTimeout (at `read_deadline`), Woken (see there)."""
        while True:
            try:
                return self.sock.recv(size_bytes)
            except BlockingIOError:
                pass
            if self.gives_way or (self._draining and self.phase == "idle"):
                raise Woken
            self._waited = True
            try:
                await trio.lowlevel.wait_readable(self.sock)
            except trio.ClosedResourceError:
                if trio.current_time() >= self.read_deadline:
                    raise ReadTimeout from None

    @property
    def spare(self) -> bool:
        """It waits for a request of which at most a part has come, and nothing is unread."""
        if self.refused or self.gives_way:
            return False
        if self.phase == "idle":
            if self.buffer:
                return False
        elif self.phase != "head":
            return False
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def give_way(self) -> None:
        """Closes a `spare` connection: another is worth more."""
        self.gives_way = True
        self.shared.hooks.rejected("gave-way")
        self.nudge()

    def nudge(self) -> None:
        """Makes the task look at its deadlines (and at draining) now."""
        trio.lowlevel.notify_closing(self.sock)

    def drain(self) -> None:
        """Closes the connection if it is idle; else it ends with its present request."""
        self._draining = True
        if self.phase == "idle":
            self.nudge()

    def interrupt(self) -> bool:
        """Tells the running handler, if there is one, that it will be cancelled."""
        if self._exchange is None:
            return False
        self._exchange.interrupt()
        return True

    # ------------------------------------------------------------ writing
    def write_now(self, data: bytes, flags: int = 0) -> None:
        """Sends what goes without waiting; the next `write` sends the rest. Raises ClientGone."""
        data = self._unsent + data
        try:
            sent = self.sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ClientGone("the client is gone") from error
        self._unsent = data[sent:]

    async def write(self, data: bytes) -> None:
        """Raises ClientGone, also for a client that takes its answer too slowly, see HttpLimits."""
        if self._unsent:
            data = self._unsent + data
            self._unsent = b""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ClientGone("the client is gone") from error
        if sent < len(data):
            await self._write_rest(data, sent)

    async def write_answer(self, head: bytes, body: bytes) -> None:
        """As `write`."""
        if len(body) <= JOIN_BYTES_MAX:
            await self.write(head + body)
        else:
            self.write_now(head, socket.MSG_MORE)
            await self.write(body)

    async def _write_rest(self, data: bytes, sent: int) -> None:
        limits = self.shared.limits
        unsent = self.shared.unsent
        rest = memoryview(data)[sent:]
        began = trio.current_time()
        self.write_deadline = began + self._slack_s
        if not unsent.hold(self, len(data)):
            raise self._too_slow("unsent-bytes")
        try:
            while rest:
                sent = 0
                with contextlib.suppress(BlockingIOError, trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self.sock)
                    sent = self.sock.send(rest)
                rest = rest[sent:]
                now = trio.current_time()
                # A leaky bucket: waiting empties it, bytes fill it at the minimum rate.
                slack_s = self._slack_s - (now - began) + sent / limits.write_bytes_per_s_min
                self._slack_s = min(slack_s, limits.write_stall_s)
                began = now
                self.write_deadline = now + self._slack_s
                if self._write_cut:
                    raise self._too_slow("unsent-bytes")
                if self._slack_s <= 0:
                    raise self._too_slow("write-stall")
        except ClientGone:
            raise
        except OSError as error:
            raise ClientGone("the client is gone") from error
        finally:
            unsent.release(self)
            self.write_deadline = inf

    def _too_slow(self, reason: str) -> ClientGone:
        self.shared.hooks.rejected(reason)
        self.reset_on_close()
        return ClientGone("the client reads too slowly")

    def cut_write(self) -> None:
        """Ends the write that waits now: others need the memory."""
        self._write_cut = True
        self.nudge()

    async def answer_error(self, error: EdgedError, *, method: str = "GET") -> None:
        """Answers in the application's place; the connection is to be closed after it."""
        await self.write(self._error_bytes(error, method))

    def answer_cut(self, method: str) -> None:
        """The drain's deadline came before the application's answer: says so if it can."""
        error = Draining("this node shut down before the answer was ready")
        with contextlib.suppress(ClientGone):
            self.write_now(self._error_bytes(error, method))

    def turn_away(self) -> None:
        """Instead of `run`, and at once."""
        with contextlib.suppress(ClientGone):
            self.write_now(self._unserved(Draining("this node is shutting down")))
        self.stream.socket.close()

    def _unserved(self, error: EdgedError) -> bytes:
        return self._error_bytes(error, "GET", self.shared.hooks.unserved_headers)

    def _error_bytes(
        self, error: EdgedError, method: str, more: tuple[tuple[bytes, bytes], ...] = ()
    ) -> bytes:
        total_ms = (trio.current_time() - self._head_at) * 1000
        status, headers, body = problem_response(
            error,
            extra_headers=(
                *self.shared.hooks.headers,
                *more,
                (b"server-timing", b"total;dur=%.3f" % total_ms),
            ),
        )
        head, _, _ = self.shared.encoder.head(
            method=method,
            version="1.1",
            status=status,
            headers=headers,
            whole_bytes=len(body),
            close=True,
        )
        return head if method == "HEAD" else head + body

    # ------------------------------------------------------------ closing
    def reset_on_close(self) -> None:
        """Close by reset, not in good order: what the client never read is dropped from the
        kernel's buffers, and an answer cut short cannot look complete."""
        self._aborted = True
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    async def _close_gently(self, *, unread: bool) -> None:
        if self._aborted:
            return
        if not (unread or self.buffer):
            try:
                if not self.sock.recv(1, socket.MSG_PEEK):
                    return
            except BlockingIOError:
                return
        await self._linger()

    async def _linger(self) -> None:
        """Says that no more comes and throws away what the client still sends, bounded."""
        limits = self.shared.limits
        self.phase = "linger"
        self.buffer = b""
        self.read_deadline = trio.current_time() + limits.linger_s
        left = limits.linger_bytes_max
        self.sock.shutdown(socket.SHUT_WR)
        while left > 0 and trio.current_time() < self.read_deadline:
            try:
                data = await self.receive_some(RECV_BODY_BYTES)
            except ReadTimeout:
                return
            if not data:
                return
            left -= len(data)
            await trio.lowlevel.checkpoint()
