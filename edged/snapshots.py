"""Snapshots that version records name, on this node: which it uses and keeps, and making them again
of their modules, to have them or to see whether they are what they are said to be. SPEC §14.

A snapshot that is another than its statement says costs the statement's maker its trust. Owned by
the node's event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final, Literal

import msgspec
import trio

from protocol.catalog import Catalog
from protocol.function import FunctionSpec
from protocol.ids import Digest, NodeId
from protocol.snapshots import SnapshotStatement

from .acceptance import Acceptance
from .distrust import Distrust
from .errors import CannotSnapshot, EdgedError, SnapshotMismatch
from .interfaces import SNAPSHOT_FORMAT, Code, EventKind, SnapshotView, Store, module_code
from .making import Making
from .saving import Saving
from .telemetry import Log, Metrics

REMEMBERED_MAX: Final = 4096
PROVEN: Final = "proven-snapshots"
"""Key in the store's meta table."""
COALESCE_S: Final = 1.0

Judgement = Literal["use", "make", "refuse"]


class SnapshotService:
    def __init__(
        self,
        making: Making,
        *,
        node_id: NodeId,
        store: Store,
        catalog: Catalog,
        acceptance: Acceptance,
        have: Callable[[Code], Awaitable[object]],
        keeping: Callable[[Digest], AbstractAsyncContextManager[None]],
        on_held: Callable[[Digest], None],
        distrust: Distrust,
        note: Callable[[EventKind, str, str], None],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`have`: on return the code's bytes are here and intact."""
        self._making = making
        self._node_id = node_id
        self._store = store
        self._catalog = catalog
        self._acceptance = acceptance
        self._have = have
        self._keeping = keeping
        self._on_held = on_held
        self._distrust = distrust
        self._note = note
        self._metrics = metrics
        self._log = log
        self._saving = Saving(
            store,
            PROVEN,
            self._encoded,
            coalesce_s=COALESCE_S,
            what="snapshots that were made here",
            log=log,
        )
        self._compared: OrderedDict[Digest, bool] = self._recalled()
        """Whether it came of its module here, too."""
        self._judged: dict[bytes, Judgement] = {}
        """By signature."""
        self._judged_at = acceptance.changes
        self._audited: OrderedDict[Digest, None] = OrderedDict()
        """Those whose audit failed, too."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        await self._saving.run(task_status=task_status)

    def _encoded(self) -> bytes:
        """That a snapshot is none is found out again where that is asked."""
        proven = [snapshot for snapshot, same in self._compared.items() if same]
        return msgspec.msgpack.encode(proven) if proven else b""

    def _recalled(self) -> OrderedDict[Digest, bool]:
        saved = self._saving.saved
        try:
            proven = msgspec.msgpack.decode(saved, type=list[Digest]) if saved else []
        except msgspec.MsgspecError:
            self._log.exception("what was made here is damaged on disk; it will be made again")
            proven = []
        return OrderedDict.fromkeys(proven[:REMEMBERED_MAX], True)

    def _learn(self, snapshot: Digest, *, same: bool) -> None:
        self._compared[snapshot] = same
        self._judged.clear()
        if len(self._compared) > REMEMBERED_MAX:
            self._compared.popitem(last=False)
        self._saving.changed()

    # ------------------------------------------------------------ whose word counts
    def judge(self, statement: SnapshotStatement) -> Judgement:
        """use: its word is enough here; make: only if the same comes of the module here
        (`rebuild`); refuse: the snapshot is not used.

        The policy is that of artifacts: where others' code is not accepted on one builder's word,
        a snapshot isn't either. Asked for each request, so what was judged is remembered."""
        if self._judged_at != self._acceptance.changes or len(self._judged) > REMEMBERED_MAX:
            self._judged.clear()
            self._judged_at = self._acceptance.changes
        known = self._judged.get(statement.signature)
        if known is None:
            known = self._judged[statement.signature] = self._judge(statement)
        return known

    def _judge(self, statement: SnapshotStatement) -> Judgement:
        compared = self._compared.get(statement.snapshot)
        if compared is not None:
            return "use" if compared else "refuse"
        if statement.maker.node_id == self._node_id:
            return "use"
        if statement.maker.node_id in self._acceptance.distrusted:
            return "refuse"
        if self._acceptance.builders_needed == 1:
            return "use"
        return "make" if statement.format == SNAPSHOT_FORMAT else "refuse"

    def unproven(self, statement: SnapshotStatement) -> bool:
        """It may run here only once it has been made here."""
        return self.judge(statement) == "make"

    def _refusal(self, statement: SnapshotStatement) -> str:
        if self.judge(statement) != "refuse":
            return ""
        if self._compared.get(statement.snapshot) is False:
            return "its module gives another one here"
        if statement.maker.node_id in self._acceptance.distrusted:
            return "its maker is distrusted here"
        return f"artifacts.accept is {self._acceptance.accept}, and its format is unknown here"

    def view(self, statement: SnapshotStatement) -> SnapshotView:
        facts = statement.facts
        return SnapshotView(
            digest=statement.snapshot,
            size_bytes=statement.size_bytes,
            wire_bytes=facts.wire_bytes,
            delta_wire_bytes=facts.delta_wire_bytes,
            code_bytes=facts.code_bytes,
            init_s=facts.init_s,
            made_by=statement.maker.name,
            refused=self._refusal(statement),
        )

    def keeps(self, snapshot: Digest) -> bool:
        """Whether it is to stay where it is here: this node made it and a live version names it, or
        it is of the current version of a function."""
        for key, _, statement in self._named(snapshot):
            if self.judge(statement) == "refuse":
                continue
            _, name, version = key.split("/")
            current = self._catalog.lookup(name)
            if statement.maker.node_id == self._node_id or (
                current is not None and current.version == version
            ):
                return True
        return False

    def _named(self, snapshot: Digest) -> Iterator[tuple[str, FunctionSpec, SnapshotStatement]]:
        """By live versions: key of the record, spec, statement."""
        for key in self._catalog.snapshots.keys(snapshot):
            _, name, version = key.split("/")
            spec, statement = self._catalog.spec(name, version), self._catalog.snapshots.at(key)
            if spec is not None and statement is not None:
                yield key, spec, statement

    # ------------------------------------------------------------ making again
    async def rebuild(self, spec: FunctionSpec, statement: SnapshotStatement) -> None:
        """On return the snapshot is on this disk, and came of its module here. The module is
        fetched where it is not here.

        Raises SnapshotMismatch; CannotSnapshot, also for another format; what init and fetching
        raise; Overloaded, Draining, StoreError."""
        if spec.init is None or statement.format != SNAPSHOT_FORMAT:
            raise CannotSnapshot(
                "format", f"this node makes snapshots of format {SNAPSHOT_FORMAT} only"
            )
        snapshot = statement.snapshot
        async with self._keeping(snapshot):
            if self._compared.get(snapshot) and self._store.info(snapshot) is not None:
                return
            await self._have(module_code(spec))
            await self._compare(spec, statement)
            self._on_held(snapshot)

    async def remake(self, snapshot: Digest) -> bool:
        """Whether it is one that this node may use and make; then it is on this disk again. Raises
        as `rebuild`."""
        for _, spec, statement in self._named(snapshot):
            if self.judge(statement) != "refuse" and statement.format == SNAPSHOT_FORMAT:
                await self.rebuild(spec, statement)
                return True
        return False

    async def audit(self) -> bool:
        """Makes again one snapshot that this node has of others, if it has the module; whether
        there was one."""
        found = self._unaudited()
        if found is None:
            return False
        spec, statement = found
        self._audited[statement.snapshot] = None
        if len(self._audited) > REMEMBERED_MAX:
            self._audited.popitem(last=False)
        try:
            await self._compare(spec, statement)
        except SnapshotMismatch:
            self._metrics.audits.labels("mismatch").inc()
        except EdgedError as error:
            self._metrics.audits.labels("failed").inc()
            self._log.warning("audit failed", snapshot=statement.snapshot, error=str(error))
        else:
            self._metrics.audits.labels("ok").inc()
            self._log.info("audit: the snapshot holds", snapshot=statement.snapshot)
        return True

    def begin_anew(self) -> None:
        """Builders are believed again: what they state is judged, and audited, as new."""
        self._audited.clear()
        for snapshot in [one for one, same in self._compared.items() if not same]:
            del self._compared[snapshot]
        self._judged.clear()

    def _unaudited(self) -> tuple[FunctionSpec, SnapshotStatement] | None:
        for snapshot in self._catalog.snapshots:
            seen = snapshot in self._audited or snapshot in self._compared
            if seen or self._store.info(snapshot) is None:
                continue
            for _, spec, statement in self._named(snapshot):
                others = statement.maker.node_id != self._node_id
                known = statement.format == SNAPSHOT_FORMAT
                if others and known and self._store.info(spec.module) is not None:
                    return spec, statement
        return None

    async def _compare(self, spec: FunctionSpec, statement: SnapshotStatement) -> None:
        """Raises SnapshotMismatch, and as Making.make."""
        assert spec.init is not None
        snapshot = statement.snapshot
        made = await self._making.make(spec.module, spec.init)
        same = made.snapshot == snapshot
        self._learn(snapshot, same=same)
        if same:
            return
        makers = {
            one.maker.node_id: one.maker.name
            for one in self._catalog.snapshots.get(snapshot)
            if (one.module, one.init) == (statement.module, statement.init)
        }
        self._metrics.snapshots.labels("mismatch").inc()
        self._log.error(
            "a snapshot is not what its module's init gives; its makers are trusted no more on this"
            " node",
            module=spec.module, snapshot=snapshot, made=made.snapshot, makers=list(makers.values()),
        )  # fmt: skip
        about = f"module {spec.module[:12]}: stated {snapshot[:12]}, is {made.snapshot[:12]}"
        for name in makers.values():
            self._note("snapshot-mismatch", name, about)
        others = [maker for maker in makers if maker != self._node_id]
        await self._distrust.builders(others, also=[snapshot])
        raise SnapshotMismatch(f"the snapshot is not what it is said to be: {about}")
