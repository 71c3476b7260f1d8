"""What the gateway needs of the node."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from protocol.function import FunctionSpec
from protocol.ids import FunctionName, VersionId

from .runtime import CancelFlag, Invocation, InvocationResult, Tier

if TYPE_CHECKING:
    # It brings cryptography along, which commands have no use for.
    from protocol.snapshots import SnapshotStatement

StartType = Literal["warm", "loaded", "artifact", "compiled", "snapshot", "forwarded"]
"""What a response had to wait for. warm: code was in memory; loaded: mapped from this node's disk;
compiled: compiled here; artifact: native code that a peer had; forwarded: another node ran it.
snapshot: as compiled, of the module's snapshot."""

NodeState = Literal["starting", "ready", "draining"]


class FunctionView(msgspec.Struct, frozen=True):
    """A function's current version as the catalog has it now."""

    name: FunctionName
    version: VersionId
    spec: FunctionSpec
    snapshot: SnapshotStatement | None = None
    """What its version's record says of it."""


class Phases(msgspec.Struct, frozen=True):
    """How long each part of one answer took, in seconds; None: it did not happen."""

    queue_s: float | None = None
    fetch_s: float | None = None
    make_s: float | None = None
    """Of a snapshot, here."""
    compile_s: float | None = None
    load_s: float | None = None
    instantiate_s: float | None = None
    init_s: float | None = None
    """Of the module, for this invocation."""
    run_s: float | None = None


class Outcome(msgspec.Struct, frozen=True):
    result: InvocationResult
    start: StartType
    phases: Phases


class Slot(Protocol):
    """One admitted request: it remembers what the request had to wait for, also if it fails."""

    start: StartType | None
    """None until the code is ready."""
    tier: Tier | None
    """Of the code that ran; None until then."""
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

    def version(self, name: str, version: VersionId) -> FunctionView:
        """Of any live version, current or not. Raises FunctionNotFound."""
        ...

    def is_near(self, function: FunctionView) -> bool:
        """Whether its code is in memory here, or an artifact on disk: it takes milliseconds; and
        no peer is the better place for it."""
        ...

    def has_code(self, function: FunctionView) -> bool:
        """The same, wherever the better place is: a peer that passes a request on has looked."""
        ...

    def prepare(self, function: FunctionView) -> None:
        """Begins making it ready in the background."""
        ...

    def admit(self, function: FunctionView) -> AbstractAsyncContextManager[Slot]:
        """Holds one slot of the function's concurrency.

        Raises (on entry) ConcurrencyExceeded."""
        ...

    def log(self, function: FunctionView, stream: str, text: str) -> None:
        """Appends to the function's log (bounded ring), e.g. why its output was malformed."""
        ...
