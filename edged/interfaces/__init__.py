"""The small types through which edged's packages meet; `node` wires implementations into them.

Packages below `edged` never import each other. What one needs of another is a Protocol here, and
what passes between them is a frozen struct here. Times are durations in seconds of the monotonic
clock unless the name says otherwise.
"""

from .events import EventKind, EventRow, EventSource, EventsView
from .gateway import Functions, FunctionView, NodeState, Outcome, Phases, Slot, StartType
from .keys import KeyChange, KeyOperator, KeysView, MemberKeys
from .operator import (
    Deployed,
    DeployRequest,
    ExplainView,
    FormView,
    FunctionDetail,
    FunctionSummary,
    FutureRecord,
    GossipView,
    HolderView,
    JoinRequest,
    LogLine,
    MemberView,
    ModuleStored,
    Operator,
    StatusView,
    VersionView,
)
from .peers import BlobSource, DeltaSource, Fetcher, GatewayStream, Peer, PeerGateways
from .runtime import (
    CancelFlag,
    CompileReport,
    ExportCall,
    Invocation,
    InvocationResult,
    LoadedModule,
    ModuleInfo,
    Runtime,
    Tier,
)
from .store import ArtifactRow, BlobInfo, BlobKind, PartialBlob, RepairReport, Store

__all__ = [
    "ArtifactRow",
    "BlobInfo",
    "BlobKind",
    "BlobSource",
    "CancelFlag",
    "CompileReport",
    "DeltaSource",
    "DeployRequest",
    "Deployed",
    "EventKind",
    "EventRow",
    "EventSource",
    "EventsView",
    "ExplainView",
    "ExportCall",
    "Fetcher",
    "FormView",
    "FunctionDetail",
    "FunctionSummary",
    "FunctionView",
    "Functions",
    "FutureRecord",
    "GatewayStream",
    "GossipView",
    "HolderView",
    "Invocation",
    "InvocationResult",
    "JoinRequest",
    "KeyChange",
    "KeyOperator",
    "KeysView",
    "LoadedModule",
    "LogLine",
    "MemberKeys",
    "MemberView",
    "ModuleInfo",
    "ModuleStored",
    "NodeState",
    "Operator",
    "Outcome",
    "PartialBlob",
    "Peer",
    "PeerGateways",
    "Phases",
    "RepairReport",
    "Runtime",
    "Slot",
    "StartType",
    "StatusView",
    "Store",
    "Tier",
    "VersionView",
]
