"""A node's list of distrusted builders over a store in memory."""

from __future__ import annotations

import io
from typing import Any, cast

from protocol_support import anchor, credential_of, node_id

from edged.acceptance import Acceptance
from edged.builders import Builders
from edged.clock import Clock
from edged.telemetry import make_log
from protocol.ids import NodeId


class MemoryMeta:
    def __init__(self) -> None:
        self.meta: dict[str, bytes] = {}

    def get_meta(self, key: str) -> bytes | None:
        return self.meta.get(key)

    async def set_meta(self, key: str, value: bytes) -> None:
        self.meta[key] = value


class MemoryBuilders:
    """Node n1; `names` may be added to."""

    def __init__(self) -> None:
        self.store = MemoryMeta()
        self.names: dict[NodeId, str] = {}
        self.noted: list[tuple[str, str, str]] = []
        self.anew = 0
        self.acceptance = self.restarted()
        self.service = Builders(
            self.acceptance,
            node="n1",
            name_of=lambda one: self.names.get(one, one[:12]),
            on_trusted=self._count,
            note=lambda *row: self.noted.append(row),
            log=make_log("n1", stream=io.StringIO()),
        )

    def restarted(self) -> Acceptance:
        return Acceptance(
            "signed",
            anchor=anchor(),
            credential=credential_of("n1"),
            store=cast("Any", self.store),
            clock=Clock(),
        )

    def _count(self) -> None:
        self.anew += 1

    async def distrust(self, *names: str, known: bool = True) -> list[NodeId]:
        found = [node_id(name) for name in names]
        if known:
            self.names |= dict(zip(found, names, strict=True))
        self.acceptance.distrust(found)
        await self.acceptance.save()
        return found
