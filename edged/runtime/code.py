"""Native code in one engine's memory, and what it says of itself.

Freed when the last reference goes: a running invocation holds one, so closing a module while it
runs needs no counting (CPython frees at once).
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from ctypes import byref, c_void_p
from typing import Any, Final

from edged.errors import ArtifactRefused

from .engine import Engine
from .ffi import EXTERNKIND_FUNC, Api, ByteVec, PointerVec, name_of
from .relay import SHADOWED, WASI
from .stubs import Stubs

Signature = tuple[tuple[str, ...], tuple[str, ...]]
"""Parameter and result types."""
_ARGUMENTS: Final = frozenset({f"{WASI}.args_get", f"{WASI}.args_sizes_get"})
_ENVIRONMENT: Final = frozenset({f"{WASI}.environ_get", f"{WASI}.environ_sizes_get"})
_SELF_SUFFICIENT: Final = frozenset(f"{WASI}.{name}" for name in SHADOWED)


class Code:
    """One module in one engine, with its two linked forms (without and with a private /tmp)."""

    def __init__(self, engine: Engine, module: int, *, zeros: Collection[str] = ()) -> None:
        """Owns `module`. `zeros` as Stubs has them. Raises ArtifactRefused if an import cannot be
        had."""
        self.engine = engine
        self.module = module
        self._lock = threading.Lock()
        self._linked: list[int] = []
        self.stubs = Stubs(engine.host, module, zeros)
        self._with_tmp: int | None = None
        self._with_init: dict[bool, int] = {}
        self.imports = imports_of(engine.api, module)
        imported = frozenset(self.imports)
        # A guest cannot see what it does not import; making it would be half the call's cost.
        self.needs_wasi = not imported <= _SELF_SUFFICIENT
        self.needs_args = bool(imported & _ARGUMENTS)
        self.needs_env = bool(imported & _ENVIRONMENT)
        self.arguments: tuple[tuple[bytes, ...], Any] = (), None
        """The last call's argv, checked, and as a char*[]."""
        self.plain = self._link()

    @property
    def with_tmp(self) -> int:
        with self._lock:
            if self._with_tmp is None:
                self._with_tmp = self._link(private_tmp=True)
            return self._with_tmp

    def with_init(self, *, private_tmp: bool) -> int:
        """The form whose clock and random numbers are those of the call's world."""
        with self._lock:
            known = self._with_init.get(private_tmp)
            if known is None:
                known = self._link(private_tmp=private_tmp, init=True)
                self._with_init[private_tmp] = known
            return known

    def _link(self, *, private_tmp: bool = False, init: bool = False) -> int:
        engine = self.engine
        if not self.stubs.foreign:
            return self._link_by(engine.linker(private_tmp=private_tmp, init=init))
        linker = engine.new_linker(private_tmp=private_tmp, init=init)
        try:
            self.stubs.define(linker)
            return self._link_by(linker)
        finally:
            engine.api.wasmtime_linker_delete(linker)

    def _link_by(self, linker: int) -> int:
        api = self.engine.api
        linked = c_void_p()
        error = api.wasmtime_linker_instantiate_pre(linker, self.module, byref(linked))
        if error:
            raise ArtifactRefused(
                "the module's imports fit no host function", private=api.take_error(error)
            )
        assert linked.value is not None
        self._linked.append(linked.value)
        return linked.value

    def __del__(self) -> None:
        api = self.engine.api
        for linked in self._linked:
            api.wasmtime_instance_pre_delete(linked)
        api.wasmtime_module_delete(self.module)


def copy_code(code: Code, engine: Engine) -> Code:
    """The same code in another engine. Costs a copy of the image; the file may be gone."""
    api = engine.api
    image, module = ByteVec(), c_void_p()
    error = api.wasmtime_module_serialize(code.module, byref(image))
    if error:
        raise ArtifactRefused("the code cannot be copied", private=api.take_error(error))
    error = api.wasmtime_module_deserialize(engine.pointer, image.data, image.size, byref(module))
    api.wasm_byte_vec_delete(byref(image))
    if error:
        raise ArtifactRefused("the code does not load", private=api.take_error(error))
    assert module.value is not None
    return Code(engine, module.value)


def exports_of(api: Api, module: int) -> dict[str, Signature]:
    """Signatures of the exported functions."""
    vec = PointerVec()
    api.wasmtime_module_exports(module, byref(vec))
    signatures = {}
    for index in range(vec.size):
        export = vec.data[index]
        kind = api.wasm_exporttype_type(export)
        if api.wasm_externtype_kind(kind) == EXTERNKIND_FUNC:
            functype = api.wasm_externtype_as_functype_const(kind)
            signatures[name_of(api.wasm_exporttype_name(export))] = api.signature(functype)
    api.wasm_exporttype_vec_delete(byref(vec))
    return signatures


def imports_of(api: Api, module: int) -> tuple[str, ...]:
    """As "module.name"."""
    vec = PointerVec()
    api.wasmtime_module_imports(module, byref(vec))
    names = tuple(
        f"{name_of(api.wasm_importtype_module(vec.data[index]))}."
        f"{name_of(api.wasm_importtype_name(vec.data[index]))}"
        for index in range(vec.size)
    )
    api.wasm_importtype_vec_delete(byref(vec))
    return names
