"""A log file that this process's stdout and stderr go to, bounded by its own process.

Whoever starts a node with its output in a file, as local clusters do, names that file in
EDGED_LOG_FILE. At LOG_BYTES_MAX it is renamed to FILE.1, over an older one, and both descriptors go
to a new file: so tracebacks and what libraries print end up in it too, and at most twice the limit
is kept. What cannot be renamed grows on. Without the variable logs go to stderr as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

LOG_FILE: Final = "EDGED_LOG_FILE"
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
"""Weeks of a quiet node; seconds to search."""
RETRY_BYTES: Final = 1024 * 1024
"""After a failure, so much is written before the next attempt."""
STDOUT: Final = 1
STDERR: Final = 2


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".1")


class CappedFile:
    """Writes to a descriptor whose file is `path`. One thread at a time (Log has the lock)."""

    def __init__(
        self,
        path: Path,
        *,
        fds: tuple[int, ...] = (STDERR, STDOUT),
        limit_bytes: int = LOG_BYTES_MAX,
    ) -> None:
        """The first of `fds` is written to; all of them move to each new file."""
        self._path = path
        self._fds = fds
        self._limit_bytes = limit_bytes
        self._next_bytes = limit_bytes
        self._size_bytes = os.fstat(fds[0]).st_size

    def write(self, text: str) -> int:
        """As a text stream's. Raises OSError, as writing to stderr does."""
        data = text.encode(errors="backslashreplace")
        if self._size_bytes + len(data) > self._next_bytes:
            self._size_bytes = os.fstat(self._fds[0]).st_size  # others may write, or truncate it
            if self._size_bytes + len(data) > self._next_bytes:
                self._rotate()
        view = memoryview(data)
        while view:
            view = view[os.write(self._fds[0], view) :]
        self._size_bytes += len(data)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def _rotate(self) -> None:
        try:
            fd = self._new_file()
        except OSError:
            self._next_bytes = self._size_bytes + RETRY_BYTES
            return
        try:
            for each in self._fds:
                os.dup2(fd, each, inheritable=each in (STDOUT, STDERR))
        finally:
            os.close(fd)
        self._size_bytes = 0
        self._next_bytes = self._limit_bytes

    def _new_file(self) -> int:
        """Made before the full one is moved away: where that fails, all stays as it was."""
        fresh = self._path.with_name(self._path.name + ".new")
        with suppress(FileNotFoundError):
            fresh.unlink()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(fresh, flags, 0o600)
        try:
            self._path.replace(previous(self._path))
            fresh.replace(self._path)
        except OSError:
            os.close(fd)
            raise
        return fd


def own_log_file(environ: Mapping[str, str]) -> CappedFile | None:
    """The file that stderr is, if it is the one the environment names."""
    name = environ.get(LOG_FILE)
    if not name:
        return None
    path = Path(name)
    try:
        if os.path.samestat(path.stat(), os.fstat(STDERR)):
            return CappedFile(path)
    except OSError:
        pass
    return None
