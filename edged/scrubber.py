"""Hashes every byte of the store again, now and then and when an operator asks, and repairs what is
damaged: a wire form from its blob, a module from its wire form or from peers. An artifact is only
dropped, with the code that is mapped from it: it is made again when it is needed. An operator's
check also fetches what belongs here and is not on this disk; by itself a node does that anyway
(replication). Whoever finds damage, each loss is one `blob-damaged` event: what a check finds it
tells with the outcome, the rest `lost` tells.

One check at a time; an operator's goes at full speed and ends a scheduled one, which is slowed to
`bytes_per_s`. When the last complete one was is kept in the store. Owned by the node's event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal, Protocol

import trio

from protocol.ids import Digest

from .errors import Conflict, Draining, EdgedError, StoreError
from .interfaces import (
    ArtifactRow,
    BlobCheck,
    BlobInfo,
    EventKind,
    Fetcher,
    Finding,
    VerifyView,
)
from .store import BlobStore
from .telemetry import Log, Metrics

COMPLETED: Final = "verified"
"""Key in the store's meta table: Unix seconds."""
DAY_S: Final = 86_400.0
LOOK_S: Final = 600.0
"""How often it is looked whether a check is due: a start does not begin with one."""
FINDINGS_MAX: Final = 1000
FETCH_TIMEOUT_S: Final = 600.0

Trigger = Literal["operator", "schedule"]


class Repairs(Protocol):
    """What a repair needs of the rest of the node."""

    def manifest(self, module: Digest) -> Digest | None:
        """The one that a live version names for it; None: nothing needs the module."""
        ...

    def absent(self) -> list[Digest]:
        """Modules that belong here and are not on this disk."""
        ...

    async def remake(self, module: Digest) -> bool:
        """Whether it was a snapshot, and was made again of its module. Raises EdgedError."""
        ...

    def announce(self, module: Digest) -> None: ...

    def unmap(self, module: Digest) -> None: ...


class _Run:
    """One check."""

    def __init__(self, trigger: Trigger, blobs: list[BlobInfo], started_at_s: float) -> None:
        self.trigger: Trigger = trigger
        self.started_at_s = started_at_s
        self.finished_at_s: float | None = None
        self.complete = False
        self.stopped_by: str | None = None
        self.blobs = len(blobs)
        self.bytes = sum(blob.size_bytes + (blob.wire_bytes or 0) for blob in blobs)
        self.blobs_checked = self.bytes_checked = 0
        self.findings: list[Finding] = []
        self.findings_more = 0
        self.scope = trio.CancelScope()

    def add(self, finding: Finding) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)
        else:
            self.findings_more += 1


class Scrubber:
    def __init__(
        self,
        store: BlobStore,
        fetcher: Fetcher,
        repairs: Repairs,
        *,
        node: str,
        interval_days: float,
        bytes_per_s: int,
        note: Callable[[EventKind, str, str], None],
        metrics: Metrics,
        log: Log,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """`note` tells the event log."""
        self._store = store
        self._fetcher = fetcher
        self._repairs = repairs
        self._node = node
        self._interval_days = interval_days
        self._bytes_per_s = bytes_per_s
        self._note = note
        self._metrics = metrics
        self._log = log
        self._wall_s = wall_s
        self._newest: _Run | None = None
        self._asked: trio.Event | None = None
        """None: not running."""
        self._untold: dict[Digest, str] = {}
        """Losses since the blob before was checked: that of the one being checked, and what others
        have found meanwhile."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        self._asked = trio.Event()
        self._untold.update(self._store.take_start_losses())
        self._tell_losses()
        task_status.started()
        try:
            while True:
                with trio.move_on_after(LOOK_S):
                    await self._asked.wait()
                if self._asked.is_set() and self._newest is not None:
                    self._asked = trio.Event()
                    await self._check_all(self._newest)
                elif self._is_due():
                    self._newest = _Run("schedule", self._store.blobs(), self._wall_s())
                    await self._check_all(self._newest)
        finally:
            self._asked = None

    def start(self) -> VerifyView:
        """An operator's check; one of those that runs already is the same. Raises Draining."""
        if self._asked is None:
            raise Draining("the node is shutting down")
        newest = self._newest
        if newest is None or newest.finished_at_s is not None or newest.trigger == "schedule":
            if newest is not None:
                newest.scope.cancel()
            self._newest = _Run("operator", self._store.blobs(), self._wall_s())
            self._asked.set()
        return self.view()

    def view(self) -> VerifyView:
        run = self._newest
        state: Literal["never", "running", "done", "stopped"] = "never"
        if run is not None:
            ended: Literal["done", "stopped"] = "done" if run.complete else "stopped"
            state = "running" if run.finished_at_s is None else ended
        quarantine_files, quarantine_bytes = self._store.quarantined()
        return VerifyView(
            node=self._node,
            state=state,
            stopped_by=run.stopped_by if run else None,
            trigger=run.trigger if run else "operator",
            started_at_s=run.started_at_s if run else None,
            finished_at_s=run.finished_at_s if run else None,
            blobs=run.blobs if run else 0,
            blobs_checked=run.blobs_checked if run else 0,
            bytes=run.bytes if run else 0,
            bytes_checked=run.bytes_checked if run else 0,
            findings=tuple(run.findings) if run else (),
            findings_more=run.findings_more if run else 0,
            last_complete_at_s=self._last_s(),
            quarantine_files=quarantine_files,
            quarantine_bytes=quarantine_bytes,
        )

    def _last_s(self) -> float | None:
        saved = self._store.get_meta(COMPLETED)
        return None if saved is None else float(int.from_bytes(saved))

    def _is_due(self) -> bool:
        """A clock that was turned back does not put it off for good."""
        if not self._interval_days:
            return False
        ago_s = self._wall_s() - (self._last_s() or 0.0)
        return ago_s < -DAY_S or ago_s >= self._interval_days * DAY_S

    # ------------------------------------------------------------ losses
    def lost(self, digest: Digest, what: str) -> None:
        """See BlobStore.on_lost: whoever has found it."""
        run = self._newest
        self._untold[digest] = what
        if run is None or run.finished_at_s is not None:
            self._tell_losses()

    def _tell_losses(self) -> None:
        absent = frozenset(self._repairs.absent()) if self._untold else frozenset()
        for digest, what in self._untold.items():
            if what.startswith("wire form"):
                hope = "edged verify makes it again"
            elif digest in absent:
                hope = "it belongs here and is fetched again"
            else:
                hope = "fetched or made again when it is needed"
            self._note("blob-damaged", digest, f"{what}: {hope}")
        self._untold.clear()

    # ------------------------------------------------------------ one check
    async def _check_all(self, run: _Run) -> None:
        rows = self._store.artifacts()

        async def on_checked(check: BlobCheck) -> None:
            await self._on_checked(run, check, rows)

        try:
            with run.scope:
                await self._store.scrub(on_checked)
                if run.trigger == "operator":
                    await self._fetch_absent(run)
                await self._store.set_meta(COMPLETED, int(self._wall_s()).to_bytes(8))
                run.complete = True
        except StoreError as error:
            run.stopped_by = str(error)
            self._log.error("check of the store failed", reason=str(error), private=error.private)
        finally:
            run.finished_at_s = self._wall_s()
            self._tell_losses()
        if run.complete:
            self._tell(run)

    def _tell(self, run: _Run) -> None:
        absent = sum(finding.found == "absent" for finding in run.findings)
        damaged = len(run.findings) + run.findings_more - absent
        lasting = sum(not finding.repaired for finding in run.findings)
        write = self._log.error if lasting else self._log.info
        write(
            "store verified",
            blobs=run.blobs_checked,
            bytes=run.bytes_checked,
            damaged=damaged,
            absent=absent,
            not_repaired=lasting,
        )
        text = (
            f"{run.blobs_checked} blobs, {damaged} damaged, {absent} absent, {lasting} not repaired"
        )
        self._note("store-verified", self._node, text)

    async def _on_checked(self, run: _Run, check: BlobCheck, rows: list[ArtifactRow]) -> None:
        if check.result != "whole":
            self._untold.pop(check.info.digest, None)
        self._tell_losses()
        if check.result != "whole":
            finding = await self._finding(check, rows)
            if finding is not None:
                run.add(finding)
        run.blobs_checked += 1
        run.bytes_checked += check.bytes_checked
        self._metrics.verified_bytes.inc(check.bytes_checked)
        if run.trigger == "schedule":
            await trio.sleep(check.bytes_checked / self._bytes_per_s)

    # ------------------------------------------------------------ repairing
    async def _finding(self, check: BlobCheck, rows: list[ArtifactRow]) -> Finding | None:
        """None: nothing is wrong; it was removed while it was looked at."""
        info = check.info
        try:
            outcome = await self._repair(check, rows)
        except EdgedError as error:
            if check.result == "wire-lost" and self._store.info(info.digest) is None:
                return None
            repaired, outcome = False, str(error)
        else:
            repaired = outcome is not None
            if outcome is None and check.result == "missing":
                return None
        finding = Finding(
            info.digest, info.kind, check.result, repaired, outcome or "nothing needs it"
        )
        self._metrics.damaged.labels("yes" if repaired else "no").inc()
        self._log.error(
            "blob damaged",
            blob=info.digest,
            kind=info.kind,
            found=check.result,
            repaired=repaired,
            outcome=finding.outcome,
        )
        self._note("blob-damaged", info.digest, f"{info.kind} {check.result}: {finding.outcome}")
        return finding

    async def _repair(self, check: BlobCheck, rows: list[ArtifactRow]) -> str | None:
        """How; None: nothing needs it, and it is gone. Raises EdgedError: not repaired."""
        info = check.info
        if check.result == "unreadable":
            raise StoreError(check.reason)
        if check.result == "wire-lost":
            expected = self._repairs.manifest(info.digest) or info.manifest
            await self._store.make_manifest(info.digest, expected=expected)
            self._repairs.announce(info.digest)
            return "its wire form was made again"
        match info.kind:
            case "module":
                return await self._repair_module(info.digest, info.manifest)
            case "artifact":
                for row in rows:
                    if row.digest == info.digest:
                        self._repairs.unmap(row.module)
                        self._repairs.announce(row.module)
                return "dropped; it is fetched or made again when it is needed"
            case "manifest":
                if any(blob.manifest == info.digest for blob in self._store.blobs()):
                    return "made again with the wire form it belongs to"
                return None

    async def _repair_module(self, module: Digest, described_by: Digest | None) -> str | None:
        manifest = self._repairs.manifest(module) or described_by
        if manifest is None:
            return None
        if await self._store.rebuild(module, manifest) is not None:
            self._repairs.announce(module)
            return "rebuilt from its wire form"
        if self._repairs.manifest(module) is None:
            return None
        try:
            await self._fetch(module, manifest)
        except EdgedError:
            if not await self._repairs.remake(module):
                raise
            return "made again of its module"
        self._repairs.announce(module)
        return "fetched from peers"

    async def _fetch(self, module: Digest, manifest: Digest) -> None:
        with trio.move_on_after(FETCH_TIMEOUT_S) as fetching:
            await self._fetcher.fetch(
                module, manifest, progress=lambda _done, _of: None, urgent=False
            )
        if fetching.cancelled_caught:
            raise Conflict(f"no peer gave it within {FETCH_TIMEOUT_S:g} s")

    async def _fetch_absent(self, run: _Run) -> None:
        """All in FETCH_TIMEOUT_S: the rest is left to replication, and so is what the check itself
        found damaged and could not repair."""
        tried = {finding.digest for finding in run.findings}
        left = dict.fromkeys(one for one in self._repairs.absent() if one not in tried)
        with trio.move_on_after(FETCH_TIMEOUT_S):
            for module in list(left):
                repaired = True
                try:
                    outcome = await self._repair_module(module, None)
                except EdgedError as error:
                    repaired, outcome = False, str(error)
                del left[module]
                if outcome is not None:
                    run.add(Finding(module, "module", "absent", repaired, outcome))
        for module in left:
            run.add(Finding(module, "module", "absent", False, "the node goes on fetching it"))
