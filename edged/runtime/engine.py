"""Engines: what is shared by every module of a node and tier.

For each tier a node has one pooled engine (slots reserved once, instances in about 20 µs) and, made
when first needed, one that allocates on demand for what does not fit a slot. Both load the same
artifacts: the allocator is no part of the artifact key, which is the BLAKE3 of what wasmtime itself
compares (the ELF section `.wasmtime.engine`: version, triple, ISA flags, tunables, features) and
the exact wasmtime release, since a patch release may mend a miscompile.

Native code uses the architecture's baseline, not the host's ISA flags: one key per architecture
lets any node use any other's artifact. Measured against the host's flags (AVX-512 Zen): integer
and multiply-add loops 1.0 to 1.1 times the time, floor 1.6, clz and popcnt loops 3 to 3.5.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from ctypes import c_void_p
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from edged.errors import ConfigError
from edged.interfaces import Tier
from protocol.ids import ArtifactKey

from .ffi import Api, ByteVec
from .host import Host
from .relay import relay_wat
from .settings import PoolSize, check_address_space, new_config
from .ticker import Ticker

if TYPE_CHECKING:
    from .settings import Target

_ENGINE_SECTION: Final = b".wasmtime.engine"
_KEY_DOMAIN: Final = b"edged/1 artifact-key\x00"


@functools.cache
def _release() -> bytes:
    """wasmtime's. Looked up once for all tiers: parsing its metadata takes 10 ms."""
    return version("wasmtime").encode()


class Engine:
    """One wasm_engine_t with its linkers, its relay and its ticker."""

    def __init__(
        self,
        api: Api,
        target: Target,
        host: Host,
        pool: PoolSize | None,
        tier: Tier = "optimised",
        *,
        deterministic: bool = False,
    ) -> None:
        """`deterministic` as settings.new_config. Raises OSError if the pool's address space cannot
        be had, or the target is unknown."""
        self.api = api
        self.pool = pool
        if pool is not None:
            check_address_space(pool)
        self.pointer: int = api.wasm_engine_new_with_config(
            new_config(api, target, pool, tier=tier, deterministic=deterministic)
        )
        if not self.pointer:
            raise OSError("wasmtime could not make the engine (address space?)")
        self.host = host
        self.linker_wasi = self._wasi_linker()
        self._lock = threading.Lock()
        self._linkers: dict[tuple[bool, bool], int] = {}
        self.linker(private_tmp=False, init=False)
        self.relay_module, self.key = self._compile_relay()
        self.ticker = Ticker(self._tick, name="edged-epoch")

    def _tick(self) -> None:
        self.api.wasmtime_engine_increment_epoch(self.pointer)

    def linker(self, *, private_tmp: bool, init: bool) -> int:
        """For all modules but those with stubs; `init`: it runs before each invocation. Made when
        first needed. Raises OSError."""
        with self._lock:
            known = self._linkers.get((private_tmp, init))
            if known is None:
                known = self.new_linker(private_tmp=private_tmp, init=init)
                self._linkers[private_tmp, init] = known
            return known

    def new_linker(self, *, private_tmp: bool, init: bool) -> int:
        """wasmtime's WASI, with the host's functions in the place of some; the caller deletes it.
        Raises OSError."""
        linker = self._wasi_linker()
        self.host.define(linker, private_tmp=private_tmp, init=init)
        return linker

    def _wasi_linker(self) -> int:
        api = self.api
        linker: int = api.wasmtime_linker_new(self.pointer)
        api.wasmtime_linker_allow_shadowing(linker, True)
        error = api.wasmtime_linker_define_wasi(linker)
        if error:
            raise OSError(api.take_error(error))
        return linker

    def _compile_relay(self) -> tuple[int, ArtifactKey]:
        """The one module compiled in this process: our own, a few hundred bytes."""
        api = self.api
        text = relay_wat().encode()
        wasm, image = ByteVec(), ByteVec()
        error = api.wasmtime_wat2wasm(text, len(text), ctypes.byref(wasm))
        if error:
            raise OSError(api.take_error(error))
        data = api.take_bytes(wasm)
        module = c_void_p()
        error = api.wasmtime_module_new(self.pointer, data, len(data), ctypes.byref(module))
        if error:
            raise OSError(api.take_error(error))
        error = api.wasmtime_module_serialize(module, ctypes.byref(image))
        if error:
            raise OSError(api.take_error(error))
        section = elf_section(api.take_bytes(image), _ENGINE_SECTION)
        key = ArtifactKey(blake3(_KEY_DOMAIN + _release() + b"\x00" + section).hexdigest())
        assert module.value is not None
        return module.value, key

    def close(self) -> None:
        """Stops the ticker. What guests may still use is freed with the last reference."""
        self.ticker.close()

    def __del__(self) -> None:
        if not hasattr(self, "relay_module"):
            return  # never came to be
        self.api.wasmtime_module_delete(self.relay_module)
        for linker in (self.linker_wasi, *self._linkers.values()):
            self.api.wasmtime_linker_delete(linker)
        self.api.wasm_engine_delete(self.pointer)


def elf_section(image: bytes, name: bytes) -> bytes:
    """A section of a little-endian ELF64 image we made ourselves.

    Raises ConfigError if wasmtime's artifacts no longer look like this."""
    try:
        (table,) = struct.unpack_from("<Q", image, 0x28)
        entry_bytes, count, names_index = struct.unpack_from("<HHH", image, 0x3A)
        rows = [
            struct.unpack_from("<IIQQQQ", image, table + index * entry_bytes)
            for index in range(count)
        ]
        names_offset = rows[names_index][4]
        for row in rows:
            start = names_offset + row[0]
            if image[start : image.index(b"\x00", start)] == name:
                return image[row[4] : row[4] + row[5]]
    except (struct.error, IndexError, ValueError) as error:
        raise ConfigError(f"unreadable wasmtime artifact: {error}") from error
    raise ConfigError(f"wasmtime artifact without section {name.decode()}")
