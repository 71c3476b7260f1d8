"""A loaded module: native code in memory, instantiated afresh for every invocation.

Shared between threads. Each invocation owns its store, and with it every bound: memory, tables,
instances, time. `invoke` is the node's hottest path: the fixed part is written flat, and every
line of it was measured (scripts/bench/invoke).

A deadline holds to within a tick (5 ms) plus the longest step that nothing interrupts: one bulk
instruction (memory.fill, memory.copy, table.fill) or one copy in a host call. Its time is in
proportion to `policy.memory_bytes`: a memory.fill of 4 GiB took 8.7 s, of 128 MiB (the default)
0.1 s. Whoever grants gigabytes grants seconds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from ctypes import Array, c_char, memmove
from pathlib import Path
from time import monotonic, perf_counter
from typing import Final, NamedTuple

import msgspec

from edged.errors import (
    BadRequest,
    DeadlineExceeded,
    GuestTrap,
    InitExited,
    InvocationCancelled,
    ModuleRejected,
    PolicyDenied,
)
from edged.interfaces import RESEED, CancelFlag, Invocation, InvocationResult, Tier
from protocol.function import InitSpec, Policy
from protocol.ids import Digest

from .call import Call, Quota, Stop
from .code import Code, Signature, copy_code, exports_of
from .engine import Engine
from .ffi import EXTERN_FUNC, VAL_RAW_BYTES
from .host import EPOCH_PERIOD_TICKS, Host
from .initialising import INITIALIZE, RESUME, START, Initialiser, is_gone, steps_of
from .outcome import error_of_failure, error_of_stop, error_of_trap
from .sandbox import Sandbox
from .stubs import TITLE_CHARS_MAX
from .ticker import TICK_S
from .trace import failure_of, frames_of_trap
from .values import pack_params, unpack_results
from .world import World

_COUNT_TOO_HIGH: Final = re.compile(r"(memory|table) count too high at (\d+)")
COUNT_MAX: Final = 64
"""Memories, or tables, of one module."""


class Entry(NamedTuple):
    """What an invocation calls."""

    name: bytes
    before: tuple[bytes, ...]
    """Called first: a reactor's initialiser, and where a snapshot takes fresh entropy."""
    results: tuple[str, ...]
    """Types of the wanted results."""
    values: bytes
    """Raw parameters, with room for the results."""
    slots: int
    """Of `values`."""


class _Recount(Exception):
    """The module has more memories or tables than assumed; the next attempt knows."""


class WasmtimeModule:
    """Implements interfaces.LoadedModule."""

    def __init__(
        self,
        digest: Digest,
        code: Code,
        *,
        tier: Tier,
        on_demand: Callable[[], Engine],
        host: Host,
        sandbox: Sandbox,
    ) -> None:
        self.digest = digest
        self.tier = tier
        self.load_s = 0.0
        self.imports = code.imports
        self._foreign = code.stubs.foreign
        self._signatures = exports_of(code.engine.api, code.module)
        self._entries: dict[str, Entry] = {}
        self._api = code.engine.api
        self._code: Code | None = code
        self._on_demand_engine = on_demand
        self._on_demand: Code | None = None
        self._host = host
        self._sandbox = sandbox
        self._lock = threading.Lock()
        # Store limits bind each memory and table; the policy's bound is shared out between them.
        self._memories = 1
        self._tables = 1

    def export_params(self, name: str, init: InitSpec | None = None) -> tuple[str, ...] | None:
        signature = self._signatures.get(name)
        if signature is None or (init is not None and is_gone(name, init, self._signatures)):
            return None
        return signature[0]

    def close(self) -> None:
        with self._lock:
            self._code = self._on_demand = None

    # ------------------------------------------------------------ what to call
    def _signature(self, name: str) -> Signature:
        signature = self._signatures.get(name)
        if signature is None:
            raise ModuleRejected("missing-export", f"the module exports no function {name[:80]!r}")
        return signature

    def _entry(self, name: str) -> Entry:
        """Raises ModuleRejected("missing-export")."""
        params, results = self._signature(name)
        if params:
            raise ModuleRejected(
                "missing-export", f"{name[:80]!r} takes parameters; it is no entry point"
            )
        slots = max(len(results), 1)
        values = bytes(VAL_RAW_BYTES * slots)
        return Entry(name.encode(), self._before(name), (), values, slots)

    def _export(self, call: Invocation) -> Entry:
        """Raises ModuleRejected("missing-export"), BadRequest."""
        assert call.export is not None
        name = call.export.name
        params, results = self._signature(name)
        if "other" in results:
            raise BadRequest(f"{name[:80]!r} returns a value that is not a number")
        values = pack_params(params, call.export.params, len(results))
        slots = len(values) // VAL_RAW_BYTES
        return Entry(name.encode(), self._before(name), results, bytes(values), slots)

    def _before(self, name: str) -> tuple[bytes, ...]:
        wanted = () if name == START else (INITIALIZE,)
        return tuple(
            each.encode()
            for each in (*wanted, RESEED)
            if each != name and self._signatures.get(each) == ((), ())
        )

    def _code_for(self, policy: Policy) -> Code:
        """The pooled code, unless the policy grants more than a slot of the pool has."""
        code = self._code
        if code is None:
            raise RuntimeError("invoke on a closed module")
        pool = code.engine.pool
        if pool is None or (
            policy.memory_bytes <= pool.memory_bytes
            and policy.table_elements <= pool.table_elements
        ):
            return code
        with self._lock:
            if self._on_demand is None:
                self._on_demand = copy_code(code, self._on_demand_engine())
            return self._on_demand

    def _check_stubs(self, stubs: tuple[str, ...]) -> None:
        for module, title in self._foreign.items():
            if module not in stubs:
                told = title[:TITLE_CHARS_MAX]
                raise ModuleRejected("missing-import", f"{told}: no such host function, nor a stub")

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
        if self._foreign:
            self._check_stubs(call.stubs)
        if call.export is not None:
            entry = self._export(call)
        else:
            name = call.entrypoint or START
            known = self._entries.get(name)
            # At most one entry per export of the module, so this is bounded.
            entry = self._entries[name] = known or self._entry(name)
        code = self._code_for(policy)
        run = self._run if call.init is None else self._run_after_init
        while True:
            try:
                if not policy.tmp_bytes:
                    return run(code, call, cancel, deadline_at, entry, None)
                tmp = self._sandbox.make_tmp()
                try:
                    return run(code, call, cancel, deadline_at, entry, tmp)
                finally:
                    self._sandbox.remove_tmp(tmp)
            except _Recount:
                continue

    def _run(
        self,
        code: Code,
        call: Invocation,
        cancel: CancelFlag,
        deadline_at: float,
        entry: Entry,
        tmp: Path | None,
    ) -> InvocationResult:
        begin = ready = perf_counter()
        api, engine, state, policy = self._api, code.engine, self._host.state, call.policy
        # Without WASI in its store, a guest that reaches a WASI function aborts the process. What
        # imports none cannot, unless through the relay, which fd_write uses when there is a /tmp.
        wasi = None
        if code.needs_wasi or tmp is not None or policy.mounts:
            wasi = self._sandbox.wasi_config(call, code, tmp)
        store, context = self._new_store(engine, policy, wasi, deadline_at)
        current = None
        try:
            values = state.scratch.values
            if entry.slots > 1 or entry.before:
                values = (c_char * len(entry.values)).from_buffer_copy(entry.values)
            else:
                memmove(state.scratch.values_at, entry.values, VAL_RAW_BYTES)
            current = state.call = Call(
                engine,
                state.scratch,
                context,
                cancel,
                deadline_at,
                policy.stdout_bytes,
                policy.stderr_bytes,
                None if tmp is None else Quota(policy.tmp_bytes),
            )
            engine.ticker.enter(state.ident)
            try:
                self._instantiate(current, code.plain if tmp is None else code.with_tmp)
                ready = perf_counter()
                for name in entry.before:
                    self._call(current, name, state.scratch.values, 1)
                self._call(current, entry.name, values, entry.slots)
            except Stop:
                pass  # proc_exit(0) ends a guest well, also in its start function
            finally:
                engine.ticker.leave(state.ident)
                state.call = None
            return InvocationResult(
                bytes(current.stdout),
                bytes(current.stderr),
                current.stderr_truncated,
                unpack_results(entry.results, bytes(values)) if entry.results else (),
                ready - begin,
                perf_counter() - ready,
            )
        finally:
            api.wasmtime_store_delete(store)
            if current is not None and current.opened:
                self._host.descriptors.ended(current)

    def _run_after_init(
        self,
        code: Code,
        call: Invocation,
        cancel: CancelFlag,
        deadline_at: float,
        entry: Entry,
        tmp: Path | None,
    ) -> InvocationResult:
        """As `_run`, of an instance that runs the init first: in a world where clock and random
        numbers are always the same, without the call's argv, environment, input and directories."""
        begin, init, policy = perf_counter(), call.init, call.policy
        assert init is not None
        steps = steps_of(init, self._signatures)
        left_s = deadline_at - monotonic()
        bare = Invocation(
            msgspec.structs.replace(policy, env={}, mounts=()),
            env=tuple((name.encode(), value.encode()) for name, value in init.env.items()),
        )
        api, engine, state = self._api, code.engine, self._host.state
        wasi = self._sandbox.wasi_config(bare, code, None)
        init_at = monotonic() + init.timeout_ms / 1000
        store, context = self._new_store(engine, policy, wasi, init_at)
        current = state.call = Call(
            engine, state.scratch, context, cancel, init_at, policy.stdout_bytes,
            policy.stderr_bytes, None if tmp is None else Quota(0),
        )  # fmt: skip
        current.world = World(fixed=True).functions()
        values = (c_char * len(entry.values)).from_buffer_copy(entry.values)
        ready = initialised = perf_counter()
        engine.ticker.enter(state.ident)
        try:
            try:
                self._instantiate(current, code.with_init(private_tmp=tmp is not None))
                ready = perf_counter()
                Initialiser(current, self._call, self._signatures).run(steps)
            except Stop:
                raise InitExited("init ended the program", exit_status=0) from None
            except GuestTrap as error:
                error.args = (f"{error}, during its init",)
                raise
            self._begin_anew(current, call, code, tmp, monotonic() + left_s)
            initialised = perf_counter()
            try:
                for name in entry.before:
                    if name != INITIALIZE.encode():
                        self._call(current, name, (c_char * VAL_RAW_BYTES)(), 1)
                resumed = entry.name == START.encode() and RESUME in self._signatures
                self._call(current, RESUME.encode() if resumed else entry.name, values, entry.slots)
            except Stop:
                pass
            return InvocationResult(
                bytes(current.stdout),
                bytes(current.stderr),
                current.stderr_truncated,
                unpack_results(entry.results, bytes(values)) if entry.results else (),
                ready - begin,
                perf_counter() - initialised,
                initialised - ready,
            )
        finally:
            engine.ticker.leave(state.ident)
            state.call = None
            api.wasmtime_store_delete(store)
            if current.opened:
                self._host.descriptors.ended(current)

    def _begin_anew(
        self, current: Call, call: Invocation, code: Code, tmp: Path | None, deadline_at: float
    ) -> None:
        """From init to the invocation: its own WASI, the real clock, nothing written yet."""
        policy = call.policy
        wasi = self._sandbox.wasi_config(call, code, tmp)
        self._api.wasmtime_context_set_wasi(current.context, wasi)
        current.world = World(fixed=False).functions()
        current.deadline_at = deadline_at
        current.stdout, current.stderr = bytearray(), bytearray()
        current.stdout_left, current.stderr_left = policy.stdout_bytes, policy.stderr_bytes
        current.stderr_truncated = False
        current.streams = {1: 1, 2: 2}
        current.quota = None if tmp is None else Quota(policy.tmp_bytes)
        current.check_time()

    def _new_store(
        self, engine: Engine, policy: Policy, wasi: int | None, deadline_at: float
    ) -> tuple[int, int]:
        """A store with every bound set, and its context. Takes `wasi`."""
        api = self._api
        store = api.wasmtime_store_new(engine.pointer, None, None)
        context = api.wasmtime_store_context(store)
        if wasi is not None:
            api.wasmtime_context_set_wasi(context, wasi)
        memories, tables = self._memories, self._tables
        memory_bytes, elements = policy.memory_bytes, policy.table_elements
        api.wasmtime_store_limiter(
            store,
            memory_bytes if memories == 1 else memory_bytes // memories,
            elements if tables == 1 else elements // tables,
            2,  # instances: the guest and the relay
            tables,
            memories,
        )
        api.wasmtime_store_epoch_deadline_callback(store, self._host.on_epoch, None, None)
        ticks = int((deadline_at - monotonic()) / TICK_S) + 1
        if ticks > EPOCH_PERIOD_TICKS or ticks < 1:
            ticks = EPOCH_PERIOD_TICKS if ticks > 0 else 1
        api.wasmtime_context_set_epoch_deadline(context, ticks)
        return store, context

    def _instantiate(self, call: Call, linked: int) -> None:
        """Also runs the start function. Raises what `_raise` does."""
        scratch = call.scratch
        scratch.trap.value = None
        error = self._api.wasmtime_instance_pre_instantiate(
            linked, call.context, scratch.instance_at, scratch.trap_at
        )
        if error or scratch.trap.value:
            self._raise(call, error)

    def _call(self, call: Call, name: bytes, values: Array[c_char], slots: int) -> None:
        """Results replace the parameters in `values`. Raises what `_raise` does."""
        api, scratch = self._api, call.scratch
        api.wasmtime_instance_export_get(
            call.context, scratch.instance_at, name, len(name), scratch.export_at
        )
        assert scratch.export.kind == EXTERN_FUNC, name
        error = api.wasmtime_func_call_unchecked(
            call.context, scratch.function_at, values, slots, scratch.trap_at
        )
        if error or scratch.trap.value:
            self._raise(call, error)

    def _raise(self, call: Call, error: int | None) -> None:
        """Frees the error or trap and raises its meaning: an EdgedError, Stop for an exit with
        status 0, or _Recount."""
        api, trap = self._api, call.scratch.trap
        if trap.value:
            failure = frames_of_trap(api, trap.value)
        else:
            assert error is not None
            failure = failure_of(api, error)
            # Without frames no code of the guest ran: the words are all wasmtime's.
            match = None if failure.frames else _COUNT_TOO_HIGH.search(failure.text)
            if match:
                self._recount(match[1], int(match[2]))
        stopped = error_of_stop(call, failure.frames)
        if stopped is not None:
            raise stopped
        if call.exit_status is not None:
            raise Stop
        raise (error_of_trap if trap.value else error_of_failure)(failure, call)

    def _recount(self, kind: str, count: int) -> None:
        known = self._memories if kind == "memory" else self._tables
        if not known < count <= COUNT_MAX:
            raise PolicyDenied(f"the module has more than {COUNT_MAX} of one kind: {kind}")
        if kind == "memory":
            self._memories = count
        else:
            self._tables = count
        raise _Recount
