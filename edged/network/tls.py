"""TLS over one TCP connection, made for bulk: many records per system call and per scheduler pass.

trio.SSLStream hands out at most one record (16 KiB) per pass: 40 to 100 MB per CPU second of both
ends with verification. Here a pass takes all that the kernel has, up to RECEIVE_BYTES, and a send
goes out in SEND_BYTES pieces. At most one task reads and one writes at a time.

The end of the stream without TLS's goodbye counts as its end: frames have lengths, so nothing can
be cut off unnoticed (as trio's `https_compatible`).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final, cast

import trio

RECEIVE_BYTES: Final = 256 * 1024
"""Of ciphertext per pass: a segment of the largest usual size."""
SEND_BYTES: Final = 256 * 1024
"""Encrypted ahead of the socket."""
_RECORD_BYTES: Final = 16 * 1024
_LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class TlsStream:
    def __init__(
        self, transport: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool = False
    ) -> None:
        self._transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._sending = trio.Lock()
        self._received = memoryview(bytearray(RECEIVE_BYTES))
        self._plain = memoryview(bytearray(RECEIVE_BYTES))
        self._ended = False
        self._broken = False

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
                await self._flush()
                if not await self._fill():
                    raise trio.BrokenResourceError("closed during the handshake") from None
            except (ssl.SSLError, ssl.CertificateError) as error:
                await self._say_why()
                raise trio.BrokenResourceError("TLS handshake failed") from error
            else:
                await self._flush()
                return

    async def send_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """Raises trio.BrokenResourceError, trio.ClosedResourceError."""
        if self._broken:
            raise trio.BrokenResourceError("an earlier send was cut")
        for part in parts:
            view = memoryview(part)
            while len(view):
                try:
                    self._tls.write(view[:SEND_BYTES])
                except ssl.SSLError as error:
                    raise trio.BrokenResourceError("TLS failed") from error
                view = view[SEND_BYTES:]
                if self._outgoing.pending >= SEND_BYTES:
                    await self._flush()
        await self._flush()

    async def receive(self) -> memoryview:
        """What has come, at most RECEIVE_BYTES, empty at the end of the stream. It is valid until
        the next call. Raises trio.BrokenResourceError, trio.ClosedResourceError."""
        while not self._ended:
            size = self._decrypt()
            if self._outgoing.pending and not self._sending.locked():
                # The peer asked for new keys. While a send is under way it takes this along;
                # to wait for it here would be a deadlock with a peer that waits likewise.
                await self._flush()
            if size:
                return self._plain[:size]
            if not self._ended:
                self._ended = not await self._fill()
        return self._plain[:0]

    def _decrypt(self) -> int:
        size = 0
        try:
            while size <= RECEIVE_BYTES - _RECORD_BYTES:
                # typeshed has `bytearray` for the buffer and so `bytes` for the result.
                got = cast(int, self._tls.read(_RECORD_BYTES, cast(bytearray, self._plain[size:])))
                if not got:  # the peer's goodbye
                    self._ended = not size
                    break
                size += got
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            if not size:
                raise trio.BrokenResourceError("TLS failed") from error
        return size

    async def aclose(self) -> None:
        """Says goodbye as far as the socket takes it, and closes. The caller limits the time."""
        try:
            if not self._broken:
                self._tls.unwrap()
        except (ssl.SSLError, ValueError):  # no handshake, or no answer to our goodbye yet
            pass
        try:
            if not self._broken:
                await self._flush()
        except _LOST:
            pass
        finally:
            await trio.aclose_forcefully(self._transport)

    async def abort(self) -> None:
        await trio.aclose_forcefully(self._transport)

    # ------------------------------------------------------------ the socket
    async def _flush(self) -> None:
        """A cancelled flush leaves a record half sent: nothing can follow it."""
        async with self._sending:
            while self._outgoing.pending:
                data = self._outgoing.read()
                self._broken = True
                await self._transport.send_all(data)
                self._broken = False

    async def _fill(self) -> bool:
        """Some ciphertext; False at the end of the stream."""
        try:
            size = await self._transport.socket.recv_into(self._received)
        except OSError as error:
            raise trio.BrokenResourceError("connection lost") from error
        self._incoming.write(self._received[:size])
        return size > 0

    async def _say_why(self) -> None:
        """The alert that explains a failed handshake, if the peer still takes it."""
        try:
            with trio.move_on_after(1.0):
                await self._flush()
        except _LOST:
            pass
