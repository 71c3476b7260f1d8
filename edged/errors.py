"""One error tree for the daemon, and the one table that says what each means outside.

`str(error)` is safe to show to a client of the public gateway: it never holds a host path, a
backtrace or another function's data. What belongs in the log only goes into `private`.
Packages translate what they catch with `raise … from` at their boundary.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple


class EdgedError(Exception):
    """Base. `extra` holds machine-readable members of the problem document (RFC 9457 §3.2)."""

    def __init__(self, detail: str, *, private: str = "", **extra: Any) -> None:
        super().__init__(detail)
        self.private = private
        self.extra: dict[str, Any] = extra


# Configuration and start-up
class ConfigError(EdgedError):
    """A configuration value is wrong; names the key, the value and the fix."""


class DataDirLocked(EdgedError):
    """Another process owns this data directory."""


class IdentityTaken(EdgedError):
    """A later run of this node is known to peers, which take nothing from this one."""

    def __init__(self, **extra: Any) -> None:
        super().__init__(
            "peers know a later run of this node: another process runs under its identity"
            " (stop one of them), or its data directory was lost and its clock is behind"
            " (set the clock, and start it again)",
            **extra,
        )


# Store
class StoreError(EdgedError):
    """The store failed; nothing acknowledged is lost."""


class BlobNotFound(StoreError):
    """No complete copy of the blob is here."""


class BlobCorrupt(StoreError):
    """Bytes on disk do not hash to their name; the blob was quarantined."""


class DigestMismatch(StoreError):
    """Bytes offered under a digest do not hash to it."""


class DiskFull(StoreError):
    """No space (or quota) left; what was being written is discarded."""


# Modules and compilation
class ModuleRejected(EdgedError):
    """Not a module edged can run; `reason` is one of the codes below."""

    def __init__(
        self,
        reason: Literal[
            "bad-magic",
            "invalid",
            "missing-import",
            "component",
            "missing-export",
            "too-large",
            "limits",
        ],
        detail: str,
        **extra: Any,
    ) -> None:
        super().__init__(detail, reason=reason, **extra)
        self.reason = reason


class CompileFailed(EdgedError):
    """The compiler gave up or crashed; `reason`: "timeout" | "memory" | "crash" | "error"."""

    def __init__(
        self, reason: Literal["timeout", "memory", "crash", "error"], detail: str, **extra: Any
    ) -> None:
        super().__init__(detail, reason=reason, **extra)
        self.reason = reason


class ArtifactRefused(EdgedError):
    """An artifact's attestations, key, digest or this node's policy do not hold: it was not loaded.
    `reason`: "policy", "bytes", "engine", "distrusted", "manifest", or a code of SPEC §9.4."""

    def __init__(self, detail: str, *, reason: str = "engine", private: str = "") -> None:
        super().__init__(detail, private=private)
        self.reason = reason


class PolicyDenied(EdgedError):
    """The function's policy and this node cannot be reconciled: it names a mount the operator does
    not offer, or grants less memory than the module needs to start."""


class CannotSnapshot(EdgedError):
    """The module's state after its initialisation cannot be written down as a module; `reason` is
    a code of edged.snapshot.errors.Reason, `thing` says which memory, import, table …"""

    def __init__(self, reason: str, detail: str, *, thing: str = "", private: str = "") -> None:
        super().__init__(detail, private=private, reason=reason, thing=thing)
        self.reason = reason
        self.thing = thing


class SnapshotMismatch(EdgedError):
    """What came of a module's init here is not the snapshot that a statement names: its maker lied,
    or one of the two machines is broken."""


# One invocation
class InvocationError(EdgedError):
    """The guest's fault. `stderr` is what it wrote before, for the function's log."""

    def __init__(
        self, detail: str, *, stderr: bytes = b"", private: str = "", **extra: Any
    ) -> None:
        super().__init__(detail, private=private, **extra)
        self.stderr = stderr


class GuestTrap(InvocationError):
    """The guest trapped; `private` holds the reason with the wasm backtrace."""


class ImportCalled(GuestTrap):
    """The guest called an import that no node has, and that its spec lets trap;
    `extra["import"]` names it."""


class GuestExit(InvocationError):
    """The guest exited with a status other than 0."""


class DeadlineExceeded(InvocationError):
    """The invocation ran out of its time."""


class OutputLimitExceeded(InvocationError):
    """The guest wrote more to stdout than its policy allows."""


class InitTrapped(InvocationError):
    """A module's initialiser trapped, or wrote more than it may: there is no snapshot."""


class InitExited(InvocationError):
    """A module's initialiser ended its program, with whatever status: what it left is no state to
    go on from."""


class InitTimeout(InvocationError):
    """A module's initialiser ran out of its time."""


class MalformedGuestOutput(InvocationError):
    """The guest's output is not what its ABI promises, e.g. a broken CGI header block."""


class InvocationCancelled(InvocationError):
    """The client is gone; the guest was stopped."""


# Requests
class BadRequest(EdgedError):
    """The request breaks HTTP or the function's calling convention."""


class FunctionNotFound(EdgedError):
    """No such function (or version) in the catalog."""


class KeyNotFound(EdgedError):
    """The node's keyring has no such key."""


class BuilderNotFound(EdgedError):
    """This node distrusts no such builder."""


class MethodNotAllowed(EdgedError):
    """`extra["allow"]` lists what is."""


class RequestTimeout(EdgedError):
    """The client did not send its request in time."""


class LengthRequired(EdgedError):
    """A request that needs a body came without one, and without saying how long it is."""


class PayloadTooLarge(EdgedError):
    """The body is larger than the function's policy, or the server's limit, allows."""


class HeadersTooLarge(EdgedError):
    """The request line or headers are over the limit."""


class ConcurrencyExceeded(EdgedError):
    """The function is at its policy's concurrency."""


class Overloaded(EdgedError):
    """The node is at its limit; try again later or elsewhere."""


class Draining(EdgedError):
    """The node is shutting down."""


class NotReady(EdgedError):
    """The function's code is still being fetched or compiled here."""


class NoHolder(EdgedError):
    """No reachable peer holds the blob; `extra["digest"]` names it."""


class Outdone(EdgedError):
    """Another change of the same function has a later time, so this one will not be in force."""


class UnderReplicated(EdgedError):
    """Too few nodes confirmed a change: nothing was acknowledged. `extra` says who has it
    ("holders") and why others have not ("failed")."""


class Unauthorized(EdgedError):
    """Missing or wrong bearer token."""


class Conflict(EdgedError):
    """The operation does not fit the present state."""


class SwitchedOff(EdgedError):
    """The node's configuration must turn this on first; `extra["key"]` names the key."""


# Local clusters and their operator
class ClusterNotFound(EdgedError):
    """No such local cluster, or no such node in it."""


class ClusterFailed(EdgedError):
    """A local cluster's node did not start, join or stop; `extra["node"]` names it."""


class RunDamaged(EdgedError):
    """A run folder of the laboratory lacks a file, or holds what is no row of it."""


class Unreachable(EdgedError):
    """Nothing answers at the node's address; `extra["url"]` is what was tried."""


# Peers
class PeerError(EdgedError):
    """A peer is unreachable, broke the protocol, or answered with an error."""


class PeerRefused(PeerError):
    """A peer answered, with an error of this table; `code` says which."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class ErrorInfo(NamedTuple):
    status: int
    """HTTP status (RFC 9110)."""
    code: str
    """Stable: the last part of the problem's type URN, and the metric label."""
    retryable: bool
    """Whether the same request may succeed later on this node; its answer says Retry-After."""
    level: Literal["debug", "info", "warning", "error"]
    title: str
    """Of the problem document: the same for every occurrence (RFC 9457 §3.1.3)."""


ERRORS: Final[dict[type[EdgedError], ErrorInfo]] = {
    EdgedError: ErrorInfo(500, "internal", False, "error", "Internal error"),
    ConfigError: ErrorInfo(500, "config", False, "error", "Wrong configuration"),
    DataDirLocked: ErrorInfo(500, "data-dir-locked", False, "error", "Data directory in use"),
    IdentityTaken: ErrorInfo(500, "identity-taken", False, "error", "Identity taken"),
    StoreError: ErrorInfo(500, "store", False, "error", "Storage failed"),
    BlobNotFound: ErrorInfo(404, "blob-not-found", False, "info", "Blob not found"),
    BlobCorrupt: ErrorInfo(500, "blob-corrupt", False, "error", "Blob corrupt on disk"),
    DigestMismatch: ErrorInfo(422, "digest-mismatch", False, "info", "Digest mismatch"),
    DiskFull: ErrorInfo(507, "disk-full", True, "error", "Disk full"),
    ModuleRejected: ErrorInfo(422, "module-rejected", False, "info", "Module rejected"),
    CompileFailed: ErrorInfo(500, "compile-failed", False, "warning", "Compilation failed"),
    ArtifactRefused: ErrorInfo(500, "artifact-refused", False, "error", "Artifact refused"),
    PolicyDenied: ErrorInfo(500, "policy-denied", False, "warning", "Denied by policy"),
    CannotSnapshot: ErrorInfo(422, "cannot-snapshot", False, "info", "No snapshot of this module"),
    SnapshotMismatch: ErrorInfo(
        500, "snapshot-mismatch", False, "error", "A snapshot is not what it is said to be"
    ),
    InvocationError: ErrorInfo(500, "invocation", False, "info", "Function failed"),
    GuestTrap: ErrorInfo(500, "trap", False, "info", "Function trapped"),
    ImportCalled: ErrorInfo(500, "import-called", False, "info", "Function called a stub"),
    GuestExit: ErrorInfo(500, "guest-exit", False, "info", "Function exited with an error"),
    DeadlineExceeded: ErrorInfo(504, "deadline", False, "info", "Deadline exceeded"),
    OutputLimitExceeded: ErrorInfo(502, "output-limit", False, "info", "Output limit exceeded"),
    InitTrapped: ErrorInfo(422, "init-trapped", False, "info", "Initialisation trapped"),
    InitExited: ErrorInfo(422, "init-exited", False, "info", "Initialisation ended the program"),
    InitTimeout: ErrorInfo(422, "init-timeout", False, "info", "Initialisation took too long"),
    MalformedGuestOutput: ErrorInfo(
        502, "malformed-output", False, "info", "Malformed function output"
    ),
    InvocationCancelled: ErrorInfo(499, "cancelled", False, "debug", "Invocation cancelled"),
    BadRequest: ErrorInfo(400, "bad-request", False, "debug", "Bad request"),
    FunctionNotFound: ErrorInfo(404, "function-not-found", False, "debug", "Function not found"),
    KeyNotFound: ErrorInfo(404, "key-not-found", False, "info", "Key not found"),
    BuilderNotFound: ErrorInfo(404, "builder-not-found", False, "info", "Builder not found"),
    MethodNotAllowed: ErrorInfo(405, "method-not-allowed", False, "debug", "Method not allowed"),
    RequestTimeout: ErrorInfo(408, "request-timeout", False, "debug", "Request timeout"),
    LengthRequired: ErrorInfo(411, "length-required", False, "debug", "Length required"),
    PayloadTooLarge: ErrorInfo(413, "payload-too-large", False, "debug", "Payload too large"),
    HeadersTooLarge: ErrorInfo(431, "headers-too-large", False, "debug", "Headers too large"),
    ConcurrencyExceeded: ErrorInfo(
        429, "concurrency", True, "info", "Function at its concurrency limit"
    ),
    Overloaded: ErrorInfo(503, "overloaded", True, "warning", "Node overloaded"),
    Draining: ErrorInfo(503, "draining", True, "info", "Node shutting down"),
    NotReady: ErrorInfo(503, "not-ready", True, "info", "Function not ready yet"),
    NoHolder: ErrorInfo(503, "no-holder", True, "warning", "No holder reachable"),
    UnderReplicated: ErrorInfo(503, "under-replicated", True, "warning", "Too few replicas"),
    Unauthorized: ErrorInfo(401, "unauthorized", False, "info", "Unauthorized"),
    Outdone: ErrorInfo(409, "outdone", False, "info", "A later change is in force"),
    Conflict: ErrorInfo(409, "conflict", False, "info", "Conflict"),
    SwitchedOff: ErrorInfo(409, "switched-off", False, "info", "Switched off"),
    ClusterNotFound: ErrorInfo(404, "cluster-not-found", False, "info", "Cluster not found"),
    ClusterFailed: ErrorInfo(500, "cluster-failed", False, "error", "Cluster operation failed"),
    RunDamaged: ErrorInfo(500, "run-damaged", False, "error", "Run folder damaged"),
    Unreachable: ErrorInfo(503, "unreachable", True, "warning", "Node unreachable"),
    PeerError: ErrorInfo(502, "peer", True, "info", "Peer failed"),
    PeerRefused: ErrorInfo(502, "peer-refused", True, "info", "Peer refused"),
}


def info_of(error: EdgedError) -> ErrorInfo:
    """The most specific row of ERRORS for `error`."""
    return next(ERRORS[cls] for cls in type(error).__mro__ if cls in ERRORS)


def problem_of(error: EdgedError) -> dict[str, Any]:
    """RFC 9457 problem document."""
    info = info_of(error)
    return {
        "type": f"urn:edged:error:{info.code}",
        "title": info.title,
        "status": info.status,
        "detail": str(error),
    } | error.extra
