"""The other side of HTTP/1.1: reads the answers of a peer's gateway. No I/O.

As strict as the gate of requests (head.py), and for the same reason. An answer ends by its
content-length or its last chunk, never by the end of the stream, so that one cut short cannot look
complete. Of interim answers only 100 Continue is understood. `feed` takes bytes as they come; all
at once and byte by byte are the same. After an error the connection is of no more use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from edged.errors import EdgedError, PeerError

from .chunked import ChunkDecoder
from .head import END
from .response import bodiless

HEAD_BYTES_MAX: Final = 64 * 1024
"""A guest's own header block has at most 32 KiB."""
FIELDS_MAX: Final = 256
BODY_BYTES_MAX: Final = 1 << 62
"""A body is passed on as it comes: whoever makes it bounds it."""

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}+"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2}) [\t\x20-\x7e\x80-\xff]*+\Z")
_FIELDS: Final = re.compile(rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+\Z")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}\Z")


class AnswerHead(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    """Lower-case names; values without surrounding white space."""
    length: int | None
    """Bytes of body to come; None: in chunks."""
    keep_alive: bool


class AnswerReader:
    """One answer. `continued`: a 100 Continue came. `head` is set when it is whole, `done` when the
    body is; `rest` is what came after it."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._buffer = b""
        self._left = 0
        self._chunks: ChunkDecoder | None = None
        self.continued = False
        self.head: AnswerHead | None = None
        self.done = False
        self.rest = b""

    def unfinished(self) -> bool:
        return not self.done

    def feed(self, data: bytes) -> bytes:
        """Body bytes that `data` completes. Raises PeerError."""
        while self.head is None:
            self._buffer += data
            data = b""
            end = self._buffer.find(END, 0, HEAD_BYTES_MAX)
            if end < 0:
                if len(self._buffer) >= HEAD_BYTES_MAX:
                    raise PeerError(f"the answer's head is over {HEAD_BYTES_MAX} bytes")
                return b""
            raw, self._buffer = self._buffer[: end + 2], self._buffer[end + 4 :]
            self._begin(raw)
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        return self._body(data)

    def _begin(self, raw: bytes) -> None:
        """`raw`: a head with the line end of its last field."""
        line, _, block = raw.partition(b"\r\n")
        match = _STATUS_LINE.match(line)
        if match is None or block.count(b"\r\n") > FIELDS_MAX or _FIELDS.match(block) is None:
            raise PeerError("the answer's head is malformed")
        status = int(match.group(1))
        if status < 200:
            if status != 100 or self.continued:
                raise PeerError(f"an interim answer {status}")
            self.continued = True
            return
        fields = (field.partition(b":") for field in block[:-2].split(b"\r\n") if field)
        headers = [(name.lower(), value.strip(b" \t")) for name, _, value in fields]
        self.head = AnswerHead(status, headers, self._framing(status, headers), _stays(headers))
        self._left = self.head.length or 0
        self.done = self.head.length == 0

    def _framing(self, status: int, headers: list[tuple[bytes, bytes]]) -> int | None:
        lengths = [value for name, value in headers if name == b"content-length"]
        codings = [value for name, value in headers if name == b"transfer-encoding"]
        if len(lengths) + len(codings) > 1:
            raise PeerError("the answer has more than one length")
        if lengths and _DIGITS.match(lengths[0]) is None:
            raise PeerError("the answer's content-length is not a number")
        if codings and codings[0].lower() != b"chunked":
            raise PeerError("the answer's transfer-encoding is not chunked")
        if bodiless(self._method, status):
            return 0
        if lengths:
            return int(lengths[0])
        if not codings:
            raise PeerError("the answer does not say where it ends")
        self._chunks = ChunkDecoder(BODY_BYTES_MAX)
        return None

    def _body(self, data: bytes) -> bytes:
        if self._chunks is None:
            piece, self.rest = data[: self._left], self.rest + data[self._left :]
            self._left -= len(piece)
            self.done = not self._left
            return piece
        out: list[bytes] = []
        try:
            while data and not self._chunks.done:
                out.append(self._chunks.feed(data))
                data = self._chunks.rest
        except EdgedError as error:
            raise PeerError(f"the answer: {error}") from error
        self.done = self._chunks.done
        self.rest += data
        return b"".join(out)


def _stays(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the connection can take another request."""
    options = b",".join(value for name, value in headers if name == b"connection").lower()
    return b"close" not in (option.strip(b" \t") for option in options.split(b","))
