"""What the supervisor tells: frozen values for people and for `--json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

NodeCondition = Literal["ready", "starting", "draining", "unreachable", "paused", "dead", "stopped"]


class Progress(msgspec.Struct, frozen=True):
    """How far a start has come; counts of nodes."""

    nodes: int
    ready: int
    joined: int
    """Ready, and see all others alive."""


class NodeStatus(msgspec.Struct, frozen=True):
    name: str
    region: str
    target: str
    roles: tuple[str, ...]
    condition: NodeCondition
    """paused: SIGSTOP; dead: its process ended by itself or was killed; stopped: by
    `down --keep-data`."""
    pid: int | None
    gateway_url: str
    control_url: str
    gossip: str
    alive: tuple[str, ...] | None
    """Members it believes alive; None if it does not answer."""
    directory: str
    log: str


class ClusterStatus(msgspec.Struct, frozen=True):
    name: str
    created_at_s: float
    lab: bool
    """Its nodes shape their traffic."""
    nodes: tuple[NodeStatus, ...]


class Stopped(msgspec.Struct, frozen=True):
    """What `down` did."""

    name: str
    stopped: tuple[str, ...]
    killed: tuple[str, ...]
    """Nodes that did not end in time, and processes that nobody remembered."""
    removed: bool


class LinksTold(msgspec.Struct, frozen=True):
    node: str
    at_ms: int | None
    """Unix time from which on it shapes by the new document; None: it did not take it."""
    why: str
    """Not, if it did not."""


class LinksChanged(msgspec.Struct, frozen=True):
    """What became of a new links document."""

    cluster: str
    at_ms: int
    """The instant that was meant for all."""
    nodes: tuple[LinksTold, ...]
    """Those that run and are not paused."""
    paused: tuple[str, ...] = ()
    """Those take it when they are resumed, and those that do not run when they start."""

    @property
    def missed(self) -> tuple[LinksTold, ...]:
        """Running nodes that shape by an older document still."""
        return tuple(node for node in self.nodes if node.at_ms is None)

    @property
    def late(self) -> tuple[LinksTold, ...]:
        """Those that took it after that instant."""
        return tuple(n for n in self.nodes if n.at_ms is not None and n.at_ms > self.at_ms)


Report = Callable[[Progress], None]
