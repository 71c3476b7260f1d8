"""The small types through which edged's packages meet; `node` wires implementations into them.

Packages below `edged` never import each other. What one needs of another is a Protocol here, and
what passes between them is a frozen struct here. Times are durations in seconds of the monotonic
clock unless the name says otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from protocol.function import Abi, FunctionSpec, Policy
from protocol.ids import ArtifactKey, Digest, FunctionName, NodeId, VersionId
from protocol.manifest import Manifest

StartType = Literal["warm", "loaded", "artifact", "compiled", "snapshot", "forwarded"]
"""What a response had to wait for. warm: code was in memory; loaded: mapped from this node's disk;
compiled: compiled here. artifact, snapshot, forwarded: reserved for exchange and planner."""

NodeState = Literal["starting", "ready", "draining"]

BlobKind = Literal["module", "artifact", "manifest"]


# ---------------------------------------------------------------- store
class BlobInfo(msgspec.Struct, frozen=True):
    """A complete, verified blob."""

    digest: Digest
    kind: BlobKind
    size_bytes: int
    wire_bytes: int | None
    """Size of the zstd wire form beside it; None where there is none."""
    manifest: Digest | None
    created_at_s: float
    """Unix time."""


class ArtifactRow(msgspec.Struct, frozen=True):
    """Native code of a module for one artifact key, with its builder's signed word."""

    module: Digest
    key: ArtifactKey
    digest: Digest
    size_bytes: int
    compile_s: float
    """CPU seconds the compile took."""
    attestation: bytes
    """Encoded protocol.artifact.Attestation."""


class RepairReport(msgspec.Struct, frozen=True):
    """What start-up found and mended."""

    temps_removed: int
    missing: tuple[Digest, ...]
    corrupt: tuple[Digest, ...]
    """Moved to quarantine/."""
    orphans_adopted: tuple[Digest, ...]
    """Complete blobs that the index did not know."""
    index_rebuilt: bool


class PartialBlob(Protocol):
    """A fetch in progress, on disk, resumable after kill -9. One user at a time per digest."""

    manifest: Manifest
    present: frozenset[int]
    """Indices of wire segments that were already on disk and verify."""

    async def write(self, index: int, wire: bytes) -> None:
        """Verifies length and digest against the manifest, then stores.

        Raises DigestMismatch, DiskFull."""
        ...

    async def finish(self) -> BlobInfo:
        """Decompresses within the manifest's bounds, verifies the whole, makes it a blob.

        Raises DigestMismatch (the partial is discarded), DiskFull."""
        ...

    async def discard(self) -> None: ...


class Store(Protocol):
    """Content-addressed blobs, artifacts and the catalog's records, durable when a call returns."""

    async def put(self, data: bytes, *, kind: BlobKind, expected: Digest | None = None) -> BlobInfo:
        """Stores bytes; making the same blob twice, also at once, is one blob.

        Raises DigestMismatch, DiskFull."""
        ...

    async def put_file(
        self, source: Path, *, kind: BlobKind, expected: Digest | None = None
    ) -> BlobInfo:
        """As put, consuming a file that `temp_path` named."""
        ...

    def temp_path(self) -> Path:
        """A fresh name on the store's file system; swept at start if left over."""
        ...

    async def read(self, digest: Digest) -> bytes:
        """Raises BlobNotFound, BlobCorrupt (verified on each read)."""
        ...

    def path(self, digest: Digest) -> Path:
        """Read-only file of a complete blob, not verified now. Raises BlobNotFound."""
        ...

    async def verify(self, digest: Digest) -> bool:
        """Re-hashes; quarantines and returns False if it does not match. Raises BlobNotFound."""
        ...

    def info(self, digest: Digest) -> BlobInfo | None: ...

    def blobs(self) -> list[BlobInfo]: ...

    async def delete(self, digest: Digest) -> None: ...

    async def make_manifest(self, digest: Digest) -> Manifest:
        """The module's wire form and manifest, made once and kept beside the blob."""
        ...

    async def manifest(self, digest: Digest) -> Manifest:
        """Of a blob held here, by the *blob's* digest. Raises BlobNotFound."""
        ...

    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        """Raises BlobNotFound, also for an index the manifest lacks."""
        ...

    async def begin_partial(self, manifest: Manifest) -> PartialBlob: ...

    async def rebuild(self, digest: Digest, manifest: Digest) -> BlobInfo | None:
        """Makes a lost blob again from what is left of its wire form on this disk; `manifest` is
        the digest of its manifest. None: not enough is there. Raises DiskFull."""
        ...

    def artifact(self, module: Digest, key: ArtifactKey) -> ArtifactRow | None: ...

    def artifacts(self) -> list[ArtifactRow]: ...

    async def put_artifact(self, row: ArtifactRow) -> None:
        """Records an artifact whose blob is already stored."""
        ...

    async def delete_artifact(self, module: Digest, key: ArtifactKey) -> None:
        """With its blob, once no other row names it; code that is mapped stays usable."""
        ...

    async def save_records(self, records: Sequence[tuple[str, bytes]]) -> None:
        """(key, encoded record), upserted in one durable transaction."""
        ...

    async def drop_records(self, keys: Sequence[str]) -> None:
        """Removes records in one durable transaction; absent ones are fine."""
        ...

    def load_records(self) -> Iterable[tuple[str, bytes]]: ...

    async def set_meta(self, key: str, value: bytes) -> None: ...

    def get_meta(self, key: str) -> bytes | None: ...


# ---------------------------------------------------------------- runtime
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


class CompileReport(msgspec.Struct, frozen=True):
    artifact_bytes: int
    cpu_s: float
    wall_s: float
    peak_rss_bytes: int


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


class InvocationResult(msgspec.Struct, frozen=True):
    stdout: bytes
    stderr: bytes
    stderr_truncated: bool
    values: tuple[int | float, ...]
    """Results of an export call, in order; () otherwise."""
    instantiate_s: float
    run_s: float


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
    load_s: float
    imports: tuple[str, ...]

    def export_params(self, name: str) -> tuple[str, ...] | None:
        """Wasm parameter types ("i32", "i64", "f32", "f64", other) of an exported function, or None
        if there is no such function."""
        ...

    def invoke(self, call: Invocation, cancel: CancelFlag) -> InvocationResult:
        """Blocking, in a worker thread with ≥ 1 MiB of stack.

        Raises GuestTrap, GuestExit, DeadlineExceeded, OutputLimitExceeded, InvocationCancelled,
        BadRequest (export parameters), ModuleRejected("missing-export"), PolicyDenied (unknown
        mount, or the module needs more than its policy grants), DiskFull (private /tmp),
        Overloaded (no instance slot). Never anything else for what a guest does."""
        ...

    def close(self) -> None:
        """Drops the code when the last running invocation ends."""
        ...


class Runtime(Protocol):
    artifact_key: ArtifactKey
    target: str
    """Target triple, e.g. "x86_64-unknown-linux-gnu" or "pulley64"."""

    async def parse(self, data: bytes) -> bytes:
        """Binary wasm of `.wasm` or `.wat` input. Raises ModuleRejected."""
        ...

    async def validate(self, wasm: bytes) -> ModuleInfo:
        """Validator, imports, supported kinds. Raises ModuleRejected."""
        ...

    async def compile(self, module: Path, output: Path) -> CompileReport:
        """In a killable subprocess within the configured time and memory; `output` is complete
        or absent. Cancellation kills the subprocess. Raises CompileFailed, ModuleRejected."""
        ...

    async def load(self, module: Digest, artifact: Path) -> LoadedModule:
        """`deserialize_file`: runs native code, so the caller has verified digest, key and
        signature. Raises ArtifactRefused (wrong engine), CompileFailed never."""
        ...

    def close(self) -> None: ...


# ---------------------------------------------------------------- gateway
class FunctionView(msgspec.Struct, frozen=True):
    """A function's current version as the catalog has it now."""

    name: FunctionName
    version: VersionId
    spec: FunctionSpec


class Phases(msgspec.Struct, frozen=True):
    """How long each part of one answer took, in seconds; None: it did not happen."""

    queue_s: float | None = None
    fetch_s: float | None = None
    compile_s: float | None = None
    load_s: float | None = None
    instantiate_s: float | None = None
    run_s: float | None = None


class Outcome(msgspec.Struct, frozen=True):
    result: InvocationResult
    start: StartType
    phases: Phases


class Slot(Protocol):
    """One admitted request: it remembers what the request had to wait for, also if it fails."""

    start: StartType | None
    """None until the code is ready."""
    phases: Phases
    """What has happened so far."""

    async def params(self, export: str) -> tuple[str, ...] | None:
        """Parameter types of an export, making the function ready first; None: no such export.
        Raises as invoke."""
        ...

    async def invoke(self, call: Invocation, cancel: CancelFlag) -> Outcome:
        """Makes the function ready (fetch, compile, load as needed), runs it, logs its stderr.

        Raises InvocationError kinds, NoHolder, NotReady, CompileFailed, StoreError kinds,
        Overloaded."""
        ...


class Functions(Protocol):
    """What the gateway needs of the node."""

    def lookup(self, name: str) -> FunctionView:
        """Raises FunctionNotFound."""
        ...

    def admit(self, function: FunctionView) -> AbstractAsyncContextManager[Slot]:
        """Holds one slot of the function's concurrency.

        Raises (on entry) ConcurrencyExceeded."""
        ...

    def log(self, function: FunctionView, stream: str, text: str) -> None:
        """Appends to the function's log (bounded ring), e.g. why its output was malformed."""
        ...


# ---------------------------------------------------------------- operator
class LogLine(msgspec.Struct, frozen=True):
    seq: int
    at_s: float
    """Unix time."""
    version: VersionId
    stream: str
    """"stderr" or "edged" (traps with their backtrace, limits, malformed output)."""
    text: str


class DeployRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of PUT /v1/functions/{name}; the module was stored before with PUT /v1/modules."""

    module: Digest
    abi: Abi = "raw"
    args: tuple[str, ...] = ()
    entrypoint: str = ""
    methods: tuple[str, ...] = ()
    policy: Policy = Policy()


class VersionView(msgspec.Struct, frozen=True):
    version: VersionId
    current: bool
    abi: Abi
    module: Digest
    module_bytes: int
    deployed_at_s: float
    deployed_by: str
    """Node name of the signer."""


class FunctionSummary(msgspec.Struct, frozen=True):
    name: FunctionName
    version: VersionId
    abi: Abi
    module: Digest
    module_bytes: int
    deployed_at_s: float
    deployed_by: str
    versions: int
    state: Literal["mapped", "artifact", "module", "remote"]
    """The nearest form this node has: in memory, artifact on disk, module on disk, none."""


class HolderView(msgspec.Struct, frozen=True):
    node: str
    node_id: NodeId
    region: str
    state: str
    rtt_ms: float | None
    is_self: bool


class FunctionDetail(msgspec.Struct, frozen=True):
    summary: FunctionSummary
    spec: FunctionSpec
    holders: tuple[HolderView, ...]


class Deployed(msgspec.Struct, frozen=True):
    """Answer to deploy, rollback and remove."""

    name: FunctionName
    version: VersionId | None
    """Now current; None after remove."""
    previous: VersionId | None
    created: bool
    """False: this exact version was current already."""


class FormView(msgspec.Struct, frozen=True):
    """One form of a function's code on this node."""

    form: Literal["module", "wire", "artifact", "mapped"]
    held: bool
    size_bytes: int | None
    digest: Digest | None
    measured: dict[str, float]
    """What it cost when it was made or used here, e.g. {"compile_cpu_s": 0.95}."""


class ExplainView(msgspec.Struct, frozen=True):
    name: FunctionName
    version: VersionId
    node: str
    target: str
    artifact_key: ArtifactKey
    next_start: str
    """What a request now would have to do: "warm", "loaded", "compiled", "fetch+compiled"; or why
    it would fail: "no-holder", "compile-failed"."""
    forms: tuple[FormView, ...]
    holders: tuple[HolderView, ...]


class MemberView(msgspec.Struct, frozen=True):
    name: str
    node_id: NodeId
    region: str
    state: Literal["alive", "suspect", "down", "left"]
    gossip_address: str
    gateway_url: str
    target: str
    generation: int
    incarnation: int
    rtt_ms: float | None
    is_self: bool


class StatusView(msgspec.Struct, frozen=True):
    node: str
    node_id: NodeId
    edged: str
    """Version of the program."""
    region: str
    state: NodeState
    uptime_s: float
    gateway_url: str
    gossip_address: str
    target: str
    artifact_key: ArtifactKey
    members: dict[str, int]
    """Count by state."""
    functions: int
    catalog: str
    """State digest of the catalog, hex: equal on nodes that know the same."""
    blobs: int
    blob_bytes: int
    running: int
    repair: RepairReport


class ModuleStored(msgspec.Struct, frozen=True):
    """Answer to an upload. `module` is the digest of the binary module, which for a `.wat` upload
    is not the digest of what was sent."""

    module: Digest
    size_bytes: int
    wire_bytes: int
    imports: tuple[str, ...]
    exports: tuple[str, ...]
    created: bool


class Operator(Protocol):
    """What the control API needs of the node."""

    async def put_module(self, data: bytes, *, expected: Digest | None) -> ModuleStored:
        """Accepts .wasm or .wat, validates, stores durably. `expected` is the digest of `data`
        as sent. Raises DigestMismatch, ModuleRejected, DiskFull."""
        ...

    async def deploy(self, name: str, request: DeployRequest) -> Deployed:
        """Returns when durable here.

        Raises BadRequest, BlobNotFound (upload the module first), ModuleRejected, Conflict."""
        ...

    def functions(self) -> tuple[FunctionSummary, ...]: ...

    def describe(self, name: str) -> FunctionDetail: ...

    def versions(self, name: str) -> tuple[VersionView, ...]:
        """Newest first."""
        ...

    async def rollback(self, name: str, version: str | None) -> Deployed:
        """To a version id or unique prefix (≥ 4 digits); None: the one deployed before the
        current. Raises FunctionNotFound, BadRequest (ambiguous), Conflict (none before)."""
        ...

    async def remove(self, name: str) -> Deployed: ...

    def logs(self, name: str, *, tail: int) -> list[LogLine]: ...

    def follow(self, name: str, *, tail: int) -> AsyncIterator[LogLine]:
        """The last `tail` lines, then each as it comes; a slow reader loses the oldest."""
        ...

    def explain(self, name: str) -> ExplainView: ...

    def state(self) -> NodeState:
        """Cheap: what anyone may ask, as often as they like, without the token."""
        ...

    def status(self) -> StatusView: ...

    def members(self) -> tuple[MemberView, ...]: ...

    def metrics(self) -> bytes:
        """Prometheus text format."""
        ...


# ---------------------------------------------------------------- peers
class Peer(msgspec.Struct, frozen=True):
    """A member as others may reach it."""

    node_id: NodeId
    name: str
    region: str
    gossip_address: tuple[str, int]
    stream_address: tuple[str, int]
    gateway_url: str
    rtt_s: float | None


class BlobSource(Protocol):
    """What the stream server serves from: the store, seen by peers."""

    async def manifest(self, digest: Digest) -> Manifest: ...

    async def wire_segment(self, digest: Digest, index: int) -> bytes: ...


class Fetcher(Protocol):
    async def fetch(
        self, digest: Digest, manifest_digest: Digest, *, progress: Callable[[int, int], None]
    ) -> BlobInfo:
        """Gets a blob from a holder, nearest first, resuming what is on disk; `progress` gets
        (wire bytes done, of). One transfer per digest however many wait.

        Raises NoHolder, DiskFull, PeerError."""
        ...
