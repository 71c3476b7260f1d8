"""Imports that no guest is offered, and the functions that stand in their places.

What is offered are WASI's functions. A module may import others where its function's spec names
their modules as `stubs` (SPEC §14.1): it is linked, and the guest ends when it calls one. Whoever
initialises a module outside of a node may let some of them give zeros instead.
"""

from __future__ import annotations

from collections.abc import Collection
from ctypes import byref, memset
from typing import Final, NamedTuple

from edged.errors import ArtifactRefused

from .ffi import VAL_RAW_BYTES, HostCallback, PointerVec, name_of
from .host import Host
from .relay import WASI

TITLE_CHARS_MAX: Final = 200
"""Of "module.name" in what is told: names come from the guest."""

OFFERED: Final = frozenset(
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
"""Of WASI preview 1: what wasmtime's linker defines, as a test compares."""


def is_foreign(module: str, name: str) -> bool:
    """Whether an imported function is none that a guest of edged is offered."""
    return module != WASI or name not in OFFERED


class _Stub(NamedTuple):
    title: str
    """As "module.name"."""
    zeros: int | None
    """Bytes of its results, which are zeros; None: it ends the guest."""


class Stubs:
    """Functions for a module's foreign imports. They live as long as what is linked with them."""

    def __init__(self, host: Host, module: int, zeros: Collection[str] = ()) -> None:
        """Of a wasmtime_module_t. `zeros`, as "module.name" or "module.*", give zeros."""
        self.called: dict[str, None] = {}
        """Those that gave zeros, in the order of their first calls."""
        self._host = host
        self._module = module
        self._zeros = zeros
        self._stubs: list[_Stub] = []
        self._callback = HostCallback(self._call)
        self.foreign: dict[str, str] = {}
        """The first import of each module that has foreign ones, as "module.name"."""
        api, vec = host.api, PointerVec()
        api.wasmtime_module_imports(module, byref(vec))
        for index in range(vec.size):
            each = vec.data[index]
            if api.wasm_externtype_as_functype_const(api.wasm_importtype_type(each)):
                names = _names(host, each)
                if is_foreign(*names):
                    self.foreign.setdefault(names[0], ".".join(names))
        api.wasm_importtype_vec_delete(byref(vec))

    def _call(self, env: int, _caller: int, args: int, _count: int) -> int:
        title, zeros = self._stubs[env - 1]
        if zeros is None:
            call = self._host.state.call
            if call is not None:
                call.stub = title[:TITLE_CHARS_MAX]
            return int(self._host.api.wasmtime_trap_new(b"stopped", 7))
        self.called[title] = None
        memset(args, 0, zeros)
        return 0

    def define(self, linker: int) -> None:
        """One per foreign import. Raises ArtifactRefused: there is no zero of a type."""
        api, vec = self._host.api, PointerVec()
        api.wasmtime_module_imports(self._module, byref(vec))
        try:
            for index in range(vec.size):
                each = vec.data[index]
                functype = api.wasm_externtype_as_functype_const(api.wasm_importtype_type(each))
                names = _names(self._host, each)
                if not functype or not is_foreign(*names):
                    continue
                self._stubs.append(self._stub(*names, functype))
                texts = [name.encode() for name in names]
                error = api.wasmtime_linker_define_func_unchecked(
                    linker, texts[0], len(texts[0]), texts[1], len(texts[1]), functype,
                    self._callback, len(self._stubs), None,
                )  # fmt: skip
                if error:
                    raise _refused(".".join(names), api.take_error(error))
        finally:
            api.wasm_importtype_vec_delete(byref(vec))

    def _stub(self, module: str, name: str, functype: int) -> _Stub:
        title = f"{module}.{name}"
        if title not in self._zeros and f"{module}.*" not in self._zeros:
            return _Stub(title, None)
        _params, results = self._host.api.signature(functype)
        if "other" in results:
            raise _refused(title, "gives something that is no number")
        return _Stub(title, VAL_RAW_BYTES * len(results))


def _names(host: Host, imported: int) -> tuple[str, str]:
    api = host.api
    return (
        name_of(api.wasm_importtype_module(imported)),
        name_of(api.wasm_importtype_name(imported)),
    )


def _refused(title: str, why: str) -> ArtifactRefused:
    return ArtifactRefused(
        "an import cannot be stubbed", private=f"import {title[:TITLE_CHARS_MAX]}: {why}"
    )
