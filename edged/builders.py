"""Builders that audits made this node distrust, and an operator's way to believe them again.

A builder that was mended in place keeps its key, so its words would count for nothing for ever.
What is fetched of it from then on is audited anew. The list itself is Acceptance's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protocol.ids import NodeId

from .acceptance import Acceptance
from .errors import BadRequest, BuilderNotFound
from .interfaces import BuildersView, BuilderView, EventKind
from .telemetry import Log

DIGITS_MIN: Final = 8


class Builders:
    """Implements interfaces.BuilderOperator."""

    def __init__(
        self,
        acceptance: Acceptance,
        *,
        node: str,
        name_of: Callable[[NodeId], str],
        on_trusted: Callable[[], None],
        note: Callable[[EventKind, str, str], None],
        log: Log,
    ) -> None:
        """`on_trusted`: what was judged and audited before counts no more."""
        self._acceptance = acceptance
        self._node = node
        self._name_of = name_of
        self._on_trusted = on_trusted
        self._note = note
        self._log = log

    def view(self) -> BuildersView:
        return BuildersView(
            node=self._node,
            accept=self._acceptance.accept,
            distrusted=tuple(
                BuilderView(one, self._name_of(one)) for one in self._acceptance.distrusted
            ),
        )

    async def trust(self, target: str) -> BuilderView:
        found = self._find(target)
        await self._acceptance.trust(found.node_id)
        self._on_trusted()
        self._log.warning("builder trusted again", builder=found.name, builder_id=found.node_id)
        self._note("builder-trusted", found.name, found.node_id)
        return found

    def _find(self, target: str) -> BuilderView:
        distrusted = self.view().distrusted
        found = [one for one in distrusted if one.name == target]
        if not found and len(target) >= DIGITS_MIN:
            found = [one for one in distrusted if one.node_id.startswith(target)]
        if not found:
            raise BuilderNotFound(f"{self._node} distrusts no builder {target[:80]!r}")
        if len(found) > 1:
            ids = ", ".join(one.node_id for one in found)
            raise BadRequest(f"{len(found)} distrusted builders fit {target!r}; name one id: {ids}")
        return found[0]
