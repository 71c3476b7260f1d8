"""The body of one request: read once, within its bounds, and counted while it is in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from edged.errors import Overloaded, PayloadTooLarge
from edged.http import ClientGone

Receive = Callable[[], Awaitable[dict[str, Any]]]


class BodyBudget:
    """Bodies in memory, all together."""

    __slots__ = ("bytes", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self.bytes_max = bytes_max


class RequestBody:
    """`length`: as the client says; None: in chunks. `limit_bytes`: the function's own bound."""

    __slots__ = ("_budget", "_held", "_limit", "_receive", "_taken", "begun", "length", "whole")

    def __init__(
        self, receive: Receive, length: int | None, limit_bytes: int, budget: BodyBudget
    ) -> None:
        """Raises PayloadTooLarge."""
        if length is not None and length > limit_bytes:
            raise _too_large(limit_bytes)
        self.length = length
        self.whole: bytes | None = None
        """All of it, once gathered."""
        self.begun = False
        """Some of it was handed out in pieces: it cannot be had again."""
        self._receive = receive
        self._limit = limit_bytes
        self._budget = budget
        self._taken = 0
        self._held = 0

    async def gather(self) -> bytes:
        """All of it; again and again. Raises as `next`, and Overloaded."""
        if self.whole is not None:
            return self.whole
        chunks: list[bytes] = []
        budget = self._budget
        more = True
        while more:
            chunk, more = await self._read()
            if chunk:
                self._held += len(chunk)
                budget.bytes += len(chunk)
                if budget.bytes > budget.bytes_max:
                    raise Overloaded("too many request bodies at once")
                chunks.append(chunk)
        self.whole = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return self.whole

    async def next(self) -> tuple[bytes, bool]:
        """A piece, and whether more may come.

        Raises PayloadTooLarge, RequestTimeout, BadRequest, ClientGone."""
        self.begun = True
        return await self._read()

    async def _read(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone("the client left within its body")
        chunk: bytes = message["body"]
        self._taken += len(chunk)
        if self._taken > self._limit:
            raise _too_large(self._limit)
        return chunk, message["more_body"]

    def release(self) -> None:
        """It is not in memory any longer."""
        self._budget.bytes -= self._held
        self._held = 0


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is over {limit_bytes} bytes", limit_bytes=limit_bytes)
