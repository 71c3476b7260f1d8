"""Segments that peers ask for right now, in memory: a thread hop and a read cost more than most of
the segments they bring.

Kept for a blob only while some peer wants it: what this node has just stored of it, and what was
read for one of them. All of it has been verified. The least recently used go first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from protocol.ids import Digest

HOT_BYTES_MAX: Final = 8 * 1024 * 1024


class HotSegments:
    def __init__(self, bytes_max: int = HOT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._frames: OrderedDict[tuple[Digest, int], bytes] = OrderedDict()
        self._users: Counter[Digest] = Counter()

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def open(self, blob: Digest) -> None:
        """One more wants it."""
        self._users[blob] += 1

    def close(self, blob: Digest) -> None:
        """One of those does not any more."""
        self._users[blob] -= 1
        if self._users[blob] <= 0:
            del self._users[blob]
            for key in [key for key in self._frames if key[0] == blob]:
                self._bytes -= len(self._frames.pop(key))

    def get(self, blob: Digest, index: int) -> bytes | None:
        frame = self._frames.get((blob, index))
        if frame is not None:
            self._frames.move_to_end((blob, index))
        return frame

    def put(self, blob: Digest, index: int, frame: bytes) -> None:
        """Nothing, if nobody wants the blob."""
        if blob not in self._users or (blob, index) in self._frames:
            return
        self._frames[blob, index] = frame
        self._bytes += len(frame)
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._frames.popitem(last=False)[1])
