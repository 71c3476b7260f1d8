"""Blobs, transfers and pins that are only in memory: what a node tells of its disk, without one."""

from __future__ import annotations

import msgspec
import trio

from edged.errors import BlobCorrupt, BlobNotFound, Conflict, StoreError
from edged.interfaces import (
    BlobsView,
    BlobView,
    GcRow,
    GcView,
    PinChange,
    PinsView,
    TransfersView,
    TransferView,
    VerifyView,
)
from protocol.ids import digest_of


class Content:
    def __init__(self, owner: MemoryUpkeep, data: bytes) -> None:
        self._owner = owner
        self._data = data
        self.size_bytes = len(data)

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self._owner.reads.append(length)
        if self._owner.breaks_at is not None and offset >= self._owner.breaks_at:
            raise StoreError("the disk fails")
        return self._data[offset : offset + length]

    def __enter__(self) -> Content:
        self._owner.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._owner.open -= 1


class MemoryUpkeep:
    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.reads: list[int] = []
        self.open = 0
        self.breaks_at: int | None = None
        self.collections: list[tuple[bool, float | None]] = []
        self.collecting = False
        self.moving: tuple[TransferView, ...] = ()
        self.pinned: dict[str, None] = {}
        self.needed_by: tuple[str, ...] = ()
        self.unneeded: tuple[GcRow, ...] = ()
        self.check = VerifyView(
            node="n1",
            state="never",
            stopped_by=None,
            trigger="operator",
            started_at_s=None,
            finished_at_s=None,
            blobs=0,
            blobs_checked=0,
            bytes=0,
            bytes_checked=0,
            findings=(),
            findings_more=0,
            last_complete_at_s=None,
            quarantine_files=0,
            quarantine_bytes=0,
        )
        self.steps: list[VerifyView] = []

    def add(self, data: bytes) -> str:
        digest = digest_of(data)
        self.data[digest] = data
        return digest

    def blobs(self, *, after: str, limit: int) -> BlobsView:
        chosen = sorted(digest for digest in self.data if digest > after)
        rows = tuple(
            BlobView(
                digest,
                "module",
                len(self.data[digest]),
                None,
                1e9,
                ("hello@00112233",),
                3,
                None,
                None,
                2,
                digest in self.pinned,
                False,
            )
            for digest in chosen[:limit]
        )
        return BlobsView("n1", rows, chosen[limit - 1] if len(chosen) > limit else None)

    async def open_blob(self, digest: str) -> tuple[str, Content]:
        await trio.lowlevel.checkpoint()
        if digest in self.damaged:
            raise BlobCorrupt("damaged; it is quarantined")
        if digest not in self.data:
            raise BlobNotFound(f"blob {digest} is not on this node")
        return "module", Content(self, self.data[digest])

    def transfers(self) -> TransfersView:
        return TransfersView("n1", self.moving)

    async def collect(self, *, dry_run: bool, grace_s: float | None) -> GcView:
        await trio.lowlevel.checkpoint()
        if self.collecting:
            raise Conflict("a collection runs already")
        self.collections.append((dry_run, grace_s))
        freed = sum(row.bytes_freed for row in self.unneeded)
        grace = 3600.0 if grace_s is None else grace_s
        kept = {"wanted": len(self.data), "in grace": 1}
        return GcView("n1", dry_run, grace, self.unneeded, freed, kept, 12.0)

    def verification(self) -> VerifyView:
        if self.steps:
            self.check = self.steps.pop(0)
        return self.check

    def verify(self) -> VerifyView:
        self.check = msgspec.structs.replace(self.check, state="running", started_at_s=1e9)
        return self.check

    def pins(self) -> PinsView:
        return PinsView("n1", ("hello",), tuple(self.pinned))

    async def pin(self, target: str) -> PinChange:
        await trio.lowlevel.checkpoint()
        if target not in self.data:
            raise BlobNotFound(f"{target!r} is neither a function nor a blob on this node")
        changed = target not in self.pinned
        self.pinned[target] = None
        return PinChange("digest", target, changed)

    async def unpin(self, target: str) -> PinChange:
        await trio.lowlevel.checkpoint()
        changed = self.pinned.pop(target, self) is None
        return PinChange("digest", target, changed, self.needed_by)
