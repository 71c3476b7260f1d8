"""How long nothing has needed a blob, also over restarts of the node.

Counted is the time in which this node ran, so that neither a long absence nor a wrong clock takes
anything before its time. On disk a moment after each change; what was lost of that makes a grace
longer, never shorter by more than that moment. Bound: the SAVED_MAX longest unneeded are kept over
a restart, for others it begins anew. Owned by the node's event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
import trio
from msgspec import Meta

from protocol.ids import Digest

from .saving import MetaStore, Saving
from .telemetry import Log

UNNEEDED: Final = "unneeded"
"""Key in the store's meta table."""
SAVED_MAX: Final = 4096
"""300 KB."""
COALESCE_S: Final = 1.0

_Saved = dict[Digest, Annotated[float, Meta(ge=0)]]


class Grace:
    def __init__(self, store: MetaStore, *, log: Log) -> None:
        self._saving = Saving(
            store,
            UNNEEDED,
            self._encoded,
            coalesce_s=COALESCE_S,
            what="unneeded blobs",
            log=log,
        )
        self._since: dict[Digest, float] = {}
        """As if the node had not been off in between."""
        saved = self._saving.saved
        try:
            ages = msgspec.msgpack.decode(saved, type=_Saved) if saved else {}
        except msgspec.MsgspecError:
            log.exception("what is on disk of unneeded blobs is damaged; their grace begins anew")
        else:
            now = trio.current_time()
            self._since = {digest: now - age_s for digest, age_s in ages.items()}

    def look(self, unneeded: Iterable[Digest]) -> None:
        """These are unneeded now; all others are not."""
        now = trio.current_time()
        self._since = {digest: self._since.get(digest, now) for digest in unneeded}
        self._saving.changed()

    def unneeded_s(self, digest: Digest) -> float:
        """Of one that the last look found so."""
        return trio.current_time() - self._since[digest]

    def begin_anew(self, digest: Digest) -> None:
        """Somebody wanted it."""
        if digest in self._since:
            self._since[digest] = trio.current_time()
            self._saving.changed()

    def forget(self, digest: Digest) -> None:
        """It is gone."""
        self._since.pop(digest, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        await self._saving.run(task_status=task_status)

    def _encoded(self) -> bytes:
        longest = sorted(self._since.items(), key=lambda row: row[1])[:SAVED_MAX]
        now = trio.current_time()
        ages: _Saved = {digest: now - since for digest, since in longest}
        return msgspec.msgpack.encode(ages) if ages else b""
