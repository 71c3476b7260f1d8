"""The calls of an init, for a module that runs it before each invocation. SPEC §14.

The same calls in the same order as for a snapshot (edged.snapshot.examine): `_initialize` where it
is exported and not named, then those that the init names, else the first of INITIALIZERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ctypes import Array, addressof, byref, c_char, memmove
from typing import TYPE_CHECKING, Final, NamedTuple

from edged.errors import GuestTrap, ModuleRejected
from edged.interfaces import INITIALIZERS, InitCall
from protocol.function import InitSpec

from .arguments import flatten, pack
from .ffi import EXTERN_MEMORY, VAL_RAW_BYTES, Extern

if TYPE_CHECKING:
    from .call import Call
    from .code import Signature

INITIALIZE: Final = "_initialize"
REALLOC: Final = "cabi_realloc"
START: Final = "_start"
RESUME: Final = "wizer.resume"
"""Takes the place of `_start` in what was initialised, where a module exports both."""
_NOTHING: Final = ((), ())
_REALLOC: Final = (("i32",) * 4, ("i32",))

Invoke = Callable[["Call", bytes, "Array[c_char]", int], None]


class Step(NamedTuple):
    call: InitCall
    params: tuple[str, ...]
    results: int


def steps_of(init: InitSpec, signatures: Mapping[str, Signature]) -> tuple[Step, ...]:
    """Raises ModuleRejected("missing-export")."""
    calls = tuple(InitCall(each.export, each.args) for each in init.calls)
    if not calls:
        usual = (name for name in INITIALIZERS if signatures.get(name) == _NOTHING)
        calls = tuple(InitCall(name) for name in [next(usual, "")] if name)
    named = {call.export for call in calls}
    if INITIALIZE not in named and signatures.get(INITIALIZE) == _NOTHING:
        calls = (InitCall(INITIALIZE), *calls)
    steps = []
    for call in calls:
        signature = signatures.get(call.export)
        if signature is None:
            raise ModuleRejected("missing-export", f"exports no function {call.export[:80]!r}")
        steps.append(Step(call, signature[0], len(signature[1])))
    if not steps:
        raise ModuleRejected("missing-export", f"exports none of {', '.join(INITIALIZERS)}")
    return tuple(steps)


def is_gone(name: str, init: InitSpec, signatures: Mapping[str, Signature]) -> bool:
    """Whether a snapshot does not export it any more, and so nothing that was initialised does."""
    if name == RESUME:
        return START in signatures
    usual = (each for each in INITIALIZERS if signatures.get(each) == _NOTHING)
    return name in (
        "" if init.calls else next(usual, ""),
        INITIALIZE if signatures.get(INITIALIZE) == _NOTHING else "",
    )


class Initialiser:
    """Of one invocation."""

    def __init__(self, call: Call, invoke: Invoke, signatures: Mapping[str, Signature]) -> None:
        self._call = call
        self._invoke = invoke
        self._signatures = signatures

    def run(self, steps: tuple[Step, ...]) -> None:
        """Raises what `invoke` does, GuestTrap, CannotSnapshot("bad-arguments")."""
        for step in steps:
            name = step.call.export
            flat = flatten(step.call, step.params, self._store)
            self._raw(name, pack(name, step.params, flat, step.results))

    def _raw(self, name: str, values: bytes) -> bytes:
        room = (c_char * len(values)).from_buffer_copy(values)
        self._invoke(self._call, name.encode(), room, len(values) // VAL_RAW_BYTES)
        return bytes(room)

    def _store(self, data: bytes, align: int) -> int:
        if self._signatures.get(REALLOC) != _REALLOC:
            raise ModuleRejected("missing-export", f"exports no {REALLOC}, which texts need")
        out = self._raw(REALLOC, pack(REALLOC, _REALLOC[0], [0, 0, align, len(data)], 1))
        address = int.from_bytes(out[:4], "little")
        api, context, memory = self._call.api, self._call.context, Extern()
        found = api.wasmtime_instance_export_get(
            context, self._call.scratch.instance_at, b"memory", 6, addressof(memory)
        )
        if not found or memory.kind != EXTERN_MEMORY:
            raise ModuleRejected("missing-export", "exports no memory, which texts need")
        at = byref(memory.of)
        if address + len(data) > api.wasmtime_memory_data_size(context, at):
            raise GuestTrap(f"{REALLOC} gave an address outside of the memory")
        memmove(api.wasmtime_memory_data(context, at) + address, data, len(data))
        return address
