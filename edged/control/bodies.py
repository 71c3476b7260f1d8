"""Reading request bodies: bounded, whole or not at all.

A body that ends before its client said so is an error, never a shorter body: nothing of it reaches
the operator. All uploads together are bounded too, since each is held in memory until stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import msgspec
from starlette.requests import Request

from edged.errors import BadRequest, LengthRequired, Overloaded, PayloadTooLarge
from protocol.errors import RemoteProtocolError
from protocol.function import MODULE_BYTES_MAX
from protocol.ids import Digest, parse_digest

JSON_BYTES_MAX: Final = 32 * 1024
"""Twice the largest encoded spec (protocol.function.SPEC_BYTES_MAX): JSON is the longer form."""
UPLOADS_BYTES_MAX: Final = 2 * MODULE_BYTES_MAX
"""Bytes of all uploads in memory at once: two of the largest, or very many real ones."""

DIGEST_HEADER: Final = "edged-digest"

T = TypeVar("T")


class UploadBudget:
    """Counts the bytes of uploads that are in memory now."""

    def __init__(self, limit_bytes: int = UPLOADS_BYTES_MAX) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Raises Overloaded; then nothing was taken."""
        if self._used_bytes + size_bytes > self._limit_bytes:
            raise Overloaded(f"uploads in progress hold {self._used_bytes} bytes; try again")
        self._used_bytes += size_bytes

    @contextmanager
    def share(self) -> Iterator[Share]:
        """What one upload takes is given back at the end, however it ends."""
        share = Share(self)
        try:
            yield share
        finally:
            self._used_bytes -= share.taken_bytes


class Share:
    """One upload's part of the budget."""

    def __init__(self, budget: UploadBudget) -> None:
        self._budget = budget
        self.taken_bytes = 0

    def take(self, size_bytes: int) -> None:
        self._budget.take(size_bytes)
        self.taken_bytes += size_bytes


def declared_length(request: Request, *, limit_bytes: int) -> int | None:
    """The Content-Length. Raises BadRequest (malformed), PayloadTooLarge (over the limit)."""
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise BadRequest("Content-Length is not a number")
    if int(text) > limit_bytes:
        raise PayloadTooLarge(
            f"the body has {int(text)} bytes; at most {limit_bytes}", limit_bytes=limit_bytes
        )
    return int(text)


async def read_body(
    request: Request, *, limit_bytes: int, needed: bool = True, share: Share | None = None
) -> bytes:
    """The whole body; where one is `needed`, a request without any is LengthRequired.

    Raises BadRequest (cut off, or not as long as declared), PayloadTooLarge, Overloaded."""
    declared = declared_length(request, limit_bytes=limit_bytes)
    chunks: list[bytes] = []
    received = 0
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise BadRequest(f"the body was cut off after {received} bytes; nothing was stored")
        chunk: bytes = message.get("body", b"")
        if chunk:
            received += len(chunk)
            if received > limit_bytes:
                raise PayloadTooLarge(
                    f"the body is larger than {limit_bytes} bytes", limit_bytes=limit_bytes
                )
            if share is not None:
                share.take(len(chunk))
            chunks.append(chunk)
        if not message.get("more_body", False):
            break
    if not received and needed and declared is None and "transfer-encoding" not in request.headers:
        raise LengthRequired("this needs a body; send Content-Length, or chunks")
    if declared is not None and received != declared:
        raise BadRequest(f"the body has {received} bytes, not the declared {declared}")
    return b"".join(chunks)


async def read_json(request: Request, kind: type[T], *, empty: T | None = None) -> T:
    """The body as a struct; `empty` stands for a body of no bytes.

    Raises BadRequest naming the key that is wrong or unknown, LengthRequired, PayloadTooLarge."""
    body = await read_body(request, limit_bytes=JSON_BYTES_MAX, needed=empty is None)
    if not body and empty is not None:
        return empty
    if not body:
        raise BadRequest("request body: it is empty; send a JSON document")
    try:
        value = msgspec.json.decode(body, type=kind)
        msgspec.json.encode(value).decode("utf-8")  # lone surrogates could never be stored
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadRequest(f"request body: {error}") from error
    return value


def expected_digest(request: Request) -> Digest | None:
    """The declared digest of an upload. Raises BadRequest."""
    values = request.headers.getlist(DIGEST_HEADER)
    if not values:
        return None
    if len(values) > 1:
        raise BadRequest("Edged-Digest is given twice")
    return digest_field(values[0], name="Edged-Digest")


def digest_field(text: str, *, name: str) -> Digest:
    """Raises BadRequest naming the field."""
    try:
        return parse_digest(text)
    except RemoteProtocolError as error:
        raise BadRequest(f"{name}: {error.detail}") from error
