"""Answers that wait: a function's log as NDJSON that goes on until the client leaves or the
function is removed, and long polls.

One line is one LogLine. Blank lines come when nothing else did for a while: they let both ends
notice that the other is gone, and readers skip them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Final, TypeVar

import msgspec
import trio
from starlette.types import Message, Receive, Scope, Send

from edged.errors import EdgedError
from edged.interfaces import LogLine

KEEPALIVE_S: Final = 15.0
"""Half of the 30 s after which proxies commonly call a silent answer dead."""
CLOSE_TIMEOUT_S: Final = 1.0

NDJSON: Final = b"application/x-ndjson"

T = TypeVar("T")


def ndjson(lines: list[LogLine]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


class LogStream:
    """An ASGI answer. `lines` belongs to it from now on and is closed at its end."""

    def __init__(self, lines: AsyncIterator[LogLine], *, keepalive_s: float = KEEPALIVE_S) -> None:
        self._lines = lines
        self._keepalive_s = keepalive_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        writer = _Writer(send)
        await writer.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
            nursery.start_soon(self._keep_alive, writer, nursery.cancel_scope)
            await self._copy(writer)
            nursery.cancel_scope.cancel()
        await writer.finish()

    async def _copy(self, writer: _Writer) -> None:
        """Ends with the lines, which end on removal of the function. A drain cuts them off at its
        deadline, as it does any answer that goes on."""
        try:
            async for line in self._lines:
                await writer.write(ndjson([line]))
                if writer.broken:
                    return
        except EdgedError:
            return
        finally:
            if isinstance(self._lines, AsyncGenerator):
                with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                    await self._lines.aclose()

    async def _keep_alive(self, writer: _Writer, scope: trio.CancelScope) -> None:
        while not writer.broken:
            await trio.sleep_until(writer.last_write + self._keepalive_s)
            if trio.current_time() >= writer.last_write + self._keepalive_s:
                await writer.write(b"\n")
        scope.cancel()


class _Writer:
    """Serialises sends of two tasks; after the client left, it is `broken` and drops the rest."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = trio.Lock()
        self.broken = False
        self.last_write = 0.0

    async def start(self) -> None:
        headers = [(b"content-type", NDJSON), (b"cache-control", b"no-store")]
        await self._put({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, message: Message) -> None:
        async with self._lock:
            self.last_write = trio.current_time()
            if self.broken:
                return
            try:
                await self._send(message)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                self.broken = True


async def unless_disconnected(receive: Receive, waiting: Awaitable[T]) -> T | None:
    """What `waiting` gives; None if the client left before that. Raises what `waiting` does of
    EdgedError."""
    result: T | None = None
    refused: EdgedError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
        try:
            result = await waiting
        except EdgedError as error:
            refused = error
        nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused
    return result


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    scope.cancel()
