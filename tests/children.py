"""Child processes, as the kernel lists them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def all_children(pid: int | str = "self") -> set[int]:
    """A process's children, whichever thread started them; zombies too."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for listing in lists for child in listing.read_text().split()}


def zombies() -> dict[int, str]:
    """Own children that have ended and that nobody has waited for, by pid: their programs."""
    found: dict[int, str] = {}
    for pid in sorted(all_children()):
        with suppress(FileNotFoundError):
            head, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            if fields.split()[0] == "Z":
                found[pid] = head.partition("(")[2]
    return found


def reap(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
