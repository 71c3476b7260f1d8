"""Child processes, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path


def all_children(pid: int | str = "self") -> set[int]:
    """A process's children, whichever thread started them; zombies too."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for listing in lists for child in listing.read_text().split()}
