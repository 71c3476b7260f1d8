"""The node's event log: a bounded ring of what happened to the cluster as this node saw it.

Filled by the gossip driver as soon as the machine tells of something, and by whoever else acts;
lost when the node stops. Owned by the node's event loop; without readers a row is one append.
Invariants: `seq` grows by one; at most ROWS_MAX rows and WAITERS_MAX waiting readers.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import Final

import trio

from protocol.events import (
    Accused,
    Event,
    IdentityClash,
    MemberDown,
    MemberLeft,
    MemberRefuted,
    MemberSuspect,
    MemberUp,
    MemberUpdated,
    RecordsAccepted,
    RecordsPurged,
)
from protocol.ids import FunctionName, NodeId
from protocol.member import Member

from .errors import Overloaded
from .interfaces import EventKind, EventRow, EventsView, PlanChange
from .planwords import change_words

ROWS_MAX: Final = 4096
"""About 1 MiB; a first sync with 2,000 functions is as many rows as their records."""
WAITERS_MAX: Final = 32
"""Half the connections of the control API."""
REASONS_MAX: Final = 12_288
"""As many as there can be members (SPEC §5.5)."""


class EventLog:
    """Implements interfaces.EventSource."""

    def __init__(
        self, *, node: str, generation: int, wall_s: Callable[[], float] = time.time
    ) -> None:
        self._node = node
        self._generation = generation
        self._wall_s = wall_s
        self._rows: deque[EventRow] = deque(maxlen=ROWS_MAX)
        self._seq = 0
        self.waiting = 0
        """Readers."""
        self._grown: trio.Event | None = None
        self._closed = False
        self._reasons: OrderedDict[NodeId, str] = OrderedDict()

    def add(
        self, kind: EventKind, name: str, detail: str = "", plan: PlanChange | None = None
    ) -> None:
        self._seq += 1
        at_ms = self._wall_s() * 1000
        self._rows.append(EventRow(self._seq, at_ms, kind, self._node, name, detail, plan))
        self._wake()

    def planned(self, function: FunctionName, change: PlanChange) -> None:
        """Another form of its code is in force here."""
        self.add(
            "plan-changed",
            function,
            change_words(change),
            change,
        )

    def _wake(self) -> None:
        if self._grown is not None:
            self._grown.set()
            self._grown = None

    def close(self) -> None:
        """The node is stopping: readers get what there is and nobody waits any more."""
        self._closed = True
        self._wake()

    # ------------------------------------------------------------ reading
    async def read(self, *, after: int | None, limit: int, wait_s: float) -> EventsView:
        if after is None:
            after = max(0, self._seq - limit)
        elif after > self._seq:
            after = 0  # of a run before this one
        if after == self._seq and wait_s > 0:
            await self._wait(after, wait_s)
        else:
            await trio.lowlevel.checkpoint()
        missed = max(0, self._seq - len(self._rows) - after)
        rows = tuple(islice(self._rows, max(0, after - self._seq + len(self._rows)), None))[:limit]
        return EventsView(
            node=self._node,
            generation=self._generation,
            next_after=rows[-1].seq if rows else after,
            missed=missed,
            events=rows,
        )

    async def _wait(self, after: int, wait_s: float) -> None:
        if self.waiting >= WAITERS_MAX:
            raise Overloaded(f"{WAITERS_MAX} readers wait for events already")
        self.waiting += 1
        try:
            with trio.move_on_after(wait_s):
                while self._seq == after and not self._closed:
                    if self._grown is None:
                        self._grown = trio.Event()
                    await self._grown.wait()
        finally:
            self.waiting -= 1

    def reason(self, node_id: NodeId) -> str:
        """Why a member is suspect or down; "" for others."""
        return self._reasons.get(node_id, "")

    # ------------------------------------------------------------ the gossip machine's events
    def note(self, event: Event) -> None:
        match event:
            case MemberUp(member):
                self._member("member-up", member, _incarnation(member))
            case MemberUpdated(member):
                self._member("member-updated", member, _incarnation(member))
            case MemberRefuted(member, reason):
                detail = f"{_incarnation(member)}; was {reason.text}"
                self._member("member-refuted", member, detail)
            case MemberSuspect(member, reason):
                self._member("member-suspect", member, reason.text, accused=True)
            case MemberDown(member, reason):
                self._member("member-down", member, reason.text, accused=True)
            case Accused(accuser, state):
                self.add("accused", self._node, f"{accuser or 'somebody'} said: {state}; refuted")
            case MemberLeft(member):
                self._member("member-left", member, _incarnation(member))
            case RecordsAccepted(records):
                for key, _ in records:
                    self.add("record-accepted", function_of(key), key)
            case RecordsPurged(keys):
                for key in keys:
                    self.add("record-forgotten", function_of(key), key)
            case IdentityClash(generation):
                self.add("identity-clash", self._node, f"peers know generation {generation}")
            case _:
                pass

    def _member(
        self, kind: EventKind, member: Member, detail: str, *, accused: bool = False
    ) -> None:
        if accused:
            self._reasons[member.node_id] = detail
            if len(self._reasons) > REASONS_MAX:
                self._reasons.popitem(last=False)
        else:
            self._reasons.pop(member.node_id, None)
        self.add(kind, member.name, detail)


def _incarnation(member: Member) -> str:
    return f"generation {member.generation}, incarnation {member.incarnation}"


def function_of(key: str) -> str:
    """The function a record is about: keys are v/NAME/VERSION and a/NAME (SPEC §6.1)."""
    return key.split("/")[1]
