"""Rotation of the cluster's datagram keys on one node: what the control API needs, and answers."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec


class MemberKeys(msgspec.Struct, frozen=True):
    """What a member says it holds."""

    name: str
    node_id: str
    state: Literal["alive", "suspect", "down", "left"]
    keys: tuple[str, ...]
    """Key ids, 8 hex digits each, the one it seals with first."""
    is_self: bool


class KeysView(msgspec.Struct, frozen=True):
    node: str
    keys: tuple[str, ...]
    """Ids of the keys in force on this node, the one that seals first. A key itself never leaves
    a node."""
    members: tuple[MemberKeys, ...]


class KeyChange(msgspec.Struct, frozen=True):
    """Answer to a change."""

    key: str
    changed: bool
    """False: it was so already."""
    keys: tuple[str, ...]


class KeyOperator(Protocol):
    """What the control API needs of the node. A change is on disk before it is in force."""

    def view(self) -> KeysView: ...

    async def add(self, key: bytes) -> KeyChange:
        """As the last key: it opens, and does not seal. Raises BadRequest (not a key), Conflict
        (no room), StoreError."""
        ...

    async def use(self, key_id: str, *, force: bool) -> KeyChange:
        """Seals with it from now on. Raises KeyNotFound; Conflict naming the members that lack it,
        unless forced; StoreError."""
        ...

    async def remove(self, key_id: str, *, force: bool) -> KeyChange:
        """Raises Conflict: it seals here, or for members, unless forced; it is the last key.
        StoreError."""
        ...
