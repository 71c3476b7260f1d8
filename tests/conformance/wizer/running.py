"""Runs a module on wasmtime and writes down everything an outsider can see of it.

A run is a list of calls in one instance; each gives results (numbers as their bits) or the kind of
trap, then what was printed. At the end, and where asked between calls, all of the state.
"""

from __future__ import annotations

import ctypes
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from .binary import STATE, expose
from .state import Image, image_of_memory

Call = tuple[str, tuple[int | float, ...]]
BYTES_OF_KIND = {
    ffi.WASMTIME_I32.value: 4,
    ffi.WASMTIME_I64.value: 8,
    ffi.WASMTIME_F32.value: 4,
    ffi.WASMTIME_F64.value: 8,
    ffi.WASMTIME_V128.value: 16,
}
WASI = "wasi_snapshot_preview1"


@dataclass(frozen=True)
class State:
    memories: tuple[tuple[int, Image], ...]
    """Pages and content."""
    globals: tuple[str, ...]
    tables: tuple[str, ...]
    """Which elements are null."""


@dataclass(frozen=True)
class Observation:
    calls: tuple[str, ...]
    stdout: bytes
    state: State


class Failed(Exception):
    """An instance or its initialiser could not be had; the text is wasmtime's."""


def engine(*, pulley: bool = False) -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    config.wasm_memory64 = True
    config.wasm_tail_call = True
    config.wasm_simd = True
    config.cranelift_opt_level = "none"
    if pulley:
        config.target = "pulley64"
    return wasmtime.Engine(config)


ENGINE = engine()


def observe(
    wasm: bytes,
    calls: list[Call],
    *,
    before: list[Call] | None = None,
    stdin: bytes = b"",
    using: wasmtime.Engine | None = None,
    whole: bool = True,
) -> Observation:
    """`before`: calls that belong to the initialiser; they must not trap and what they print is
    not part of the observation. Raises Failed."""
    using = using or ENGINE
    with tempfile.TemporaryDirectory() as place:
        output, source = Path(place) / "stdout", Path(place) / "stdin"
        source.write_bytes(stdin)
        store = wasmtime.Store(using)
        wasi = wasmtime.WasiConfig()
        wasi.stdin_file = str(source)
        wasi.stdout_file = str(output)
        store.set_wasi(wasi)
        instance = _instance(using, store, expose(wasm))
        exports = instance.exports(store)
        for name, arguments in before or []:
            try:
                _call(store, exports, name, arguments)
            except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
                raise Failed(str(error)) from error
        printed = output.stat().st_size if output.exists() else 0
        seen = tuple(_attempt(store, exports, name, arguments) for name, arguments in calls)
        state = _state(store, exports, whole=whole)
        stdout = output.read_bytes()[printed:] if output.exists() else b""
    return Observation(seen, stdout, state)


def _instance(using: wasmtime.Engine, store: wasmtime.Store, wasm: bytes) -> wasmtime.Instance:
    linker = wasmtime.Linker(using)
    linker.define_wasi()
    try:
        module = wasmtime.Module(using, wasm)
        for item in module.imports:
            if item.module != WASI and isinstance(item.type, wasmtime.FuncType):
                linker.define_func(item.module, item.name or "", item.type, _stub(item.type))
        return linker.instantiate(store, module)
    except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
        raise Failed(str(error)) from error


def _stub(type_: wasmtime.FuncType) -> Any:
    """What a host might offer after the snapshot: answers 7 to everything."""
    results = [7.0 if str(kind).startswith("f") else 7 for kind in type_.results]
    return lambda *_arguments: results[0] if len(results) == 1 else results or None


def _attempt(store: wasmtime.Store, exports: Any, name: str, arguments: tuple[Any, ...]) -> str:
    try:
        return f"{name}: {_bits(_call(store, exports, name, arguments))}"
    except wasmtime.ExitTrap as error:
        return f"{name}: exit {error.code}"
    except wasmtime.Trap as error:
        return f"{name}: trap {error.trap_code}"
    except wasmtime.WasmtimeError as error:
        return f"{name}: {str(error).splitlines()[-1]}"


def _call(store: wasmtime.Store, exports: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    function = exports[name]
    assert isinstance(function, wasmtime.Func), name
    fitted = [
        float(value) if str(kind).startswith("f") else value
        for kind, value in zip(function.type(store).params, arguments, strict=True)
    ]
    return function(store, *fitted)


def _bits(value: Any) -> str:
    if isinstance(value, float):
        return struct.pack("<d", value).hex()
    if isinstance(value, list | tuple):
        return f"({', '.join(_bits(item) for item in value)})"
    return str(value)


def _state(store: wasmtime.Store, exports: Any, *, whole: bool) -> State:
    memories, numbers, tables = [], [], []
    for name, item in exports.items():
        if not name.startswith(STATE):
            continue
        if isinstance(item, wasmtime.Memory):
            data = item.read(store, 0, item.data_len(store)) if whole else b""
            memories.append((item.size(store), image_of_memory(bytes(data))))
        elif isinstance(item, wasmtime.Global):
            numbers.append(_number(store, item))
        elif isinstance(item, wasmtime.Table):
            size = item.size(store)
            tables.append(
                "".join("-" if item.get(store, at) is None else "x" for at in range(size))
            )
    return State(tuple(memories), tuple(numbers), tuple(tables))


def _number(store: wasmtime.Store, item: wasmtime.Global) -> str:
    """Its bits, also of v128, which wasmtime's Python types leave out; of references, if null."""
    raw = ffi.wasmtime_val_t()
    ffi.wasmtime_global_get(store._context(), ctypes.byref(item._global), ctypes.byref(raw))
    if raw.kind in BYTES_OF_KIND:
        return bytes(raw.of)[: BYTES_OF_KIND[raw.kind]].hex()
    null = ffi.WASMTIME_FUNCREF.value == raw.kind and raw.of.funcref.store_id == 0
    return "null" if null else "reference"
