"""System calls of the store, each announced to a hook first, errors translated.

Rules: a file becomes visible under its final name only by rename or link of a complete, synced
file; the directory is synced before the change is acknowledged; after a failed fsync nothing is
retried (the kernel may have dropped the dirty pages), the file is discarded.
The hook lets tests stop the process, or fail the call, at each single step.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from blake3 import blake3

from edged.errors import DiskFull, StoreError
from protocol.ids import Digest

Step = Callable[[str], None]
"""Called with the name of each step before it is taken; raises OSError to fail it."""

CHUNK_BYTES: Final = 1024 * 1024
"""BLAKE3 is within 3 % of its peak from 1 MiB on, and memory stays bounded."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""EFBIG: RLIMIT_FSIZE, an operator's quota on one file."""
_DAMAGE: Final = frozenset(
    {
        errno.EIO,
        errno.EBADMSG,
        errno.EUCLEAN,
        errno.ELOOP,
        errno.EISDIR,
        errno.ENXIO,
        errno.ENODEV,
    }
)
"""Sectors or checksums that are wrong; something other than a regular file."""
_GROWING: Final = frozenset({"mkdir", "create", "write", "link", "journal-write", "sql-commit"})
"""Steps that take space; SQLite's commit does, as its WAL grows."""


def no_step(_name: str) -> None:
    """The hook of a disk that is left alone."""


class FullDisk:
    """Its `step`, as the hook, makes any disk a full one while `full` is set: what would need space
    fails as the kernel would fail it; reading, unlinking and renaming go on. Thread-safe."""

    def __init__(self) -> None:
        self.full = False
        self.refused = 0
        """Calls that failed so."""
        self._counting = threading.Lock()

    def step(self, name: str) -> None:
        if self.full and name in _GROWING:
            with self._counting:
                self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """OSError becomes DiskFull or StoreError; the client sees no path, the log does."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"no space left while {doing} ({os.strerror(error.errno)}); nothing was kept of it",
                private=str(error),
            ) from error
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise StoreError(f"{doing} failed: {reason}", private=str(error)) from error


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """pwrite until everything is written (a nearly full disk writes short first)."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def open_file(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """A descriptor of a regular file. Whatever else stands there (a link, a directory, a pipe, a
    socket, a device) raises an OSError that `is_damage` knows, and keeps nobody waiting."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.ENXIO, "not a regular file", str(path))


def is_damage(error: OSError) -> bool:
    """Of a file that was to be read: it is lost, and only it; nothing is wrong with this process
    (as with too many open files) or the whole directory (as with wrong permissions)."""
    return error.errno in _DAMAGE


def hash_fd(fd: int) -> tuple[Digest, int]:
    """(digest, size) of an open file from its start."""
    hasher = blake3()
    offset = 0
    while chunk := os.pread(fd, CHUNK_BYTES, offset):
        hasher.update(chunk)
        offset += len(chunk)
    return Digest(hasher.hexdigest()), offset


def hashes_to(path: Path, digest: Digest) -> bool:
    """What cannot be read is damage like any other: one blob must not keep a node from starting,
    nor a check from going on. Raises FileNotFoundError, OSError."""
    try:
        fd = open_file(path)
        try:
            return hash_fd(fd)[0] == digest
        finally:
            os.close(fd)
    except OSError as error:
        if not is_damage(error):
            raise
        return False


class Disk:
    """The file system under one data directory. Raises OSError; callers use `translated`."""

    def __init__(self, root: Path, *, min_free_bytes: int, step: Step = no_step) -> None:
        self._root = root
        self._min_free_bytes = min_free_bytes
        self.step = step

    def require_free(self, size_bytes: int) -> None:
        """Raises DiskFull unless `size_bytes` more leave the configured reserve.

        Only blob bytes ask: the reserve is there so that records and the index still can."""
        with translated("asking for free space"):
            self.step("statvfs")
            found = os.statvfs(self._root)
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes - size_bytes < self._min_free_bytes:
            raise DiskFull(
                f"no space for {size_bytes} bytes: {free_bytes} are free, of which "
                f"{self._min_free_bytes} are kept in reserve (store.min_free_bytes)"
            )

    def make_dir(self, path: Path) -> None:
        """Durably makes `path` if it is missing (its parent exists)."""
        if not path.is_dir():
            self.step("mkdir")
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            self.sync_dir(path.parent)

    def create(self, path: Path) -> int:
        """A descriptor of a new private file, for writing and reading."""
        self.step("create")
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        self.step("write")
        write_all(fd, data, offset)

    def seal(self, fd: int) -> None:
        """Content and mode are final and durable after this."""
        self.step("chmod")
        os.fchmod(fd, 0o444)
        self.sync(fd)

    def sync(self, fd: int) -> None:
        self.step("fsync")
        os.fsync(fd)

    def sync_dir(self, path: Path) -> None:
        self.step("fsync-dir")
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Durable when it returns; the source directory's entry may come back after power loss,
        which the sweep at start covers."""
        self.step("rename")
        source.rename(target)
        self.sync_dir(target.parent)

    def link(self, source: Path, target: Path) -> None:
        """A second name, replacing a stale one; a file system without links gets a rename."""
        self.step("link")
        target.unlink(missing_ok=True)
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}:
                raise
            source.rename(target)
        self.sync_dir(target.parent)

    def unlink(self, path: Path) -> None:
        self.step("unlink")
        path.unlink(missing_ok=True)

    def discard(self, path: Path) -> None:
        """Best effort, after a failure: what stays is swept at the next start."""
        with contextlib.suppress(OSError):
            self.unlink(path)
