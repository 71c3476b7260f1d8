"""The engine configuration of each tier; what compiles and what loads must agree on it.

Imported by compile workers, so it needs the standard library only. Targets are a whitelist:
wasmtime aborts the process on triples its build lacks. "native" means the host's architecture
without optional ISA flags (see ARCHITECTURE note in engine.py for the measurement), so every node
of one architecture has the same artifact key.

Tiers: "optimised" is Cranelift's code. "fast" is Winch's: compiled in an eighth of the time, 1.1 to
1.2 times as slow, with a calling convention of its own, so engine and artifact key differ too. Only
x86-64 has it: on aarch64 Winch let guests out of the sandbox (CVE-2026-34987), and wasmtime
supports it there less.
"""

from __future__ import annotations

import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # see ffi.py
    from typing import Final, Literal

    from edged.interfaces import Tier

    from .ffi import Api

    Target = Literal["native", "pulley64"]

TRIPLES: Final = {
    "x86_64": "x86_64-unknown-linux-gnu",
    "aarch64": "aarch64-unknown-linux-gnu",
}
PULLEY: Final = "pulley64"
_WINCH: Final = 2
_NO_OPTIMISATION: Final = 0
_SINGLE_PASS: Final = 1

_RESERVATION_BYTES: Final = 4 * 1024**3 + 64 * 1024**2
"""Of one memory slot: wasmtime's default reservation and its guard, rounded up."""
_GUARD_BYTES: Final = 4 * 1024**3
"""For all the rest: instances, guards around the pool, and what the process still needs."""
_MAP_NORESERVE: Final = 0x4000


class PoolSize:
    """Bounds of the pooling allocator. Each memory slot reserves 4 GiB of address space (the
    engine's memory reservation), not of memory."""

    __slots__ = ("instances", "memory_bytes", "table_elements")

    def __init__(self, *, instances: int, memory_bytes: int, table_elements: int) -> None:
        self.instances = instances
        self.memory_bytes = memory_bytes
        self.table_elements = table_elements


def parse_target(text: str) -> Target:
    """Raises OSError: anything not on the whitelist would abort the process."""
    if text == "native":
        return "native"
    if text == "pulley64":
        return "pulley64"
    raise OSError(f"unknown target {text!r}")


def triple_of(target: Target) -> str:
    """Raises OSError on an architecture wasmtime has no library for."""
    if target == "pulley64":
        return PULLEY
    machine = os.uname().machine
    if machine not in TRIPLES:
        raise OSError(f"no native code generator for {machine}")
    return TRIPLES[machine]


def has_fast_tier(target: Target) -> bool:
    return target == "native" and os.uname().machine == "x86_64"


def new_config(
    api: Api,
    target: Target,
    pool: PoolSize | None = None,
    *,
    tier: Tier = "optimised",
    parallel: bool = True,
    deterministic: bool = False,
) -> int:
    """A wasm_config_t, consumed by `wasm_engine_new_with_config`. `parallel` lets a compile use
    every core; what it makes is the same. `deterministic` code computes the same on every
    architecture, also where WebAssembly leaves it open: bits of NaN, relaxed SIMD.

    Threads and GC are off: a shared memory escapes the store's limits, and nothing here needs
    them. Raises OSError if the target is refused."""
    config: int = api.wasm_config_new()
    error = api.wasmtime_config_target_set(config, triple_of(target).encode())
    if error:
        raise OSError(api.take_error(error))
    api.wasmtime_config_epoch_interruption_set(config, True)
    api.wasmtime_config_wasm_threads_set(config, False)
    api.wasmtime_config_shared_memory_set(config, False)
    api.wasmtime_config_wasm_gc_set(config, False)
    api.wasmtime_config_parallel_compilation_set(config, parallel)
    if deterministic:
        api.wasmtime_config_cranelift_nan_canonicalization_set(config, True)
        api.wasmtime_config_wasm_relaxed_simd_deterministic_set(config, True)
    if tier == "fast":
        api.wasmtime_config_strategy_set(config, _WINCH)
        # Winch leaves the trampolines, one per function in a table, to Cranelift. Without these
        # three SQLite takes 0.22 to 0.27 CPU s instead of 0.17; traps need no unwind tables.
        api.wasmtime_config_cranelift_opt_level_set(config, _NO_OPTIMISATION)
        api.wasmtime_config_cranelift_regalloc_algorithm_set(config, _SINGLE_PASS)
        api.wasmtime_config_native_unwind_info_set(config, False)
    if pool is not None:
        _set_pool(api, config, pool)
    return config


def check_address_space(pool: PoolSize) -> None:
    """Raises OSError unless the pool's reservation can be had now: wasmtime aborts the process
    when it cannot."""
    need_bytes = pool.instances * (_RESERVATION_BYTES + pool.table_elements * 8) + _GUARD_BYTES
    with mmap.mmap(
        -1, need_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, prot=0
    ):
        pass


def _set_pool(api: Api, config: int, pool: PoolSize) -> None:
    prefix = "wasmtime_pooling_allocation_config_"
    allocation = api.wasmtime_pooling_allocation_config_new()
    values = {
        # The guest's instance and the relay's (relay.py), which has no memory of its own.
        "total_core_instances": 2 * pool.instances,
        "total_memories": pool.instances,
        "total_tables": pool.instances,
        "total_gc_heaps": pool.instances,
        "total_stacks": 1,  # of async calls, which edged does not make
        "max_memory_size": pool.memory_bytes,
        "table_elements": pool.table_elements,
        # Reset by memset below this size, by madvise above; 64 MiB hurt SQLite guests.
        "linear_memory_keep_resident": 1024 * 1024,
        "table_keep_resident": 64 * 1024,
    }
    for name, value in values.items():
        getattr(api, f"{prefix}{name}_set")(allocation, value)
    api.wasmtime_pooling_allocation_strategy_set(config, allocation)
    api.wasmtime_pooling_allocation_config_delete(allocation)
