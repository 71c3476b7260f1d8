"""The logs of a cluster's nodes as one stream, in the order of their times; and as they grow.

A log is node.log and, before it, node.log.1 (logfile.py). Lines are JSON but for tracebacks and
what libraries print, which belong to the line before.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edged.logfile import previous

POLL_S: Final = 0.1
TAIL_BYTES: Final = 256 * 1024
"""Of the past of one log, at most."""
READ_BYTES: Final = 64 * 1024
LINE_BYTES_MAX: Final = 64 * 1024
"""A longer one is told in pieces."""


class Row(msgspec.Struct, frozen=True):
    """What every line that a node logs itself has."""

    timestamp: str
    level: str
    event: str


class Line(NamedTuple):
    at: str
    """ISO 8601 in UTC, so that text sorts as time; of a line without, that of the one before."""
    node: str
    text: str
    row: Row | None
    """None: no JSON line of the node's."""


_decoder = msgspec.json.Decoder(Row)


class _Log:
    """One node's; `read` gives what is new since the last time."""

    def __init__(self, node: str, path: Path) -> None:
        self._node = node
        self._path = path
        self._fd: int | None = None
        self._rest = b""
        self._at = ""

    def past(self, count: int) -> list[Line]:
        """The last lines, also those of the file before, where the newer has too few."""
        data = b""
        for path in (previous(self._path), self._path):
            try:
                with path.open("rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                    data += file.read(TAIL_BYTES)
            except OSError:
                continue
        lines = [self._line(line) for line in data.splitlines()]
        return lines[-count:] if count else []

    def skip(self) -> None:
        """What is there now is not new."""
        if self._open() and self._fd is not None:
            os.lseek(self._fd, 0, os.SEEK_END)

    def read(self) -> list[Line]:
        """Whole lines. When the file was renamed, first the rest of it, then the new one's."""
        if not self._open() or self._fd is None:
            return []
        data = os.read(self._fd, READ_BYTES)
        if not data and self._replaced():
            self.close()
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            whole, self._rest = [*whole, self._rest], b""
        return [self._line(line) for line in whole]

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> bool:
        if self._fd is None:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def _replaced(self) -> bool:
        assert self._fd is not None
        try:
            return not os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:
            return False

    def _line(self, data: bytes) -> Line:
        row: Row | None = None
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            row = _decoder.decode(data)
        if row is not None:
            self._at = row.timestamp
        return Line(self._at, self._node, data.decode(errors="replace"), row)


def read_logs(
    paths: Sequence[tuple[str, Path]],
    *,
    tail: int,
    follow: Callable[[], bool] | None = None,
) -> Iterator[Line]:
    """The last `tail` lines of each log (node, file); then, while `follow` says so, what is added.

    Lines of one look are sorted by time: between nodes, the order is right to POLL_S."""
    logs = [_Log(node, path) for node, path in paths]
    try:
        past = [log.past(tail) for log in logs]
        for log in logs:
            log.skip()
        yield from _merged(past)
        while follow is not None and follow():
            fresh = [log.read() for log in logs]
            yield from _merged(fresh)
            if not any(fresh):
                time.sleep(POLL_S)
    finally:
        for log in logs:
            log.close()


def _merged(lines: list[list[Line]]) -> Iterator[Line]:
    """Each log's lines stay in their order, also where a clock was set back."""
    return heapq.merge(*lines, key=lambda line: line.at)
