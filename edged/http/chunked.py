"""Chunked request bodies, strictly (RFC 9112 §7.1). No I/O.

`feed` takes bytes as they come and gives body bytes back; all at once and byte by byte are the
same. Lines end in CRLF, sizes are 1 to 16 hex digits, extensions are well formed, bounded and
ignored, trailers are checked like headers, bounded and dropped. One call decodes a bounded number
of chunks, and a body may not be mostly framing: chunks of one byte cost a peer six bytes and the
node some 2 us each. After an error the connection is of no more use.
"""

from __future__ import annotations

import re
from typing import Final

from edged.errors import BadRequest, PayloadTooLarge

LINE_BYTES_MAX: Final = 256
"""Of a chunk-size line with its extensions: real ones have under 20 bytes, and a peer must not make
the node read forever for one byte of body."""
TRAILER_BYTES_MAX: Final = 4096
OVERHEAD_BYTES_MAX: Final = 16 * 1024
"""Framing that a body may have on top of its own size (Go's bound since CVE-2023-39326)."""
CHUNKS_PER_FEED: Final = 512
"""About 1 ms of decoding; then others have their turn."""

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_SIZE_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb'|"[\t !#-\[\]-~]*+"))?)*+\Z'
)
_TRAILERS: Final = re.compile(rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+\Z")


class ChunkDecoder:
    """One body. `done` is set at its end. `rest` is what `feed` left: what follows the body, or,
    while it is not done, what is to be fed next."""

    def __init__(self, body_bytes_max: int) -> None:
        self._max = body_bytes_max
        self._total = 0
        self._overhead = 0
        self._left = 0
        """Bytes still to come of the present chunk."""
        self._state = "size"  # size | data | end | trailers
        self._buffer = b""
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Body bytes that `data` completes. Raises BadRequest, PayloadTooLarge."""
        buffer = self._buffer + data if self._buffer else data
        out: list[bytes] = []
        at = 0
        chunks_left = CHUNKS_PER_FEED
        while not self.done:
            if self._state == "data":
                piece = buffer[at : at + self._left]
                if not piece:
                    break
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "end"
            elif self._state == "end":
                if not b"\r\n".startswith(buffer[at : at + 2]):
                    raise BadRequest("a chunk is longer than its size says")
                if len(buffer) - at < 2:
                    break
                at += 2
                self._state = "size"
            elif self._state == "size":
                if not chunks_left:
                    break
                end = self._line(buffer, at)
                if end < 0:
                    break
                chunks_left -= 1
                self._begin_chunk(buffer[at:end])
                at = end + 2
            else:
                end = self._end_of_trailers(buffer, at)
                if end < 0:
                    break
                at = end
                self.done = True
        if self.done or not chunks_left:
            self.rest = buffer[at:]
            self._buffer = b""
        else:
            self.rest = b""
            self._buffer = buffer[at:]
        return b"".join(out)

    def _line(self, buffer: bytes, at: int) -> int:
        """Where the line that starts at `at` ends, or -1 while it is incomplete and lawful."""
        end = buffer.find(b"\r\n", at, at + LINE_BYTES_MAX + 2)
        if end < 0 and len(buffer) - at >= LINE_BYTES_MAX + 2:
            raise BadRequest(f"a chunk-size line is over {LINE_BYTES_MAX} bytes")
        if end < 0 and b"\n" in buffer[at:]:
            raise BadRequest("a chunk-size line ends in a bare LF")
        return end

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE_LINE.match(line)
        if match is None:
            raise BadRequest("malformed chunk size or extension")
        self._left = int(match.group(1), 16)
        self._total += self._left
        if self._total > self._max:
            raise PayloadTooLarge(f"the body is over {self._max} bytes")
        self._overhead += len(line) + 4
        if self._overhead > OVERHEAD_BYTES_MAX + self._total:
            raise BadRequest("the body's chunks are mostly framing; send larger ones")
        self._state = "data" if self._left else "trailers"

    def _end_of_trailers(self, buffer: bytes, at: int) -> int:
        if buffer.startswith(b"\r\n", at):
            return at + 2
        end = buffer.find(b"\r\n\r\n", at, at + TRAILER_BYTES_MAX + 4)
        if end < 0:
            if len(buffer) - at >= TRAILER_BYTES_MAX + 4:
                raise BadRequest(f"trailers are over {TRAILER_BYTES_MAX} bytes")
            return -1
        if _TRAILERS.match(buffer[at : end + 2]) is None:
            raise BadRequest("malformed trailers")
        return end + 4
