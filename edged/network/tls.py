"""TLS over one TCP connection, made for bulk: many records per system call and per scheduler pass.

trio.SSLStream hands out at most one record (16 KiB) per pass: 40 to 100 MB per CPU second of both
ends with verification. Here a pass takes all that the kernel has, up to RECEIVE_BYTES, and a send
goes out in SEND_BYTES pieces; `post` and `receive_now` need no pass at all, `receive` and
`send_all` one when the socket makes them wait, or in PROMPT_MAX times. At most one task reads and
one writes at a time.

The end of the stream without TLS's goodbye counts as its end: frames have lengths, so nothing can
be cut off unnoticed (as trio's `https_compatible`).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final, cast

import trio

from .shapedstreams import ShapedStream

RECEIVE_BYTES: Final = 256 * 1024
"""Of ciphertext per pass: a segment of the largest usual size."""
SEND_BYTES: Final = 256 * 1024
"""Encrypted ahead of the socket."""
UNIT_BYTES: Final = 20 * 1024
"""The most that the kernel hands on as one. Its own 64 KiB do not fit a token bucket of that size
(`tc`'s usual burst), which cuts them to packets, and each of those costs every queue, bridge and
namespace on the way, the receiver and an acknowledgement: a third of all CPU of nine nodes on one
machine. Units of eight senders overflow the 50 ms queue of a 25 Mbit/s link the more often the
larger they are: 1 to 2 % was sent again with 20 KiB, 4 to 9 % with 60.
"""
FAST_BYTES_S: Final = 40_000_000
"""A stream that goes so fast is left to the kernel's sizes: there units only cost the sender, a
seventh of what a fetch over loopback takes."""
PACE_BYTES: Final = 1024 * 1024
"""How fast it goes is looked at after so many."""
UNSENT_BYTES: Final = 64 * 1024
"""In the kernel before it says the socket is full: what is written later need not wait for more."""
PROMPT_MAX: Final = 8
"""Receives and sends in a row before other tasks run: a pass costs as much as a request."""
_RECORD_BYTES: Final = 16 * 1024
_RECORD_OVERHEAD: Final = 22
"""TLS 1.3 with any of its ciphers: header, content type, tag."""
HOLD_BYTES_MIN: Final = 8 * 1024
"""With less to come, the kernel wakes for whatever there is."""
_shared: Final = trio.lowlevel.RunVar[tuple[memoryview, memoryview]]("edged-tls-buffers")
"""Ciphertext and plaintext of the stream that reads right now: nothing of either outlives a step of
one task, and half a MiB for each connection would outgrow all else that a node keeps."""
Shape = Callable[[socket.socket, Callable[[], None]], ShapedStream]
"""Of a socket, and what resets the stream."""
_LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class TlsStream:
    def __init__(
        self,
        transport: trio.SocketStream,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        shape: Shape | None = None,
    ) -> None:
        """Takes the socket out of `transport`, which is closed from then on. `shape`: what it sends
        goes over a link."""
        self._socket = _detached(transport)
        self.shaped: Final = None if shape is None else shape(self._socket, self.abort)
        self._sender = self.shaped or self._socket
        self._answered = server_side or shape is None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._sending = trio.Lock()
        self._unsent = memoryview(b"")
        self._unit_bytes = 0
        """Sent since the last unit ended."""
        self._fast = False
        self._paced_bytes = 0
        self._paced_from = trio.current_time()
        self._received, self._plain = _buffers()
        # typeshed has `bytearray` for the buffer and so `bytes` for the result.
        self._read_into = cast(Callable[[int, memoryview], int], self._tls.read)
        self._prompt = 0
        self._held_bytes = 1
        """What the kernel collects before it wakes the reader."""
        self._undecrypted = 0
        """Ciphertext that was received, at most: what TLS itself says is counted as left."""
        self._short = False
        """The kernel had less than asked for."""
        self._drained = False
        self._ended = False
        self._cut = False
        self._closed = False

    # ------------------------------------------------------------ reading what TLS knows
    def alpn(self) -> str | None:
        return self._tls.selected_alpn_protocol()

    def peer_certificate(self) -> bytes | None:
        """DER; verified by the context."""
        return self._tls.getpeercert(binary_form=True)

    # ------------------------------------------------------------ verbs
    async def handshake(self) -> None:
        """Raises trio.BrokenResourceError (its cause says why)."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                while not self._fill():
                    await self._wait_readable()
                await self._await_way_back()
                if self._ended:
                    raise trio.BrokenResourceError("closed during the handshake") from None
            except (ssl.SSLError, ssl.CertificateError) as error:
                await self._say_why()
                raise trio.BrokenResourceError("TLS handshake failed") from error
            else:
                self._undecrypted = self._incoming.pending
                await self.flush()
                return

    async def send_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """Raises trio.BrokenResourceError, trio.ClosedResourceError."""
        if self._cut:
            raise trio.BrokenResourceError("an earlier send was cut")
        self._cut = True  # if this is cancelled, nothing can follow what it leaves
        # Joined, a small head costs no record of its own: a copy is cheaper.
        view = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        while len(view):
            self._encrypt(view[:SEND_BYTES])
            view = view[SEND_BYTES:]
            if not self._push():
                await self.flush()
        self._cut = False
        await self._let_others_run()

    def post(self, data: bytes) -> bool:
        """Queues, and sends what the socket takes at once; True if that was all. Else `flush` sends
        the rest. `unsent_bytes` is the caller's to bound. Raises as send_all."""
        if self._cut:
            raise trio.BrokenResourceError("an earlier send was cut")
        self._encrypt(memoryview(data))
        return self._push()

    @property
    def is_open(self) -> bool:
        """As far as is known without asking the kernel: neither side has closed."""
        return not (self._closed or self._cut or self._ended)

    @property
    def unsent_bytes(self) -> int:
        return self._outgoing.pending + len(self._unsent)

    async def receive(self, *, due_bytes: int = 0) -> memoryview:
        """What has come, a bufferful at most, empty at the end of the stream. It is valid until
        the task waits for anything. When `due_bytes` are sure to come, it may wait for all of them;
        `hold_no_longer` ends that. Raises trio.BrokenResourceError, trio.ClosedResourceError."""
        await self._let_others_run()
        if self._drained:  # the last look found the end of what had come
            await self._wait_readable(due_bytes)
        while (data := self.receive_now()) is None:
            await self._wait_readable(due_bytes)
        return data

    def hold_no_longer(self) -> None:
        """Whoever waits in `receive` gets what has come."""
        if not self._closed:
            self._hold(1)

    @property
    def drained(self) -> bool:
        """What was received last was all that had come then: to look again at once is no use."""
        return self._drained

    def receive_now(self) -> memoryview | None:
        """As receive; None if nothing has come. Valid until the next call on any stream."""
        self._drained = False
        while not self._ended:
            size = self._decrypt()
            if self._outgoing.pending:
                # The peer asked for new keys. What the socket does not take now goes out with the
                # next send; to wait for it would be a deadlock with a peer that waits likewise.
                self._push()
            if size or self._ended:
                return self._plain[:size]
            if not self._fill():
                return None
        return self._plain[:0]

    def _decrypt(self) -> int:
        size = 0
        try:
            while size <= len(self._plain) - _RECORD_BYTES:
                got = self._read_into(_RECORD_BYTES, self._plain[size:])
                if not got:  # the peer's goodbye
                    self._ended = not size
                    break
                size += got
                self._undecrypted -= got + _RECORD_OVERHEAD
        except ssl.SSLWantReadError:
            self._drained = self._short
        except ssl.SSLError as error:
            if not size:
                raise trio.BrokenResourceError("TLS failed") from error
        return size

    async def say_goodbye(self) -> None:
        """Nothing is sent after it; what the peer sends can still be received."""
        if self._cut:
            return
        self._cut = True
        # Errors: there was no handshake, or there is no answer to our goodbye yet.
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        with contextlib.suppress(*_LOST):
            await self.flush()

    async def linger(self) -> None:
        """Throws away what the peer still sends, to its end: closing on unread input would take
        from it what was sent last. The caller limits the time."""
        with contextlib.suppress(*_LOST):
            while not self._ended:
                while not self._fill():
                    await self._wait_readable()
                self._incoming.read()
                await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Says goodbye as far as the socket takes it, and closes. The caller limits the time."""
        try:
            await self.say_goodbye()
        finally:
            self.abort()

    def interrupt(self) -> None:
        """Whoever waits for the socket now gets trio.ClosedResourceError; it stays open."""
        if not self._closed:
            trio.lowlevel.notify_closing(self._socket)
            if self.shaped is not None:
                self.shaped.interrupt()

    def abort(self) -> None:
        """Closes at once; whoever waits for the socket gets trio.ClosedResourceError."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._socket)
            if self.shaped is None:
                self._socket.close()
            else:
                self.shaped.close()

    # ------------------------------------------------------------ the socket
    def _encrypt(self, data: memoryview) -> None:
        if self._closed:
            raise trio.ClosedResourceError("closed")
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError("TLS failed") from error

    async def flush(self) -> None:
        """Until all that was written has left. It can be cancelled and called again."""
        async with self._sending:
            while not self._push():
                if self.shaped is None:
                    await trio.lowlevel.wait_writable(self._socket)
                else:
                    await self.shaped.wait_writable()

    def _push(self) -> bool:
        """What the socket takes now; whether nothing is left."""
        while True:
            if not len(self._unsent):
                if not self._outgoing.pending:
                    return True
                self._unsent = memoryview(self._outgoing.read(SEND_BYTES))
            if self._closed:
                raise trio.ClosedResourceError("closed")
            room = len(self._unsent) if self._fast else UNIT_BYTES - self._unit_bytes
            flags = socket.MSG_EOR if len(self._unsent) >= room and not self._fast else 0
            try:
                sent = self._sender.send(self._unsent[:room], flags)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise trio.BrokenResourceError("connection lost") from error
            self._unsent = self._unsent[sent:]
            self._unit_bytes = (self._unit_bytes + sent) % UNIT_BYTES
            self._paced_bytes += sent
            if self._paced_bytes >= PACE_BYTES:
                self._look_at_pace()

    def _look_at_pace(self) -> None:
        now = trio.current_time()
        self._fast = self._paced_bytes >= FAST_BYTES_S * (now - self._paced_from)
        self._paced_from, self._paced_bytes = now, 0

    async def _await_way_back(self) -> None:
        """Once: the accepting side does not know who calls, nor how far it is, before the handshake
        is over."""
        if self.shaped is not None and not self._answered:
            self._answered = True
            try:
                await self.shaped.await_way_back()
            except OSError as error:
                raise trio.BrokenResourceError("connection lost") from error

    async def _wait_readable(self, due_bytes: int = 0) -> None:
        if self._closed:
            raise trio.ClosedResourceError("closed")
        overhead = _RECORD_OVERHEAD * (due_bytes // _RECORD_BYTES)
        hold = min(due_bytes + overhead - max(self._undecrypted, 0), RECEIVE_BYTES)
        self._hold(hold if hold >= HOLD_BYTES_MIN else 1)
        self._prompt = 0
        await trio.lowlevel.wait_readable(self._socket)

    def _hold(self, count: int) -> None:
        if count != self._held_bytes:
            self._held_bytes = count
            with contextlib.suppress(OSError):  # it is only about how often to wake
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    async def _let_others_run(self) -> None:
        """A peer that always has more, or takes all, must not keep the node for itself."""
        self._prompt += 1
        if self._prompt > PROMPT_MAX:
            self._prompt = 0
            await trio.lowlevel.checkpoint()

    def _fill(self) -> bool:
        """Some ciphertext, or the end of the stream; False: nothing has come."""
        if self._closed:
            raise trio.ClosedResourceError("closed")
        try:
            size = self._socket.recv_into(self._received)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise trio.BrokenResourceError("connection lost") from error
        self._incoming.write(self._received[:size])
        self._undecrypted += size
        self._short = size < RECEIVE_BYTES
        self._ended = not size
        return True

    async def _say_why(self) -> None:
        """The alert that explains a failed handshake, if the peer still takes it."""
        try:
            with trio.move_on_after(1.0):
                await self.flush()
        except _LOST:
            pass


def _buffers() -> tuple[memoryview, memoryview]:
    """This trio run's, RECEIVE_BYTES each."""
    try:
        return _shared.get()
    except LookupError:
        made = memoryview(bytearray(RECEIVE_BYTES)), memoryview(bytearray(RECEIVE_BYTES))
        _shared.set(made)
        return made


def _detached(transport: trio.SocketStream) -> socket.socket:
    """The plain socket: trio's own makes each call a scheduler pass, whether it waits or not."""
    plain = socket.socket(fileno=transport.socket.detach())
    plain.setblocking(False)
    # With the kernel's whole send buffer full of one segment, a small message would wait for it.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return plain
