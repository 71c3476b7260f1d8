"""How long nothing has needed a blob, also over restarts of the node.

Counted is the time in which this node ran, so that neither a long absence nor a wrong clock takes
anything before its time. On disk a moment after each change; what was lost of that makes a grace
longer, never shorter by more than that moment. Bound: the SAVED_MAX longest unneeded are kept over
a restart, for others it begins anew. Owned by the node's event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Protocol

import msgspec
import trio
from msgspec import Meta

from protocol.ids import Digest

from .errors import StoreError
from .telemetry import Log

UNNEEDED: Final = "unneeded"
"""Key in the store's meta table."""
SAVED_MAX: Final = 4096
"""300 KB."""
COALESCE_S: Final = 1.0

_Saved = dict[Digest, Annotated[float, Meta(ge=0)]]


class MetaStore(Protocol):
    def get_meta(self, key: str, /) -> bytes | None: ...

    async def set_meta(self, key: str, value: bytes, /) -> None: ...


class Grace:
    def __init__(self, store: MetaStore, *, log: Log) -> None:
        self._store = store
        self._log = log
        self._changed = trio.Event()
        self._saved = store.get_meta(UNNEEDED) or b""
        self._since: dict[Digest, float] = {}
        """As if the node had not been off in between."""
        try:
            ages = msgspec.msgpack.decode(self._saved, type=_Saved) if self._saved else {}
        except msgspec.MsgspecError:
            log.exception("what is on disk of unneeded blobs is damaged; their grace begins anew")
        else:
            now = trio.current_time()
            self._since = {digest: now - age_s for digest, age_s in ages.items()}

    def look(self, unneeded: Iterable[Digest]) -> None:
        """These are unneeded now; all others are not."""
        now = trio.current_time()
        self._since = {digest: self._since.get(digest, now) for digest in unneeded}
        self._changed.set()

    def unneeded_s(self, digest: Digest) -> float:
        """Of one that the last look found so."""
        return trio.current_time() - self._since[digest]

    def begin_anew(self, digest: Digest) -> None:
        """Somebody wanted it."""
        if digest in self._since:
            self._since[digest] = trio.current_time()
            self._changed.set()

    def forget(self, digest: Digest) -> None:
        """It is gone."""
        self._since.pop(digest, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while True:
            await self._changed.wait()
            await trio.sleep(COALESCE_S)
            self._changed = trio.Event()
            await self._save()

    async def _save(self) -> None:
        """A failure is logged: the next change is another chance."""
        longest = sorted(self._since.items(), key=lambda row: row[1])[:SAVED_MAX]
        now = trio.current_time()
        ages: _Saved = {digest: now - since for digest, since in longest}
        encoded = msgspec.msgpack.encode(ages) if ages else b""
        if encoded == self._saved:
            return
        try:
            await self._store.set_meta(UNNEEDED, encoded)
        except StoreError as error:
            self._log.warning("unneeded blobs not saved", reason=str(error))
        else:
            self._saved = encoded
