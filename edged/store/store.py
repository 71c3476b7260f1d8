"""The store as the rest of the node sees it: interfaces.Store over the synchronous core.

Blocking work runs in worker threads behind two limiters of this store: `io_limiter`, and
`compress_limiter`, so that making a wire form never keeps reads waiting. A call is never abandoned
half-way: once it runs, cancellation waits for it, and what it did is durable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio

from edged.errors import BlobCorrupt, BlobNotFound, DiskFull, StoreError
from edged.interfaces import (
    ArtifactRow,
    BlobCheck,
    BlobInfo,
    BlobKind,
    CheckResult,
    PartialBlob,
    PartialInfo,
    RepairReport,
)
from edged.telemetry import Log
from protocol.ids import ArtifactKey, Digest
from protocol.manifest import Manifest

from .deltas import apply_delta, make_delta
from .disk import Step, no_step
from .journal import SaveRecord, SetMeta
from .opening import Opened, open_core
from .partial import Fetch
from .quarantine import held_in
from .reader import BlobReader
from .wireforms import WireForms

IO_THREADS: Final = 8
"""Waits for the disk overlap; SQLite and the journal are serial anyway."""
COMPRESS_THREADS: Final = 1
"""zstd releases the GIL but burns a core, and a node has a few of them."""

SEGMENTS_AT_ONCE: Final = 16
"""Of a wire form that is checked, in one thread hop; a few MiB."""

T = TypeVar("T")


class ScrubReport(msgspec.Struct, frozen=True):
    """What a full check of every byte found."""

    blobs: int
    """Whole ones."""
    bytes_checked: int
    corrupt: tuple[Digest, ...]
    """Blobs, now in quarantine/."""
    wire_lost: tuple[Digest, ...]
    """Blobs whose wire form was damaged; make_manifest makes it anew."""


async def _nothing_to_do(_check: BlobCheck) -> None:
    await trio.lowlevel.checkpoint()


class Partial:
    """interfaces.PartialBlob."""

    def __init__(self, fetch: Fetch, limiter: trio.CapacityLimiter) -> None:
        self._fetch = fetch
        self._limiter = limiter
        self.manifest: Manifest = fetch.manifest
        self.present: frozenset[int] = fetch.present

    async def write(self, segments: Sequence[tuple[int, bytes]], *, verified: bool = False) -> None:
        write = partial(self._fetch.write, segments, verified=verified)
        await trio.to_thread.run_sync(write, limiter=self._limiter)

    async def read(self, indices: Sequence[int]) -> list[bytes]:
        return await trio.to_thread.run_sync(self._fetch.read, indices, limiter=self._limiter)

    async def let_go(self) -> None:
        await trio.to_thread.run_sync(self._fetch.let_go, limiter=self._limiter)

    async def finish(self) -> BlobInfo:
        return await trio.to_thread.run_sync(self._fetch.finish, limiter=self._limiter)

    async def discard(self) -> None:
        await trio.to_thread.run_sync(self._fetch.discard, limiter=self._limiter)


class BlobStore:
    """interfaces.Store. Made by `open_store`; one per data directory."""

    def __init__(self, opened: Opened, *, zstd_level: int) -> None:
        self.repair: RepairReport = opened.repair
        self.io_limiter = trio.CapacityLimiter(IO_THREADS)
        self.compress_limiter = trio.CapacityLimiter(COMPRESS_THREADS)
        self._closing = trio.Lock()
        self._start_losses = opened.losses
        self._core = opened.core
        self._lock = opened.lock
        self._wire = WireForms(opened.core, zstd_level=zstd_level)
        self._trio_token = trio.lowlevel.current_trio_token()
        self._core.on_lost = self._lost
        self.on_lost: Callable[[Digest, str], None] | None = None
        """Called in the event loop's thread, once for each blob that turned out damaged or missing,
        and for each wire form: `info` then says None (gone; see rebuild), or a blob that cannot be
        served until make_manifest. The text is for people: what, and corrupt (quarantined) or
        missing. Not for deletes. Must not raise."""

    def take_start_losses(self) -> tuple[tuple[Digest, str], ...]:
        """What opening the store found, before anybody could hear of it; told once."""
        losses, self._start_losses = self._start_losses, ()
        return losses

    def _lost(self, digest: Digest, what: str) -> None:
        """In a worker thread."""

        def tell() -> None:
            if self.on_lost is not None:
                self.on_lost(digest, what)

        with contextlib.suppress(trio.RunFinishedError):
            self._trio_token.run_sync_soon(tell)

    async def _run(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self.io_limiter)

    async def _compress(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self.compress_limiter)

    # blobs
    async def put(self, data: bytes, *, kind: BlobKind, expected: Digest | None = None) -> BlobInfo:
        return await self._run(lambda: self._core.put(data, kind, expected))

    async def put_file(
        self, source: Path, *, kind: BlobKind, expected: Digest | None = None
    ) -> BlobInfo:
        return await self._run(lambda: self._core.put_file(source, kind, expected))

    def temp_path(self) -> Path:
        return self._core.temp_path()

    async def read(self, digest: Digest) -> bytes:
        return await self._run(lambda: self._core.read(digest))

    def path(self, digest: Digest) -> Path:
        return self._core.path(digest)

    async def verify(self, digest: Digest) -> bool:
        return await self._run(lambda: self._core.verify(digest))

    async def open_verified(self, digest: Digest) -> BlobReader:
        """For reading in pieces; close it. Raises BlobNotFound, BlobCorrupt (quarantined)."""
        fd, size = await self._run(lambda: self._core.open_verified(digest))
        return BlobReader(fd, size, self.io_limiter)

    def info(self, digest: Digest) -> BlobInfo | None:
        held = self._core.get(digest)
        return None if held is None else held.info

    def blobs(self) -> list[BlobInfo]:
        return [held.info for held in self._core.all_held()]

    async def delete(self, digest: Digest) -> None:
        """With its wire form, manifest and the artifact rows naming it; absent is fine."""
        await self._run(lambda: self._core.delete(digest))

    def quarantined(self) -> tuple[int, int]:
        """(files, bytes) kept in quarantine. A look at one small directory."""
        return held_in(self._core.layout)

    # wire forms
    async def make_manifest(self, digest: Digest, *, expected: Digest | None = None) -> Manifest:
        """`expected` is the digest of the manifest that others have of this blob. Raises
        BlobNotFound, BlobCorrupt (quarantined), DigestMismatch (not `expected`; nothing is kept),
        DiskFull, StoreError (empty blob)."""
        return await self._compress(lambda: self._wire.make(digest, expected))

    async def make_delta(self, digest: Digest, base: Digest) -> bytes | None:
        """What makes the one of the other, both here. None: they are too large or small. Raises
        BlobNotFound, BlobCorrupt (quarantined)."""
        return await self._compress(lambda: make_delta(self._core, digest, base))

    async def apply_delta(self, manifest: Manifest, base: Digest, delta: bytes) -> BlobInfo:
        """Stores the blob of `manifest`, made of `base` and `delta`; without its wire form. Raises
        DigestMismatch, BlobNotFound, BlobCorrupt (of the base), DiskFull."""
        return await self._compress(lambda: apply_delta(self._core, manifest, base, delta))

    async def manifest(self, digest: Digest) -> Manifest:
        return await self._run(lambda: self._wire.manifest(digest))

    async def wire_segments(self, digest: Digest, indices: Sequence[int]) -> list[bytes]:
        return await self._run(lambda: self._wire.segments(digest, indices))

    async def wire_segment(self, digest: Digest, index: int) -> bytes:
        return (await self.wire_segments(digest, (index,)))[0]

    async def begin_partial(self, manifest: Manifest) -> PartialBlob:
        """Resumes what is on disk of this manifest. An earlier user's handle raises Conflict from
        now on. Raises RemoteProtocolError (bounds), DiskFull."""
        fetch = await self._run(lambda: self._wire.begin(manifest))
        return Partial(fetch, self.io_limiter)

    async def partials(self) -> list[PartialInfo]:
        """What is on disk of fetches that are not finished."""
        return await self._run(self._wire.partials)

    async def drop_partial(self, partial: PartialInfo) -> bool:
        """False: it was touched since it was listed, or is gone."""
        return await self._run(lambda: self._wire.drop_partial(partial))

    async def rebuild(self, digest: Digest, manifest: Digest) -> BlobInfo | None:
        """Makes a lost blob again from what is left of its wire form on this disk, and that wire
        form with it; a blob that is here is left as it is. None: not enough is there, fetch it
        (begin_partial resumes from what is). Raises DiskFull; then it can be tried again."""
        return await self._run(lambda: self._wire.rebuild(digest, manifest))

    # artifacts, records, meta
    def artifact(self, module: Digest, key: ArtifactKey) -> ArtifactRow | None:
        return self._core.artifact(module, key)

    def artifacts(self) -> list[ArtifactRow]:
        return self._core.artifacts()

    async def put_artifact(self, row: ArtifactRow) -> None:
        """Raises BlobNotFound unless the artifact's blob is here."""
        await self._run(lambda: self._core.put_artifact(row))

    async def delete_artifact(self, module: Digest, key: ArtifactKey) -> None:
        """With its blob, once no other row names it (safe while it is mapped); absent is fine."""
        await self._run(lambda: self._core.delete_artifact(module, key))

    async def save_records(self, records: Sequence[tuple[str, bytes]]) -> None:
        """Those that are on disk as they are already cost nothing."""
        ops = [SaveRecord(key, value) for key, value in records if self._core.record(key) != value]
        if ops:
            await self._run(lambda: self._core.commit(ops))

    async def drop_records(self, keys: Sequence[str]) -> None:
        """For good, also from the journal when it is next rewritten; absent ones are fine."""
        await self._run(lambda: self._core.drop_records(keys))

    def load_records(self) -> Iterable[tuple[str, bytes]]:
        return self._core.records()

    async def set_meta(self, key: str, value: bytes) -> None:
        await self._run(lambda: self._core.commit([SetMeta(key, value)]))

    def get_meta(self, key: str) -> bytes | None:
        return self._core.meta(key)

    # upkeep
    async def scrub(
        self, on_checked: Callable[[BlobCheck], Awaitable[None]] = _nothing_to_do
    ) -> ScrubReport:
        """Re-hashes every blob and every wire segment (`edged verify`), manifests first;
        `on_checked` is awaited after each blob, to repair it and to take time. A blob that cannot
        be read does not end it. Cancellable. Raises DiskFull."""
        found: dict[CheckResult, list[Digest]] = {}
        size_bytes = 0
        for info in sorted(self.blobs(), key=lambda blob: blob.kind != "manifest"):
            reason = ""
            try:
                result = await self._check(info)
            except DiskFull:
                raise  # the store cannot note what it finds
            except StoreError as error:
                result, reason = "unreadable", str(error)
            if result is None:
                continue
            found.setdefault(result, []).append(info.digest)
            checked = info.size_bytes + (info.wire_bytes or 0)
            if result not in ("corrupt", "missing", "unreadable"):
                size_bytes += checked
            await on_checked(BlobCheck(info, result, checked, reason))
        corrupt, lost = found.get("corrupt", ()), found.get("wire-lost", ())
        whole = len(found.get("whole", ())) + len(lost)
        return ScrubReport(whole, size_bytes, tuple(corrupt), tuple(lost))

    async def _check(self, info: BlobInfo) -> CheckResult | None:
        """None: it was deleted meanwhile."""
        if self.info(info.digest) is None:
            return None
        try:
            if not await self.verify(info.digest):
                return "corrupt"
        except BlobNotFound:
            return "missing"
        if info.manifest is not None and not await self._wire_intact(info.digest):
            return "wire-lost" if self.info(info.digest) is not None else None
        return "whole"

    async def _wire_intact(self, digest: Digest) -> bool:
        try:
            manifest = await self.manifest(digest)
            for first in range(0, manifest.segments, SEGMENTS_AT_ONCE):
                last = min(first + SEGMENTS_AT_ONCE, manifest.segments)
                await self.wire_segments(digest, range(first, last))
        except (BlobNotFound, BlobCorrupt):
            return False
        return True

    async def close(self) -> None:
        """Waits for the calls that run, then frees the directory. Idempotent; shielded, as it
        belongs into `finally` (bounded: what runs is local disk work, and one checkpoint)."""
        with trio.CancelScope(shield=True):
            async with self._closing, AsyncExitStack() as stack:
                for limiter in (self.compress_limiter, self.io_limiter):
                    for _ in range(int(limiter.total_tokens)):
                        borrower = object()
                        await limiter.acquire_on_behalf_of(borrower)
                        stack.callback(limiter.release_on_behalf_of, borrower)
                await trio.to_thread.run_sync(self._close, limiter=trio.CapacityLimiter(1))

    def _close(self) -> None:
        self._core.close()
        self._lock.release(clean=True)


async def open_store(
    data_dir: Path,
    *,
    zstd_level: int,
    min_free_bytes: int,
    log: Log,
    step: Step = no_step,
) -> BlobStore:
    """Locks, repairs and opens a data directory, making it if needed. `zstd_level` 0: by size.

    `step` is for tests: see disk.Step. Raises DataDirLocked, StoreError, DiskFull."""

    def opening() -> Opened:
        return open_core(data_dir, min_free_bytes=min_free_bytes, log=log, step=step)

    # One short-lived call: it needs no limiter shared with anything else.
    opened = await trio.to_thread.run_sync(opening, limiter=trio.CapacityLimiter(1))
    store = BlobStore(opened, zstd_level=zstd_level)
    repair = store.repair
    if repair != RepairReport(0, (), (), (), index_rebuilt=False):
        log.warning(
            "store repaired",
            temps_removed=repair.temps_removed,
            missing=repair.missing,
            corrupt=repair.corrupt,
            orphans_adopted=len(repair.orphans_adopted),
            index_rebuilt=repair.index_rebuilt,
        )
    return store
