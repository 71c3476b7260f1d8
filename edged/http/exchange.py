"""One request and its answer, as ASGI 3 sees them.

`scope["extensions"][EXTENSION]` is this object, for applications that know it: `respond` answers in
one call, `on_disconnect` registers a callback instead of a task. Rules: a response's head is held
until its first body bytes, so that most answers are one packet, unless the application waits in
`receive`, which is what streaming ones do; a body that is not read when its answer is sent closes
the connection, after it has been thrown away (bounded); what the application gets wrong ends this
connection and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from urllib.parse import unquote_to_bytes

import trio

from edged.errors import Draining, EdgedError, RequestTimeout, info_of

from .chunked import ChunkDecoder
from .head import CHUNKED, Head
from .response import BadResponse, bodiless
from .wire import RECV_BODY_BYTES, ClientGone, ReadTimeout

if TYPE_CHECKING:
    from .connection import Connection

EXTENSION: Final = "edged.exchange"
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

State = Literal["start", "held", "body", "done"]


class DirectExchange(Protocol):
    """What an application may use beside `receive` and `send`."""

    async def respond(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> None:
        """The whole answer. Raises ClientGone."""
        ...

    @property
    def peer(self) -> str | None:
        """Node id of the authenticated peer whose request it is; None: of a client outside."""
        ...

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """`callback` runs in the event loop, at most once, when the client leaves before the
        answer is complete. One callback per exchange."""
        ...


class Exchange:
    __slots__ = (
        "_body",
        "_body_deadline",
        "_callback",
        "_chunked_out",
        "_close",
        "_connection",
        "_continue",
        "_decoder",
        "_error",
        "_gone",
        "_head",
        "_held",
        "_interrupted",
        "_left_out",
        "_receiving",
        "_state",
        "_turn_owed",
        "_watching",
        "body_read",
    )

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._head = head
        self._body = head.body
        """Bytes of body that are still to come (Content-Length)."""
        self._decoder: ChunkDecoder | None = None
        if head.body == CHUNKED:
            self._decoder = ChunkDecoder(connection.shared.limits.body_bytes_max)
        self.body_read = False
        """The application has seen the end of the body."""
        self._turn_owed = False
        self._body_deadline = inf
        self._continue = head.expects_continue and head.body != 0
        self._error: EdgedError | None = None
        self._state: State = "start"
        self._held: tuple[int, Iterable[tuple[bytes, bytes]]] = (0, ())
        self._left_out: int | None = None
        """Bytes of response body still owed; None: chunked, or until close."""
        self._chunked_out = False
        self._close = False
        self._receiving = False
        self._gone: trio.Event | None = None
        self._callback: Callable[[], None] | None = None
        self._watching = False
        self._interrupted = False

    @property
    def peer(self) -> str | None:
        return self._connection.peer

    @property
    def unread(self) -> bool:
        """Whether part of the request's body was not taken from the connection."""
        if self._decoder is not None:
            return not self._decoder.done
        return self._body > 0

    def scope(self) -> dict[str, Any]:
        head = self._head
        connection = self._connection
        raw_path, _, query = head.target.partition(b"?")
        if b"%" in raw_path:
            path = unquote_to_bytes(raw_path).decode("utf-8", "replace")
        else:
            path = raw_path.decode("ascii")
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": head.version,
            "method": head.method,
            "scheme": "http",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": connection.client,
            "server": connection.server,
            "state": connection.state,
            "extensions": {EXTENSION: self},
        }

    async def run(self) -> bool:
        """Runs the application; True: the connection can take another request."""
        connection = self._connection
        shared = connection.shared
        try:
            await shared.app(self.scope(), self.receive, self.send)
            self._check_finished()
        except ClientGone:
            shared.hooks.rejected("client-gone")
            return False
        except EdgedError as error:
            return await self._failed(error)
        except trio.Cancelled:
            if self._state in ("start", "held"):
                connection.answer_cut(self._head.method)
            raise
        except BaseExceptionGroup as group:
            cancelled, others = group.split(trio.Cancelled)
            if others is None or not isinstance(others, ExceptionGroup):
                raise
            self._log_bug(others)
            if cancelled is not None:
                raise cancelled from group
            return await self._failed(_internal())
        except Exception as error:  # noqa: BLE001 - the application's bug is not the node's end
            if self._gone is not None and self._gone.is_set():
                return False
            self._log_bug(error)
            return await self._failed(_internal())
        finally:
            if self._watching:
                shared.watcher.remove(connection.sock.fileno())
        return not self._close

    def _check_finished(self) -> None:
        """Raises ClientGone (then there is nobody to answer), BadResponse."""
        if self._state == "done":
            return
        if self._interrupted:
            raise Draining("this node shut down before the answer was ready")
        if self._gone is not None and self._gone.is_set():
            raise ClientGone("the client is gone")
        raise BadResponse("the application returned without a complete answer")

    def _log_bug(self, error: BaseException) -> None:
        self._connection.shared.log.error(
            "http.application", path=self._head.target.decode("ascii"), exc_info=error
        )

    async def _failed(self, error: EdgedError) -> bool:
        connection = self._connection
        connection.shared.hooks.rejected(info_of(error).code)
        if self._state in ("start", "held"):
            self._state = "done"
            await connection.answer_error(error, method=self._head.method)
        else:
            # Its status is out already: only a broken connection can still say that it failed.
            connection.reset_on_close()
        return False

    # ------------------------------------------------------------ request
    async def receive(self) -> dict[str, Any]:
        """ASGI. Raises (our own) BadRequest, PayloadTooLarge, RequestTimeout for a body that
        cannot be had; an application that lets it pass makes it the answer."""
        if self._error is not None:
            raise self._error
        if not self.body_read and self._state != "done":
            try:
                data = await self._read_body()
            except EdgedError as error:
                self._error = error
                self._close = True
                raise
            if data is None:
                self._hung_up()
                return {"type": "http.disconnect"}
            self.body_read = not self.unread
            return {"type": "http.request", "body": data, "more_body": not self.body_read}
        await self._wait_for_disconnect()
        return {"type": "http.disconnect"}

    async def _read_body(self) -> bytes | None:
        """Some of the body (b"" only at its end), None: the client left in the middle."""
        connection = self._connection
        while self.unread:
            if self._turn_owed:
                # A fast sender takes its turn with the others. Before the bytes are taken, so that
                # an application that cancels `receive` loses none.
                await trio.lowlevel.checkpoint()
            data = connection.buffer
            if data:
                connection.buffer = b""
            else:
                if self._continue and self._state == "start":
                    self._continue = False
                    await connection.write(_CONTINUE)
                if self._body_deadline == inf:
                    limits = connection.shared.limits
                    self._body_deadline = trio.current_time() + limits.body_timeout_s
                connection.read_deadline = self._body_deadline
                size = RECV_BODY_BYTES if self._decoder else min(RECV_BODY_BYTES, self._body)
                try:
                    data = await connection.receive_some(size)
                except ReadTimeout:
                    raise RequestTimeout("the request's body did not come in time") from None
                except OSError:
                    return None
                finally:
                    connection.read_deadline = inf
                if not data:
                    return None
            self._continue = False
            self._turn_owed = True
            piece = self._take(data)
            if piece:
                return piece
        return b""

    def _take(self, data: bytes) -> bytes:
        """Body bytes of what was received; the rest goes back to the connection."""
        connection = self._connection
        if self._decoder is not None:
            piece = self._decoder.feed(data)
            connection.buffer = self._decoder.rest
            return piece
        if len(data) > self._body:
            connection.buffer = data[self._body :]
            data = data[: self._body]
        self._body -= len(data)
        return data

    def _take_buffered(self) -> None:
        """Uses up an unread body that is here already, so the connection can stay, unless it is in
        more chunks than are decoded at once."""
        data, self._connection.buffer = self._connection.buffer, b""
        try:
            self._take(data)
        except EdgedError:
            self._close = True

    # ------------------------------------------------------------ disconnect
    def on_disconnect(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._watch()

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            connection = self._connection
            connection.shared.watcher.add(connection.sock.fileno(), self._hung_up)

    def _hung_up(self) -> None:
        self._close = True
        if self._gone is None:
            self._gone = trio.Event()
        self._gone.set()
        callback, self._callback = self._callback, None
        if callback is not None and self._state != "done":
            callback()

    def interrupt(self) -> None:
        """The listener will not wait for this request any longer: its handler is told as if the
        client had left, and cancelled next; the client gets a 503 if no answer has begun."""
        self._interrupted = True
        self._hung_up()

    async def _wait_for_disconnect(self) -> None:
        if self._gone is None:
            self._gone = trio.Event()
        self._watch()
        self._receiving = True
        try:
            if self._state == "held":
                self._send_held()
            await self._gone.wait()
        finally:
            self._receiving = False

    # ------------------------------------------------------------ response
    async def respond(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> None:
        if self._state != "start":
            raise BadResponse("a second answer to one request")
        head = self._encode_head(status, headers, len(body))
        self._state = "done"
        if bodiless(self._head.method, status):
            body = b""
        await self._connection.write_answer(head, body)

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI. Raises ClientGone, BadResponse."""
        kind = message["type"]
        if kind == "http.response.start" and self._state == "start":
            self._held = (message["status"], message.get("headers", ()))
            self._state = "held"
            if self._receiving:
                self._send_held()
        elif kind == "http.response.body" and self._state == "held":
            await self._send_first(message.get("body", b""), more=message.get("more_body", False))
        elif kind == "http.response.body" and self._state == "body":
            await self._send_more(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise BadResponse(f"unexpected {kind!r} in state {self._state!r}")

    def _encode_head(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], whole_bytes: int | None
    ) -> bytes:
        if (self._body or self._decoder is not None) and self.unread:
            self._take_buffered()
        shared = self._connection.shared
        head, self._left_out, self._close = shared.encoder.head(
            method=self._head.method,
            version=self._head.version,
            status=status,
            headers=headers,
            whole_bytes=whole_bytes,
            close=self._close or not self._head.keep_alive or shared.draining or self.unread,
        )
        self._chunked_out = self._left_out is None and self._head.version == "1.1"
        return head

    def _send_held(self) -> None:
        """Sends the head alone."""
        head = self._encode_head(*self._held, None)
        self._state = "body"
        self._connection.write_now(head)

    async def _send_first(self, body: bytes, *, more: bool) -> None:
        status, headers = self._held
        head = self._encode_head(status, headers, None if more else len(body))
        if bodiless(self._head.method, status):
            self._state = "body" if more else "done"
            await self._connection.write(head)
            return
        self._state = "body"
        if not more:
            self._left_out = 0
            self._state = "done"
            await self._connection.write_answer(head, body)
            return
        await self._connection.write(head + self._frame(body))
        await trio.lowlevel.checkpoint()

    async def _send_more(self, body: bytes, *, more: bool) -> None:
        data = b"" if bodiless(self._head.method, self._held[0]) else self._frame(body)
        if not more:
            if self._chunked_out:
                data += b"0\r\n\r\n"
            elif self._left_out:
                raise BadResponse(f"the answer is {self._left_out} bytes short")
            self._state = "done"
        await self._connection.write(data)
        await trio.lowlevel.checkpoint()

    def _frame(self, body: bytes) -> bytes:
        """`body` as its part of the message. Raises BadResponse."""
        body = bytes(body)
        if self._left_out is not None:
            if len(body) > self._left_out:
                raise BadResponse("the answer is longer than its content-length")
            self._left_out -= len(body)
            return body
        if self._chunked_out and body:
            return b"%x\r\n%b\r\n" % (len(body), body)
        return body


def _internal() -> EdgedError:
    return EdgedError("internal error; the node's log says more")
