"""What was damaged, kept for a human to look at: moved aside under a name that says when, bounded.

Best effort towards its bounds: what cannot be removed now is tried again with the next damage."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from typing import Final

from .disk import Disk
from .layout import Layout

FILES_MAX: Final = 64
"""Enough to see what a failing disk does; one entry is enough to see that it does."""
BYTES_MAX: Final = 256 * 1024 * 1024
"""A few of the largest modules. A disk that damages more and more must not be filled by it. The
newest stays even if it alone is larger: it is what is looked for."""


def move_to_quarantine(disk: Disk, layout: Layout, path: Path) -> None:
    """The oldest in quarantine make room for it. Raises OSError: it could not be moved."""
    disk.rename(path, layout.quarantine / f"{time.time_ns()}-{path.name}")
    prune(layout)


def prune(layout: Layout) -> None:
    """Names start with the time in ns, so they sort by age."""
    left_bytes = BYTES_MAX
    for number, path in enumerate(sorted(layout.quarantine.iterdir(), reverse=True)):
        with contextlib.suppress(OSError):
            found = path.lstat()
            size_bytes = found.st_size if stat.S_ISREG(found.st_mode) else 0
            if number == 0 or (number < FILES_MAX and size_bytes <= left_bytes):
                left_bytes -= size_bytes
                continue
            left_bytes = 0  # what is older goes too, or a large one would outlast small ones
            if stat.S_ISDIR(found.st_mode):
                path.rmdir()  # edged makes none: what somebody has put into it is not ours
            else:
                os.unlink(path)


def held_in(layout: Layout) -> tuple[int, int]:
    """(files, bytes)."""
    files = size_bytes = 0
    with contextlib.suppress(OSError), os.scandir(layout.quarantine) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                size_bytes += entry.stat(follow_symlinks=False).st_size
                files += 1
    return files, size_bytes
