"""The node's event log: what happened to the cluster, as this node saw it."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from .planning import PlanChange

EventKind = Literal[
    "member-up",
    "member-updated",
    "member-refuted",
    "member-suspect",
    "member-down",
    "member-left",
    "accused",
    "record-accepted",
    "record-published",
    "record-forgotten",
    "artifact-refused",
    "artifact-mismatch",
    "builder-trusted",
    "snapshot-made",
    "snapshot-mismatch",
    "key-added",
    "key-used",
    "key-removed",
    "identity-clash",
    "trust-expiring",
    "blobs-collected",
    "blobs-evicted",
    "blob-damaged",
    "store-verified",
    "repair-started",
    "repair-done",
    "repair-failed",
    "copy-dropped",
    "lab-switched",
    "links-changed",
    "plan-changed",
    "node-ready",
    "node-draining",
]


class EventRow(msgspec.Struct, frozen=True, omit_defaults=True):
    seq: int
    """From 1 in each run of the node, without gaps: the order in which it learned of things."""
    at_ms: float
    """Unix time in milliseconds, with the clock's full precision; a clock that is set may turn it
    back, `seq` never does."""
    kind: EventKind
    node: str
    """Name of the node that saw it."""
    name: str
    """What it is about: a member, or a function."""
    detail: str
    """Of a member, why; of a record, its key."""
    plan: PlanChange | None = None
    """Of "plan-changed": what `detail` says."""


class EventsView(msgspec.Struct, frozen=True):
    node: str
    generation: int
    """Of this run. With another than before, `seq` has begun again at 1."""
    next_after: int
    """Ask for what comes after this next time."""
    missed: int
    """Rows after the one asked for that the node has dropped already."""
    events: tuple[EventRow, ...]


class EventSource(Protocol):
    """What the control API needs of the event log."""

    async def read(self, *, after: int | None, limit: int, wait_s: float) -> EventsView:
        """The first `limit` rows after `after`, or the last `limit` there are; waits up to
        `wait_s` for one where there is none. Raises Overloaded: too many wait already."""
        ...
