"""Only code is dropped from memory, and it comes back."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from edged.resident import code_ranges, drop_code
from edged.runtime.ffi import Api, ByteVec, library_path

RANGES = """\
7f0000000000-7f0000001000 r--p 00000000 fe:00 42    /a/lib.so
7f0000001000-7f0000004000 r-xp 00001000 fe:00 42    /a/lib.so
7f0000005000-7f0000006000 rw-p 00004000 fe:00 42    /a/lib.so
7f0000006000-7f0000007000 r-xp 00000000 00:00 0
7f0000007000-7f0000009000 r-xp 00000000 00:00 0     [vdso]
7f0000009000-7f000000a000 r-xp 00005000 fe:00 42    /a/b c/lib.so.1
7f000000a000-7f000000b000 r-xp 00000000 fe:00 42    /a.so/guest.cwasm
7f000000b000-7f000000c000 rwxp 00005000 fe:00 42    /a/lib.so
7f000000c000-7f000000d000 r-xp 00001000 fe:00 43    /a/relocated.so
"""


def smaps() -> str:
    """The last one is of a library whose code was written to."""
    text = ""
    for line in RANGES.splitlines():
        dirty_kb = 4 if "relocated" in line else 0
        text += f"{line}\nSize: 4 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty:         {dirty_kb} kB\n"
    return text + "VmFlags: rd ex mr mw me\n"


def resident_kb(library: Path) -> int:
    text = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"r-xp .* {library}\n(?:\w+: .*\n)*?Rss: +(\d+) kB", text)
    assert found
    return sum(map(int, found))


def test_only_the_code_of_files() -> None:
    assert code_ranges(smaps()) == [(0x7F0000001000, 0x3000), (0x7F0000009000, 0x1000)]
    assert code_ranges("nonsense\n\n") == code_ranges(RANGES) == []


def test_libraries_work_after_their_code_was_dropped() -> None:
    api = Api(library_path())
    for _ in range(2):
        text, wasm = b"(module)", ByteVec()
        error = api.wasmtime_wat2wasm(text, len(text), ctypes.byref(wasm))
        before_kb = resident_kb(library_path().resolve())
        drop_code()
        assert resident_kb(library_path().resolve()) < before_kb
        assert not error
        assert api.take_bytes(wasm) == b"\0asm\1\0\0\0"
