"""What can go wrong on purpose: one frozen struct per action of a scenario's [[faults]].

An entry with `every_s` is a generator: it happens again and again from `at_s` to `until_s`, each
time with targets drawn anew. Selectors are those of the links document (a region, "node:NAME", "*")
and two that speak of a function: "origin:F", the node at which it was deployed last before, and
"holder:F", a node that has its module then, which only the run itself can tell.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

RUN_S_MAX: Final = 86_400.0
TARGETS_MAX: Final = 128

Selector = Annotated[
    str, Meta(pattern=r"^(\*|((node|origin|holder):)?[A-Za-z0-9][A-Za-z0-9._-]*)\Z")
]
Selectors = Annotated[tuple[Selector, ...], Meta(min_length=1, max_length=TARGETS_MAX)]
Groups = Annotated[tuple[Selectors, ...], Meta(min_length=2, max_length=16)]
Instant = Annotated[float, Meta(ge=0, le=RUN_S_MAX)]
Duration = Annotated[float, Meta(gt=0, le=RUN_S_MAX)]
Ms = Annotated[float, Meta(ge=0, le=60_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Cut = Literal["drop", "reset"]


class FaultSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    at_s: Instant
    """After the load has begun, as all times of a scenario."""
    for_s: Duration | None = None
    """Then it is ended: the dead started again, links as before. None: when the run ends, but for
    the dead, who stay dead."""
    every_s: Duration | None = None
    jitter_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    """Each time of a generator is moved by up to so much either way."""
    until_s: Instant | None = None
    """A generator's last time is before it. None: the end of the run."""


class NodeFault(FaultSpec, frozen=True, kw_only=True):
    targets: Selectors = ("*",)
    pick: Annotated[int, Meta(ge=1, le=TARGETS_MAX)] | None = None
    """So many of the targets that are up then, drawn by the seed; None: all that are up."""
    down_max: Annotated[int, Meta(ge=1, le=TARGETS_MAX)] | None = None
    """A generator leaves out the times at which more nodes would be down or paused."""


class Kill(NodeFault, frozen=True, kw_only=True):
    """SIGKILL to the node and whatever it started; with `for_s`, started again then."""


class Pause(NodeFault, frozen=True, kw_only=True):
    """SIGSTOP, then SIGCONT: silent, and not dead."""


class Restart(NodeFault, frozen=True, kw_only=True):
    """SIGTERM, drain, start: all of them at once."""


class RollingRestart(NodeFault, frozen=True, kw_only=True):
    """One after the other, each when the one before is ready and sees all others."""

    gap_s: Annotated[float, Meta(ge=0, le=3600)] = 0.5
    config: dict[str, dict[str, bool | int | float | str]] = {}
    """Laid over each node's node.toml before it starts: an upgrade."""


class SlowCpu(NodeFault, frozen=True, kw_only=True):
    """SIGSTOP and SIGCONT in turn, so that it runs for `share` of the time."""

    share: Annotated[float, Meta(gt=0, lt=1)] = 0.2


class ClockSkew(NodeFault, frozen=True, kw_only=True):
    skew_ms: Annotated[int, Meta(ge=-31_622_400_000, le=31_622_400_000)]
    """The node's wall clock is so far ahead."""


class DiskFull(NodeFault, frozen=True, kw_only=True):
    """Whatever its store would write is refused."""


class Corrupt(NodeFault, frozen=True, kw_only=True):
    """A bit of a blob is flipped on disk, behind the node's back."""

    function: str
    """Whose."""
    what: Literal["module", "wire", "artifact"] = "module"


class Poison(NodeFault, frozen=True, kw_only=True):
    """Killed, and started again as a builder that vouches, with its real key, for other code than
    the module's: for that of another version, which it must have compiled or fetched before."""

    function: str
    version: str
    """Label of the one whose code it forges; best before it is deployed."""
    code_of: str
    """Label of the one whose code it takes."""
    signed: bool = True
    """false: with a signature that does not hold."""


class Partition(FaultSpec, frozen=True, kw_only=True):
    """Nothing passes between the groups. "*" in a group stands for all nodes that are in none."""

    groups: Groups
    one_way: bool = False
    """Only what the first group sends to the others is lost."""
    cut: Cut = "drop"


class Flap(Partition, frozen=True, kw_only=True):
    """A partition that comes and goes, `down_s` cut and `up_s` whole, for `for_s`."""

    down_s: Duration
    up_s: Duration


class LinkChange(FaultSpec, frozen=True, kw_only=True):
    """Other links for a while; keys that are not given stay as they are."""

    sources: Selectors = msgspec.field(name="from")
    targets: Selectors = msgspec.field(name="to")
    both: bool = True
    latency_ms: Ms | None = None
    extra_ms: Ms | None = None
    """On top of what the link has."""
    jitter_ms: Ms | None = None
    loss: Share | None = None
    duplicate: Share | None = None
    reorder: Share | None = None
    bandwidth_mbit: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None


class RegionLoss(FaultSpec, frozen=True, kw_only=True):
    """A whole region dies, or is cut off from all others."""

    region: str | None = None
    """None: one is drawn by the seed."""
    how: Literal["kill", "cut"] = "kill"


class Heal(FaultSpec, frozen=True, kw_only=True):
    """Ends the partitions, link changes and cut regions that were begun without `for_s`."""


ACTIONS: Final[dict[str, type[FaultSpec]]] = {
    "kill": Kill,
    "pause": Pause,
    "restart": Restart,
    "rolling-restart": RollingRestart,
    "slow-cpu": SlowCpu,
    "clock-skew": ClockSkew,
    "disk-full": DiskFull,
    "corrupt": Corrupt,
    "poison": Poison,
    "partition": Partition,
    "flap": Flap,
    "link": LinkChange,
    "region-loss": RegionLoss,
    "heal": Heal,
}

LINK_KEYS: Final = (
    "latency_ms",
    "extra_ms",
    "jitter_ms",
    "loss",
    "duplicate",
    "reorder",
    "bandwidth_mbit",
)


def name_of(fault: FaultSpec) -> str:
    return next(name for name, kind in ACTIONS.items() if kind is type(fault))
