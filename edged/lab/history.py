"""The rows of a run folder: what was planned, what happened, what was asked and answered.

Each file of a run is JSON lines; each line one of these structs, told apart by `kind`. `t_s` counts
seconds since the run's start on the runner's monotonic clock, so that rows of all files are on one
axis. They are frozen values: whoever judges or draws reads them, nobody changes them.
`edged.lab.runfolder` writes and reads them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

TEXT_MAX = 4096
"""Characters of any one text in a row."""

_Text = Annotated[str, Meta(max_length=TEXT_MAX)]
_Name = Annotated[str, Meta(max_length=256)]
_Seconds = Annotated[float, Meta(ge=0)]
_Count = Annotated[int, Meta(ge=0)]

Setting = bool | int | float | str
Conclusion = Literal["valid", "invalid", "unknown"]
FaultState = Literal["begun", "proven", "unproven", "ended"]
Convergence = Literal["membership", "catalog", "replicas"]


class Row(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    t_s: _Seconds
    """Of the event; what was measured since ends here."""


# ---------------------------------------------------------------- timeline.jsonl
class Planned(Row, frozen=True, kw_only=True, tag="planned"):
    """One action of the timeline, before the run: a function of scenario and seed alone."""

    id: _Name
    """Unique in its run; what history's rows name."""
    action: _Name
    targets: tuple[_Name, ...] = ()
    """Nodes, regions as "region:NAME", or a function; the action says which."""
    duration_s: _Seconds | None = None
    """After which it is ended; None: it is over when it is done, or lasts to the end."""
    settings: dict[_Name, Setting] = {}
    """Of the action, e.g. {"skew_ms": 90000}."""


# ---------------------------------------------------------------- history.jsonl
class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: _Name
    region: _Name
    target: _Name = "native"
    roles: tuple[_Name, ...] = ("serve", "build", "control")
    accept: _Name = "signed"
    """Its artifacts.accept: whose native code it may run."""


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    label: _Name
    """What the scenario calls it: "1", "2" … in the order in which they are deployed."""
    module: _Name
    """BLAKE3 of the module, hex."""
    body_digest: _Name | None = None
    """BLAKE3 of the only right answer to the request below, hex; None: it isn't one constant."""


class Function(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: _Name
    abi: _Name
    replicas: _Count
    path: _Text = "/"
    """With the query: what is asked of it, behind its name."""
    versions: tuple[Version, ...]


class Bounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run is held to: [invariants] of the scenario."""

    skip: tuple[_Name, ...] = ()
    """Invariants that are not judged in this scenario."""
    membership_s: _Seconds = 15.0
    """After an event, until all running nodes see each other and nobody else."""
    catalog_s: _Seconds = 15.0
    """… until their catalogs are the same."""
    replicas_s: _Seconds = 30.0
    """… until no function has fewer holders than it wants and could have."""
    memory_growth_bytes: _Count = 64 * 1024 * 1024
    """Of one process, from the end of the warm-up to the end of the run."""
    fds_growth: _Count = 128
    """Clients' connections among them, which a burst opens and 75 s of idleness close."""
    threads_growth: _Count = 16


class Run(Row, frozen=True, kw_only=True, tag="run"):
    """Always the first row."""

    scenario: _Name
    seed: int
    started_at_ms: int
    """Unix time; the only wall clock in a run folder."""
    commit: _Name = ""
    nodes: tuple[Node, ...]
    """As the cluster began."""
    functions: tuple[Function, ...]
    topology: _Name = ""
    """Name of the topology; "": links are not shaped."""
    bounds: Bounds = Bounds()
    replay: _Text
    """The command that runs the same again."""


class Phase(Row, frozen=True, kw_only=True, tag="phase"):
    """Begins now, and ends the one before; "end" is after the last."""

    name: _Name
    errors_max: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Share of requests, by intended time, that may fail; None: any."""


class Fault(Row, frozen=True, kw_only=True, tag="fault"):
    id: _Name
    action: _Name
    targets: tuple[_Name, ...]
    state: FaultState
    """Each begun one is proven or unproven, and ended, by the end of the run."""
    detail: _Text = ""
    """The evidence, or why there is none."""


class Deploy(Row, frozen=True, kw_only=True, tag="deploy"):
    function: _Name
    label: _Name
    """Which of the function's versions."""
    version: _Name | None = None
    """What edged calls it; known once acknowledged."""
    module: _Name
    node: _Name
    begun_s: _Seconds
    acknowledged_s: _Seconds | None = None
    """None: not acknowledged, so nothing is promised about it."""
    wanted: _Count = 0
    """Holders it asked for, and who it said has it."""
    holders: tuple[_Name, ...] = ()
    error: _Text | None = None


class Converged(Row, frozen=True, kw_only=True, tag="converged"):
    what: Convergence
    after: _Name
    """Id of the fault after whose end it was measured; "ID begun": while it lasted, as of a kill;
    "": after the start."""
    seconds: _Seconds | None = None
    """None: it has not, until `t_s`."""
    waited_s: _Seconds
    """How long was looked."""
    nodes: tuple[_Name, ...] = ()
    """Who was running, and so had to agree."""
    detail: _Text = ""


class Catalog(Row, frozen=True, kw_only=True, tag="catalog"):
    """What a node lists, taken when all had time to converge and at the end."""

    node: _Name
    after: _Name
    """As of Converged; "end": the last look."""
    digest: _Name
    functions: dict[_Name, _Name]
    """Function -> its current version."""
    versions: dict[_Name, tuple[_Name, ...]] = {}
    """All live versions, newest first."""


class Decided(Row, frozen=True, kw_only=True, tag="decided"):
    """A node took another form of a function's code. `t_s` is when it was heard of, up to a second
    later: nodes' clocks may be wrong."""

    node: _Name
    function: _Name
    before: _Name | None
    after: _Name | None
    trigger: _Name
    input: _Name = ""
    """Whose change did most to bring it about; "": none's."""
    input_before: float = 0.0
    input_after: float = 0.0


class FormCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of the table that a node decides by."""

    form: _Name
    lacks: _Text | None = None
    """Why it cannot be had."""
    ready_s: _Seconds | None = None
    per_call_s: _Seconds | None = None
    wire_bytes: _Count = 0
    stored_bytes: _Count = 0
    price_s: _Seconds = 0.0
    total_s: _Seconds | None = None


class InputValue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: _Name
    value: float
    source: _Name
    """measured, prior …"""
    confidence: Annotated[float, Meta(ge=0, le=1)]
    age_s: _Seconds | None = None
    flips_at: float | None = None
    """Nearest value at which another form would be the cheapest; None: none is near."""
    flips_to: _Name = ""


class Explained(Row, frozen=True, kw_only=True, tag="explained"):
    """What a node says at the end of its choice of a function's code."""

    node: _Name
    function: _Name
    form: _Name | None
    best: _Name | None
    why: _Text
    forms: tuple[FormCost, ...]
    inputs: tuple[InputValue, ...]


class Left(Row, frozen=True, kw_only=True, tag="left"):
    """After all was torn down: what should not be there."""

    processes: tuple[_Text, ...] = ()
    files: tuple[_Text, ...] = ()
    fds_before: _Count
    """Of the runner."""
    fds_after: _Count


class Finding(Row, frozen=True, kw_only=True, tag="finding"):
    invariant: _Name
    subject: _Name
    """The node, function or phase it is about."""
    detail: _Text


HistoryRow = (
    Run | Phase | Fault | Deploy | Converged | Catalog | Decided | Explained | Left | Finding
)


# ---------------------------------------------------------------- requests.jsonl
class Request(Row, frozen=True, kw_only=True, tag="request"):
    """`t_s` is when it was over. Latency counts from `intended_s`, whenever it was sent."""

    region: _Name
    """Of the client."""
    node: _Name
    """That was asked."""
    function: _Name
    intended_s: _Seconds
    sent_s: _Seconds
    done_s: _Seconds
    status: Annotated[int, Meta(ge=100, le=599)] | None = None
    start: _Name | None = None
    """X-Edged-Start."""
    answered_by: _Name | None = None
    """X-Edged-Node."""
    version: _Name | None = None
    """X-Edged-Version."""
    body_digest: _Name | None = None
    """BLAKE3, hex; None: no whole body came."""
    body_bytes: _Count = 0
    error: _Name | None = None
    """None, "refused", "reset", "timeout", "http-503" …"""


# ---------------------------------------------------------------- samples.jsonl
class Artifact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Native code that a node has in memory."""

    module: _Name
    key: _Name = ""
    """Artifact key: engine, target, tier. One module has one code for one key."""
    digest: _Name
    builders: tuple[_Name, ...] = ()
    """Nodes whose attestations were relied on."""
    own: bool = False
    """Compiled here."""


class LinkCount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To one peer, since the node started."""

    datagrams: _Count = 0
    dropped: _Count = 0
    duplicated: _Count = 0
    delayed: _Count = 0
    stream_bytes: _Count = 0
    resets: _Count = 0
    queued_bytes: _Count = 0
    """Now."""


class Sample(Row, frozen=True, kw_only=True, tag="sample"):
    """One look at a node. What it did not answer is None."""

    node: _Name
    state: _Name
    """ready, starting, draining, unreachable, paused, dead, stopped."""
    pid: _Count | None = None
    generation: _Count | None = None
    """How often it has started."""
    cpu_s: _Seconds | None = None
    """User and system, since its process began."""
    rss_bytes: _Count | None = None
    fds: _Count | None = None
    threads: _Count | None = None
    alive: tuple[_Name, ...] | None = None
    """Members it sees alive, itself among them."""
    catalog: _Name | None = None
    """Its state digest."""
    under_replicated: _Count | None = None
    """Modules with fewer holders than they want, as it sees it."""
    artifacts: tuple[Artifact, ...] = ()
    links: dict[_Name, LinkCount] = {}
    """By peer's name."""


# ---------------------------------------------------------------- verdict.json
class Judged(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    invariant: _Name
    findings: _Count
    teaches: _Text = ""
    """What it states, in one line."""
    unseen: bool = False
    """It found nothing, and the run did not get to see enough for that to say anything."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    scenario: _Name
    seed: int
    verdict: Conclusion
    why: _Text
    findings: tuple[Finding, ...] = ()
    unproven: tuple[_Text, ...] = ()
    """Faults without evidence, and what else the run did not get to see."""
    judged: tuple[Judged, ...] = ()
    requests: _Count = 0
    errors: _Count = 0
    plans: dict[_Name, dict[_Name, _Name | None]] = {}
    """Function -> node -> the form it has chosen at the end; history has the tables."""
    replay: _Text


# ---------------------------------------------------------------- all of it
R = TypeVar("R", bound=Row)


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run, each part in the order in which it was written."""

    run: Run
    timeline: tuple[Planned, ...]
    rows: tuple[HistoryRow, ...]
    """Of history.jsonl, `run` first."""
    requests: tuple[Request, ...]
    samples: tuple[Sample, ...]

    def of(self, kind: type[R]) -> tuple[R, ...]:
        """The rows of one kind."""
        return tuple(row for row in self.rows if isinstance(row, kind))

    @property
    def end_s(self) -> float:
        """When the last row was written."""
        return max(row.t_s for row in (*self.rows, *self.requests[-1:], *self.samples[-1:]))
