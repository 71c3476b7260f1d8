"""Which of WASI's functions a guest is offered, and the environment of an initialiser. Its clock
and random numbers are edged.runtime.world's.
"""

from __future__ import annotations

from ctypes import memmove, string_at
from struct import Struct
from typing import Final

from edged.runtime.call import EFAULT, SUCCESS, Call, HostFunction
from edged.runtime.relay import WASI

_PAIR: Final = Struct("<I12xI")

_FUNCTIONS: Final = frozenset(
    [
        "args_get",
        "args_sizes_get",
        "clock_res_get",
        "clock_time_get",
        "environ_get",
        "environ_sizes_get",
        "fd_advise",
        "fd_allocate",
        "fd_close",
        "fd_datasync",
        "fd_fdstat_get",
        "fd_fdstat_set_flags",
        "fd_fdstat_set_rights",
        "fd_filestat_get",
        "fd_filestat_set_size",
        "fd_filestat_set_times",
        "fd_pread",
        "fd_prestat_dir_name",
        "fd_prestat_get",
        "fd_pwrite",
        "fd_read",
        "fd_readdir",
        "fd_renumber",
        "fd_seek",
        "fd_sync",
        "fd_tell",
        "fd_write",
        "path_create_directory",
        "path_filestat_get",
        "path_filestat_set_times",
        "path_link",
        "path_open",
        "path_readlink",
        "path_remove_directory",
        "path_rename",
        "path_symlink",
        "path_unlink_file",
        "poll_oneoff",
        "proc_exit",
        "proc_raise",
        "random_get",
        "sched_yield",
        "sock_accept",
        "sock_recv",
        "sock_send",
        "sock_shutdown",
    ]
)


def is_foreign(module: str, name: str) -> bool:
    """Whether an imported function is none that a guest of edged is offered."""
    return module != WASI or name not in _FUNCTIONS


class Environment:
    """Answers for the environment, and counts: a libc that has read it keeps what it saw."""

    def __init__(self, variables: dict[str, str]) -> None:
        """Names and values without NUL, names without "=": the sandbox checks."""
        self.reads = 0
        self._texts = [f"{name}={value}\0".encode() for name, value in variables.items()]

    def functions(self) -> dict[str, tuple[str, HostFunction]]:
        """As of edged.runtime.world.World."""
        return {"environ_get": ("ii", self._get), "environ_sizes_get": ("ii", self._sizes)}

    def _sizes(self, call: Call, caller: int, args: int) -> int:
        self.reads += 1
        count_at, size_at = _PAIR.unpack(string_at(args, 20))
        numbers = len(self._texts), sum(map(len, self._texts))
        parts = zip((count_at, size_at), numbers, strict=True)
        return _write(call, caller, [(at, number.to_bytes(4, "little")) for at, number in parts])

    def _get(self, call: Call, caller: int, args: int) -> int:
        pointers_at, buffer_at = _PAIR.unpack(string_at(args, 20))
        at, pointers = buffer_at, b""
        for text in self._texts:
            pointers += (at & 0xFFFFFFFF).to_bytes(4, "little")
            at += len(text)
        return _write(call, caller, [(pointers_at, pointers), (buffer_at, b"".join(self._texts))])


def _write(call: Call, caller: int, parts: list[tuple[int, bytes]]) -> int:
    base, size = call.memory(caller)
    if any(at + len(data) > size for at, data in parts):
        return EFAULT
    for at, data in parts:
        memmove(base + at, data, len(data))
    return SUCCESS
