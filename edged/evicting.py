"""Keeps the store within `store.bytes_max`: removes what can be had again, native code and
snapshots, the least worth first (protocol.caching: uses by the seconds that having it again takes,
per byte). Modules are never removed here, whatever they take: they are what the cluster promised to
keep. Pinned blobs stay, and so does what is in use or has just come.

Owned by the node's event loop; one look per LOOK_S, and none at all without a bound.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final, NamedTuple, Protocol

import trio

from protocol.caching import Cache, room_of
from protocol.costs import Room
from protocol.ids import Digest

from .errors import StoreError
from .interfaces import ArtifactRow, BlobInfo, EventKind
from .telemetry import Log, Metrics

LOOK_S: Final = 5.0
RECENT_S: Final = 30.0
"""What was stored since stays: it is being made ready, or about to be."""
USES_COUNTED_MAX: Final = 16
"""Of one thing per look."""


class Derived(NamedTuple):
    """A blob that can be had again."""

    digest: Digest
    code: Digest
    """Whose uses are its: the module or snapshot that it is the native code of, or itself."""
    kind: str
    """"artifact" or "snapshot"."""


class Held(Protocol):
    """The store."""

    def blobs(self) -> list[BlobInfo]: ...

    def artifacts(self) -> list[ArtifactRow]: ...


class Evictor:
    def __init__(
        self,
        store: Held,
        *,
        node: str,
        bytes_max: int,
        snapshots: Callable[[], Collection[Digest]],
        uses: Callable[[Digest], int],
        cost_s: Callable[[Derived], float],
        evict: Callable[[Digest], Awaitable[bool]],
        note: Callable[[EventKind, str, str], None],
        metrics: Metrics,
        log: Log,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """`snapshots`: all that are known; `uses` of a code since it was mapped; `cost_s`: to have
        a blob again; `evict` says False of what must stay, and raises StoreError."""
        self._store = store
        self._node = node
        self._bytes_max = bytes_max
        self._snapshots = snapshots
        self._uses = uses
        self._cost_s = cost_s
        self._evict = evict
        self._note = note
        self._metrics = metrics
        self._log = log
        self._wall_s = wall_s
        self._cache = Cache()
        self._known: dict[str, Derived] = {}
        self._used: dict[Digest, int] = {}
        """Uses of each code at the last look."""
        self.room: tuple[Room, ...] | None = None
        """What room costs, as of the last look; None: there is no bound."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while self._bytes_max:
            await trio.sleep(LOOK_S)
            try:
                await self.look()
            except StoreError as error:
                self._log.error("no room made", error=str(error), private=error.private)

    async def look(self) -> int:
        """Bytes that went. Raises StoreError, then what came before it is done."""
        blobs = {blob.digest: blob for blob in self._store.blobs()}
        total = sum(map(_disk_bytes, blobs.values()))
        self._count(blobs)
        too_much = total - self._bytes_max
        youngest = self._wall_s() - RECENT_S
        gone: list[Derived] = []
        freed = 0
        refused: set[str] = set()

        def may_go(name: str) -> bool:
            return name not in refused and blobs[Digest(name)].created_at_s < youngest

        self.room = room_of(self._cache.worths(trio.current_time(), may_go), -too_much)
        while freed < too_much:
            names = self._cache.victims(too_much - freed, may_go)
            if not names:
                self._log.warning("the store is above its bound", bytes=total - freed)
                break
            for name in names:
                derived = self._known[name]
                if await self._evict(derived.digest):
                    freed += _disk_bytes(blobs[derived.digest])
                    gone.append(derived)
                    self._forget(name)
                else:
                    refused.add(name)
        self._tell(gone, freed)
        return freed

    def _count(self, blobs: dict[Digest, BlobInfo]) -> None:
        """Brings the order of what is here up to date."""
        now = trio.current_time()
        found: dict[str, Derived] = {}
        for row in self._store.artifacts():
            if row.digest in blobs:
                found[row.digest] = Derived(row.digest, row.module, "artifact")
        for digest in self._snapshots():
            if digest in blobs:
                found[digest] = Derived(digest, digest, "snapshot")
        for name in [name for name in self._known if name not in found]:
            self._forget(name)
        self._known = found
        before, codes = self._used, dict.fromkeys(one.code for one in found.values())
        self._used = {code: self._uses(code) for code in codes}
        for name, derived in found.items():
            size_bytes = _disk_bytes(blobs[derived.digest])
            self._cache.hold(name, size_bytes, self._cost_s(derived), now)
            used, known = self._used[derived.code], before.get(derived.code, 0)
            new = used - known if used >= known else used  # it was mapped anew
            for _ in range(min(new, USES_COUNTED_MAX)):
                self._cache.use(name, now)

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._cache.forget(name)

    def _tell(self, gone: list[Derived], freed: int) -> None:
        if not gone:
            return
        for derived in gone:
            self._metrics.evicted.labels(derived.kind).inc()
        self._log.info("blobs evicted", blobs=len(gone), bytes_freed=freed)
        self._note("blobs-evicted", self._node, f"{len(gone)} blobs, {freed} bytes, for room")


def _disk_bytes(blob: BlobInfo) -> int:
    return blob.size_bytes + (blob.wire_bytes or 0)
