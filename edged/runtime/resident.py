"""What of wasmtime's library stays in this process's memory.

Making an engine compiles one tiny module here, which touches 11 MB of the compiler's code; all
other compiling happens in processes of its own. The kernel keeps those pages for every process
anyway, and gives back at the next touch what was dropped.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

_MADV_DONTNEED: Final = 4


def code_ranges(maps: str, library: Path) -> list[tuple[int, int]]:
    """(address, bytes) of the library's code in the text of /proc/PID/maps. Code only: pages that
    may have been written to (relocated data is read-only too by now) would be lost."""
    found: list[tuple[int, int]] = []
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r-xp" and fields[5] == str(library):
            start, _, end = fields[0].partition("-")
            found.append((int(start, 16), int(end, 16) - int(start, 16)))
    return found


def drop_code(library: Path) -> None:
    """Costs page faults later, never more; where the system will not, nothing happens."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape")
    except OSError:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for address, length in code_ranges(maps, library.resolve()):
        madvise(address, length, _MADV_DONTNEED)
