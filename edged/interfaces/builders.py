"""Builders that a node believes no more: what the control API needs of the node, and answers."""

from __future__ import annotations

from typing import Protocol

import msgspec

from protocol.ids import NodeId


class BuilderView(msgspec.Struct, frozen=True):
    node_id: NodeId
    name: str
    """The begin of its id, where no member of that id is known any more."""


class BuildersView(msgspec.Struct, frozen=True):
    node: str
    accept: str
    """The node's artifacts.accept."""
    distrusted: tuple[BuilderView, ...]
    """By audits, the first one first; their artifacts are not opened here."""


class BuilderOperator(Protocol):
    """What the control API needs of the node."""

    def view(self) -> BuildersView: ...

    async def trust(self, target: str) -> BuilderView:
        """Believes a distrusted builder again: `target` is its name, or its id, or the begin of
        that (≥ 8 digits). Durable when it returns.

        Raises BuilderNotFound: none that is distrusted; BadRequest: several; StoreError."""
        ...
