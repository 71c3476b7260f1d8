"""Only code is dropped from memory, and it comes back."""

from __future__ import annotations

import ctypes
from pathlib import Path

from edged.runtime.ffi import Api, ByteVec, library_path
from edged.runtime.resident import code_ranges, drop_code

MAPS = """\
7f0000000000-7f0000001000 r--p 00000000 fe:00 42    /a/lib.so
7f0000001000-7f0000004000 r-xp 00001000 fe:00 42    /a/lib.so
7f0000004000-7f0000005000 r-xp 00001000 fe:00 43    /a/lib.so.1
7f0000005000-7f0000006000 rw-p 00004000 fe:00 42    /a/lib.so
7f0000006000-7f0000007000 r-xp 00000000 00:00 0
7f0000007000-7f0000009000 r-xp 00005000 fe:00 42    /a/lib.so
7f0000009000-7f000000a000 r-xp 00005000 fe:00 42    /a/b c/lib.so
"""


def test_only_the_code_of_that_very_file() -> None:
    found = code_ranges(MAPS, Path("/a/lib.so"))
    assert found == [(0x7F0000001000, 0x3000), (0x7F0000007000, 0x2000)]
    assert code_ranges(MAPS, Path("/a/b c/lib.so")) == [(0x7F0000009000, 0x1000)]
    assert code_ranges("nonsense\n\n", Path("/a/lib.so")) == []


def test_the_library_works_after_its_code_was_dropped() -> None:
    api = Api(library_path())
    maps = Path("/proc/self/maps").read_text()
    assert code_ranges(maps, library_path().resolve())
    for _ in range(2):
        text, wasm = b"(module)", ByteVec()
        error = api.wasmtime_wat2wasm(text, len(text), ctypes.byref(wasm))
        drop_code(library_path())
        assert not error
        assert api.take_bytes(wasm) == b"\0asm\1\0\0\0"
