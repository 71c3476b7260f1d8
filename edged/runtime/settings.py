"""The one engine configuration; what compiles and what loads must agree on it.

Imported by compile workers, so it needs the standard library only. Targets are a whitelist:
wasmtime aborts the process on triples its build lacks. "native" means the host's architecture
without optional ISA flags (see ARCHITECTURE note in engine.py for the measurement), so every node
of one architecture has the same artifact key.
"""

from __future__ import annotations

import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # see ffi.py
    from typing import Final, Literal

    from .ffi import Api

    Target = Literal["native", "pulley64"]

TRIPLES: Final = {
    "x86_64": "x86_64-unknown-linux-gnu",
    "aarch64": "aarch64-unknown-linux-gnu",
}
PULLEY: Final = "pulley64"


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


def new_config(api: Api, target: Target, pool: PoolSize | None = None) -> int:
    """A wasm_config_t, consumed by `wasm_engine_new_with_config`.

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
