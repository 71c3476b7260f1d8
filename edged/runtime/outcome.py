"""How an invocation's end becomes a typed error.

Public text is the kind of trap and nothing else: messages hold function names and host details.
The cause and the wasm backtrace go into `private`, for the log.
"""

from __future__ import annotations

from typing import Final

from edged.errors import (
    DeadlineExceeded,
    EdgedError,
    GuestExit,
    GuestTrap,
    ImportCalled,
    InvocationCancelled,
    OutputLimitExceeded,
    Overloaded,
    PolicyDenied,
)

from .call import Call
from .trace import Failure

TRAPS: Final[dict[int, str]] = {
    # wasmtime_trap_code_t
    0: "call stack exhausted",
    1: "out of bounds memory access",
    2: "unaligned atomic access",
    3: "out of bounds table access",
    4: "uninitialized element",
    5: "indirect call type mismatch",
    6: "integer overflow",
    7: "integer divide by zero",
    8: "invalid conversion to integer",
    9: "unreachable",
    10: "interrupted",
    11: "out of fuel",
    13: "null reference",
    14: "out of bounds array access",
    15: "allocation too large",
    16: "cast failure",
}


def error_of_stop(call: Call, frames: str = "") -> EdgedError | None:
    """What edged itself stopped the guest for, if it did; with its backtrace, for the log."""
    stderr = bytes(call.stderr)
    if call.bug is not None:
        raise call.bug
    if call.stub:
        return ImportCalled(
            f"the function called {call.stub}, which is only a stub",
            stderr=stderr, private=f"import {call.stub}\n{frames}".strip(), **{"import": call.stub},
        )  # fmt: skip
    match call.stop:
        case "deadline":
            return DeadlineExceeded("the function ran out of its time", stderr=stderr)
        case "cancelled":
            return InvocationCancelled("the request was cancelled", stderr=stderr)
        case "output":
            return OutputLimitExceeded("the function wrote more output than it may", stderr=stderr)
        case None:
            pass
    if call.exit_status is not None:
        return error_of_exit(call, call.exit_status)
    return None


def error_of_exit(call: Call, status: int) -> GuestExit | None:
    """None for status 0, which is success."""
    if status == 0:
        return None
    return GuestExit(
        f"the function exited with status {status}",
        stderr=bytes(call.stderr),
        exit_status=status,
    )


def error_of_trap(failure: Failure, call: Call) -> GuestTrap:
    code = failure.code
    kind = TRAPS.get(code, "trap") if code is not None else "host call failed"
    told = [call.cause or failure.text or f"wasm trap: {kind}", failure.frames]
    return GuestTrap(
        f"the function trapped: {kind}", stderr=bytes(call.stderr), private="\n".join(told).strip()
    )


def error_of_failure(failure: Failure, call: Call) -> EdgedError:
    """A wasmtime_error_t that is neither an exit nor ours: a host call's failure, such as a guest
    without the memory WASI needs; or, before any code of the guest ran, instantiation limits. Only
    then is the message all wasmtime's, and matched."""
    if failure.frames:
        return error_of_trap(failure, call)
    message = failure.text
    if "maximum concurrent" in message or "os error 12" in message:
        return Overloaded("no instance slot is free", private=message)
    if "exceeds memory limits" in message or "memory minimum size" in message:
        return PolicyDenied("the module needs more memory than its policy grants", private=message)
    if "exceeds table limits" in message or "table minimum size" in message:
        return PolicyDenied(
            "the module needs more table elements than its policy grants", private=message
        )
    return error_of_trap(failure, call)
