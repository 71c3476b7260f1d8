"""Small files that must be whole or absent, and secrets that only their owner may read."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from .errors import ConfigError

FILE_BYTES_MAX: Final = 64 * 1024


def write_file(path: Path, data: bytes, *, secret: bool) -> None:
    """Atomic and durable; a secret is never readable by others, not even while it is written.

    Raises ConfigError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if secret else 0o644)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_directory(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _sync_directory(path: Path) -> None:
    """So that the file has its name after a power cut too."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_file(path: Path, *, secret: bool) -> bytes:
    """Raises ConfigError: unreadable, too large, or a secret that others may read."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if secret and mode & 0o077:
        raise ConfigError(f"{path}: mode {mode:04o} lets others read a secret; chmod 600 it")
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes; not a file of edged's")
    return data
