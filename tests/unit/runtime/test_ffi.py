"""Our prototypes against the generated bindings of the pinned wasmtime package."""

from __future__ import annotations

import ctypes

import pytest
from wasmtime import _bindings as bindings

from edged.runtime import ffi

STRUCTS = {
    ffi.ByteVec: "wasm_byte_vec_t",
    ffi.PointerVec: "wasm_exporttype_vec_t",
    ffi.Func: "wasmtime_func_t",
    ffi.Instance: "wasmtime_instance_t",
    ffi.Memory: "wasmtime_memory_t",
    ffi.Extern: "wasmtime_extern_t",
    ffi.Val: "wasmtime_val_t",
}


def shape(kind: object) -> object:
    """What of a ctypes type matters to the call: its machine type."""
    if kind is None:
        return None
    if isinstance(kind, type) and issubclass(kind, ctypes._SimpleCData):
        # size_t, bool, char*: by code, but every pointer alike.
        return "P" if kind in (ctypes.c_void_p, ctypes.c_char_p) else kind._type_
    return "P"  # pointers, arrays, callbacks


@pytest.mark.parametrize("name", sorted(ffi.QUICK | ffi.SLOW))
def test_prototype(name):
    theirs = getattr(bindings, f"_{name}")
    restype, argtypes = (ffi.QUICK | ffi.SLOW)[name]
    assert [shape(kind) for kind in argtypes] == [shape(kind) for kind in theirs.argtypes]
    assert shape(restype) == shape(theirs.restype)


@pytest.mark.parametrize("ours", STRUCTS, ids=lambda kind: kind.__name__)
def test_struct(ours):
    theirs = getattr(bindings, STRUCTS[ours])
    assert ctypes.sizeof(ours) == ctypes.sizeof(theirs)
    assert ctypes.alignment(ours) == ctypes.alignment(theirs)


def test_layouts_used_by_offset():
    assert ffi.Extern.of.offset == bindings.wasmtime_extern_t.of.offset
    assert ffi.Val.of.offset == bindings.wasmtime_val_t.of.offset
    assert ctypes.sizeof(bindings.wasmtime_val_raw_t) == ffi.VAL_RAW_BYTES
    assert ffi.EXTERN_FUNC == 0
    assert ffi.EXTERN_MEMORY == 3


def test_every_function_is_called_one_way():
    assert not set(ffi.QUICK) & set(ffi.SLOW)


def test_the_library_is_the_packages():
    from wasmtime import _ffi

    assert ffi.library_path() == _ffi.filename


def test_messages_are_bounded():
    api = ffi.Api(ffi.library_path())
    error = api.wasmtime_error_new(b"x" * 100_000)
    assert len(api.take_error(error)) == ffi.MESSAGE_BYTES_MAX
