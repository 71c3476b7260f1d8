"""wasmtime's C API through ctypes: structs, prototypes, and the few verbs built on them.

The package `wasmtime` is never imported: only its shared library is opened. That keeps a compile
worker's start short (this file needs the standard library alone) and lets each call say whether
it releases the GIL. Opaque pointers are plain ints. Rules: callbacks never raise; whoever passes a
buffer keeps it referenced; an error or trap pointer is consumed exactly once (`take_*`).

Source: wasmtime 50's C headers; tests/unit/runtime/test_ffi.py compares every prototype and struct
with the generated bindings of the pinned package.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # a compile worker starts 15 ms sooner without importing these
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any, Final

VAL_RAW_BYTES: Final = 16
"""sizeof(wasmtime_val_raw_t): an untagged union as large as a v128."""

EXTERN_FUNC: Final = 0
EXTERN_MEMORY: Final = 3
NUMBERS: Final = ("i32", "i64", "f32", "f64")
"""By wasm_valkind_t."""
EXTERNKIND_FUNC: Final = 0
UPDATE_DEADLINE_CONTINUE: Final = 0
MESSAGE_BYTES_MAX: Final = 8192
"""Of an error: names of imports and exports in it come from the guest."""


class ByteVec(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("data", c_void_p)]


class PointerVec(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("data", POINTER(c_void_p))]


class Func(ctypes.Structure):
    _fields_ = [("store_id", c_uint64), ("private", c_void_p)]


class Instance(ctypes.Structure):
    _fields_ = [("store_id", c_uint64), ("private", c_size_t)]


class _MemoryHead(ctypes.Structure):
    _fields_ = [("store_id", c_uint64), ("private1", c_uint32)]


class Memory(ctypes.Structure):
    _fields_ = [("head", _MemoryHead), ("private2", c_uint32)]


class _ValOf(ctypes.Union):
    # A func or v128 needs 16 bytes; the widest member is wasmtime's anyref.
    _fields_ = [("bytes", c_uint8 * 16), ("func", Func), ("wide", c_uint64 * 3)]


class Val(ctypes.Structure):
    _fields_ = [("kind", c_uint8), ("of", _ValOf)]


class _ExternOf(ctypes.Union):
    # The widest members; a test compares the size with the generated bindings'.
    _fields_ = [("func", Func), ("memory", Memory), ("wide", c_uint32 * 6)]


class Extern(ctypes.Structure):
    _fields_ = [("kind", c_uint8), ("of", _ExternOf)]


HostCallback = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_void_p, c_size_t)
"""(env, caller, args_and_results, count) -> wasm_trap_t* or 0."""
EpochCallback = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, POINTER(c_uint64), POINTER(c_uint8))
"""(context, data, delta out, kind out) -> wasmtime_error_t* or 0."""

_P = c_void_p
_S = c_char_p
_N = c_size_t

if TYPE_CHECKING:
    Prototype = tuple[Any, tuple[Any, ...]]

QUICK: Final[dict[str, Prototype]] = {
    # Called with the GIL held: microseconds, and giving the GIL up would cost more than the call.
    "wasm_byte_vec_new": (None, (_P, _N, _S)),
    "wasm_byte_vec_delete": (None, (_P,)),
    "wasm_config_new": (_P, ()),
    "wasm_engine_delete": (None, (_P,)),
    "wasmtime_config_target_set": (_P, (_P, _S)),
    "wasmtime_config_epoch_interruption_set": (None, (_P, c_bool)),
    "wasmtime_config_strategy_set": (None, (_P, c_uint8)),
    "wasmtime_config_cranelift_opt_level_set": (None, (_P, c_uint8)),
    "wasmtime_config_cranelift_regalloc_algorithm_set": (None, (_P, c_uint8)),
    "wasmtime_config_native_unwind_info_set": (None, (_P, c_bool)),
    "wasmtime_config_parallel_compilation_set": (None, (_P, c_bool)),
    "wasmtime_config_wasm_threads_set": (None, (_P, c_bool)),
    "wasmtime_config_shared_memory_set": (None, (_P, c_bool)),
    "wasmtime_config_wasm_gc_set": (None, (_P, c_bool)),
    "wasmtime_config_wasm_relaxed_simd_deterministic_set": (None, (_P, c_bool)),
    "wasmtime_config_cranelift_nan_canonicalization_set": (None, (_P, c_bool)),
    "wasmtime_pooling_allocation_config_new": (_P, ()),
    "wasmtime_pooling_allocation_config_delete": (None, (_P,)),
    "wasmtime_pooling_allocation_config_total_memories_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_total_tables_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_total_stacks_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_total_core_instances_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_total_gc_heaps_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_max_memory_size_set": (None, (_P, _N)),
    "wasmtime_pooling_allocation_config_table_elements_set": (None, (_P, _N)),
    "wasmtime_pooling_allocation_config_linear_memory_keep_resident_set": (None, (_P, _N)),
    "wasmtime_pooling_allocation_config_table_keep_resident_set": (None, (_P, _N)),
    "wasmtime_pooling_allocation_strategy_set": (None, (_P, _P)),
    "wasmtime_engine_increment_epoch": (None, (_P,)),
    "wasmtime_error_new": (_P, (_S,)),
    "wasmtime_error_delete": (None, (_P,)),
    "wasmtime_error_exit_status": (c_bool, (_P, POINTER(c_int))),
    "wasm_trap_delete": (None, (_P,)),
    "wasm_frame_vec_delete": (None, (_P,)),
    "wasm_frame_func_index": (c_uint32, (_P,)),
    "wasm_frame_module_offset": (_N, (_P,)),
    "wasmtime_frame_func_name": (POINTER(ByteVec), (_P,)),
    "wasm_trap_trace": (None, (_P, _P)),
    "wasmtime_error_wasm_trace": (None, (_P, _P)),
    "wasmtime_trap_new": (_P, (_S, _N)),
    "wasmtime_trap_code": (c_bool, (_P, POINTER(c_uint8))),
    "wasm_functype_new": (_P, (_P, _P)),
    "wasm_functype_delete": (None, (_P,)),
    "wasm_functype_params": (POINTER(PointerVec), (_P,)),
    "wasm_functype_results": (POINTER(PointerVec), (_P,)),
    "wasm_valtype_new": (_P, (c_uint8,)),
    "wasmtime_wasm_valtype_equal": (c_bool, (_P, _P)),
    "wasm_valtype_vec_new": (None, (_P, _N, _P)),
    "wasmtime_linker_new": (_P, (_P,)),
    "wasmtime_linker_delete": (None, (_P,)),
    "wasmtime_linker_allow_shadowing": (None, (_P, c_bool)),
    "wasmtime_linker_define_wasi": (_P, (_P,)),
    "wasmtime_linker_define_func_unchecked": (
        _P,
        (_P, _S, _N, _S, _N, _P, HostCallback, _P, _P),
    ),
    "wasmtime_linker_get": (c_bool, (_P, _P, _S, _N, _S, _N, _P)),
    "wasmtime_func_type": (_P, (_P, _P)),
    "wasmtime_store_new": (_P, (_P, _P, _P)),
    "wasmtime_store_context": (_P, (_P,)),
    "wasmtime_store_limiter": (None, (_P, c_int64, c_int64, c_int64, c_int64, c_int64)),
    "wasmtime_store_epoch_deadline_callback": (None, (_P, EpochCallback, _P, _P)),
    "wasmtime_context_set_epoch_deadline": (None, (_P, c_uint64)),
    "wasmtime_context_set_wasi": (_P, (_P, _P)),
    "wasi_config_new": (_P, ()),
    "wasi_config_delete": (None, (_P,)),
    "wasi_config_set_argv": (c_bool, (_P, _N, _P)),
    "wasi_config_set_env": (c_bool, (_P, _N, _P, _P)),
    "wasi_config_set_stdin_bytes": (None, (_P, _P)),
    "wasi_config_preopen_dir": (c_bool, (_P, _S, _S, c_bool)),
    "wasmtime_instance_export_get": (c_bool, (_P, _P, _S, _N, _P)),
    "wasmtime_caller_export_get": (c_bool, (_P, _S, _N, _P)),
    "wasmtime_memory_data": (_P, (_P, _P)),
    "wasmtime_memory_data_size": (_N, (_P, _P)),
    "wasmtime_global_get": (None, (_P, _P, _P)),
    "wasmtime_table_get": (c_bool, (_P, _P, c_uint64, _P)),
    "wasmtime_table_size": (c_uint64, (_P, _P)),
    "wasm_exporttype_vec_delete": (None, (_P,)),
    "wasm_exporttype_name": (POINTER(ByteVec), (_P,)),
    "wasm_exporttype_type": (_P, (_P,)),
    "wasm_externtype_kind": (c_uint8, (_P,)),
    "wasm_externtype_as_functype_const": (_P, (_P,)),
    "wasm_importtype_vec_delete": (None, (_P,)),
    "wasm_importtype_module": (POINTER(ByteVec), (_P,)),
    "wasm_importtype_name": (POINTER(ByteVec), (_P,)),
    "wasm_importtype_type": (_P, (_P,)),
}

SLOW: Final[dict[str, Prototype]] = {
    # Called without the GIL: guests, compilers, and kernel calls on large mappings.
    "wasm_engine_new_with_config": (_P, (_P,)),
    "wasmtime_module_new": (_P, (_P, _S, _N, _P)),
    "wasmtime_module_validate": (_P, (_P, _S, _N)),
    "wasmtime_module_serialize": (_P, (_P, _P)),
    "wasmtime_module_deserialize": (_P, (_P, _P, _N, _P)),
    "wasmtime_module_deserialize_file": (_P, (_P, _S, _P)),
    "wasmtime_module_delete": (None, (_P,)),
    "wasmtime_module_exports": (None, (_P, _P)),
    "wasmtime_module_imports": (None, (_P, _P)),
    "wasmtime_linker_instantiate_pre": (_P, (_P, _P, _P)),
    "wasmtime_instance_pre_instantiate": (_P, (_P, _P, _P, _P)),
    "wasmtime_instance_pre_delete": (None, (_P,)),
    "wasmtime_instance_new": (_P, (_P, _P, _P, _N, _P, _P)),
    "wasmtime_func_call_unchecked": (_P, (_P, _P, _P, _N, _P)),
    "wasmtime_store_delete": (None, (_P,)),
    "wasmtime_wat2wasm": (_P, (_S, _N, _P)),
    "wasmtime_error_message": (None, (_P, _P)),
}


def library_path() -> Path:
    """Where the installed wasmtime package keeps its library, found without importing it.

    Raises OSError if the package is missing or has no build for this machine."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("wasmtime")
    if spec is None or spec.origin is None:
        raise OSError("the wasmtime package is not installed")
    machine = os.uname().machine
    path = Path(spec.origin).parent / f"linux-{machine}" / "_libwasmtime.so"
    if not path.exists():
        raise OSError(f"wasmtime has no library for {machine}")
    return path


class Api:
    """The library's functions as attributes; build one per runtime (opening twice is cheap)."""

    def __init__(self, path: Path | str) -> None:
        quick = ctypes.PyDLL(str(path))
        slow = ctypes.CDLL(str(path))
        for library, table in ((quick, QUICK), (slow, SLOW)):
            for name, (restype, argtypes) in table.items():
                function = library[name]
                function.restype = restype
                function.argtypes = argtypes
                setattr(self, name, function)

        self._numbers = [self.wasm_valtype_new(kind) for kind in range(len(NUMBERS))]

    if TYPE_CHECKING:
        # At run time it would slow every call: each attribute would go through a Python-level slot.
        def __getattr__(self, name: str) -> Any: ...

    def take_bytes(self, vec: ByteVec, *, limit: int | None = None) -> bytes:
        """The bytes of `vec` (at most `limit`), which is freed."""
        size = vec.size if limit is None else min(vec.size, limit)
        data = ctypes.string_at(vec.data, size) if size else b""
        self.wasm_byte_vec_delete(ctypes.byref(vec))
        return data

    def take_error(self, error: int) -> str:
        """The message of a wasmtime_error_t, which is freed. Where guests run, see trace.py."""
        vec = ByteVec()
        self.wasmtime_error_message(error, ctypes.byref(vec))
        self.wasmtime_error_delete(error)
        return self.take_bytes(vec, limit=MESSAGE_BYTES_MAX).decode("utf-8", "replace")

    def functype(self, params: str, results: str) -> int:
        """A new wasm_functype_t of "i" (i32) and "I" (i64) letters; the caller deletes it."""
        vecs = []
        for letters in (params, results):
            kinds = [0 if letter == "i" else 1 for letter in letters]
            array = (c_void_p * len(kinds))(*(self.wasm_valtype_new(kind) for kind in kinds))
            vec = PointerVec()
            self.wasm_valtype_vec_new(ctypes.byref(vec), len(kinds), array)
            vecs.append(vec)
        made: int = self.wasm_functype_new(ctypes.byref(vecs[0]), ctypes.byref(vecs[1]))
        return made

    def signature(self, functype: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Parameter and result types by name; anything but the four numbers is "other"."""
        sides = []
        for vec in (self.wasm_functype_params(functype), self.wasm_functype_results(functype)):
            types = vec.contents
            sides.append(tuple(self._number(types.data[index]) for index in range(types.size)))
        return sides[0], sides[1]

    def _number(self, valtype: int) -> str:
        """By comparison: `wasm_valtype_kind` aborts the process on types it has no number for,
        v128 among them, and any module may export such a function."""
        for name, number in zip(NUMBERS, self._numbers, strict=True):
            if self.wasmtime_wasm_valtype_equal(valtype, number):
                return name
        return "other"


def name_of(vec: Any) -> str:
    """Text of a borrowed wasm_name_t pointer."""
    content = vec.contents
    return ctypes.string_at(content.data, content.size).decode("utf-8") if content.size else ""


def c_strings(items: Sequence[bytes]) -> Any:
    """A char*[] that keeps its bytes alive. (ctypes remembers the array types it made.)"""
    return (c_char_p * len(items))(*items)
