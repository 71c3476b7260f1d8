"""A loaded module: native code in memory, instantiated afresh for every invocation.

Shared between threads. Each invocation owns its store, and with it every bound: memory, tables,
instances, time. The code is dropped when `close` was called and the last invocation has left.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from ctypes import addressof, byref, c_char, c_void_p, string_at
from pathlib import Path
from time import monotonic, perf_counter
from typing import Final

from edged.errors import (
    ArtifactRefused,
    BadRequest,
    DeadlineExceeded,
    EdgedError,
    InvocationCancelled,
    ModuleRejected,
    PolicyDenied,
)
from edged.interfaces import CancelFlag, Invocation, InvocationResult
from protocol.function import Policy
from protocol.ids import Digest

from . import tmpdir
from .call import Call, Quota, Stop
from .engine import Engine
from .ffi import EXTERN_FUNC, EXTERNKIND_FUNC, Api, ByteVec, PointerVec, name_of
from .host import EPOCH_PERIOD_TICKS, Host
from .outcome import error_of_message, error_of_stop, error_of_trap
from .sandbox import Sandbox
from .ticker import TICK_S
from .values import pack_params, unpack_results

Signature = tuple[tuple[str, ...], tuple[str, ...]]
START: Final = "_start"
INITIALIZE: Final = "_initialize"
_COUNT_TOO_HIGH: Final = re.compile(r"(memory|table) count too high at (\d+)")
MEMORIES_MAX: Final = 64


class Code:
    """One module in one engine, with its two linked forms (without and with a private /tmp)."""

    def __init__(self, engine: Engine, module: int) -> None:
        """Owns `module`. Raises ArtifactRefused if an import cannot be had."""
        self.engine = engine
        self.module = module
        self._lock = threading.Lock()
        self._tmp: int | None = None
        try:
            self.plain = self._link(engine.linker)
        except ArtifactRefused:
            engine.api.wasmtime_module_delete(module)
            raise

    @property
    def with_tmp(self) -> int:
        with self._lock:
            if self._tmp is None:
                self._tmp = self._link(self.engine.linker_tmp)
            return self._tmp

    def _link(self, linker: int) -> int:
        api = self.engine.api
        linked = c_void_p()
        error = api.wasmtime_linker_instantiate_pre(linker, self.module, byref(linked))
        if error:
            raise ArtifactRefused("the module's imports fit no host function",
                                  private=api.take_error(error))  # fmt: skip
        assert linked.value is not None
        return linked.value

    def close(self) -> None:
        api = self.engine.api
        api.wasmtime_instance_pre_delete(self.plain)
        if self._tmp is not None:
            api.wasmtime_instance_pre_delete(self._tmp)
        api.wasmtime_module_delete(self.module)


class _Recount(Exception):
    """The module has more memories or tables than assumed; the next attempt knows."""


class WasmtimeModule:
    """Implements interfaces.LoadedModule."""

    def __init__(
        self, digest: Digest, code: Code, on_demand: Callable[[], Engine], host: Host, sandbox: Sandbox,
        load_s: float,
    ) -> None:  # fmt: skip
        self.digest = digest
        self.load_s = load_s
        self.imports = imports_of(code.engine.api, code.module)
        self._signatures = exports_of(code.engine.api, code.module)
        self._api = code.engine.api
        self._code = code
        self._on_demand_engine = on_demand
        self._on_demand: Code | None = None
        self._host = host
        self._sandbox = sandbox
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        # Store limits bind each memory and table; the policy's bound is shared out between them.
        self._memories = 1
        self._tables = 1

    def export_params(self, name: str) -> tuple[str, ...] | None:
        signature = self._signatures.get(name)
        return None if signature is None else signature[0]

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            idle = self._users == 0
        if idle:
            self._drop()

    def _enter(self) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("invoke on a closed module")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and self._users == 0
        if last:
            self._drop()

    def _drop(self) -> None:
        self._code.close()
        if self._on_demand is not None:
            self._on_demand.close()

    # ------------------------------------------------------------ invocation
    def invoke(self, call: Invocation, cancel: CancelFlag) -> InvocationResult:
        policy = call.policy
        timeout_s = policy.timeout_ms / 1000
        if call.timeout_s is not None and call.timeout_s < timeout_s:
            timeout_s = call.timeout_s
        if timeout_s <= 0:
            raise DeadlineExceeded("the request's deadline has passed")
        if cancel.is_set():
            raise InvocationCancelled("the request was cancelled")
        deadline_at = monotonic() + timeout_s
        self._enter()
        try:
            name, results, values = self._entry(call)
            code = self._code_for(policy)
            while True:
                tmp = tmpdir.make(self._sandbox.scratch) if policy.tmp_bytes else None
                try:
                    return self._run(code, call, cancel, deadline_at, tmp, name, results, values)
                except _Recount:
                    continue
                finally:
                    if tmp is not None:
                        tmpdir.remove(tmp)
        finally:
            self._leave()

    def _entry(self, call: Invocation) -> tuple[str, tuple[str, ...], bytearray]:
        """Name of the function to call, its result types if they are wanted, its raw values.

        Raises ModuleRejected("missing-export"), BadRequest."""
        name = call.export.name if call.export else (call.entrypoint or START)
        signature = self._signatures.get(name)
        if signature is None:
            raise ModuleRejected("missing-export", f"the module exports no function {name[:80]!r}")
        params, results = signature
        if call.export is None:
            if params:
                raise ModuleRejected(
                    "missing-export", f"{name[:80]!r} takes parameters; it is no entry point"
                )
            return name, (), pack_params((), (), len(results))
        if "other" in results:
            raise BadRequest(f"{name[:80]!r} returns a value that is not a number")
        return name, results, pack_params(params, call.export.params, len(results))

    def _code_for(self, policy: Policy) -> Code:
        """The pooled code, unless the policy grants more than a slot of the pool has."""
        pool = self._code.engine.pool
        if pool is None or (
            policy.memory_bytes <= pool.memory_bytes
            and policy.table_elements <= pool.table_elements
        ):
            return self._code
        with self._lock:
            if self._on_demand is None:
                self._on_demand = copy_code(self._code, self._on_demand_engine())
            return self._on_demand

    def _run(
        self, code: Code, call: Invocation, cancel: CancelFlag, deadline_at: float,
        tmp: Path | None, name: str, results: tuple[str, ...], values: bytearray,
    ) -> InvocationResult:  # fmt: skip
        api, engine, state, policy = self._api, code.engine, self._host.state, call.policy
        begin = perf_counter()
        wasi = self._sandbox.wasi_config(call, tmp)
        store = api.wasmtime_store_new(engine.pointer, None, None)
        try:
            context = api.wasmtime_store_context(store)
            api.wasmtime_context_set_wasi(context, wasi)
            api.wasmtime_store_limiter(
                store,
                policy.memory_bytes // self._memories,
                policy.table_elements // self._tables,
                2,  # the guest and the relay
                self._tables,
                self._memories,
            )
            api.wasmtime_store_epoch_deadline_callback(store, self._host.on_epoch, None, None)
            ticks = int((deadline_at - monotonic()) / TICK_S) + 1
            api.wasmtime_context_set_epoch_deadline(context, max(min(ticks, EPOCH_PERIOD_TICKS), 1))
            current = state.call = Call(
                engine, state.scratch, context, cancel, deadline_at, policy.stdout_bytes,
                policy.stderr_bytes, Quota(policy.tmp_bytes) if tmp else None,
            )  # fmt: skip
            engine.ticker.enter()
            try:
                self._instantiate(current, code.with_tmp if tmp else code.plain)
                ready = perf_counter()
                if name != START and INITIALIZE in self._signatures and name != INITIALIZE:
                    if not self._signatures[INITIALIZE][0]:
                        self._call(current, INITIALIZE, bytearray(16))
                self._call(current, name, values)
            except Stop:
                ready = begin  # proc_exit(0) in a start function or before the end
            finally:
                engine.ticker.leave()
                state.call = None
            return InvocationResult(
                bytes(current.stdout), bytes(current.stderr), current.stderr_truncated,
                unpack_results(results, bytes(values)), ready - begin, perf_counter() - ready,
            )  # fmt: skip
        finally:
            api.wasmtime_store_delete(store)

    def _instantiate(self, call: Call, linked: int) -> None:
        """Also runs the start function. Raises what `_raise` does, or _Recount."""
        scratch = call.scratch
        scratch.trap.value = None
        error = self._api.wasmtime_instance_pre_instantiate(
            linked, call.context, scratch.instance_at, scratch.trap_at
        )
        if error or scratch.trap.value:
            self._raise(call, error, scratch.trap.value)

    def _call(self, call: Call, name: str, values: bytearray) -> None:
        """Results replace the parameters in `values`."""
        api, scratch = self._api, call.scratch
        text = name.encode()
        found = api.wasmtime_instance_export_get(
            call.context, scratch.instance_at, text, len(text), scratch.export_at
        )
        assert found and scratch.export.kind == EXTERN_FUNC, name
        buffer = (c_char * len(values)).from_buffer(values)
        scratch.trap.value = None
        error = api.wasmtime_func_call_unchecked(
            call.context, addressof(scratch.export.of), addressof(buffer), len(values) // 16,
            scratch.trap_at,
        )  # fmt: skip
        if error or scratch.trap.value:
            self._raise(call, error, scratch.trap.value)

    def _raise(self, call: Call, error: int | None, trap: int | None) -> None:
        """Frees the error or trap and raises its meaning; Stop for an exit with status 0."""
        api = self._api
        failure: EdgedError | None
        if trap:
            code, message = api.take_trap(trap)
        else:
            assert error is not None
            code, message = None, api.take_error(error)
            match = _COUNT_TOO_HIGH.search(message)
            if match:
                self._recount(match[1], int(match[2]))
        failure = error_of_stop(call)
        if failure is None:
            if call.exit_status is not None:
                raise Stop
            failure = (
                error_of_trap(code, message, call) if trap else error_of_message(message, call)
            )
        raise failure

    def _recount(self, kind: str, count: int) -> None:
        if count > MEMORIES_MAX:
            raise PolicyDenied(f"the module has more than {MEMORIES_MAX} of one kind: {kind}")
        if kind == "memory":
            self._memories = count
        else:
            self._tables = count
        raise _Recount


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


__all__ = ["Code", "WasmtimeModule", "string_at"]
