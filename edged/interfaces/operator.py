"""What the control API needs of the node, and what it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Literal, Protocol

import msgspec

from protocol.costs import PlanForm
from protocol.function import Abi, FunctionSpec, InitSpec, Policy
from protocol.ids import ArtifactKey, Digest, FunctionName, NodeId, VersionId
from protocol.messages import Form
from protocol.replicas import REPLICAS_MAX

from .gateway import NodeState
from .planning import PlanView
from .runtime import Tier
from .snapshots import InitView, SnapshotView, SnapshotWish
from .store import RepairReport


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
    replicas: Annotated[int, msgspec.Meta(ge=1, le=REPLICAS_MAX)] | None = None
    """None: as many as the node's configuration says."""
    init: InitSpec | None = None
    snapshot: SnapshotWish = "auto"
    """No part of the version."""


class JoinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/join."""

    seeds: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=16)]
    """host:port of any members."""


class VersionView(msgspec.Struct, frozen=True):
    version: VersionId
    current: bool
    abi: Abi
    module: Digest
    module_bytes: int
    deployed_at_s: float
    deployed_by: str
    """Node name of the signer."""
    init: InitSpec | None = None
    snapshot: SnapshotView | None = None


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
    tier: Tier | None = None
    """Of the code in memory: fast is being replaced by optimised."""
    form: PlanForm | None = None
    """That this node has chosen; None: nobody has asked it yet."""


class HolderView(msgspec.Struct, frozen=True):
    node: str
    node_id: NodeId
    region: str
    state: str
    rtt_ms: float | None
    is_self: bool
    form: Form
    """running: the module, and fast code; building: the module, being compiled; ready: module and
    artifact."""


class ReplicasView(msgspec.Struct, frozen=True):
    """Of a module, as this node sees the cluster now. SPEC §11.1."""

    wanted: int
    """The most that any version naming it asks for."""
    asked_by: str
    """A function with such a version: often not the one that was asked about."""
    placed: tuple[str, ...]
    """Names of the nodes it belongs on, best first: as many as wanted, or all."""
    missing: tuple[str, ...]
    """Those of them that do not say they have it."""
    holders: int
    """Reachable nodes, of the placement or not, that say they have it."""
    under_replicated: bool
    """They are fewer than wanted, be it that there are no more nodes."""


class FunctionDetail(msgspec.Struct, frozen=True):
    summary: FunctionSummary
    spec: FunctionSpec
    holders: tuple[HolderView, ...]
    replicas: ReplicasView
    snapshot: SnapshotView | None = None
    snapshot_holders: tuple[HolderView, ...] = ()


class Deployed(msgspec.Struct, frozen=True):
    """Answer to deploy, rollback and remove."""

    name: FunctionName
    version: VersionId | None
    """Now current; None after remove."""
    previous: VersionId | None
    created: bool
    """False: this exact version was current already."""
    replicas: tuple[str, ...] = ()
    """Names of nodes that have it on disk."""
    wanted: int = 0
    """How many its version asks for: more than `replicas` if fewer can be reached; the rest get it
    when they are there. 0 after remove."""
    sharing: tuple[str, ...] = ()
    """After remove: functions with versions of the same modules, which stay therefore; of very
    many, the first ones."""
    init: InitView | None = None
    """After a deploy with one."""


class FutureRecord(msgspec.Struct, frozen=True):
    """A record that this node signed when its clock was ahead: no other node takes it yet."""

    name: FunctionName
    kind: Literal["alias", "version"]
    version: str
    """"" of an alias."""
    removal: bool
    signed_at_s: float
    """Unix time, in the future."""
    signed_by: str


class FormView(msgspec.Struct, frozen=True):
    """One form of a function's code on this node."""

    form: Literal["module", "wire", "artifact", "mapped"]
    code: Literal["module", "snapshot"]
    """Whose."""
    held: bool
    size_bytes: int | None
    digest: Digest | None
    measured: dict[str, float]
    """What it cost when it was made or used here, e.g. {"compile_cpu_s": 0.95}."""
    tier: Tier | None = None
    """Of an artifact, and of code in memory."""


class ExplainView(msgspec.Struct, frozen=True):
    name: FunctionName
    version: VersionId
    node: str
    target: str
    artifact_key: ArtifactKey
    next_start: str
    """What a request now would have to do: "warm", "loaded", "forwarded" (to a peer, while this
    node may get ready), "artifact" (of a peer), "compiled", "fetch+compiled"; or why it would fail:
    "no-holder", "compile-failed"."""
    forms: tuple[FormView, ...]
    holders: tuple[HolderView, ...]
    """Of the module."""
    snapshot_holders: tuple[HolderView, ...] = ()
    optimising: str | None = None
    """Of a function that runs on fast code: "in the background", or why that failed last."""
    plan: PlanView | None = None
    """Which form this node has chosen, or would; None: it has none to choose."""


class ArtifactView(msgspec.Struct, frozen=True):
    """Native code that this node has in memory, and why it may run it."""

    module: Digest
    artifact_key: ArtifactKey
    tier: Tier
    digest: Digest
    own: bool
    """Compiled here."""
    builders: tuple[str, ...]
    """Names of the others whose signed words for exactly this code hold, by name."""


class ArtifactsView(msgspec.Struct, frozen=True):
    node: str
    accept: str
    """`artifacts.accept`: how many of them it takes where it is not its own."""
    artifacts: tuple[ArtifactView, ...]
    """By module."""


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
    load: float | None = None
    """Busy share of its capacity, 0 to 1, as it last said; None: not heard yet."""
    health: int | None = None
    """Of this node only, the others do not say: 0 is well, up to 8 the worse it hears."""
    since_s: float = 0.0
    """Unix time of its last change of state."""
    why: str = ""
    """Of a suspect or down member: which paths failed."""


class GossipView(msgspec.Struct, frozen=True):
    """Counters of this node's gossip since it started, and gauges of now."""

    health: int
    """Lifeguard's local health: 0 is well; each point stretches intervals and timeouts."""
    load: float
    """Busy share of this node's capacity, 0 to 1: what it tells the others."""
    generation: int
    probing: dict[str, int]
    """protocol/statistics.py, ProbeCounts, has what each counts."""
    queues: dict[str, int]
    """Lengths of now."""
    lost: dict[str, int]
    """By overflow of a queue."""
    refused: dict[str, int]
    """What peers sent and was not used, datagrams and items in them, by code."""
    syncs: dict[str, int]
    datagrams: dict[str, int]
    """By direction."""
    datagram_bytes: dict[str, int]
    """UDP payload."""
    messages: dict[str, dict[str, int]]
    """By direction, then type."""
    message_bytes: dict[str, dict[str, int]]
    """The same; with "envelope", what is around messages, they are all of `datagram_bytes`."""


class ReplicationView(msgspec.Struct, frozen=True):
    """Of all modules that live versions name."""

    modules: int = 0
    under_replicated: int = 0
    """Fewer reachable nodes say that they have it than are wanted, be it that there are no more."""
    repairing: int = 0
    """Being fetched here because this node is to have it."""
    waiting: int = 0
    """To be fetched here, if they still are to when their grace is over."""


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
    trust_expires_s: float
    """Unix time at which its certificate ends; from then on no peer talks to it."""
    repair: RepairReport
    gossip: GossipView
    replication: ReplicationView = ReplicationView()


class ModuleStored(msgspec.Struct, frozen=True):
    """Answer to an upload. `module` is the digest of the binary module, which for a `.wat` upload
    is not the digest of what was sent."""

    module: Digest
    size_bytes: int
    wire_bytes: int
    imports: tuple[str, ...]
    exports: tuple[str, ...]
    created: bool


class Explainer(Protocol):
    """What the control API needs to tell why."""

    def explain(self, name: str, what_if: Mapping[str, float]) -> ExplainView:
        """`what_if`: values to decide with, by input. Raises FunctionNotFound; BadRequest: an input
        that there is not, or a value it cannot have."""
        ...


class Operator(Protocol):
    """What the control API needs of the node."""

    async def put_module(self, data: bytes, *, expected: Digest | None) -> ModuleStored:
        """Accepts .wasm or .wat, validates, stores durably. `expected` is the digest of `data`
        as sent. Raises DigestMismatch, ModuleRejected, DiskFull."""
        ...

    async def deploy(self, name: str, request: DeployRequest) -> Deployed:
        """Returns when durable on `replicas` nodes, or on all that can be reached.

        Raises BadRequest, BlobNotFound (upload the module first), ModuleRejected, Conflict,
        Outdone, UnderReplicated; CannotSnapshot, InitTrapped, InitExited, InitTimeout,
        CompileFailed, Overloaded (of an init), Draining."""
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

    def future_records(self) -> tuple[FutureRecord, ...]:
        """What a clock that was ahead left here: others refuse it, and this node cannot sign."""
        ...

    async def discard_future(self) -> tuple[FutureRecord, ...]:
        """Drops those records, durably; what they were. What was changed by them is undone."""
        ...

    def logs(self, name: str, *, tail: int) -> list[LogLine]: ...

    def follow(self, name: str, *, tail: int) -> AsyncIterator[LogLine]:
        """The last `tail` lines, then each as it comes; a slow reader loses the oldest."""
        ...

    def state(self) -> NodeState:
        """Cheap: what anyone may ask, as often as they like, without the token."""
        ...

    def status(self) -> StatusView: ...

    def members(self) -> tuple[MemberView, ...]: ...

    async def join(self, seeds: tuple[str, ...]) -> None:
        """Knocks at these members' addresses (host:port), and again while nobody answers and no
        other member is known. Raises BadRequest naming the address that is none, and the name
        that this node cannot resolve; then at none of them."""
        ...

    def artifacts(self) -> ArtifactsView: ...

    def metrics(self) -> bytes:
        """Prometheus text format."""
        ...
