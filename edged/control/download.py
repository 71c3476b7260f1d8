"""A blob as an answer: whole or a range of it, in pieces, for ordinary tools.

The blob was hashed through the descriptor it is read from before the first byte of the answer, so
damage on disk is an error document and never an answer cut short or wrong. A reader that stops
taking holds one piece in memory and one descriptor, until the server cuts it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from edged.errors import StoreError
from edged.interfaces import BlobContent, BlobKind
from protocol.ids import Digest

from .ranges import choose
from .responses import plain_problem

PIECE_BYTES: Final = 256 * 1024
TYPES: Final[dict[BlobKind, tuple[str, str]]] = {
    "module": ("application/wasm", "wasm"),
    "artifact": ("application/octet-stream", "cwasm"),
    "manifest": ("application/msgpack", "manifest"),
}
"""Media type, and the extension of the name it is saved under."""


class AnswerCut(Exception):
    """An answer could not go on after its head; its reader sees it end short."""


class Download:
    """An ASGI answer; `opened` belongs to it."""

    def __init__(
        self, digest: Digest, kind: BlobKind, opened: AbstractContextManager[BlobContent]
    ) -> None:
        self._digest = digest
        self._kind: BlobKind = kind
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._opened as content:
            size, etag = content.size_bytes, f'"{self._digest}"'
            part = choose(Headers(scope=scope), etag=etag, size_bytes=size, method=scope["method"])
            if part.status in (412, 416):
                answer = plain_problem(part.status, f"blob {self._digest} has {size} bytes")
                if part.status == 416:
                    answer.headers["content-range"] = f"bytes */{size}"
                await answer(scope, receive, send)
                return
            media_type, extension = TYPES[self._kind]
            headers = {
                "accept-ranges": "bytes",
                "etag": etag,
                "cache-control": "private, max-age=31536000, immutable",
                "x-content-type-options": "nosniff",
            }
            if part.status in (200, 206):
                headers["content-type"] = media_type
                headers["content-disposition"] = (
                    f'attachment; filename="{self._digest[:16]}.{extension}"'
                )
            if part.status == 206:
                last = part.first + part.length - 1
                headers["content-range"] = f"bytes {part.first}-{last}/{size}"
            if part.status != 304:
                headers["content-length"] = str(part.length)
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": part.status, "headers": raw})
            if scope["method"] != "HEAD":
                await self._send(content, part.first, part.first + part.length, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, content: BlobContent, first: int, end: int, send: Send) -> None:
        for begin in range(first, end, PIECE_BYTES):
            try:
                piece = await content.read(begin, min(PIECE_BYTES, end - begin))
            except StoreError as error:
                raise AnswerCut(f"{error} {error.private}") from error
            await send({"type": "http.response.body", "body": piece, "more_body": True})
