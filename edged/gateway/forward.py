"""Sends requests for functions that are not ready here to the nearest peer that is. SPEC §12.

A body that is short is read first and can be sent again; a long one, or one of unknown length, is
passed on as it comes, once the peer has said that it takes it. The answer goes out as it comes in.
Another peer is tried, or the request served here after all, only while that cannot run a guest
twice that must not (SPEC §12.4). Bounds: exchanges (PeerGateways), peers tried, bytes on the way:
one piece each way beside what sockets hold; each wait for a peer to take or give bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from edged.errors import DeadlineExceeded, EdgedError, PeerError
from edged.http import AnswerReader, ClientGone, DirectExchange
from edged.interfaces import FunctionView, GatewayStream, Peer, PeerGateways
from edged.telemetry import Log, Metrics
from protocol.ids import NodeId

from .body import RequestBody
from .passage import REFUSED, Headers, Passage, answered, passed_on

PEERS_TRIED_MAX: Final = 3
GATHERED_BYTES_MAX: Final = 256 * 1024
"""Of a body that is read first: it takes a holder no longer, as a guest starts with all of it."""
REFUSAL_MAX: Final = 40
"""Of a refusal's code, in the log."""
STALL_TIMEOUT_S: Final = 20.0
"""A peer that takes no byte of a request, or gives none of an answer that has begun, for so long is
given up (as HttpLimits.write_stall_s)."""
ANSWER_MARGIN_S: Final = 2.0
"""On top of what the function may take: code that is mapped from a disk, the way, a busy peer."""
IDEMPOTENT: Final = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
"""RFC 9110 §9.2.2."""
CONTINUE: Final = (b"expect", b"100-continue")

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Order:
    """One request to pass on, and how far that has got."""

    __slots__ = (
        "answer_s",
        "answering",
        "body",
        "delivered",
        "function",
        "limit",
        "passage",
        "request_id",
        "scope",
        "started_at",
    )

    def __init__(
        self,
        *,
        scope: dict[str, Any],
        body: RequestBody,
        passage: Passage,
        request_id: bytes,
        started_at: float,
        limit: trio.CancelScope,
        timeout_s: float,
        function: FunctionView,
    ) -> None:
        """`passage`: as the next node gets it, but for the time that is left, which is that of
        `limit`; `timeout_s`: what a guest may take; `scope`: without reserved fields."""
        self.function = function
        self.scope = scope
        self.body = body
        self.passage = passage
        self.request_id = request_id
        self.started_at = started_at
        self.limit = limit
        self.answer_s = timeout_s + ANSWER_MARGIN_S
        """For a ready peer to begin its answer, from when it has all of the request."""
        self.delivered = False
        """All of it has left for the present peer."""
        self.answering = False
        """An answer to the client has begun."""

    @property
    def may_repeat(self) -> bool:
        """After a peer was lost."""
        return (
            not self.answering
            and not self.body.begun
            and (not self.delivered or self.scope["method"] in IDEMPOTENT)
        )


class _Refused(PeerError):
    """The peer has not run it and will not."""


class _Stalled(PeerError):
    """The peer takes nothing."""


class _Upload:
    """Passes a body on while its answer is waited for, within `waiting`."""

    def __init__(self, stream: GatewayStream, order: Order, waiting: trio.CancelScope) -> None:
        self.error: EdgedError | ClientGone | None = None
        self._stream = stream
        self._order = order
        self._waiting = waiting

    async def run(self) -> None:
        try:
            await self._send()
        except (EdgedError, ClientGone) as error:
            if isinstance(error, PeerError) and not isinstance(error, _Stalled):
                return  # the peer may have answered before it closed: reading tells
            self.error = error
            self._waiting.cancel()

    async def _send(self) -> None:
        order = self._order
        began_at = trio.current_time()
        chunked = order.body.length is None
        more = True
        while more:
            piece, more = await order.body.next()
            parts = [piece] if piece else []
            if chunked:
                parts = [b"%x\r\n" % len(piece), piece, b"\r\n"] if piece else []
                parts += [] if more else [b"0\r\n\r\n"]
            await send_within(self._stream, parts)
        order.delivered = True
        now = trio.current_time()
        order.limit.deadline += now - began_at
        self._waiting.deadline = now + order.answer_s


async def send_within(stream: GatewayStream, parts: Sequence[bytes]) -> None:
    """Raises PeerError; _Stalled when the peer takes nothing for long."""
    if not parts:
        return
    with trio.move_on_after(STALL_TIMEOUT_S):
        await stream.send_all(parts)
        return
    raise _Stalled("takes nothing of the request")


class Forwarder:
    def __init__(
        self,
        gateways: PeerGateways,
        *,
        ready: Callable[[FunctionView], Sequence[Peer]],
        on_answer: Callable[[NodeId, FunctionView, float], None],
        node_name: str,
        hops_max: int,
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`ready`: peers that could run a version at once, best first; `on_answer` hears how long
        one took to begin its answer."""
        self._on_answer = on_answer
        self._gateways = gateways
        self._ready = ready
        self._node = node_name
        self._hops_max = hops_max
        self._metrics = metrics
        self._log = log

    def peers(self, function: FunctionView, path: Sequence[NodeId]) -> list[Peer]:
        """Whom to ask for a request that came over `path`; none: it is to be served here."""
        if len(path) >= self._hops_max:
            return []
        ready = self._ready(function)
        room = self._gateways.has_room
        found = [peer for peer in ready if peer.node_id not in path and room(peer)]
        return found[:PEERS_TRIED_MAX]

    async def forward(
        self,
        order: Order,
        peers: Sequence[Peer],
        exchange: DirectExchange,
        send: Send,
        tell: Callable[[int], None],
    ) -> bool:
        """Whether it was answered; `tell` hears the status before. Else it may be served here.

        Raises PeerError: it may be neither; and as RequestBody, for the client's part of it. Once
        the answer has begun, an error means that it is cut short."""
        if order.body.length is not None and order.body.length <= GATHERED_BYTES_MAX:
            began_at = trio.current_time()
            await order.body.gather()
            order.limit.deadline += trio.current_time() - began_at
        for peer in peers:
            order.delivered = False
            result = "unreachable"
            try:
                async with self._gateways.stream(peer) as stream:
                    result = "lost"
                    began_at = trio.current_time()
                    reader, piece = await self._ask(stream, order)
                    took_s = trio.current_time() - began_at
                    self._on_answer(peer.node_id, order.function, took_s)
                    await self._relay(stream, reader, piece, order, exchange, send, tell)
            except _Refused as error:
                self._note(peer, "refused", error)
            except PeerError as error:
                self._note(peer, "cut" if order.answering else result, error)
                if not order.may_repeat:
                    raise
            except DeadlineExceeded as error:
                self._note(peer, "late", error)
                raise
            else:
                self._metrics.forwards.labels("answered").inc()
                return True
        return False

    def _note(self, peer: Peer, result: str, error: EdgedError) -> None:
        self._metrics.forwards.labels(result).inc()
        self._log.info(
            "forward failed", peer=peer.name, result=result, why=str(error), private=error.private
        )

    # ------------------------------------------------------------ asking
    async def _ask(self, stream: GatewayStream, order: Order) -> tuple[AnswerReader, bytes]:
        """The answer's head and what came with it. Raises PeerError; _Refused; as RequestBody."""
        reader = AnswerReader(order.scope["method"])
        whole = order.body.whole
        if whole is None and order.body.length != 0:
            piece = await self._ask_streaming(stream, order, reader)
        else:
            await send_within(stream, [self._head(order), whole] if whole else [self._head(order)])
            order.delivered = True
            piece = await self._read_head(stream, reader, order)
        assert reader.head is not None
        refusal = [value for name, value in reader.head.headers if name == REFUSED]
        if refusal and not order.body.begun:
            if reader.done and reader.head.keep_alive:
                stream.keep()
            raise _Refused(refusal[0][:REFUSAL_MAX].decode("latin1"))
        return reader, piece

    async def _ask_streaming(
        self, stream: GatewayStream, order: Order, reader: AnswerReader
    ) -> bytes:
        await send_within(stream, [self._head(order, CONTINUE)])
        with trio.move_on_after(order.answer_s):
            while not reader.continued:
                piece = reader.feed(await _more(stream))
                if reader.head is not None:
                    return piece
        if not reader.continued:
            raise PeerError("does not take the request")
        piece, lost = b"", None
        async with trio.open_nursery() as nursery:
            upload = _Upload(stream, order, nursery.cancel_scope)
            nursery.start_soon(upload.run)
            try:
                piece = await _read_head(stream, reader)
            except PeerError as error:
                lost = error
            # What the peer has not waited for, it does not want.
            nursery.cancel_scope.cancel()
        failed = upload.error or lost
        if failed is not None:
            raise failed
        if reader.head is None:
            raise _late(order)
        return piece

    async def _read_head(self, stream: GatewayStream, reader: AnswerReader, order: Order) -> bytes:
        """Gives up a peer that is late, and one that is suspect if another may be asked. Raises
        PeerError; DeadlineExceeded: it may not be asked of another."""
        with trio.move_on_after(order.answer_s) as waiting:
            if order.may_repeat:
                stream.on_doubt(waiting.cancel)
            try:
                return await _read_head(stream, reader)
            finally:
                stream.on_doubt(None)
        if order.may_repeat:
            raise PeerError("gave no answer in time, or is suspect")
        raise _late(order)

    def _head(self, order: Order, *more: tuple[bytes, bytes]) -> bytes:
        scope = order.scope
        left_s = order.limit.deadline - trio.current_time()
        headers: Headers = passed_on(
            scope["headers"],
            order.passage._replace(left_s=left_s),
            node=self._node,
            http_version=scope["http_version"],
            request_id=order.request_id,
            length=order.body.length,
        )
        query: bytes = scope["query_string"]
        target: bytes = scope["raw_path"] + (b"?" + query if query else b"")
        lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), target)]
        lines += [b"%b: %b" % field for field in (*headers, *more)]
        return b"\r\n".join((*lines, b"", b""))

    # ------------------------------------------------------------ answering
    async def _relay(
        self,
        stream: GatewayStream,
        reader: AnswerReader,
        piece: bytes,
        order: Order,
        exchange: DirectExchange,
        send: Send,
        tell: Callable[[int], None],
    ) -> None:
        """Raises PeerError: it was cut short; ClientGone."""
        head = reader.head
        assert head is not None
        headers = answered(
            head.headers,
            node=self._node,
            request_id=order.request_id,
            total_s=trio.current_time() - order.started_at,
        )
        order.answering = True
        tell(head.status)
        if not reader.unfinished():
            self._keep(stream, reader, order)
            await exchange.respond(head.status, headers, piece)
            return
        await send({"type": "http.response.start", "status": head.status, "headers": headers})
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        more = True
        while more:
            piece = reader.feed(await _more_within(stream))
            more = reader.unfinished()
            if not more:
                self._keep(stream, reader, order)
            if piece or not more:
                await send({"type": "http.response.body", "body": piece, "more_body": more})

    def _keep(self, stream: GatewayStream, reader: AnswerReader, order: Order) -> None:
        assert reader.head is not None
        if order.delivered and reader.head.keep_alive and not reader.rest:
            stream.keep()


async def _read_head(stream: GatewayStream, reader: AnswerReader) -> bytes:
    """What came of the body with it. Raises PeerError."""
    while True:
        piece = reader.feed(await _more(stream))
        if reader.head is not None:
            return piece


def _late(order: Order) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the node that was asked gave no answer within {order.answer_s:g} s; it may have run"
    )


async def _more(stream: GatewayStream) -> bytes:
    """Raises PeerError."""
    data = await stream.receive()
    if not data:
        raise PeerError("closed before its answer was whole")
    return data


async def _more_within(stream: GatewayStream) -> bytes:
    with trio.move_on_after(STALL_TIMEOUT_S):
        return await _more(stream)
    raise PeerError("gives nothing more of its answer")
