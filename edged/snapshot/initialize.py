"""Phase 2: compiles the instrumented module and runs its initialiser in an invocation's sandbox.

What the guest may use is its policy's, minus the policy's environment: what the initialiser sees is
in the snapshot. Imports that are no WASI functions can be had, and end the guest when called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edged.errors import ArtifactRefused
from edged.interfaces import InitCall, InitPlan, Invocation, Tier
from edged.runtime.code import Code
from edged.runtime.compile_worker import FAST_CODE_BYTES_MIN
from edged.runtime.engine import Engine
from edged.runtime.ffi import Api
from edged.runtime.host import EPOCH_PERIOD_TICKS, Host
from edged.runtime.sandbox import Sandbox
from edged.runtime.settings import has_fast_tier
from edged.runtime.ticker import TICK_S
from protocol.function import Policy

from .errors import refuse
from .guest import Guest
from .instrument import Names
from .parse import CODE, Module

if TYPE_CHECKING:
    from edged.runtime.settings import Target


class Compiled(NamedTuple):
    engine: Engine
    module: int
    """A wasmtime_module_t."""
    tier: Tier
    fast_refused: str


class State(NamedTuple):
    """Of an instance before its first instruction."""

    globals: dict[int, bytes]
    tables: list[list[bytes]]


def compile_binary(
    api: Api,
    host: Host,
    target: Target,
    module: Module,
    binary: bytes,
    *,
    fast: bool,
    deterministic: bool,
) -> Compiled:
    """With the fast compiler if it is wanted, known for the target, worth it, and knows the module.
    `deterministic`: what it computes is the same on every architecture.

    Raises CannotSnapshot("invalid"): of what was given, or of what was made of it."""
    refused = ""
    code = module.section(CODE)
    worth = code is not None and code.end - code.body >= FAST_CODE_BYTES_MIN
    tiers: list[Tier] = ["fast"] if fast and worth and has_fast_tier(target) else []
    for tier in (*tiers, "optimised"):
        engine = Engine(api, target, host, None, tier, deterministic=deterministic)
        compiled = c_void_p()
        error = api.wasmtime_module_new(engine.pointer, binary, len(binary), byref(compiled))
        if not error:
            # What is added could make valid what was not, and calls go by what was read.
            given = bytes(module.data)
            error = api.wasmtime_module_validate(engine.pointer, given, len(given))
        if not error:
            assert compiled.value is not None
            return Compiled(engine, compiled.value, tier, refused)
        refused = api.take_error(error)
    raise refuse("invalid", "module", refused)


@contextmanager
def instantiated(
    host: Host, sandbox: Sandbox, compiled: Compiled, module: Module, plan: InitPlan, policy: Policy
) -> Iterator[Guest]:
    """An instance in which nothing has run.

    Raises InitTrapped (a segment that does not fit), PolicyDenied (a mount), CannotSnapshot
    ("import-type", "needs-more")."""
    api, engine = host.api, compiled.engine
    try:
        code = Code(engine, compiled.module, zeros=plan.zeros)
    except ArtifactRefused as error:
        raise refuse("import-type", "module", error.private) from error
    granted = msgspec.structs.replace(policy, env={}, mounts=policy.mounts if plan.files else ())
    tmp = sandbox.make_tmp() if plan.files and policy.tmp_bytes else None
    wasi = sandbox.wasi_config(_invocation(plan, granted), code, tmp)
    store = api.wasmtime_store_new(engine.pointer, None, None)
    context = api.wasmtime_store_context(store)
    api.wasmtime_context_set_wasi(context, wasi)
    _bound(api, host, store, context, module, policy)
    guest = Guest(engine, host, context, module, Names(module), policy, tmp, code.stubs.called)
    engine.ticker.enter(host.state.ident)
    try:
        guest.instantiate(code.plain if tmp is None else code.with_tmp)
        yield guest
    finally:
        engine.ticker.leave(host.state.ident)
        host.state.call = None
        api.wasmtime_store_delete(store)
        engine.close()
        if tmp is not None:
            sandbox.remove_tmp(tmp)


def _invocation(plan: InitPlan, policy: Policy) -> Invocation:
    return Invocation(
        policy,
        args=tuple(each.encode() for each in plan.args),
        env=tuple((name.encode(), value.encode()) for name, value in plan.env.items()),
        stdin=plan.stdin,
    )


def _bound(api: Api, host: Host, store: int, context: int, module: Module, policy: Policy) -> None:
    """A store's limits hold for each memory and each table; the policy's are shared out."""
    memories, tables = max(len(module.memories), 1), max(len(module.tables), 1)
    api.wasmtime_store_limiter(
        store, policy.memory_bytes // memories, policy.table_elements // tables,
        2,  # instances: the guest and the relay
        tables, memories,
    )  # fmt: skip
    api.wasmtime_store_epoch_deadline_callback(store, host.on_epoch, None, None)
    ticks = min(int(policy.timeout_ms / 1000 / TICK_S) + 1, EPOCH_PERIOD_TICKS)
    api.wasmtime_context_set_epoch_deadline(context, ticks)


def observe(guest: Guest) -> State:
    """What must be compared with later, or may have to be."""
    module = guest.module
    return State(
        {index: guest.global_bits(index) for index, each in enumerate(module.globals)
         if each.mutable},
        [guest.table(index) for index in range(len(module.tables))],
    )  # fmt: skip


def run(guest: Guest, calls: tuple[InitCall, ...]) -> list[tuple[int | float, ...]]:
    """The start function, then `calls`; their results.

    Raises InitTrapped, InitExited, InitTimeout, CannotSnapshot ("import-called",
    "bad-arguments")."""
    guest.start_clock()
    if guest.module.start is not None:
        guest.invoke(guest.names.start)
    results = [guest.call(each) for each in calls]
    guest.stop_clock()
    return results
