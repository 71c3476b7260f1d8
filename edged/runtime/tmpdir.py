"""Private /tmp directories: made per invocation, removed whatever the guest left in them.

Removal is iterative and holds two descriptors: a guest can build a tree deeper than any recursion
limit and any PATH_MAX, so subdirectories are moved up to the root one level at a time. The
directory's owner is gone by then; nothing races.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

PREFIX: Final = "tmp-"


def make(scratch: Path) -> Path:
    path = scratch / f"{PREFIX}{secrets.token_hex(8)}"
    path.mkdir(mode=0o700)
    return path


def sweep(scratch: Path) -> int:
    """Removes what a killed process left; returns how many directories."""
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    left = [entry for entry in scratch.iterdir() if entry.name.startswith(PREFIX)]
    for entry in left:
        remove(entry)
    return len(left)


def remove(path: Path) -> None:
    """Deletes the tree. Raises OSError only if the file system itself fails."""
    path.chmod(0o700)
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        pending = _empty(root, root)
        while pending:
            name = pending.pop()
            directory = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root
            )
            try:
                pending += _empty(directory, root)
            finally:
                os.close(directory)
            os.rmdir(name, dir_fd=root)
    finally:
        os.close(root)
    path.rmdir()


def _empty(directory: int, root: int) -> list[str]:
    """Unlinks what is in `directory` and moves its subdirectories into `root` under fresh names,
    which are returned."""
    moved = []
    # Listed before anything is moved: when directory is root itself, moves would show up again.
    for name in os.listdir(directory):
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=directory)
            continue
        if mode & 0o700 != 0o700:
            # Renaming a directory rewrites its "..", so it must be writable itself.
            os.chmod(name, 0o700, dir_fd=directory)
        fresh = f".{secrets.token_hex(8)}"
        os.rename(name, fresh, src_dir_fd=directory, dst_dir_fd=root)
        moved.append(fresh)
    return moved
