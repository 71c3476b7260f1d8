"""Audit (`artifacts.audit`): compiles again, when the node is idle, what others compiled for it,
and makes again the snapshots that others made (snapshots.py).

Compiling is deterministic, so the same module and artifact key give the same bytes. Where they do
not, who vouched for them is trusted no more on this node, and everything only they vouch for is
dropped from disk and memory. What holds gets this node's own word as well. One module at a time,
each artifact once. A module that is not here is not fetched for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from protocol.ids import Digest, NodeId

from .artifacts import Artifacts
from .distrust import Distrust
from .errors import EdgedError
from .interfaces import ArtifactRow, EventKind, Store
from .telemetry import Log, Metrics

PAUSE_S: Final = 5.0
"""Between two looks; the node must have been idle at both."""
AUDITED_MAX: Final = 4096


class Auditor:
    def __init__(
        self,
        artifacts: Artifacts,
        *,
        store: Store,
        is_idle: Callable[[], bool],
        distrust: Distrust,
        audit_snapshot: Callable[[], Awaitable[bool]],
        name_of: Callable[[NodeId], str],
        note: Callable[[EventKind, str, str], None],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`audit_snapshot` makes one again that others made, if there is one; whether it did."""
        self._artifacts = artifacts
        self._store = store
        self._is_idle = is_idle
        self._distrust = distrust
        self._audit_snapshot = audit_snapshot
        self._name_of = name_of
        self._note = note
        self._metrics = metrics
        self._log = log
        self._audited: OrderedDict[tuple[Digest, Digest], None] = OrderedDict()
        """Those that could not be compiled again, too: (module, artifact)."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            idle = self._is_idle()
            await trio.sleep(PAUSE_S)
            if idle and self._is_idle():
                row = self._next()
                if row is not None:
                    await self._audit(row)
                else:
                    await self._audit_snapshot()

    def begin_anew(self) -> None:
        """What was audited is audited again, if others are to vouch for it still."""
        self._audited.clear()

    def _next(self) -> ArtifactRow | None:
        for row in self._artifacts.fetched():
            held = self._store.info(row.module)
            if held is not None and (row.module, row.digest) not in self._audited:
                return row
        return None

    async def _audit(self, row: ArtifactRow) -> None:
        self._audited[row.module, row.digest] = None
        if len(self._audited) > AUDITED_MAX:
            self._audited.popitem(last=False)
        builders = tuple(self._artifacts.builders(row))
        sharing = self._artifacts.sharing(row.digest)
        try:
            made = await self._artifacts.remake(row)
        except (EdgedError, OSError) as error:
            self._metrics.audits.labels("failed").inc()
            self._log.warning("audit failed", module=row.module, error=str(error))
            return
        if made == row.digest:
            self._metrics.audits.labels("ok").inc()
            self._log.info("audit: the artifact holds", module=row.module, artifact=row.digest)
            return
        self._report(row, builders, made)
        await self._distrust.builders(builders, also=sharing)

    def _report(self, row: ArtifactRow, builders: tuple[NodeId, ...], made: Digest) -> None:
        names = [self._name_of(builder) for builder in builders]
        self._metrics.audits.labels("mismatch").inc()
        self._log.error(
            "AUDIT: an artifact is not what its module compiles to; its builders are trusted no "
            "more on this node",
            module=row.module, artifact=row.digest, compiled=made, builders=names,
        )  # fmt: skip
        for name in names:
            detail = f"module {row.module[:12]}: vouched for {row.digest[:12]}, is {made[:12]}"
            self._note("artifact-mismatch", name, detail)
