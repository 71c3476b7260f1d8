"""Whom this node knew: kept on disk, so that it finds its cluster again when no seed is left.

Only addresses: who is there, and whether it is one of us, shows when it answers (SPEC §5.1). Saved
a moment after the members changed and once more at the stop. Bound: ADDRESSES_MAX, members that
are reachable first, then those that were last, then those of former runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Final

import msgspec
import trio
from msgspec import Meta

from protocol.member import Address, Member

from .saving import MetaStore, Saving
from .telemetry import Log

ADDRESSES_MAX: Final = 256
"""About 8 KB; any one of them that answers is enough."""
COALESCE_S: Final = 2.0
KEY: Final = "acquaintances"
"""In the store's meta table."""

_Saved = Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]


class Acquaintances:
    """Owned by the node's event loop."""

    def __init__(
        self, store: MetaStore, members: Callable[[], Iterable[Member]], *, log: Log
    ) -> None:
        self._members = members
        self._log = log
        self._known: tuple[Address, ...] = ()
        self._saving = Saving(
            store, KEY, self._encoded, coalesce_s=COALESCE_S, what="acquaintances", log=log
        )

    def recall(self) -> Sequence[Address]:
        """Those of former runs; none if what is on disk is damaged."""
        saved = self._saving.saved
        try:
            self._known = msgspec.msgpack.decode(saved, type=_Saved) if saved else ()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._log.error("acquaintances on disk are damaged", reason=str(error))
        return self._known

    def changed(self) -> None:
        """Members have; they are saved soon."""
        self._saving.changed()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        await self._saving.run(task_status=task_status)

    async def save(self) -> None:
        await self._saving.save()

    def _encoded(self) -> bytes:
        members = [member for member in self._members() if not member.is_self]
        members.sort(key=lambda member: (not member.reachable, -member.changed_at_s))
        addresses = dict.fromkeys(member.metadata.gossip_address for member in members)
        addresses |= dict.fromkeys(self._known)
        self._known = tuple(addresses)[:ADDRESSES_MAX]
        return msgspec.msgpack.encode(self._known)
