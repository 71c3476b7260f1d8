"""The engines of one tier, and loading its artifacts into them."""

from __future__ import annotations

import os
import threading
from ctypes import byref, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

from edged.errors import ArtifactRefused
from edged.interfaces import Tier
from edged.telemetry import Log

from .code import Code
from .engine import Engine
from .ffi import Api
from .host import Host
from .settings import PoolSize

if TYPE_CHECKING:
    from .settings import Target


class Engines:
    """Made in the event loop, used from any thread."""

    def __init__(
        self, api: Api, target: Target, host: Host, pool: PoolSize | None, *, tier: Tier, log: Log
    ) -> None:
        """Without address space for `pool` everything is allocated on demand."""
        self.tier = tier
        self._api = api
        self._target = target
        self._host = host
        self.first = self._first(pool, log)
        """Pooled, if there is a pool."""
        self.key = self.first.key
        self._on_demand: Engine | None = None
        self._lock = threading.Lock()

    def _first(self, pool: PoolSize | None, log: Log) -> Engine:
        if pool is not None:
            try:
                return self._make(pool)
            except OSError as error:
                log.warning(
                    "no pool of instances: allocating on demand", tier=self.tier, reason=str(error)
                )
        return self._make(None)

    def _make(self, pool: PoolSize | None) -> Engine:
        return Engine(self._api, self._target, self._host, pool, self.tier)

    def on_demand(self) -> Engine:
        if self.first.pool is None:
            return self.first
        with self._lock:
            if self._on_demand is None:
                self._on_demand = self._make(None)
            return self._on_demand

    def load(self, artifact: Path) -> Code:
        """Pooled unless the module is too large for a slot. Raises ArtifactRefused."""
        try:
            return self._load(self.first, artifact)
        except ArtifactRefused as error:
            if "pooling allocator" not in error.private:
                raise
            return self._load(self.on_demand(), artifact)

    def _load(self, engine: Engine, artifact: Path) -> Code:
        module = c_void_p()
        error = self._api.wasmtime_module_deserialize_file(
            engine.pointer, os.fsencode(artifact), byref(module)
        )
        if error:
            raise ArtifactRefused("the artifact does not fit this node's engine",
                                  private=self._api.take_error(error))  # fmt: skip
        assert module.value is not None
        return Code(engine, module.value)

    def close(self) -> None:
        """Guests still running can no longer be stopped."""
        self.first.close()
        if self._on_demand is not None:
            self._on_demand.close()
