"""Removes blobs that nothing needs: modules that no live version of any function names, what was
compiled of them, what other engines' compilers made, manifests of what is gone, and partials that
nobody has touched for the grace period.

Nothing goes before it has been unneeded for a grace period (grace.py), nor while it is pinned,
fetched, served, mapped or being made ready; a deploy holds its module from its first look at it
until its record is in force (`keeping`). A record that comes while its module is being removed
finds a node that does not hold it, as any other does. Owned by the node's event loop: between the
last look at a blob and the begin of its removal nothing is awaited.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol

import trio

from protocol.ids import ArtifactKey, Digest

from .errors import Conflict, StoreError
from .grace import Grace
from .interfaces import ArtifactRow, BlobInfo, EventKind, GcRow, GcView, PartialInfo
from .saving import MetaStore
from .telemetry import Log, Metrics

RECENT_S: Final = 30.0
"""What was stored or asked for since is kept whatever the grace: its record or row is coming."""
ROWS_MAX: Final = 1000
"""Of an answer."""
IN_GRACE: Final = "in grace"
NOT_NAMED: Final = "no version of any function names it"
NOT_CURRENT: Final = "a snapshot that no function's current version needs here"


class Blobs(MetaStore, Protocol):
    """What is collected from: the store."""

    def blobs(self) -> list[BlobInfo]: ...

    def info(self, digest: Digest) -> BlobInfo | None: ...

    def artifacts(self) -> list[ArtifactRow]: ...

    async def partials(self) -> list[PartialInfo]: ...

    async def drop_partial(self, partial: PartialInfo, /) -> bool: ...

    async def delete(self, digest: Digest) -> None: ...

    async def delete_artifact(self, module: Digest, key: ArtifactKey) -> None: ...


class Needs(Protocol):
    """Who needs what, as the rest of the node knows it."""

    def is_wanted(self, module: Digest) -> bool:
        """Whether a live version of some function names it; of a snapshot, whether it is to stay
        here besides."""
        ...

    def is_named(self, module: Digest) -> bool:
        """Whether a live version names it at all."""
        ...

    def manifests(self) -> frozenset[Digest]:
        """All that live versions name."""
        ...

    def pinned(self) -> frozenset[Digest]: ...

    def runs_here(self, key: ArtifactKey) -> bool:
        """Whether this node's engines load code of that key."""
        ...

    def in_use(self, digest: Digest) -> bool:
        """It is fetched, served, or being made ready, or somebody runs in it."""
        ...

    def release(self, module: Digest) -> None:
        """Unmaps it: nobody runs in it."""
        ...

    def alone(self) -> bool:
        """No other member is alive though some are known: what this node has not heard counts."""
        ...


class _Item(NamedTuple):
    """A blob that can be removed."""

    digest: Digest
    rows: tuple[ArtifactRow, ...]
    """Of an artifact: all that name it. Modules that differ may compile to the same code."""
    why: str

    @property
    def modules(self) -> tuple[Digest, ...]:
        """Whose removal it belongs to."""
        return tuple(dict.fromkeys(row.module for row in self.rows)) or (self.digest,)


class Collector:
    def __init__(
        self,
        store: Blobs,
        needs: Needs,
        *,
        node: str,
        grace_s: float,
        interval_s: float,
        on_gone: Callable[[Digest], None],
        note: Callable[[EventKind, str, str], None],
        metrics: Metrics,
        log: Log,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """`on_gone` gets each module of which something was removed; `note` tells the event log."""
        self._store = store
        self._needs = needs
        self._node = node
        self._grace_s = grace_s
        self._interval_s = interval_s
        self._on_gone = on_gone
        self._note = note
        self._metrics = metrics
        self._log = log
        self._wall_s = wall_s
        self._grace = Grace(store, log=log)
        self._touched: dict[Digest, float] = {}
        """Of the last RECENT_S, oldest first."""
        self._keeping: Counter[Digest] = Counter()
        self._removing: dict[Digest, trio.Event] = {}
        self._busy = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Collects now and then, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._grace.run)
            task_status.started()
            while self._interval_s:
                await trio.sleep(self._interval_s)
                if not self._busy and not self._needs.alone():
                    await self._collect_unasked()

    async def _collect_unasked(self) -> None:
        try:
            await self.collect(dry_run=False)
        except StoreError as error:
            self._log.error("collection failed", reason=str(error), private=error.private)

    # ------------------------------------------------------------ for who is about to need a blob
    def touch(self, digest: Digest) -> None:
        """It was stored, or asked for: its grace begins anew."""
        now = trio.current_time()
        self._touched.pop(digest, None)
        self._touched[digest] = now
        while now - self._touched[oldest := next(iter(self._touched))] > RECENT_S:
            del self._touched[oldest]
        self._grace.begin_anew(digest)

    @asynccontextmanager
    async def keeping(self, digest: Digest) -> AsyncIterator[None]:
        """Inside, the blob is not removed; a removal that has begun is over first."""
        while (removal := self._removing.get(digest)) is not None:
            await removal.wait()
        self._keeping[digest] += 1
        try:
            yield
        finally:
            self._keeping[digest] -= 1
            if not self._keeping[digest]:
                del self._keeping[digest]
            self.touch(digest)

    async def remove_copy(self, module: Digest) -> bool:
        """Of a module that is wanted, but not here (SPEC §11.5); its artifacts stay. False: it is
        held, or has come into use. Raises StoreError."""
        if self._keeping[module] or module in self._removing:
            return False
        if self._needs.in_use(module) or module in self._needs.pinned():
            return False
        await self._remove(_Item(module, (), "surplus"))
        return True

    async def evict(self, digest: Digest) -> bool:
        """Native code, with all its rows, or a snapshot: what can be had again, for room. False:
        it is held, pinned, or has come into use. Raises StoreError."""
        rows = tuple(row for row in self._store.artifacts() if row.digest == digest)
        item = _Item(digest, rows, "for room")
        subjects = (digest, *item.modules)
        if any(self._keeping[one] or one in self._removing for one in subjects):
            return False
        if not self._needs.pinned().isdisjoint(subjects) or any(map(self._needs.in_use, subjects)):
            return False
        for module in item.modules:
            self._needs.release(module)
        await self._remove(item)
        return True

    # ------------------------------------------------------------ collecting
    async def collect(self, *, dry_run: bool, grace_s: float | None = None) -> GcView:
        """Raises Conflict: one runs already; StoreError, then what came before it is done."""
        if self._busy:
            raise Conflict("a collection runs already")
        self._busy = True
        try:
            return await self._collect(dry_run, self._grace_s if grace_s is None else grace_s)
        finally:
            self._busy = False

    async def _collect(self, dry_run: bool, grace_s: float) -> GcView:
        items, wanted, pinned = self._look()
        kept: Counter[str] = Counter(wanted=wanted, pinned=pinned)
        gone: list[GcRow] = []
        due_s: list[float] = []
        try:
            for item in items:
                await trio.lowlevel.checkpoint()
                info = self._store.info(item.digest)
                if info is None:
                    continue
                reason = self._why_not(item, info, grace_s)
                if reason is not None:
                    kept[reason] += 1
                    if reason == IN_GRACE:
                        due_s.append(grace_s - self._grace.unneeded_s(item.digest))
                    continue
                if not dry_run:
                    await self._remove(item)
                    if self._store.info(item.digest) is not None:
                        kept["wanted"] += 1  # another row has come to name it
                        continue
                size = info.size_bytes + (info.wire_bytes or 0)
                gone.append(GcRow(item.digest, info.kind, size, item.why))
            await self._collect_partials(dry_run, grace_s, gone, kept)
        finally:
            if gone and not dry_run:
                self._tell(gone)
        return GcView(
            node=self._node,
            dry_run=dry_run,
            grace_s=grace_s,
            collected=tuple(gone[:ROWS_MAX]),
            bytes_freed=sum(row.bytes_freed for row in gone),
            kept=dict(+kept),
            due_in_s=min(due_s, default=None),
        )

    async def _collect_partials(
        self, dry_run: bool, grace_s: float, gone: list[GcRow], kept: Counter[str]
    ) -> None:
        """Of fetches that were given up: a deploy or a repair that did not finish."""
        for partial in await self._store.partials():
            age_s = self._wall_s() - partial.touched_at_s
            blob = partial.blob
            if self._keeping[blob] or self._needs.in_use(blob):
                kept["in use"] += 1
            elif age_s < RECENT_S:
                kept["recent"] += 1
            elif age_s < grace_s:
                kept["unfinished, in grace"] += 1
            elif dry_run or await self._store.drop_partial(partial):
                why = "nobody has gone on fetching it"
                gone.append(GcRow(blob, "partial", partial.disk_bytes, why))

    def _look(self) -> tuple[list[_Item], int, int]:
        """What nothing needs; how many blobs are wanted, and how many are there as pinned only."""
        pinned = self._needs.pinned()
        items: dict[Digest, _Item] = {}
        saved: dict[Digest, None] = {}
        for item in self._unneeded():
            if not pinned.isdisjoint((item.digest, *item.modules)):
                saved[item.digest] = None
            else:
                items[item.digest] = item
        # Manifests share the fate of what they describe, and do not count.
        wanted = sum(
            blob.kind != "manifest" and blob.digest not in items and blob.digest not in saved
            for blob in self._store.blobs()
        )
        self._grace.look(items)
        return list(items.values()), wanted, len(saved)

    def _unneeded(self) -> Iterator[_Item]:
        """Blobs as they stand in the store, pinned or not."""
        blobs = self._store.blobs()
        rows = self._store.artifacts()
        needed = set(self._needs.manifests())
        for blob in blobs:
            if blob.kind == "module" and not self._needs.is_wanted(blob.digest):
                named = self._needs.is_named(blob.digest)
                yield _Item(blob.digest, (), NOT_CURRENT if named else NOT_NAMED)
            if blob.manifest is not None:
                needed.add(blob.manifest)  # goes with its blob
        by_digest: dict[Digest, list[ArtifactRow]] = {}
        for row in rows:
            by_digest.setdefault(row.digest, []).append(row)
            needed.add(row.digest)
        for digest, sharers in by_digest.items():
            if not any(map(self._needs_row, sharers)):
                named = any(self._needs.is_wanted(row.module) for row in sharers)
                foreign = "made for another engine"
                why = foreign if named else "no version of any function names its module"
                yield _Item(digest, tuple(sharers), why)
        for blob in blobs:
            if blob.kind == "artifact" and blob.digest not in needed:
                yield _Item(blob.digest, (), "no record says whose code it is")
            elif blob.kind == "manifest" and blob.digest not in needed:
                yield _Item(blob.digest, (), "its blob is not here")

    def _why_not(self, item: _Item, info: BlobInfo, grace_s: float) -> str | None:
        """Why it must stay now; None: it may go. Nothing is awaited from here to its removal."""
        now = trio.current_time()
        subjects = dict.fromkeys((item.digest, *item.modules))
        if self._is_wanted(item, info):
            return "wanted"
        if any(self._keeping[one] for one in subjects):
            return "in use"
        recent = any(now - self._touched.get(one, -RECENT_S) < RECENT_S for one in subjects)
        if recent or 0 <= self._wall_s() - info.created_at_s < RECENT_S:
            return "recent"
        if self._grace.unneeded_s(item.digest) < grace_s:
            return IN_GRACE
        if not self._needs.pinned().isdisjoint(subjects):
            return "pinned"
        if any(self._needs.in_use(one) for one in subjects):
            return "in use"
        return None

    def _is_wanted(self, item: _Item, info: BlobInfo) -> bool:
        """By a record or a row that has come since the look."""
        if item.rows:
            return any(map(self._needs_row, item.rows))
        if info.kind == "artifact":
            return any(row.digest == item.digest for row in self._store.artifacts())
        return self._needs.is_wanted(item.digest)

    def _needs_row(self, row: ArtifactRow) -> bool:
        return self._needs.is_wanted(row.module) and self._needs.runs_here(row.key)

    async def _remove(self, item: _Item) -> None:
        removal = trio.Event()
        for module in item.modules:
            self._needs.release(module)
            self._removing[module] = removal
        try:
            if not item.rows:
                await self._store.delete(item.digest)
            for row in item.rows:
                await self._store.delete_artifact(row.module, row.key)
        finally:
            removal.set()
            for module in item.modules:
                del self._removing[module]
                self._on_gone(module)
        self._grace.forget(item.digest)

    def _tell(self, gone: list[GcRow]) -> None:
        freed = sum(row.bytes_freed for row in gone)
        for row in gone:
            self._metrics.collected.labels(row.kind).inc()
        self._metrics.collected_bytes.inc(freed)
        self._log.info("blobs collected", blobs=len(gone), bytes_freed=freed)
        self._note("blobs-collected", self._node, f"{len(gone)} blobs, {freed} bytes")
