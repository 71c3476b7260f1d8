"""What keeps a node's disk in order: what the control API needs of it, and answers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, Protocol

import msgspec

from protocol.ids import ArtifactKey, Digest

from .store import BlobKind, CheckResult


class BlobView(msgspec.Struct, frozen=True):
    """A blob on this node's disk."""

    digest: Digest
    kind: BlobKind | Literal["snapshot"]
    """snapshot: a module that a live version's record names as such."""
    size_bytes: int
    wire_bytes: int | None
    created_at_s: float
    """Unix time."""
    functions: tuple[str, ...]
    """"name@version" of the live versions that need it; with very many of them, the first ones."""
    functions_more: int
    """How many there are beside those."""
    module: Digest | None
    """Of an artifact, whose code it is (of modules that compile to the same code, one; functions,
    pinned and mapped are of all); of a snapshot, what it was made of; of a manifest, which blob it
    describes, if that is here."""
    artifact_key: ArtifactKey | None
    holders: int | None
    """The members, this node among them, that show this module in any form, or this artifact for
    the same key (of modules that share it, the one that most show); None of what is nobody else's
    matter."""
    pinned: bool
    mapped: bool
    """In memory now."""
    made_by: tuple[str, ...] = ()
    """Of a snapshot, names of the nodes whose signed words it has in records."""


class BlobsView(msgspec.Struct, frozen=True):
    node: str
    blobs: tuple[BlobView, ...]
    """By digest."""
    next_after: Digest | None
    """Ask for what comes after this; None: that was all."""


class TransferView(msgspec.Struct, frozen=True):
    direction: Literal["fetch", "upload"]
    digest: Digest
    functions: tuple[str, ...]
    state: Literal["queued", "running"]
    urgent: bool
    """A request waits for it."""
    done_bytes: int
    """Of the wire form: on this disk, or sent to this peer. An upload's may be more than the whole
    was, if the peer asked twice, and is less where other peers gave it the rest."""
    total_bytes: int | None
    """None: the manifest is not here yet."""
    rate_bytes_s: float
    """Over the last seconds."""
    eta_s: float | None
    """At that rate; None: unknown, or it stands still."""
    peers: tuple[str, ...]
    """Sources connected now, or the receiver, by name."""
    started_at_s: float
    """Unix time."""


class TransfersView(msgspec.Struct, frozen=True):
    node: str
    transfers: tuple[TransferView, ...]


class GcRow(msgspec.Struct, frozen=True):
    digest: Digest
    kind: BlobKind | Literal["partial"]
    """partial: what is here of a blob whose fetch did not finish."""
    bytes_freed: int
    """With its wire form."""
    why: str


class GcView(msgspec.Struct, frozen=True):
    """What a collection did; with `dry_run`, what it would have done."""

    node: str
    dry_run: bool
    grace_s: float
    collected: tuple[GcRow, ...]
    bytes_freed: int
    kept: dict[str, int]
    """Blobs that stayed, by reason: "wanted", "pinned", "in use", "recent", "in grace",
    "unfinished, in grace" (partials)."""
    due_in_s: float | None
    """When the first of those in grace can be collected; None: there is none."""


class Finding(msgspec.Struct, frozen=True):
    digest: Digest
    kind: BlobKind
    found: CheckResult
    repaired: bool
    outcome: str
    """How it was repaired, or why not."""


class VerifyView(msgspec.Struct, frozen=True):
    node: str
    state: Literal["never", "running", "done", "stopped"]
    """Of the newest check of the whole store in this run of the node."""
    stopped_by: str | None
    """Why a check that failed did; None of any other."""
    trigger: Literal["operator", "schedule"]
    started_at_s: float | None
    finished_at_s: float | None
    """Unix times."""
    blobs: int
    blobs_checked: int
    bytes: int
    """With wire forms; of the blobs there were at its start."""
    bytes_checked: int
    findings: tuple[Finding, ...]
    findings_more: int
    last_complete_at_s: float | None
    """Unix time, also of earlier runs of the node."""
    quarantine_files: int
    quarantine_bytes: int
    """What is kept of damaged files now, for people; bounded."""


class PinsView(msgspec.Struct, frozen=True):
    node: str
    functions: tuple[str, ...]
    digests: tuple[Digest, ...]


class PinChange(msgspec.Struct, frozen=True):
    kind: Literal["function", "digest"]
    target: str
    """In full."""
    changed: bool
    """False: it was so already."""
    needed_by: tuple[str, ...] = ()
    """After unpin: functions with versions of it, for which it stays; of very many, the first
    ones."""


class BlobContent(Protocol):
    """A verified blob, open for reading in pieces."""

    size_bytes: int

    async def read(self, offset: int, length: int) -> bytes:
        """All of it. Raises StoreError."""
        ...


class Upkeep(Protocol):
    """What the control API needs of the node."""

    def blobs(self, *, after: str, limit: int) -> BlobsView: ...

    async def open_blob(
        self, digest: Digest
    ) -> tuple[BlobKind, AbstractContextManager[BlobContent]]:
        """Its bytes were re-hashed just now, through the descriptor they are then read from.

        Raises BlobNotFound, BlobCorrupt (quarantined), StoreError."""
        ...

    def transfers(self) -> TransfersView: ...

    async def collect(self, *, dry_run: bool, grace_s: float | None) -> GcView:
        """`grace_s`: None is the configured one. Raises Conflict: one runs already."""
        ...

    def verification(self) -> VerifyView: ...

    def verify(self) -> VerifyView:
        """Begins to check the whole store at full speed, unless that is under way already; a slow
        check that the node began by itself gives way. Raises Draining."""
        ...

    def pins(self) -> PinsView: ...

    async def pin(self, target: str) -> PinChange:
        """A function's name, a digest, or a unique prefix (≥ 8 digits) of one that is here.

        Raises BlobNotFound, BadRequest (ambiguous), Conflict (too many), StoreError."""
        ...

    async def unpin(self, target: str) -> PinChange: ...
