"""A small value kept in the store's meta table, written a moment after it became another.

For what the node can do without: a write that fails is logged, and the next change is another
chance. Owned by the node's event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from .errors import StoreError
from .telemetry import Log


class MetaStore(Protocol):
    def get_meta(self, key: str, /) -> bytes | None: ...

    async def set_meta(self, key: str, value: bytes, /) -> None:
        """Durable when it returns. Raises StoreError."""
        ...


class Saving:
    def __init__(
        self,
        store: MetaStore,
        key: str,
        encoded: Callable[[], bytes],
        *,
        coalesce_s: float,
        what: str,
        log: Log,
    ) -> None:
        """`coalesce_s`: from a change to the write that saves it and what else has happened until
        then. `what`: in the log, where it is not saved."""
        self._store = store
        self._key = key
        self._encoded = encoded
        self._coalesce_s = coalesce_s
        self._what = what
        self._log = log
        self._changed = trio.Event()
        self.saved = store.get_meta(key) or b""
        """As it is on disk; empty: nothing is."""

    def changed(self) -> None:
        """It is saved soon."""
        self._changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while True:
            await self._changed.wait()
            await trio.sleep(self._coalesce_s)
            self._changed = trio.Event()
            await self.save()

    async def save(self) -> None:
        """Now, if it is another than on disk."""
        encoded = self._encoded()
        if encoded == self.saved:
            return
        try:
            await self._store.set_meta(self._key, encoded)
        except StoreError as error:
            self._log.warning(f"{self._what} not saved", reason=str(error))
        else:
            self.saved = encoded
