"""Snapshots: modules written down after they were initialised once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from protocol.function import MODULE_BYTES_MAX, Policy
from protocol.ids import Digest

from .runtime import Tier

INITIALIZERS: Final = ("wizer.initialize", "wizer-initialize", "_initialize")
"""Exports tried, in this order, when a plan names nothing to call."""
RESEED: Final = "edged.reseed"
"""An export () -> () that is called in every instance before anything else of it (but after
`_initialize`, where that runs): where a guest takes fresh entropy."""

SNAPSHOT_FORMAT: Final = 1
"""Of the rules by which a snapshot follows from module and init, in statements (SPEC §14.2): to be
raised whenever another byte comes of the same two."""

UNCAPTURED: Final = frozenset(
    {
        "gc", "imported-memory", "imported-table", "imported-global", "imported-tag",
        "shared-memory", "passive-elements", "limits", "table-mutated", "table-grown",
        "reference-global", "too-large",
    }
)  # fmt: skip
"""Reasons of CannotSnapshot for which the module may be initialised all the same: its state just
cannot be written down."""

_Name = Annotated[str, Meta(max_length=1024)]
_Text = Annotated[str, Meta(max_length=1024 * 1024)]
InitArgument = int | float | _Text | Annotated[tuple[_Text, ...], Meta(max_length=1024)]
"""A number is passed as the parameter's type wants it (integers signed or unsigned). A text takes
two i32 parameters, address and length, and a tuple of texts likewise: both are put into the guest's
memory by its `cabi_realloc`, as the component model's canonical ABI does."""


class InitCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Call this export before the picture is taken. Its results are reported, not judged."""

    export: _Name
    args: Annotated[tuple[InitArgument, ...], Meta(max_length=64)] = ()
    drop_export: bool = False
    """The snapshot no longer exports it."""


class InitPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to initialise a module, and what of it to keep.

    Called are, in this order: the start function, `_initialize` if it is exported, `init`, `calls`.
    What the initialiser sees is in the snapshot for everyone who gets it: so of the policy's
    environment it sees nothing, only what stands here."""

    init: _Name = ""
    """Export () -> () to call; "" with no `calls` is the first of INITIALIZERS that is exported,
    and with `calls` none."""
    calls: Annotated[tuple[InitCall, ...], Meta(max_length=1000)] = ()
    env: Annotated[dict[_Name, _Text], Meta(max_length=64)] = {}
    args: Annotated[tuple[_Text, ...], Meta(max_length=64)] = ()
    """argv, argv[0] first."""
    stdin: Annotated[bytes, Meta(max_length=64 * 1024 * 1024)] = b""
    files: bool = True
    """The policy's mounts and a fresh private /tmp, as in an invocation: a libc notes at its start
    which descriptors are directories, and would never see those that came later."""
    deterministic: bool = True
    """Clock and random numbers are the same at every initialisation (and sleeping takes no time);
    else they are the machine's."""
    zeros: Annotated[tuple[_Name, ...], Meta(max_length=1000)] = ()
    """Imports that are no WASI functions, as "module.name" or "module.*", that give zeros when the
    initialiser calls them; any other ends it."""
    keep_custom_sections: bool = True
    keep_init_export: bool = False
    """Else the snapshot lacks what was called as `init`, and `_initialize`."""
    rename: Annotated[tuple[tuple[_Name, _Name], ...], Meta(max_length=64)] | None = None
    """(new, old): what was exported as `old` is exported as `new` instead, in the place of what had
    that name. None is ("_start", "wizer.resume") if both are exported and nothing otherwise."""


class SnapshotLimits(msgspec.Struct, frozen=True):
    """Of the process that makes a snapshot. The initialiser has its policy's bounds besides, of
    which `timeout_ms` is for all of its calls together."""

    compile_timeout_s: float = 120.0
    step_timeout_s: float = 60.0
    """Of each step that is neither compiling nor initialising."""
    memory_bytes: int = 2048 * 1024 * 1024
    """Resident, besides what the policy grants the guest."""
    niceness: int = 0
    """That it runs at: more gives way to whatever else the machine does."""
    snapshot_bytes: int = MODULE_BYTES_MAX
    padding_ratio: int = 16
    """Zeros that may be written out, for each byte that is none, for memories to be mapped instead
    of copied. Copying a MiB takes each instance a millisecond; keeping 16 takes a disk 16 to 32."""


class Refusal(msgspec.Struct, frozen=True):
    """Why a module cannot be captured."""

    reason: str
    """A code of edged.snapshot.errors.Reason."""
    detail: str
    thing: str
    """Which one: "memory 0", "import env.log", "byte 17" …"""


class Examination(msgspec.Struct, frozen=True):
    """What can be told of a module without running it."""

    initializer: str
    """The first of INITIALIZERS that it exports with the right type, or ""."""
    reactor: bool
    """Exports `_initialize`."""
    command: bool
    """Exports `_start`."""
    start: bool
    """Has a start function."""
    reseed: bool
    """Exports RESEED."""
    foreign_imports: tuple[str, ...]
    """As "module.name": no function of WASI's; they trap if the initialiser calls them."""
    memories: int
    memory_bytes_min: int
    tables: int
    globals_mutable: int
    data_segments: int
    refusal: Refusal | None
    """None: nothing speaks against a snapshot so far."""


class MemoryReport(msgspec.Struct, frozen=True):
    """Of one memory."""

    bytes_before: int
    """Its minimum in the module."""
    bytes_after: int
    captured_bytes: int
    """In data segments, padding included."""
    padding_bytes: int
    """Zeros written out for the memory to be mapped instead of copied."""
    data_segments: int
    mapped: bool
    """An instance maps it copy-on-write; else its segments are copied in one by one."""


class SnapshotPhases(msgspec.Struct, frozen=True):
    """Wall seconds."""

    parse_s: float
    instrument_s: float
    compile_s: float
    instantiate_s: float
    """And looking at what tables and globals hold before the first instruction."""
    init_s: float
    """All calls."""
    capture_s: float
    rewrite_s: float


class SnapshotReport(msgspec.Struct, frozen=True):
    module_bytes: int
    snapshot_bytes: int
    form: Literal["sparse", "padded"]
    """padded: zeros were added to at least one memory's data."""
    memories: tuple[MemoryReport, ...]
    memory_bytes: int
    """Captured of all memories."""
    data_segments: int
    globals_rewritten: int
    """Those whose value is another than before."""
    called: tuple[str, ...]
    results: tuple[tuple[int | float, ...], ...]
    """Of each of `called`."""
    dropped_exports: tuple[str, ...]
    zeros_called: tuple[str, ...]
    """Of the plan's `zeros`, as "module.name"."""
    random_bytes: int
    """Of random numbers the initialiser asked for: more than 0, and all instances share what it
    made of them, unless the module exports RESEED."""
    clock_reads: int
    phases: SnapshotPhases
    compile_cpu_s: float
    init_cpu_s: float
    cpu_s: float
    """Of the whole process."""
    peak_rss_bytes: int
    tier: Tier
    fast_refused: str
    """Why the fast compiler refused the module, if it did."""
    stdout: bytes
    """The last 64 KiB, as of stderr."""
    stderr: bytes
    environment_reads: int = 0
    """More than 0, and a libc most likely keeps the variables it saw for good: invocations' own
    stay unseen."""


SnapshotWish = Literal["auto", "always", "never"]
"""Whether a deploy with an init shall keep its snapshot; auto: if it is worth it."""


class SnapshotView(msgspec.Struct, frozen=True):
    """What a version's record states of its snapshot. SPEC §14.2."""

    digest: Digest
    size_bytes: int
    wire_bytes: int
    delta_wire_bytes: int
    """Against the module; 0: there is no delta worth sending."""
    code_bytes: int
    init_s: float
    """CPU seconds of init, where it was made."""
    made_by: str
    """Name of the node that states it."""
    refused: str
    """Why this node does not use it; "" if it does."""


class InitView(msgspec.Struct, frozen=True):
    """What came of a deploy's init."""

    init_s: float | None
    """CPU seconds that it took; None: no init was to be tried that could be captured."""
    size_bytes: int | None
    """Of the snapshot, with the next two, kept or not."""
    wire_bytes: int | None
    delta_wire_bytes: int | None
    snapshot: Digest | None
    """None: none is kept."""
    made: bool
    """False: it was there from an earlier deploy of the same module and init."""
    why: str
    """It is kept, or not."""
    warnings: tuple[str, ...] = ()


class Snapshots(Protocol):
    """What makes snapshots; edged.snapshot.api.Snapshotter."""

    def examine(self, module: bytes) -> Examination:
        """Milliseconds, a second or two of what is made to be slow; never raises for what is in the
        module."""
        ...

    async def make(
        self, module: bytes, plan: InitPlan, policy: Policy
    ) -> tuple[bytes, SnapshotReport]:
        """In a killable subprocess; cancellation kills it. Deterministic (unless the plan says
        otherwise): the same module, plan and policy give the same bytes.

        Raises CannotSnapshot, InitTrapped, InitExited, InitTimeout, CompileFailed, PolicyDenied (a
        mount this node does not offer), Overloaded (no resources for the process)."""
        ...

    async def write(
        self, module: Path, output: Path, plan: InitPlan, policy: Policy
    ) -> SnapshotReport:
        """As `make`, from file to file; `output` is complete or absent."""
        ...
