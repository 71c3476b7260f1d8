"""A tiny guest that lets a host function call the real WASI function it shadows.

wasmtime's WASI finds the guest's memory as the *calling instance's* export "memory", so a host
callback cannot call it directly. The relay module imports the guest's memory and the WASI
functions, exports both, and stands between: callback -> relay -> WASI. One is instantiated per
invocation, and only when a shadowed call needs it.

It is also the module whose compiled form tells the engine's artifact key.
"""

from __future__ import annotations

from typing import Final

WASI: Final = "wasi_snapshot_preview1"

SIGNATURES: Final[dict[str, str]] = {
    # Parameters: i = i32, I = i64; every one of them returns an errno (i32).
    "clock_time_get": "iIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_filestat_set_size": "iI",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_symlink": "iiiii",
    "poll_oneoff": "iiii",
}
NAMES: Final = tuple(SIGNATURES)
SHADOWED: Final = ("fd_write", "proc_exit")
"""Functions that edged answers without any help of WASI's."""


def relay_wat() -> str:
    """Exports are "memory" and the names of SIGNATURES."""
    types = {"i": "i32", "I": "i64"}
    imports, functions = [], []
    for name, letters in SIGNATURES.items():
        params = " ".join(types[letter] for letter in letters)
        imports.append(f'(import "{WASI}" "{name}" (func ${name} (param {params}) (result i32)))')
        gets = " ".join(f"(local.get {index})" for index in range(len(letters)))
        functions.append(
            f'(func (export "{name}") (param {params}) (result i32) (call ${name} {gets}))'
        )
    return "\n".join(
        [
            "(module",
            '(import "guest" "memory" (memory 0))',
            *imports,
            '(export "memory" (memory 0))',
            *functions,
            ")",
        ]
    )
