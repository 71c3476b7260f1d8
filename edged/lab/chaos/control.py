"""Asking nodes over their control API, as any operator's program does; blocking, for threads.

A node that does not answer is an answer too: None. What it says is checked for what is used of it.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple, TypeVar

import msgspec

from edged.cluster import probe

ASK_TIMEOUT_S: Final = 2.0
BODY_BYTES_MAX: Final = 16 * 1024 * 1024

T = TypeVar("T")


class Answer(NamedTuple):
    status: int
    body: bytes

    def told(self) -> str:
        """Status, and a problem's own words."""
        try:
            problem = json.loads(self.body)
            return f"{self.status} {problem.get('detail') or problem.get('title') or ''}".strip()
        except (ValueError, AttributeError):
            return str(self.status)


def call(
    address: str,
    method: str,
    path: str,
    *,
    token: str = "",
    body: bytes | None = None,
    timeout_s: float = ASK_TIMEOUT_S,
) -> Answer | None:
    answer = probe.ask(
        method,
        address,
        path,
        token=token,
        body=body,
        timeout_s=timeout_s,
        bytes_max=BODY_BYTES_MAX,
    )
    return None if answer is None else Answer(*answer)


def understood(answer: Answer | None, kind: type[T]) -> T | None:
    """None: no answer, another status than 200, or not what was asked for."""
    if answer is None or answer.status != 200:
        return None
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


# ---------------------------------------------------------------- what is read of the answers
class Member(msgspec.Struct, frozen=True):
    name: str
    state: str


class Members(msgspec.Struct, frozen=True):
    members: tuple[Member, ...]

    @property
    def alive(self) -> tuple[str, ...]:
        return tuple(sorted(member.name for member in self.members if member.state == "alive"))


class Replication(msgspec.Struct, frozen=True):
    under_replicated: int = 0


class Gossip(msgspec.Struct, frozen=True):
    generation: int = 0


class Status(msgspec.Struct, frozen=True):
    state: str
    catalog: str
    replication: Replication = Replication()
    gossip: Gossip = Gossip()


class Summary(msgspec.Struct, frozen=True):
    name: str
    version: str
    module: str
    deployed_by: str = ""


class Functions(msgspec.Struct, frozen=True):
    functions: tuple[Summary, ...]


class VersionRow(msgspec.Struct, frozen=True):
    version: str


class Versions(msgspec.Struct, frozen=True):
    versions: tuple[VersionRow, ...]


class Replicas(msgspec.Struct, frozen=True):
    wanted: int
    holders: int
    missing: tuple[str, ...] = ()


class Holder(msgspec.Struct, frozen=True):
    node: str
    form: str = "module"


class Detail(msgspec.Struct, frozen=True):
    summary: Summary
    holders: tuple[Holder, ...]
    replicas: Replicas


class Deployed(msgspec.Struct, frozen=True):
    version: str | None
    replicas: tuple[str, ...] = ()
    wanted: int = 0


class Stored(msgspec.Struct, frozen=True):
    module: str


class Blob(msgspec.Struct, frozen=True):
    digest: str
    kind: str
    module: str | None = None


class Blobs(msgspec.Struct, frozen=True):
    blobs: tuple[Blob, ...]


class ArtifactRow(msgspec.Struct, frozen=True):
    module: str
    artifact_key: str
    digest: str
    own: bool = False
    builders: tuple[str, ...] = ()


class Artifacts(msgspec.Struct, frozen=True):
    artifacts: tuple[ArtifactRow, ...]


class Lab(msgspec.Struct, frozen=True):
    clock_skew_ms: int
    disk_full: bool
    clock_ms: int
    machine_ms: int
    writes_refused: int = 0


class Link(msgspec.Struct, frozen=True):
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    bandwidth_mbit: float | None = None
    cut: str | None = None


class LinkPeer(msgspec.Struct, frozen=True):
    name: str
    region: str
    link: Link
    datagrams: int = 0
    datagrams_delayed: int = 0
    datagrams_duplicated: int = 0
    datagrams_dropped: dict[str, int] = {}
    stream_bytes: int = 0
    stream_bytes_delayed: int = 0
    streams_reset: int = 0
    connects_held: int = 0
    connects_refused: int = 0
    queue_bytes: int = 0


class Links(msgspec.Struct, frozen=True):
    peers: tuple[LinkPeer, ...]


class Change(msgspec.Struct, frozen=True):
    trigger: str
    before: str | None
    after: str | None
    input: str = ""
    input_before: float = 0.0
    input_after: float = 0.0


class Event(msgspec.Struct, frozen=True):
    kind: str
    name: str
    plan: Change | None = None


class Events(msgspec.Struct, frozen=True):
    generation: int
    next_after: int
    events: tuple[Event, ...]


class Cost(msgspec.Struct, frozen=True):
    form: str
    lacks: str | None = None
    ready_s: float | None = None
    per_call_s: float | None = None
    wire_bytes: int = 0
    stored_bytes: int = 0
    wire_price_s: float = 0.0
    cpu_price_s: float = 0.0
    hold_price_s: float = 0.0
    total_s: float | None = None


class Input(msgspec.Struct, frozen=True):
    name: str
    value: float
    source: str
    confidence: float
    age_s: float | None = None


class Flip(msgspec.Struct, frozen=True):
    input: str
    to_value: float
    form: str


class Plan(msgspec.Struct, frozen=True):
    form: str | None
    best: str | None
    why: str
    rows: tuple[Cost, ...]
    inputs: tuple[Input, ...]
    flips: tuple[Flip, ...]


class Explain(msgspec.Struct, frozen=True):
    plan: Plan | None = None
