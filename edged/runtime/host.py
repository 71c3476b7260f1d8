"""Host functions that stand in for some of wasmtime's WASI, and the epoch callback.

Shadowed always: fd_write (output is captured and capped here), fd_close and fd_renumber (so that
the captured descriptors stay what the guest thinks they are), poll_oneoff (a sleeping guest obeys
its deadline and cancellation), proc_exit (every status is legal), path_open (see descriptors.py).
With a private /tmp also what can take disk space: see quota.py. Everything else is wasmtime's own.
Guests take turns at what is shadowed: turns.py.

A callback runs in the guest's thread, finds its Call in a thread-local, and never raises: it
returns an errno, or a trap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from ctypes import addressof, c_uint8, c_uint32, c_uint64, memmove, string_at
from struct import Struct
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, Final

from .call import EBADF, EFAULT, EINVAL, SUCCESS, Call, HostFunction, Scratch, Stop
from .descriptors import Descriptors, relay_open
from .ffi import UPDATE_DEADLINE_CONTINUE, Api, EpochCallback, HostCallback
from .quota import QUOTA_FUNCTIONS, open_charged, write_file
from .relay import SIGNATURES, WASI
from .turns import Turns

if TYPE_CHECKING:
    import ctypes

    Uint64Out = ctypes._Pointer[c_uint64]
    Uint8Out = ctypes._Pointer[c_uint8]

EPOCH_PERIOD_TICKS: Final = 4
"""Between looks at the clock and the cancel flag: 20 ms, so a cancelled guest stops within 25."""
WaitOf = Callable[[Call, int, int, int, int, int], float | None]
"""(call, caller, address of 8 spare bytes, clock, timeout, flags) -> seconds a clock subscription
is to wait; None for a clock that cannot be waited for."""
SUBSCRIPTIONS_MAX: Final = 256
"""A guest has no sockets to wait for. Each costs Python time under the GIL."""

WORLD: Final = {
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "poll_oneoff": "iiii",
    "random_get": "ii",
}
"""What a world answers (world.py), with its parameters as in SIGNATURES."""

_ONE = Struct("<I")
_PAIR = Struct("<II")
_TWO = Struct("<I12xI")
_FOUR = Struct("<I12xI12xI12xI")
_SUBSCRIPTION = Struct("<QB7xI4xQQH6x")
_EVENT = Struct("<QHB5xQH6x")
_EVENT_BYTES: Final = 32
_CLOCK_REALTIME: Final = 0
_CLOCK_MONOTONIC: Final = 1
_ABSOLUTE: Final = 1


class ThreadState(threading.local):
    """The invocation this thread runs, and its buffers."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.ident = threading.get_ident()
        self.scratch = Scratch()


class Host:
    """The callbacks of one runtime. They live as long as it does: wasm code points at them."""

    def __init__(
        self, api: Api, others: Mapping[str, tuple[str, HostFunction]] | None = None
    ) -> None:
        """`others` are shadowed in addition or instead: parameters as in SIGNATURES, function."""
        self.api = api
        self.state = ThreadState()
        self.on_epoch = EpochCallback(self._on_epoch)
        self.descriptors = Descriptors()
        self.turns = Turns()
        plain: dict[str, HostFunction] = {
            "fd_close": self._fd_close,
            "fd_renumber": self._fd_renumber,
            "fd_write": fd_write,
            "path_open": self.descriptors.limited(relay_open),
            "poll_oneoff": poll_oneoff,
            "proc_exit": proc_exit,
        }
        self._signatures = SIGNATURES | {"proc_exit": "i"}
        for name, (letters, function) in (others or {}).items():
            self._signatures[name] = letters
            plain[name] = function
        self._plain = {name: self._callback(function) for name, function in plain.items()}
        self._worldly = {name: self._callback(_of_world(name)) for name in WORLD}
        charged = QUOTA_FUNCTIONS | {"path_open": self.descriptors.limited(open_charged)}
        self._with_tmp = self._plain | {
            name: self._callback(function) for name, function in charged.items()
        }

    def define(self, linker: int, *, private_tmp: bool, init: bool = False) -> None:
        """Shadows WASI functions in `linker`; `init`: clock and random numbers too, which are then
        those of the call's world. Raises OSError."""
        api = self.api
        module = WASI.encode()
        shadows = self._with_tmp if private_tmp else self._plain
        signatures = self._signatures
        if init:
            shadows, signatures = shadows | self._worldly, signatures | WORLD
        for name, callback in shadows.items():
            functype = api.functype(signatures[name], "" if name == "proc_exit" else "i")
            text = name.encode()
            error = api.wasmtime_linker_define_func_unchecked(
                linker, module, len(module), text, len(text), functype, callback, None, None
            )
            api.wasm_functype_delete(functype)
            if error:
                raise OSError(api.take_error(error))

    def _callback(self, function: HostFunction) -> Any:
        state, trap_new, turn = self.state, self.api.wasmtime_trap_new, self.turns.next

        def callback(_env: int, caller: int, args: int, _count: int) -> int:
            call = state.call
            try:
                assert call is not None
                call.units -= 1
                if call.units < 0:
                    turn(call, state.ident)
                c_uint32.from_address(args).value = function(call, caller, args)
            except Stop as stop:
                return stop.trap or int(trap_new(b"stopped", 7))
            except BaseException as error:  # noqa: BLE001 - must not cross into wasmtime
                if call is not None:
                    call.bug = error
                return int(trap_new(b"host error", 10))
            return 0

        return HostCallback(callback)

    def _on_epoch(self, _context: int, _data: int, delta: Uint64Out, kind: Uint8Out) -> int:
        call = self.state.call
        try:
            assert call is not None
            call.check_time()
            delta[0] = EPOCH_PERIOD_TICKS
            kind[0] = UPDATE_DEADLINE_CONTINUE
        except Stop:
            return int(self.api.wasmtime_error_new(b"stopped"))
        except BaseException as error:  # noqa: BLE001 - must not cross into wasmtime
            if call is not None:
                call.bug = error
            return int(self.api.wasmtime_error_new(b"host error"))
        return 0

    def _fd_close(self, call: Call, caller: int, args: int) -> int:
        (fd,) = _ONE.unpack(string_at(args, 4))
        errno = call.relay("fd_close", caller, args, 1)
        if errno == SUCCESS:
            call.streams.pop(fd, None)
            self.descriptors.closed(call, fd)
            if call.quota:
                call.quota.moved.discard(fd)
        return errno

    def _fd_renumber(self, call: Call, caller: int, args: int) -> int:
        source, target = _TWO.unpack(string_at(args, 20))
        errno = call.relay("fd_renumber", caller, args, 2)
        if errno == SUCCESS and source != target:
            stream = call.streams.pop(source, None)
            call.streams.pop(target, None)
            if stream is not None:
                call.streams[target] = stream
            self.descriptors.renumbered(call, source, target)
            if call.quota:
                call.quota.moved.add(target)
        return errno


def _of_world(name: str) -> HostFunction:
    def function(call: Call, caller: int, args: int) -> int:
        return call.world[name][1](call, caller, args)

    return function


def fd_write(call: Call, caller: int, args: int) -> int:
    """Captures stdout and stderr. More stdout than allowed stops the guest before it is copied;
    more stderr is dropped and the guest goes on."""
    fd, iovs, count, written_at = _FOUR.unpack(string_at(args, 52))
    stream = call.streams.get(fd)
    if stream is None:
        return write_file(call, caller, args) if call.quota else EBADF
    base, size = call.memory(caller)
    if count == 1 and iovs + 8 <= size:  # what C libraries do; the rest is only slower
        offset, total = _PAIR.unpack(string_at(base + iovs, 8))
        if offset + total > size or written_at + 4 > size:
            return EFAULT
        pairs = [(base + offset, total)]
    else:
        gathered = call.gather(base, size, iovs, count)
        if gathered is None or written_at + 4 > size:
            return EFAULT
        pairs = gathered
        call.units -= len(pairs) // 4
        total = sum([length for _address, length in pairs])
        if total > 0xFFFFFFFF:
            return EINVAL
    if stream == 1:
        if total > call.stdout_left:
            call.stop = "output"
            raise Stop
        call.stdout_left -= total
        for address, length in pairs:
            call.stdout += string_at(address, length)
    else:
        for address, length in pairs:
            kept = min(length, call.stderr_left)
            call.stderr_left -= kept
            call.stderr += string_at(address, kept)
            if kept < length:
                call.stderr_truncated = True
                break
    c_uint32.from_address(base + written_at).value = total
    return SUCCESS


def proc_exit(call: Call, _caller: int, args: int) -> int:
    (call.exit_status,) = _ONE.unpack(string_at(args, 4))
    raise Stop


def poll_oneoff(call: Call, caller: int, args: int) -> int:
    return poll(call, caller, args, _wait_s, call.sleep)


def poll(
    call: Call, caller: int, args: int, wait_of: WaitOf, sleep: Callable[[float], None]
) -> int:
    """Clock subscriptions are waited for here, up to the deadline. With a descriptor among them the
    real one answers: all its descriptors (memory, files, sinks) are ready at once."""
    subscriptions_at, events_at, count, count_at = _FOUR.unpack(string_at(args, 52))
    if not 0 < count <= SUBSCRIPTIONS_MAX:
        return EINVAL
    base, size = call.memory(caller)
    if (
        subscriptions_at + count * _SUBSCRIPTION.size > size
        or events_at + count * _EVENT_BYTES > size
        or count_at + 4 > size
    ):
        return EFAULT
    call.units -= count // 4
    raw = string_at(base + subscriptions_at, count * _SUBSCRIPTION.size)
    subscriptions = list(_SUBSCRIPTION.iter_unpack(raw))
    if any(tag != 0 for _user, tag, *_rest in subscriptions):
        call.check_time()
        return call.relay("poll_oneoff", caller, args, 4)
    waits = []
    for userdata, _tag, clock, timeout_ns, _precision, flags in subscriptions:
        wait_s = wait_of(call, caller, events_at, clock, timeout_ns, flags)
        if wait_s is None:
            return EINVAL
        waits.append((wait_s, userdata))
    shortest_s = min(wait_s for wait_s, _ in waits)
    sleep(shortest_s)
    events = [
        _EVENT.pack(userdata, SUCCESS, 0, 0, 0)
        for wait_s, userdata in waits
        if wait_s <= shortest_s
    ]
    base, _size = call.memory(caller)
    memmove(base + events_at, b"".join(events), len(events) * _EVENT_BYTES)
    c_uint32.from_address(base + count_at).value = len(events)
    return SUCCESS


def _wait_s(
    call: Call, caller: int, scratch_at: int, clock: int, timeout_ns: int, flags: int
) -> float | None:
    """Seconds until a clock subscription fires; None for a clock that cannot be waited for."""
    if clock not in (_CLOCK_REALTIME, _CLOCK_MONOTONIC):
        return None
    if not flags & _ABSOLUTE:
        return timeout_ns / 1e9
    if clock == _CLOCK_REALTIME:
        return max(timeout_ns - time_ns(), 0) / 1e9
    # The guest's monotonic clock has its own zero; ask it, into the event buffer checked above.
    values = (c_uint64 * 6)(_CLOCK_MONOTONIC, 0, 1, 0, scratch_at, 0)
    before_s = monotonic()
    if call.relay("clock_time_get", caller, addressof(values), 3) != SUCCESS:
        return None
    base, _size = call.memory(caller)
    now_ns = c_uint64.from_address(base + scratch_at).value
    return max((timeout_ns - now_ns) / 1e9 - (monotonic() - before_s), 0.0)
