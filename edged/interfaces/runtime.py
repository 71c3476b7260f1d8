"""Guests: modules, compiles, one invocation."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from protocol.function import InitSpec, Policy
from protocol.ids import ArtifactKey, Digest

Tier = Literal["fast", "optimised"]
"""Which compiler made the code. fast: compiled quickly, for the first requests only; optimised:
what stays. Each has artifacts, and an artifact key, of its own."""


class ModuleInfo(msgspec.Struct, frozen=True):
    """What validation learned of a module."""

    digest: Digest
    size_bytes: int
    imports: tuple[str, ...]
    """As "module.name"."""
    exports: tuple[str, ...]
    entry_points: tuple[str, ...]
    """Exported functions without parameters: what `raw` and `cgi` can call."""
    memory_bytes_min: int
    """Of all memories together; an instance cannot have less."""
    table_elements_min: int
    foreign_imports: tuple[tuple[str, str], ...]
    """Module and name of imported functions that no guest is offered."""


class CompileReport(msgspec.Struct, frozen=True):
    artifact_bytes: int
    cpu_s: float
    wall_s: float
    peak_rss_bytes: int
    tier: Tier
    """Of what was made."""


class ExportCall(msgspec.Struct, frozen=True):
    """Call this export with these texts, parsed by the export's own parameter types."""

    name: str
    params: tuple[str, ...]


class Invocation(msgspec.Struct, frozen=True):
    """One call of a guest. The runtime turns it into an instance and forgets it."""

    policy: Policy
    args: tuple[bytes, ...] = ()
    """argv, argv[0] first; no NUL."""
    env: tuple[tuple[bytes, bytes], ...] = ()
    """No NUL; no "=" in names."""
    stdin: bytes = b""
    entrypoint: str = ""
    """"" is `_start`."""
    export: ExportCall | None = None
    """With it, no entrypoint runs (but a reactor's `_initialize` does)."""
    timeout_s: float | None = None
    """What is left of the request's deadline; the policy's timeout caps it."""
    init: InitSpec | None = None
    """What runs first, in a world of its own: the invocation begins in the state that it leaves,
    as it would in the module's snapshot. Its time is bounded by its own timeout."""
    stubs: tuple[str, ...] = ()
    """Modules whose functions the guest may import though it is offered none of them: calling one
    ends it."""


class InvocationResult(msgspec.Struct, frozen=True):
    stdout: bytes
    stderr: bytes
    stderr_truncated: bool
    values: tuple[int | float, ...]
    """Results of an export call, in order; () otherwise."""
    instantiate_s: float
    run_s: float
    init_s: float = 0.0
    """0: there was none."""


class CancelFlag:
    """Set from any thread; a running guest stops within about 50 ms."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)


class LoadedModule(Protocol):
    """Code mapped into memory, ready to instantiate; shared between threads."""

    digest: Digest
    """Of the module."""
    tier: Tier
    load_s: float
    imports: tuple[str, ...]

    def export_params(self, name: str, init: InitSpec | None = None) -> tuple[str, ...] | None:
        """Wasm parameter types ("i32", "i64", "f32", "f64", other) of an exported function, or None
        if there is no such function, or none any more once `init` has run."""
        ...

    def invoke(self, call: Invocation, cancel: CancelFlag) -> InvocationResult:
        """Blocking, in a worker thread with ≥ 1 MiB of stack.

        Raises GuestTrap (ImportCalled: of a stub), GuestExit, DeadlineExceeded,
        OutputLimitExceeded, InvocationCancelled, BadRequest (export parameters), ModuleRejected
        ("missing-export"; "missing-import": not in `call.stubs`), PolicyDenied (unknown mount, or
        the module needs more than its policy grants), DiskFull (private /tmp), Overloaded (no
        instance slot). Never anything else for what a guest does."""
        ...

    def close(self) -> None:
        """Drops the code when the last running invocation ends."""
        ...


class Runtime(Protocol):
    keys: Mapping[Tier, ArtifactKey]
    """The tiers this node makes and loads; "optimised" always."""
    artifact_key: ArtifactKey
    """Of the tier "optimised": what peers may offer."""
    target: str
    """Target triple, e.g. "x86_64-unknown-linux-gnu" or "pulley64"."""

    async def parse(self, data: bytes) -> bytes:
        """Binary wasm of `.wasm` or `.wat` input. Raises ModuleRejected, Overloaded."""
        ...

    async def validate(self, wasm: bytes) -> ModuleInfo:
        """Validator, imports, supported kinds. Raises ModuleRejected, Overloaded."""
        ...

    async def compile(self, module: Path, output: Path) -> CompileReport:
        """The tier that is ready first. In a killable subprocess within the configured time and
        memory; `output` is complete or absent. Cancellation kills the subprocess. Raises
        CompileFailed, ModuleRejected, Overloaded (the node lacked descriptors, processes or
        memory)."""
        ...

    async def optimise(self, module: Path, output: Path) -> CompileReport:
        """As `compile`, of the tier "optimised", and out of the way of everything else: one at a
        time, at the lowest priority, on one core, and not begun while `compile` is busy."""
        ...

    async def load(self, module: Digest, artifact: Path, tier: Tier) -> LoadedModule:
        """`deserialize_file`: runs native code, so the caller has verified digest, key and
        signature. Raises ArtifactRefused (wrong engine), CompileFailed never."""
        ...

    def close(self) -> None: ...
