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


def code_ranges(smaps: str) -> list[tuple[int, int]]:
    """(address, bytes) of shared libraries' code, in the text of /proc/PID/smaps. Code only, not
    that of guests, and nothing that was written to since it was mapped (text relocations, a
    debugger's breakpoints): that would be lost."""
    found: list[tuple[int, int]] = []
    code: tuple[int, int] | None = None
    for line in smaps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) > 1 and "-" in fields[0]:
            named = fields[5].rpartition("/")[2] if len(fields) == 6 else ""
            start, _, end = fields[0].partition("-")
            library = fields[1] == "r-xp" and ".so" in named
            code = (int(start, 16), int(end, 16) - int(start, 16)) if library else None
        elif code is not None and fields[:2] == ["Private_Dirty:", "0"]:
            found.append(code)
            code = None
    return found


def drop_code() -> None:
    """Costs page faults later, never more; where the system will not, nothing happens."""
    try:
        smaps = Path("/proc/self/smaps").read_text("utf-8", "surrogateescape")
    except OSError:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for address, length in code_ranges(smaps):
        madvise(address, length, _MADV_DONTNEED)
