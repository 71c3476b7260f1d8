"""One instance of an instrumented module: run until it is initialised, then read.

One thread, one instance, one process. It stays alive, with its clock stopped, until its state is
read. The names asked for here are those that instrument.py added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from ctypes import addressof, byref, c_char, string_at
from pathlib import Path
from time import monotonic
from typing import Final

from edged.errors import (
    DeadlineExceeded,
    EdgedError,
    GuestTrap,
    InitExited,
    InitTimeout,
    InitTrapped,
    OutputLimitExceeded,
    PolicyDenied,
)
from edged.interfaces import CancelFlag, InitCall
from edged.runtime.arguments import flatten, pack
from edged.runtime.call import Call, Quota
from edged.runtime.engine import Engine
from edged.runtime.ffi import EXTERN_FUNC, VAL_RAW_BYTES, Extern, Val
from edged.runtime.host import Host
from edged.runtime.outcome import error_of_failure, error_of_stop, error_of_trap
from edged.runtime.trace import Failure, failure_of, frames_of_trap
from edged.runtime.values import unpack_results
from protocol.function import Policy

from .errors import refuse
from .instrument import Names
from .parse import Module, Signature

REALLOC: Final = "cabi_realloc"
_REALLOC: Final = Signature(("i32",) * 4, ("i32",))
_NUMBERS: Final = frozenset(("i32", "i64", "f32", "f64"))
_VALUE_BYTES: Final = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}
_NULL: Final = bytes(8)
"""The first half of a null reference, which says whose store it is of."""


Meaning = Callable[[Failure, Call], EdgedError]


class Guest:
    """`instantiate`, `invoke` and `call` run it; the rest reads it."""

    def __init__(
        self, engine: Engine, host: Host, context: int, module: Module, names: Names,
        policy: Policy, tmp: Path | None, zeros_called: Collection[str],
    ) -> None:  # fmt: skip
        """`zeros_called`: the imports that gave zeros, as it comes to call them."""
        self.module = module
        self.names = names
        self.zeros_called = zeros_called
        self._api = engine.api
        self._context = context
        self._extern = Extern()
        self._val = Val()
        self._timeout_s = policy.timeout_ms / 1000
        self.call_state = Call(
            engine, host.state.scratch, context, CancelFlag(),
            math.inf, policy.stdout_bytes, policy.stderr_bytes,
            None if tmp is None else Quota(policy.tmp_bytes),
        )  # fmt: skip
        host.state.call = self.call_state

    # ------------------------------------------------------------ running
    def instantiate(self, linked: int) -> None:
        scratch = self.call_state.scratch
        error = self._api.wasmtime_instance_pre_instantiate(
            linked, self._context, scratch.instance_at, scratch.trap_at
        )
        self._check("instantiation", error)

    def invoke(self, name: str, values: bytes = bytes(VAL_RAW_BYTES)) -> bytes:
        """Calls an export with raw `values`, which its results replace.

        Raises InitTrapped, InitExited, InitTimeout, CannotSnapshot("import-called")."""
        self._find(name)
        assert self._extern.kind == EXTERN_FUNC, name
        room = (c_char * len(values)).from_buffer_copy(values)
        error = self._api.wasmtime_func_call_unchecked(
            self._context, byref(self._extern.of), room, len(values) // VAL_RAW_BYTES,
            self.call_state.scratch.trap_at,
        )  # fmt: skip
        self._check("the start function" if name == self.names.start else name, error)
        return bytes(room)

    def call(self, wanted: InitCall) -> tuple[int | float, ...]:
        """Its results, () if one is no number. Raises what `invoke` does, "bad-arguments"."""
        signature = self.module.exported_signature(wanted.export)
        assert signature is not None  # resolved
        flat = flatten(wanted, signature.params, self._store)
        values = pack(wanted.export, signature.params, flat, len(signature.results))
        out = self.invoke(wanted.export, values)
        if not _NUMBERS.issuperset(signature.results):
            return ()
        return unpack_results(signature.results, out)

    def _store(self, data: bytes, align: int) -> int:
        signature = self.module.exported_signature(REALLOC)
        memory = self.module.exports.get("memory")
        if signature != _REALLOC or memory is None or memory.kind != "memory":
            raise refuse("bad-arguments", f"export {REALLOC}", "texts need it, and a memory")
        wanted = [0, 0, align, len(data)]
        out = self.invoke(REALLOC, pack(REALLOC, _REALLOC.params, wanted, 1))
        address = int.from_bytes(out[:4], "little")
        view = self.memory(memory.position)
        if address + len(data) > len(view):
            raise InitTrapped(f"{REALLOC} gave an address outside of the memory")
        view[address : address + len(data)] = data
        return address

    def start_clock(self) -> None:
        """The guest's time begins."""
        self.call_state.deadline_at = monotonic() + self._timeout_s

    def stop_clock(self) -> None:
        """Nothing but probes runs from here on."""
        self.call_state.deadline_at = math.inf

    def traps(self, probe: str) -> bool:
        try:
            self.invoke(probe)
        except InitTrapped:
            return True
        return False

    def _check(self, what: str, error: int | None) -> None:
        """Raises the meaning of `error` or of the trap at hand, if there is one; both are freed."""
        api, call = self._api, self.call_state
        trap = call.scratch.trap
        if trap.value:
            failure = frames_of_trap(api, trap.value)
            meaning: Meaning = error_of_trap
            trap.value = None
        elif error:
            failure, meaning = failure_of(api, error), error_of_failure
        else:
            return
        if call.stub:
            raise refuse("import-called", f"import {call.stub}",
                         "the initialiser called it; guests are offered WASI only")  # fmt: skip
        stopped = error_of_stop(call)
        if call.exit_status is not None:
            raise InitExited(f"{what}: exited with status {call.exit_status}",
                             stderr=bytes(call.stderr), exit_status=call.exit_status)  # fmt: skip
        raise _translated(what, stopped or meaning(failure, call), bytes(call.stderr))

    # ------------------------------------------------------------ reading
    def _find(self, name: str) -> None:
        text = name.encode()
        found = self._api.wasmtime_instance_export_get(
            self._context, self.call_state.scratch.instance_at, text, len(text),
            addressof(self._extern),
        )  # fmt: skip
        assert found, name

    def memory(self, index: int) -> memoryview:
        """Its bytes now, writable; invalid once the guest runs on."""
        self._find(self.names.of("memory", index))
        at = byref(self._extern.of)
        size = self._api.wasmtime_memory_data_size(self._context, at)
        if not size:
            return memoryview(b"")
        address = self._api.wasmtime_memory_data(self._context, at)
        return memoryview((c_char * size).from_address(address)).cast("B")

    def global_bits(self, index: int) -> bytes:
        """The value, little-endian; of a reference what tells it from others, b"" for null."""
        self._find(self.names.of("global", index))
        self._api.wasmtime_global_get(self._context, byref(self._extern.of), byref(self._val))
        kind = self.module.globals[index].kind
        if kind == "ref":
            return self._reference()
        return string_at(addressof(self._val.of), _VALUE_BYTES[kind])

    def table(self, index: int) -> list[bytes]:
        """What tells each element from others, b"" for null."""
        self._find(self.names.of("table", index))
        api, context, at, val = self._api, self._context, byref(self._extern.of), byref(self._val)
        elements = []
        for position in range(api.wasmtime_table_size(context, at)):
            api.wasmtime_table_get(context, at, position, val)
            elements.append(self._reference())
        return elements

    def _reference(self) -> bytes:
        bits = string_at(addressof(self._val.of), 16)
        return b"" if bits.startswith(_NULL) else bits


def _translated(what: str, error: EdgedError, stderr: bytes) -> EdgedError:
    told = f"{what}: {str(error).removeprefix('the function ')}"
    match error:
        case DeadlineExceeded():
            return InitTimeout(told, stderr=stderr)
        case OutputLimitExceeded() | GuestTrap():
            return InitTrapped(told, stderr=stderr, private=error.private)
        case PolicyDenied():
            return refuse("needs-more", "module", str(error))
    return error
