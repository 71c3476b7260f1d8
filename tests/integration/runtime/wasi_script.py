"""Writes guests that make a list of WASI calls and print the errno of each.

A call is a name and arguments: an int; a str or bytes (placed in memory, passed as pointer and
length); or Load(address), an i32 that an earlier call left in memory.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SIGNATURES = {
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI",
    "fd_prestat_get": "ii",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "sock_shutdown": "ii",
}
RESULTS = 1024
"""Where errnos are gathered, 4 bytes each."""
SLOTS = 256
"""Memory below 1024 that scripts may use as they like: fds at SLOTS + 4 n."""
RIGHTS = 0x1FFFFFFF
READ = 0b1110
"""fd_read, fd_seek, fd_fdstat_set_flags: no write, which a read-only mount refuses."""
CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8


class Load(NamedTuple):
    address: int


class Call(NamedTuple):
    name: str
    arguments: tuple[object, ...]


def call(name: str, *arguments: object) -> Call:
    return Call(name, arguments)


def open_file(slot: int, path: str, *, dir_fd: int = 3, oflags: int = 0, fdflags: int = 0,
              follow: int = 1, rights: int = RIGHTS) -> Call:  # fmt: skip
    return call("path_open", dir_fd, follow, path, oflags, rights, RIGHTS, fdflags, slot)


def write(fd: object, data: bytes | str, *, offset: int | None = None) -> Call:
    """fd_write (or fd_pwrite) of one iovec; the count lands at address 8."""
    return Call("pwrite" if offset is not None else "write", (fd, data, offset))


def read(fd: object, length: int = 64) -> Call:
    return Call("read", (fd, length))


def script(*steps: Call, repeat: int = 1) -> str:
    """WAT of a guest that runs the steps (`repeat` times over, keeping the last errnos)."""
    data: list[tuple[int, bytes]] = []
    top = 65536

    def place(value: str | bytes) -> tuple[int, int]:
        nonlocal top
        raw = value.encode() if isinstance(value, str) else value
        data.append((top, raw))
        top += len(raw) + 8
        return top - len(raw) - 8, len(raw)

    body: list[str] = []
    for index, step in enumerate(steps):
        name, arguments = step
        flat: list[object]
        if name in ("write", "pwrite", "read"):
            fd, payload, *rest = arguments
            at, length = place(payload) if name != "read" else (32768, payload)  # type: ignore[arg-type]
            body.append(f"(i32.store (i32.const 0) (i32.const {at}))")
            body.append(f"(i32.store (i32.const 4) (i32.const {length}))")
            flat = [fd, 0, 1, *rest, 8] if name == "pwrite" else [fd, 0, 1, 8]
            name = f"fd_{name}"
        else:
            flat = []
            for argument in arguments:
                if isinstance(argument, (str, bytes)):
                    flat.extend(place(argument))
                else:
                    flat.append(argument)
        letters = SIGNATURES[name]
        assert len(letters) == len(flat), (name, flat)
        pushed = " ".join(
            f"(i32.load (i32.const {value.address}))"
            if isinstance(value, Load)
            else f"({'i32' if letter == 'i' else 'i64'}.const {value})"
            for letter, value in zip(letters, flat, strict=True)
        )
        body.append(f"(i32.store (i32.const {RESULTS + 4 * index}) (call ${name} {pushed}))")
    imports = "".join(
        f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param '
        f"{' '.join('i32' if letter == 'i' else 'i64' for letter in letters)}) (result i32)))\n"
        for name, letters in SIGNATURES.items()
    )
    segments = "".join(
        f'(data (i32.const {at}) "{"".join(f"{chr(92)}{byte:02x}" for byte in raw)}")\n'
        for at, raw in data
    )
    pages = top // 65536 + 1
    return f"""(module {imports} (memory (export "memory") {pages}) {segments}
      (func (export "_start") (local $i i32)
        (loop $again
          {" ".join(body)}
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $again (i32.lt_u (local.get $i) (i32.const {repeat}))))
        (i32.store (i32.const 0) (i32.const {RESULTS}))
        (i32.store (i32.const 4) (i32.const {4 * len(steps)}))
        (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
        (i32.store (i32.const 0) (i32.const 32768))
        (i32.store (i32.const 4) (i32.const 64))
        (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))))"""


def errnos(stderr: bytes) -> tuple[int, ...]:
    """Of each step, from the guest's stderr; the last 64 bytes are what `read` read last."""
    raw = stderr[:-64]
    return struct.unpack(f"<{len(raw) // 4}I", raw)
