"""The gossip sockets: UDP, and TCP on the same port; what the kernel reports of both.

IP_RECVERR makes the kernel say which address refused a datagram, which is evidence of a crash. Its
price: a pending error makes the next send fail without sending, so a send is tried again (FACTS
§4), and the error queue must be emptied or the socket stays readable for ever.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import socket
import struct
from functools import partial
from typing import Final

import trio

from protocol.member import Address

from ..errors import ConfigError

DATAGRAM_BUFFER: Final = 2048
"""More than any datagram of ours, so that a longer one shows instead of being cut to fit."""
RECEIVE_BUFFER: Final = 1024 * 1024
"""Asked of the kernel: a second of bursts while the process is starved."""
BACKLOG: Final = 1024
"""Each member that looks at this process while it is stopped leaves one connection there (SPEC
§5.4); one more finds silence, and takes it for dead."""
PORT_TRIES: Final = 64
SEND_TRIES: Final = 4
NAMES_MAX: Final = 256
LITERALS_MAX: Final = 16_384
"""Numeric addresses remembered as such: more than there are members. Parsing one costs 5 µs, more
than sealing what goes there."""
NAME_TTL_S: Final = 30.0
NAME_THREADS: Final = 4
RESOLVE_S: Final = 5.0
"""How long an operator waits for a name; resolvers that are down take far longer."""
"""A name server that is gone holds a look-up for 10 s and more; nobody else waits for that."""

_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25
_MSG_ERRQUEUE: Final = 0x2000
_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")  # struct sock_extended_err, linux/errqueue.h


class GossipSockets:
    """Bound and not yet served. The stream server closes the listeners, `close` the rest."""

    def __init__(self, udp: socket.socket, listeners: list[trio.SocketListener]) -> None:
        self.udp: Final = udp
        self.listeners: Final = listeners
        host, port, *_ = udp.getsockname()
        self.address: Final[Address] = (host, port)
        self._errors = False
        """There may be some in the error queue."""

    def receive(self, limit: int) -> list[tuple[bytes, Address]]:
        """The datagrams that are there now, up to `limit`. Errors of earlier sends are skipped."""
        found: list[tuple[bytes, Address]] = []
        for _ in range(limit):
            try:
                data, address = self.udp.recvfrom(DATAGRAM_BUFFER)
            except BlockingIOError:
                break
            except OSError:
                self._errors = True
            else:
                found.append((data, address[:2]))
        self._errors = self._errors or not found
        return found

    def send(self, data: bytes, address: Address) -> str | None:
        """None when the kernel took it, else why not, as a counter's label."""
        reason = "send"
        for _ in range(SEND_TRIES):
            try:
                self.udp.sendto(data, address)
            except (ValueError, TypeError, OverflowError):  # not even an address
                return "send-address"
            except OSError as error:
                self._errors = True
                reason = f"send-{errno.errorcode.get(error.errno or 0, 'other').lower()}"
                if error.errno not in (errno.ECONNREFUSED, errno.EINTR):
                    return reason
            else:
                return None
        return reason

    def refused(self, limit: int) -> list[Address]:
        """Empties the error queue, up to `limit` entries; who refused a datagram. Only if a call
        has failed, or nothing was there to be received: every entry makes one fail (Linux sets the
        socket's error with it), and while one is left the socket looks readable."""
        addresses: list[Address] = []
        if not self._errors:
            return addresses
        for _ in range(limit):
            try:
                _, control, _, address = self.udp.recvmsg(0, 512, _MSG_ERRQUEUE)
            except OSError:
                self._errors = False
                break
            for level, kind, payload in control:
                if (level, kind) not in (
                    (socket.IPPROTO_IP, _IP_RECVERR),
                    (socket.IPPROTO_IPV6, _IPV6_RECVERR),
                ) or len(payload) < _EXTENDED_ERROR.size:
                    continue
                if _EXTENDED_ERROR.unpack_from(payload)[0] == errno.ECONNREFUSED and address:
                    addresses.append(address[:2])
        return addresses

    def close(self) -> None:
        self.udp.close()


async def bind_gossip(host: str, port: int) -> GossipSockets:
    """Port 0: some port that is free for both.

    Raises ConfigError: no such address here, or the port is taken."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, address = found[0][0], found[0][4]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"gossip.bind = '{host}:{port}': no such address; write one of this machine's"
        ) from error
    for last in range(PORT_TRIES, 0, -1):
        try:
            return _bind_both(family, address)
        except OSError as error:
            if port == 0 and error.errno == errno.EADDRINUSE and last > 1:
                continue
            raise ConfigError(
                f"gossip.bind = '{host}:{port}': {error.strerror}; choose another address or port"
            ) from error
    raise AssertionError("the last try returns or raises")


def _bind_both(family: int, address: tuple[object, ...]) -> GossipSockets:
    tcp = socket.socket(family, socket.SOCK_STREAM)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        for sock in (tcp, udp):
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(address)
        udp.bind((address[0], *tcp.getsockname()[1:]))
        tcp.listen(BACKLOG)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            udp.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    except BaseException:
        tcp.close()
        udp.close()
        raise
    return GossipSockets(udp, [trio.SocketListener(trio.socket.from_stdlib_socket(tcp))])


class Names:
    """Numeric addresses of host names, without ever blocking: who asks for an unknown name gets
    nothing, and the name is wanted; a datagram lost to that is sent again by the machine.

    Peers tell names, so all is bounded: a failure is remembered like an answer, and slow name
    servers hold up these look-ups only, in threads of their own."""

    def __init__(self) -> None:
        self._literals: dict[str, None] = {}
        self._known: dict[str, tuple[str | None, float]] = {}
        """Address, or None for a failure, and until when that is believed."""
        self._threads = trio.CapacityLimiter(NAME_THREADS)
        self._wanted: dict[str, None] = {}
        self._looking: set[str] = set()

    def numeric(self, address: Address, now: float) -> Address | None:
        host, port = address
        if host in self._literals:
            return address
        try:
            ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            if len(self._literals) >= LITERALS_MAX:
                self._literals.clear()
            self._literals[host] = None
            return address
        found, until = self._known.get(host, (None, -math.inf))
        if until <= now and host not in self._looking and self._has_room():
            self._wanted[host] = None
        return (found, port) if found is not None else None

    def _has_room(self) -> bool:
        return len(self._looking) + len(self._wanted) < NAMES_MAX

    def take_wanted(self) -> list[str]:
        """Whom to `look_up` now."""
        if not self._wanted:
            return []
        wanted = list(self._wanted)
        self._looking.update(wanted)
        self._wanted.clear()
        return wanted

    async def resolves(self, host: str, family: int) -> bool:
        """Whether the host is an address, or a name that has one now: for somebody who waits."""
        if self.numeric((host, 0), trio.current_time()) is None:
            self._wanted.pop(host, None)
            with trio.move_on_after(RESOLVE_S):
                await self.look_up(host, family)
        return self.numeric((host, 0), trio.current_time()) is not None

    async def look_up(self, host: str, family: int) -> None:
        """A failure keeps what was known before, and is remembered like an answer."""
        found, _ = self._known.get(host, (None, 0.0))
        try:
            rows = await trio.to_thread.run_sync(
                partial(socket.getaddrinfo, host, None, family=family),
                abandon_on_cancel=True,
                limiter=self._threads,
            )
            found = str(rows[0][4][0])
        except (OSError, ValueError):
            pass
        finally:
            self._looking.discard(host)
        self._known.pop(host, None)
        if len(self._known) >= NAMES_MAX:
            self._known.pop(next(iter(self._known)))
        self._known[host] = (found, trio.current_time() + NAME_TTL_S)
