"""What is told of a guest that failed: trusted text apart from what the guest chose.

Invariant: wasmtime never formats a backtrace whose names are long. It demangles every name in it,
in C++'s grammar too, where each few characters can double what comes out; and whatever it prints
stands in one message with its own words, so a function called "memory count too high at 33" would
speak for the host. So frames are read one by one here, names as they are in the module and cut,
and a message is asked for only if it has no frames (nothing in it is the guest's), or, for its
cause, if all names are short: 64 characters can become 4,000 times as many at most.
"""

from __future__ import annotations

from ctypes import byref, c_uint8, c_void_p, string_at
from typing import TYPE_CHECKING, Final, NamedTuple

from .ffi import ByteVec, PointerVec

if TYPE_CHECKING:
    from .ffi import Api

FRAMES_MAX: Final = 20
"""Shown; wasmtime collects no more by default."""
NAME_BYTES_MAX: Final = 200
"""Of one function, shown."""
_HARMLESS_BYTES: Final = 64


class Failure(NamedTuple):
    text: str
    """wasmtime's message; with frames only the cause of a failed host call, if it can be had."""
    frames: str
    """The wasm backtrace, or "": then the guest's code had no part in it."""
    code: int | None = None
    """Of a trap; None for an error or a trap of our own."""


def frames_of_trap(api: Api, trap: int) -> Failure:
    """The trap is freed."""
    code, vec = c_uint8(), PointerVec()
    has_code = api.wasmtime_trap_code(trap, byref(code))
    api.wasm_trap_trace(trap, byref(vec))
    frames, _harmless = _take_frames(api, vec)
    api.wasm_trap_delete(trap)
    return Failure("", frames, code.value if has_code else None)


def failure_of(api: Api, error: int) -> Failure:
    """Of a wasmtime_error_t, which is freed."""
    vec = PointerVec()
    api.wasmtime_error_wasm_trace(error, byref(vec))
    frames, harmless = _take_frames(api, vec)
    if not harmless:
        api.wasmtime_error_delete(error)
        return Failure("", frames)
    text = api.take_error(error)
    if frames:
        text = text.rpartition("\nCaused by:\n")[2].strip()
    return Failure(text, frames)


def _take_frames(api: Api, vec: PointerVec) -> tuple[str, bool]:
    """The text of a backtrace, which is freed, and whether wasmtime may print it."""
    lines, harmless = [], True
    for index in range(vec.size):
        frame = c_void_p(vec.data[index])
        name, size = b"", 0
        content = api.wasmtime_frame_func_name(frame)
        if content:
            raw: ByteVec = content.contents
            size = raw.size
            name = string_at(raw.data, min(size, NAME_BYTES_MAX)) if size else b""
        harmless = harmless and size <= _HARMLESS_BYTES
        if index < FRAMES_MAX:
            lines.append(
                f"{index:3}: {api.wasm_frame_module_offset(frame):#x} - function "
                f"{api.wasm_frame_func_index(frame)} {name.decode('utf-8', 'replace')}"
            )
    if vec.size:
        api.wasm_frame_vec_delete(byref(vec))
    return "\n".join(["wasm backtrace:", *lines]) if lines else "", harmless
