"""State of one running invocation, as host callbacks see it.

Owned by the thread that runs the guest; other threads reach it only through the CancelFlag. All
guest pointers are hostile: nothing is read or written before it is checked against the memory's
present size.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping
from ctypes import addressof, byref, c_uint32, c_void_p, memmove, string_at
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal

from edged.interfaces import CancelFlag

from .ffi import EXTERN_MEMORY, VAL_RAW_BYTES, Api, Extern, Func, Instance
from .relay import NAMES, WASI
from .trace import failure_of
from .turns import UNITS

if TYPE_CHECKING:
    from .engine import Engine

StopReason = Literal["deadline", "cancelled", "output"]

SUCCESS: Final = 0
EBADF: Final = 8
EFAULT: Final = 21
EINVAL: Final = 28
ENOSPC: Final = 51
ENOSYS: Final = 52
IOVECS_MAX: Final = 16
"""POSIX's least IOV_MAX (_XOPEN_IOV_MAX). More are written in part, which WASI allows: each costs
Python time under the GIL, and a guest may claim half a billion of them."""

_PAIR = struct.Struct("<II")


RELAY_UNITS: Final = 4
"""Of host work: a relay gives the GIL up and takes it again, twice."""


class Stop(Exception):
    """Ends the guest from inside a callback; `trap` is passed on if there is one."""

    def __init__(self, trap: int = 0) -> None:
        super().__init__("the guest is to stop")
        self.trap = trap


class Quota:
    """What is left of a private /tmp's bytes. Charges are cumulative: nothing comes back for what
    the guest deletes. `moved` are descriptors whose next write may not continue the last one."""

    __slots__ = ("left", "moved")

    def __init__(self, size_bytes: int) -> None:
        self.left = size_bytes
        self.moved: set[int] = set()


class Scratch:
    """Buffers of one worker thread, reused by its invocations one after another."""

    __slots__ = (
        "export", "export_at", "function_at",
        "instance", "instance_at", "memory", "memory_at", "of_at",
        "trap", "trap_at", "values", "values_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self.memory = Extern()
        self.memory_at = addressof(self.memory)
        self.of_at = self.memory_at + Extern.of.offset
        self.export = Extern()
        self.export_at = addressof(self.export)
        self.function_at = self.export_at + Extern.of.offset
        self.instance = Instance()
        self.instance_at = addressof(self.instance)
        self.trap = c_void_p()
        self.trap_at = addressof(self.trap)
        self.values = (ctypes.c_char * VAL_RAW_BYTES)()
        """Room for one value, the common case."""
        self.values_at = addressof(self.values)


class Call:
    """One invocation. `streams` maps the guest's descriptors to captured streams (1 or 2)."""

    __slots__ = (
        "_has_memory", "_relays", "api", "bug", "cancel", "cause", "context", "deadline_at",
        "engine", "exit_status", "opened", "quota", "scratch", "stderr", "stderr_left",
        "stderr_truncated", "stdout", "stdout_left", "stop", "streams", "stub", "units", "world",
    )  # fmt: skip

    def __init__(
        self, engine: Engine, scratch: Scratch, context: int, cancel: CancelFlag,
        deadline_at: float, stdout_bytes: int, stderr_bytes: int, quota: Quota | None,
    ) -> None:  # fmt: skip
        self.api: Api = engine.api
        self.engine = engine
        self.scratch = scratch
        self.context = context
        self.cancel = cancel
        self.deadline_at = deadline_at
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.stdout_left = stdout_bytes
        self.stderr_left = stderr_bytes
        self.stderr_truncated = False
        self.streams = {1: 1, 2: 2}
        self.stop: StopReason | None = None
        self.stub = ""
        """The import that ended the guest by being called (stubs.py)."""
        self.exit_status: int | None = None
        self.bug: BaseException | None = None
        self.cause = ""
        """Why a real WASI function ended the guest."""
        self.opened: set[int] | None = None
        """Descriptors that the guest opened (descriptors.py)."""
        self.units = UNITS
        """Of host work, until the next turn (turns.py)."""
        self.quota = quota
        self.world: Mapping[str, tuple[str, HostFunction]] = {}
        """What answers an init, and the invocation after it, for clock and random numbers."""
        self._has_memory = False
        self._relays: dict[str, Func] | None = None

    # ------------------------------------------------------------ guest memory
    def memory(self, caller: int) -> tuple[int, int]:
        """Address and size of the guest's exported memory now; (0, 0) if it has none."""
        api, scratch = self.api, self.scratch
        if not self._has_memory:
            found = api.wasmtime_caller_export_get(caller, b"memory", 6, scratch.memory_at)
            if not found or scratch.memory.kind != EXTERN_MEMORY:
                return 0, 0
            self._has_memory = True
        return (
            api.wasmtime_memory_data(self.context, scratch.of_at),
            api.wasmtime_memory_data_size(self.context, scratch.of_at),
        )

    def gather(self, base: int, size: int, iovs: int, count: int) -> list[tuple[int, int]] | None:
        """(address, length) of each iovec; None if any part lies outside the memory."""
        count = min(count, IOVECS_MAX)
        if iovs + 8 * count > size:
            return None
        pairs = []
        for offset, length in _PAIR.iter_unpack(string_at(base + iovs, 8 * count)):
            if offset + length > size:
                return None
            pairs.append((base + offset, length))
        return pairs

    # ------------------------------------------------------------ time
    def check_time(self) -> None:
        """Raises Stop when the invocation is cancelled or out of time."""
        if self.cancel.is_set():
            self.stop = "cancelled"
            raise Stop
        if monotonic() >= self.deadline_at:
            self.stop = "deadline"
            raise Stop

    def sleep(self, seconds: float) -> None:
        """Raises Stop if the deadline or a cancellation comes first."""
        left = self.deadline_at - monotonic()
        if self.cancel.wait(max(min(seconds, left), 0.0)):
            self.stop = "cancelled"
            raise Stop
        if seconds >= left:
            self.stop = "deadline"
            raise Stop

    # ------------------------------------------------------------ real WASI
    def relay(self, name: str, caller: int, args: int, count: int) -> int:
        """Errno of the real WASI function, called with `args` (its result replaces args[0]).

        Raises Stop if it trapped."""
        self.units -= RELAY_UNITS
        relays = self._relays
        if relays is None:
            relays = self._relays = self._start_relay(caller)
        function = relays.get(name)
        if function is None:
            return ENOSYS
        trap = c_void_p()
        error = self.api.wasmtime_func_call_unchecked(
            self.context, byref(function), args, count, byref(trap)
        )
        if error:
            self.cause = failure_of(self.api, error).text
            raise Stop
        if trap.value:
            raise Stop(trap.value)
        return c_uint32.from_address(args).value

    def _start_relay(self, caller: int) -> dict[str, Func]:
        """{} when the guest's memory is not one WASI could use either (none, or 64-bit)."""
        api, context = self.api, self.context
        if not self.memory(caller)[0]:
            return {}
        imports = (Extern * (1 + len(NAMES)))()
        memmove(imports, self.scratch.memory_at, ctypes.sizeof(Extern))
        module = WASI.encode()
        for index, name in enumerate(NAMES, start=1):
            text = name.encode()
            found = api.wasmtime_linker_get(
                self.engine.linker_wasi, context, module, len(module), text, len(text),
                byref(imports[index]),
            )  # fmt: skip
            assert found, name
        instance, trap = Instance(), c_void_p()
        error = api.wasmtime_instance_new(
            context, self.engine.relay_module, imports, len(imports), byref(instance), byref(trap)
        )
        if error:
            api.take_error(error)
            return {}
        if trap.value:
            raise Stop(trap.value)
        relays = {}
        export = Extern()
        for name in NAMES:
            text = name.encode()
            found = api.wasmtime_instance_export_get(
                context, byref(instance), text, len(text), byref(export)
            )
            assert found, name
            relays[name] = Func(export.of.func.store_id, export.of.func.private)
        return relays


HostFunction = Callable[[Call, int, int], int]
"""(call, caller, address of the arguments) -> errno; may raise Stop."""
