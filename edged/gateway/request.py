"""One request on its way through the gateway, and what is no request: the lifespan protocol."""

from __future__ import annotations

from typing import Any

import trio

from edged.interfaces import FunctionView, Slot

from .body import Receive, RequestBody
from .forward import Send
from .passage import Passage


class Request:
    """One request on its way through."""

    __slots__ = (
        "answering",
        "body",
        "function",
        "gone",
        "passage",
        "peer",
        "request_id",
        "scope",
        "slot",
        "started_at",
    )

    def __init__(self, scope: dict[str, Any], request_id: bytes, peer: str | None) -> None:
        self.scope = scope
        self.request_id = request_id
        self.peer = peer
        """Which node passed it on."""
        self.passage: Passage | None = None
        """What that node says of it."""
        self.body: RequestBody | None = None
        self.started_at = trio.current_time()
        self.function: FunctionView | None = None
        self.slot: Slot | None = None
        self.gone = False
        self.answering = False
        """Another node's answer has begun to go out."""


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
