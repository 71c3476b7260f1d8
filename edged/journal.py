"""What functions wrote to stderr, and what edged says about their invocations.

One bounded ring per function; lost when the node stops. A follower that reads too slowly loses
the oldest lines, never blocks a writer; it ends when the function is removed. What a guest writes
costs the event loop no more than a full ring does. Owned by that loop: not thread-safe.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import trio

from protocol.ids import FunctionName, VersionId

from .interfaces import LogLine

LINES_MAX: Final = 1000
CHARACTERS_MAX: Final = 256 * 1024
LINE_CHARACTERS_MAX: Final = 8 * 1024
"""Longer lines are cut; a wasm backtrace of 20 frames is about 2 KiB."""
FUNCTIONS_MAX: Final = 4096
"""The function that wrote longest ago loses its ring first."""


class _Ring:
    def __init__(self) -> None:
        self.lines: deque[LogLine] = deque()
        self.characters = 0
        self.next_seq = 1
        self.changed = trio.Event()
        self.closed = False

    def append(self, line: LogLine) -> None:
        self.lines.append(line)
        self.characters += len(line.text)
        self.next_seq = line.seq + 1
        while len(self.lines) > LINES_MAX or (
            self.characters > CHARACTERS_MAX and len(self.lines) > 1
        ):
            self.characters -= len(self.lines.popleft().text)

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def close(self) -> None:
        self.closed = True
        self.changed.set()


class Journal:
    def __init__(self, *, wall_s: Callable[[], float] = time.time) -> None:
        self._rings: OrderedDict[FunctionName, _Ring] = OrderedDict()
        self._wall_s = wall_s

    def write(self, name: FunctionName, version: VersionId, stream: str, text: str) -> None:
        """Appends each line of `text`, or of its end where it is more than a ring holds."""
        ring = self._ring(name)
        at_s = self._wall_s()
        tail = text[-CHARACTERS_MAX:].removesuffix("\n").rsplit("\n", LINES_MAX)
        for line in tail[-LINES_MAX:]:
            line = line.removesuffix("\r")
            cut = line if len(line) <= LINE_CHARACTERS_MAX else line[:LINE_CHARACTERS_MAX] + "…"
            ring.append(LogLine(ring.next_seq, at_s, version, stream, cut))
        ring.wake()

    def tail(self, name: FunctionName, count: int) -> list[LogLine]:
        ring = self._rings.get(name)
        return list(ring.lines)[-count:] if ring is not None and count > 0 else []

    async def follow(self, name: FunctionName, count: int) -> AsyncIterator[LogLine]:
        """The last `count` lines, then each new one, until the function is forgotten."""
        ring = self._ring(name)
        seen = ring.next_seq - 1 - min(count, len(ring.lines))
        while True:
            changed = ring.changed
            fresh = [line for line in ring.lines if line.seq > seen]
            for line in fresh:
                seen = line.seq
                yield line
            if not fresh:
                if ring.closed:
                    return
                await changed.wait()

    def forget(self, name: FunctionName) -> None:
        """Drops a removed function's lines and ends its followers."""
        ring = self._rings.pop(name, None)
        if ring is not None:
            ring.close()

    def end_followers(self) -> None:
        """The node is stopping: nobody is to wait for lines that do not come."""
        for name in list(self._rings):
            self.forget(name)

    def _ring(self, name: FunctionName) -> _Ring:
        ring = self._rings.get(name)
        if ring is None:
            ring = self._rings[name] = _Ring()
            if len(self._rings) > FUNCTIONS_MAX:
                self._rings.popitem(last=False)[1].close()
        self._rings.move_to_end(name)
        return ring
