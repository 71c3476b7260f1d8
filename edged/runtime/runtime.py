"""The runtime a node holds: parse, validate, compile, load. Implements interfaces.Runtime.

`open_runtime` is the way in. Everything that can block or blow up runs in a worker process or, for
`load`, in a thread under a limiter of its own.
"""

from __future__ import annotations

import re
import resource
import threading
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal, cast

import trio

from edged.config import RuntimeSection
from edged.errors import CompileFailed, ConfigError, ModuleRejected
from edged.interfaces import CompileReport, LoadedModule, ModuleInfo, Tier
from edged.telemetry import Log
from protocol.function import MODULE_BYTES_MAX
from protocol.ids import ArtifactKey, Digest, digest_of

from . import tmpdir
from .compile import Workers
from .engines import Engines
from .ffi import Api, library_path
from .host import Host
from .module import WasmtimeModule
from .sandbox import Sandbox
from .settings import PoolSize, has_fast_tier, triple_of

STACK_BYTES_MIN: Final = 1024 * 1024
"""Wasm may use 512 KiB of a thread's stack; with 256 KiB threads, guest recursion is a segfault."""
POOL_TABLE_ELEMENTS: Final = 100_000
"""The default policy's; functions that are granted more run on demand."""
LOADS_MAX: Final = 4
CHECKS_MAX: Final = 2
TEXT_LEAD_BYTES_MAX: Final = 64 * 1024
"""Comments and space before a text module's first word; a licence is 35 KB at most (GPL 3)."""
MAGIC: Final = b"\0asm"
_MODULE_LAYER: Final = b"\x01\x00\x00\x00"
_NO_COMPONENTS: Final = "WebAssembly components are not supported; core modules are"
_TEXT_LEAD: Final = re.compile(rb"(?:[ \t\r\n]+|;;[^\n]*|\(;.*?;\))*+", re.DOTALL)


class WasmtimeRuntime:
    def __init__(
        self, config: RuntimeSection, *, mounts: Mapping[str, Path], scratch_dir: Path, log: Log
    ) -> None:
        """Raises ConfigError: this machine, or its limits, cannot run guests."""
        _check_stack()
        try:
            library = library_path()
            self.target = triple_of(config.target)
        except OSError as error:
            raise ConfigError(f"runtime: {error}") from error
        self._log = log
        self._config = config
        self._api = Api(library)
        self._host = Host(self._api)
        self._sandbox = Sandbox(self._api, mounts, scratch_dir, log)
        swept = tmpdir.sweep(scratch_dir)
        if swept:
            log.info("removed private /tmp left over", directories=swept)
        self._tiers = self._make_tiers(config)
        self.keys: Mapping[Tier, ArtifactKey] = {
            tier: engines.key for tier, engines in self._tiers.items()
        }
        self.artifact_key = self.keys["optimised"]
        self._hash_limiter = trio.CapacityLimiter(CHECKS_MAX)
        self._load_limiter = trio.CapacityLimiter(LOADS_MAX)
        self._compilers = self._workers(library, config.compiles_max)
        self._optimisers = self._workers(library, 1)
        self._checkers = self._workers(library, CHECKS_MAX)
        self._compiling = 0
        self._idle = trio.Event()
        """No compile is running or waiting."""
        self._idle.set()

    def _workers(self, library: Path, jobs_max: int) -> Workers:
        config = self._config
        return Workers(
            library, config.target, timeout_s=config.compile_timeout_s,
            memory_bytes=config.compile_memory_bytes, jobs_max=jobs_max,
        )  # fmt: skip

    def _make_tiers(self, config: RuntimeSection) -> dict[Tier, Engines]:
        pool = None
        if config.pool_instances:
            pool = PoolSize(
                instances=config.pool_instances,
                memory_bytes=config.pool_memory_bytes,
                table_elements=POOL_TABLE_ELEMENTS,
            )
        tiers: list[Tier] = ["optimised"]
        if config.tiers == "auto" and has_fast_tier(config.target):
            tiers.append("fast")
        return {
            tier: Engines(self._api, config.target, self._host, pool, tier=tier, log=self._log)
            for tier in tiers
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps a compiler warm, until cancelled. Everything works without it, but slower."""
        task_status.started()
        if self._config.compiler_standby:
            await self._compilers.stand_by()

    async def parse(self, data: bytes) -> bytes:
        if len(data) > MODULE_BYTES_MAX:
            raise ModuleRejected("too-large", f"{len(data)} bytes; at most {MODULE_BYTES_MAX}")
        if data.startswith(MAGIC):
            _check_layer(data)
            return data
        _check_text(data)
        answer, wasm = await self._check("wat", data)
        if len(wasm) != answer["bytes"]:
            raise ModuleRejected("invalid", "the text gave no binary")
        _check_layer(wasm)
        return wasm

    async def validate(self, wasm: bytes) -> ModuleInfo:
        if len(wasm) > MODULE_BYTES_MAX:
            raise ModuleRejected("too-large", f"{len(wasm)} bytes; at most {MODULE_BYTES_MAX}")
        if not wasm.startswith(MAGIC):
            raise ModuleRejected("bad-magic", f"starts with {wasm[:4].hex(' ')}, not 00 61 73 6d")
        _check_layer(wasm)
        answer, _ = await self._check("validate", wasm)
        return ModuleInfo(
            digest=await trio.to_thread.run_sync(digest_of, wasm, limiter=self._hash_limiter),
            size_bytes=len(wasm),
            imports=tuple(answer["imports"]),
            exports=tuple(answer["exports"]),
            entry_points=tuple(answer["entry_points"]),
            memory_bytes_min=answer["memory_bytes_min"],
            table_elements_min=answer["table_elements_min"],
            foreign_imports=tuple(answer["foreign_imports"]),
        )

    async def _check(
        self, job: Literal["wat", "validate"], data: bytes
    ) -> tuple[dict[str, Any], bytes]:
        """A worker's verdict; one that crashes or drags on is a verdict too."""
        try:
            answer, payload = await self._checkers.run(job, stdin=data)
        except CompileFailed as error:
            self._log.info("module check failed", job=job, reason=error.reason, why=error.private)
            raise ModuleRejected("limits", f"checking the module failed: {error}") from error
        if "reason" in answer:
            raise ModuleRejected(answer["reason"], answer["detail"])
        return answer, payload

    async def compile(self, module: Path, output: Path) -> CompileReport:
        job: Literal["fastest", "optimise"] = "fastest" if "fast" in self._tiers else "optimise"
        self._compiling += 1
        if self._idle.is_set():
            self._idle = trio.Event()
        try:
            try:
                report, refused = await self._compilers.compile(module, output, job)
            except CompileFailed as error:
                # What the fast compiler dies of need not be what the other one does.
                if job == "optimise" or error.reason not in ("crash", "memory"):
                    raise
                refused = error.private or str(error)
                report, _ = await self._compilers.compile(module, output, "optimise")
        finally:
            self._compiling -= 1
            if not self._compiling:
                self._idle.set()
        if refused:
            self._log.info("the fast compiler refused a module", module=module.stem, why=refused)
        return report

    async def optimise(self, module: Path, output: Path) -> CompileReport:
        while not self._idle.is_set():
            await self._idle.wait()
        report, _ = await self._optimisers.compile(module, output, "background")
        return report

    async def load(self, module: Digest, artifact: Path, tier: Tier) -> LoadedModule:
        loaded = await trio.to_thread.run_sync(
            self._load, module, artifact, tier, limiter=self._load_limiter
        )
        return cast("LoadedModule", loaded)

    def _load(self, digest: Digest, artifact: Path, tier: Tier) -> WasmtimeModule:
        begin = perf_counter()
        engines = self._tiers[tier]
        loaded = WasmtimeModule(
            digest,
            engines.load(artifact),
            tier=tier,
            on_demand=engines.on_demand,
            host=self._host,
            sandbox=self._sandbox,
        )
        loaded.load_s = perf_counter() - begin
        return loaded

    def close(self) -> None:
        """After it nothing may be loaded; guests still running can no longer be stopped."""
        for engines in self._tiers.values():
            engines.close()


def open_runtime(
    config: RuntimeSection, *, mounts: Mapping[str, Path], scratch_dir: Path, log: Log
) -> WasmtimeRuntime:
    """`mounts` are the directories policies may name; `scratch_dir` (made if missing, owned by this
    runtime alone) holds private /tmp directories and is swept now. Synchronous: a few ms.

    Raises ConfigError."""
    return WasmtimeRuntime(config, mounts=mounts, scratch_dir=scratch_dir, log=log)


def _check_stack() -> None:
    """Worker threads get Python's configured stack size, else the process's soft stack limit."""
    size = threading.stack_size() or resource.getrlimit(resource.RLIMIT_STACK)[0]
    if 0 < size < STACK_BYTES_MIN:
        raise ConfigError(
            f"threads have {size} bytes of stack; guests need {STACK_BYTES_MIN} (raise ulimit -s)"
        )


def _check_layer(wasm: bytes) -> None:
    if len(wasm) < 8:
        raise ModuleRejected("invalid", "invalid module: shorter than its 8-byte header")
    version, layer = wasm[4:6], wasm[6:8]
    if layer == b"\x01\x00":
        raise ModuleRejected("component", _NO_COMPONENTS)
    if wasm[4:8] != _MODULE_LAYER:
        raise ModuleRejected("invalid", f"invalid module: version {version.hex()} {layer.hex()}")


def _check_text(data: bytes) -> None:
    """Lets through only what can be WebAssembly text: "(module" after comments, of which only so
    many are skipped: this runs in the event loop."""
    lead = _TEXT_LEAD.match(data, 0, TEXT_LEAD_BYTES_MAX)
    assert lead is not None  # it matches nothing, too
    start = data[lead.end() : lead.end() + 16]
    if start.startswith(b"(component"):
        raise ModuleRejected("component", _NO_COMPONENTS)
    if not start.startswith(b"(module"):
        raise ModuleRejected(
            "bad-magic",
            f"neither a .wasm binary (00 61 73 6d) nor .wat text '(module …': starts with "
            f"{data[:16]!r}",
        )
