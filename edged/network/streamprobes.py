"""Looks at members over TCP on behalf of the gossip machine: connect, TLS, Ping. SPEC §5.3.

The kernel of a stopped process takes the connection, the one of a dead process refuses it, and a
host that is gone says nothing. A connection that stands is kept until the machine ends the probe:
it tells the moment the process wakes (it answers) or dies (the kernel resets it). The machine
bounds how many are open (protocol.streamprobes.OPEN_MAX).
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import Final

import trio

from protocol.events import StreamOutcome, StreamProbe
from protocol.member import Address, Member
from protocol.streams import Ping, Pong

from ..errors import PeerError
from ..trust import Trust
from .shaping import Shaper
from .streams import dial, shake

CONNECT_TIMEOUT_S: Final = 1.5
REDIAL_S: Final = 0.3
"""A SYN that is lost is sent again after 1 s only (RFC 6298 §2.1): so another is sent beside it.
Seven in all until the time is over: at 15 % loss each way one look in 8,000 finds nobody."""
PATIENCE_S: Final = 0.1
"""From the connection to the handshake, which costs both ends 2.5 ms of CPU (FACTS §4): most
probes have been answered by datagram until then."""
ASK_TIMEOUT_S: Final = 3.0
HOLD_S: Final = 30.0
"""No suspicion lasts so long; a backstop."""

Report = Callable[[int, StreamOutcome], None]
Numeric = Callable[[Address], Address | None]


class StreamProber:
    """`numeric` resolves host names without blocking, or not yet; `report` tells the machine."""

    def __init__(
        self, trust: Trust, *, numeric: Numeric, report: Report, shaper: Shaper | None = None
    ) -> None:
        self._trust = trust
        self._shaper = shaper
        self._numeric = numeric
        self._report = report
        self._running: dict[int, trio.CancelScope] = {}

    def start(self, nursery: trio.Nursery, probe: StreamProbe) -> None:
        self._running[probe.probe_id] = trio.CancelScope()
        nursery.start_soon(self._run, probe)

    def end(self, probe_id: int) -> None:
        scope = self._running.get(probe_id)
        if scope is not None:
            scope.cancel()

    async def _run(self, probe: StreamProbe) -> None:
        outcome: StreamOutcome | None = None
        try:
            with self._running[probe.probe_id]:
                outcome = await self._look(probe)
        finally:
            del self._running[probe.probe_id]
        if outcome is not None:
            self._report(probe.probe_id, outcome)

    async def _look(self, probe: StreamProbe) -> StreamOutcome:
        """How it ends; reports `stalled` on the way. A connection lost before the handshake may
        mean a process that died or one that is crowded: dialling again tells."""
        for _ in range(2):
            with trio.move_on_after(HOLD_S):
                transport = await self._connect(self._numeric(probe.member.metadata.stream_address))
                if not isinstance(transport, trio.SocketStream):
                    return transport
                async with transport:
                    self._report(probe.probe_id, "stalled")
                    await trio.sleep(PATIENCE_S)
                    outcome = await self._converse(transport, probe.member)
                    if outcome is not None:
                        return outcome
        return "silent"

    async def _converse(self, transport: trio.SocketStream, member: Member) -> StreamOutcome | None:
        """Whether that very process answers; None if nothing can be told."""
        try:
            connection = await shake(
                transport,
                self._trust,
                expected=member.node_id,
                shaper=self._shaper,
                address=member.metadata.stream_address,
            )
        except PeerError:
            return None
        try:
            await connection.send(Ping(0))
            frame = await connection.receive()
        except PeerError:
            return None
        finally:
            connection.abort()
        if frame is None or not isinstance(frame[0], Pong):
            return None
        return "pong" if frame[0].generation in (0, member.generation) else "refused"

    async def _connect(self, address: Address | None) -> trio.SocketStream | StreamOutcome:
        """The first of several attempts that is taken, or refused."""
        if address is None:
            return "silent"
        found: list[trio.SocketStream | StreamOutcome] = []
        try:
            with trio.move_on_after(CONNECT_TIMEOUT_S):
                async with trio.open_nursery() as nursery:
                    for _ in range(math.ceil(CONNECT_TIMEOUT_S / REDIAL_S)):
                        nursery.start_soon(
                            _attempt, address, found, nursery.cancel_scope, self._shaper
                        )
                        await trio.sleep(REDIAL_S)
        except BaseException:
            for one in found:
                if isinstance(one, trio.SocketStream):
                    one.socket.close()
            raise
        return found[0] if found else "silent"


async def known_generation(address: Address, trust: Trust, shaper: Shaper | None) -> int:
    """Of this node, as the member at `address` knows it. 0: none, or nobody says."""
    frame = None
    with trio.move_on_after(ASK_TIMEOUT_S):
        try:
            connection = await dial(address, trust, expected=None, shaper=shaper)
            try:
                await connection.send(Ping(0))
                frame = await connection.receive()
            finally:
                connection.abort()
        except PeerError:
            return 0
    return frame[0].known if frame is not None and isinstance(frame[0], Pong) else 0


async def _attempt(
    address: Address,
    found: list[trio.SocketStream | StreamOutcome],
    others: trio.CancelScope,
    shaper: Shaper | None,
) -> None:
    """The first to find something ends the others."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    outcome: trio.SocketStream | StreamOutcome | None = None

    async def connect() -> trio.SocketStream:
        await sock.connect(address)
        return trio.SocketStream(sock)

    try:
        outcome = await (connect() if shaper is None else shaper.connected(address, connect))
    except ConnectionRefusedError:
        outcome = "refused"
    except (OSError, ValueError, OverflowError):  # a peer told the address
        pass
    finally:
        if outcome is not None and not found:
            found.append(outcome)
            others.cancel()
        if not found or found[0] is not outcome or outcome == "refused":
            sock.close()
