"""What of the libraries' code stays in this process's memory.

Starting touches much that is not needed again: the compiler, for the one tiny module that an engine
compiles here (11 MB), certificates, the interpreter's own start. The kernel keeps those pages for
every process anyway, and gives back at the next touch what was dropped.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

_MADV_DONTNEED: Final = 4


def code_ranges(maps: str) -> list[tuple[int, int]]:
    """(address, bytes) of shared libraries' code, in the text of /proc/PID/maps. Code only, and not
    that of guests: pages that were written to (relocated, and read-only by now) would be lost."""
    found: list[tuple[int, int]] = []
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r-xp" and ".so" in fields[5].rpartition("/")[2]:
            start, _, end = fields[0].partition("-")
            found.append((int(start, 16), int(end, 16) - int(start, 16)))
    return found


def drop_code() -> None:
    """Costs page faults later, never more; where the system will not, nothing happens."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape")
    except OSError:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for address, length in code_ranges(maps):
        madvise(address, length, _MADV_DONTNEED)
