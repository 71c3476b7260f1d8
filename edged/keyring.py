"""The keyring file of a trust directory: one key per line as 64 hex digits, the first one seals.

Written whole or not at all; empty lines do not count. SPEC §4.2.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .errors import ConfigError
from .files import read_file, write_file

KEYRING_KEYS_MAX: Final = 8
KEY_BYTES: Final = 32


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def parse_keyring(data: bytes, path: Path) -> tuple[bytes, ...]:
    """Raises ConfigError naming the line that is wrong."""
    keys: list[bytes] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            key = bytes.fromhex(line.strip().decode("ascii"))
        except ValueError as error:  # UnicodeDecodeError is one
            raise ConfigError(f"{path}: line {number} is not hex") from error
        if len(key) != KEY_BYTES:
            raise ConfigError(f"{path}: line {number} has {len(key)} bytes, not {KEY_BYTES}")
        keys.append(key)
    if not 0 < len(keys) <= KEYRING_KEYS_MAX or len(set(keys)) != len(keys):
        raise ConfigError(f"{path}: 1 to {KEYRING_KEYS_MAX} different keys, not {len(keys)}")
    return tuple(keys)


def read_keyring(path: Path) -> tuple[bytes, ...]:
    """Raises ConfigError: malformed, unreadable, or readable by others."""
    return parse_keyring(read_file(path, secret=True), path)


def write_keyring(path: Path, keys: Sequence[bytes]) -> None:
    """Durable when it returns. Raises ConfigError, also for what could not be read again."""
    if not 0 < len(keys) <= KEYRING_KEYS_MAX:
        raise ConfigError(f"{path}: 1 to {KEYRING_KEYS_MAX} keys, not {len(keys)}; remove some")
    write_file(path, b"".join(key.hex().encode() + b"\n" for key in keys), secret=True)
