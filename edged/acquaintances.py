"""Whom this node knew: kept on disk, so that it finds its cluster again when no seed is left.

Only addresses: who is there, and whether it is one of us, shows when it answers (SPEC §5.1). Saved
a moment after the members changed and once more at the stop. Bound: ADDRESSES_MAX, members that
are reachable first, then those that were last, then those of former runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Final, Protocol

import msgspec
import trio
from msgspec import Meta

from protocol.member import Address, Member

from .errors import StoreError
from .telemetry import Log

ADDRESSES_MAX: Final = 256
"""About 8 KB; any one of them that answers is enough."""
COALESCE_S: Final = 2.0
"""From a change to the write that saves it and what else has happened until then."""
KEY: Final = "acquaintances"
"""In the store's meta table."""

_Saved = Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]


class MetaStore(Protocol):
    def get_meta(self, key: str, /) -> bytes | None: ...

    async def set_meta(self, key: str, value: bytes, /) -> None:
        """Durable when it returns. Raises StoreError."""
        ...


class Acquaintances:
    """Owned by the node's event loop."""

    def __init__(
        self, store: MetaStore, members: Callable[[], Iterable[Member]], *, log: Log
    ) -> None:
        self._store = store
        self._members = members
        self._log = log
        self._changed = trio.Event()
        self._known: tuple[Address, ...] = ()
        self._saved = b""

    def recall(self) -> Sequence[Address]:
        """Those of former runs; none if what is on disk is damaged."""
        self._saved = self._store.get_meta(KEY) or b""
        try:
            self._known = msgspec.msgpack.decode(self._saved, type=_Saved) if self._saved else ()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._log.error("acquaintances on disk are damaged", reason=str(error))
        return self._known

    def changed(self) -> None:
        """Members have; they are saved soon."""
        self._changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await self._changed.wait()
            await trio.sleep(COALESCE_S)
            self._changed = trio.Event()
            await self.save()

    async def save(self) -> None:
        """A failure is logged: the next change is another chance."""
        members = [member for member in self._members() if not member.is_self]
        members.sort(key=lambda member: (not member.reachable, -member.changed_at_s))
        addresses = dict.fromkeys(member.metadata.gossip_address for member in members)
        addresses |= dict.fromkeys(self._known)
        self._known = tuple(addresses)[:ADDRESSES_MAX]
        encoded = msgspec.msgpack.encode(self._known)
        if encoded == self._saved:
            return
        try:
            await self._store.set_meta(KEY, encoded)
        except StoreError as error:
            self._log.warning("acquaintances not saved", reason=str(error))
        else:
            self._saved = encoded
