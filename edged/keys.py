"""Rotation of the datagram keys on a running node: implements interfaces.KeyOperator.

Every change is on disk (the trust directory's `keyring`) before it is in force, and in force before
it is answered; the members learn of it from this node's metadata. Guards keep a rotation from
cutting off a member that has not got the key (SPEC §4.2); a member that is down counts, as it may
come back, one that left does not. One change at a time. Owned by the node's event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import trio

from protocol.member import Member
from protocol.seal import key_id

from .errors import BadRequest, ConfigError, Conflict, KeyNotFound, StoreError
from .interfaces import EventKind, KeyChange, KeysView, MemberKeys
from .keyring import KEY_BYTES, KEYRING_KEYS_MAX, write_keyring

KEY_ID_DIGITS: Final = 8
NAMES_SHOWN_MAX: Final = 8


class KeyService:
    def __init__(
        self,
        keys: tuple[bytes, ...],
        *,
        path: Path,
        members: Callable[[], Iterable[Member]],
        install: Callable[[tuple[bytes, ...]], None],
        note: Callable[[EventKind, str], None],
    ) -> None:
        """`install` puts a ring in force; `note` tells the event log (kind, key id)."""
        self._keys = {key_id(key).hex(): key for key in keys}
        self._path = path
        self._members = members
        self._install = install
        self._note = note
        self._changing = trio.Lock()

    def view(self) -> KeysView:
        members = tuple(
            MemberKeys(
                name=member.name,
                node_id=member.node_id,
                state=member.state,
                keys=advertised(member.metadata.keyring),
                is_self=member.is_self,
            )
            for member in sorted(self._members(), key=lambda m: (m.name, m.node_id))
        )
        me = next(member for member in members if member.is_self)
        return KeysView(node=me.name, keys=tuple(self._keys), members=members)

    async def add(self, key: bytes) -> KeyChange:
        if len(key) != KEY_BYTES:
            raise BadRequest(f"a key has {KEY_BYTES} bytes, {2 * KEY_BYTES} hex digits")
        new = key_id(key).hex()
        async with self._changing:
            if self._keys.get(new) == key:
                return self._unchanged(new)
            if new in self._keys:
                raise Conflict(f"another key has the id {new} already; make a new one")
            if len(self._keys) >= KEYRING_KEYS_MAX:
                raise Conflict(
                    f"the keyring has {KEYRING_KEYS_MAX} keys already; remove one that is not used"
                )
            await self._change({**self._keys, new: key})
            return self._changed("key-added", new)

    async def use(self, key_id: str, *, force: bool) -> KeyChange:
        async with self._changing:
            key = self._keys.get(key_id)
            if key is None:
                raise KeyNotFound(f"this node has no key {key_id}; add it first")
            if next(iter(self._keys)) == key_id:
                return self._unchanged(key_id)
            lacking = [m for m in self._others() if key_id not in advertised(m.metadata.keyring)]
            if lacking and not force:
                raise Conflict(
                    f"{_names(lacking)} {_have(lacking)} not got key {key_id} and would be cut off;"
                    " add it there first, or force",
                    members=_listed(lacking),
                )
            await self._change({key_id: key, **self._keys})
            return self._changed("key-used", key_id)

    async def remove(self, key_id: str, *, force: bool) -> KeyChange:
        async with self._changing:
            if key_id not in self._keys:
                return self._unchanged(key_id)
            if len(self._keys) == 1:
                raise Conflict(f"{key_id} is the only key; add another and use it first")
            if next(iter(self._keys)) == key_id and not force:
                raise Conflict(f"this node seals with key {key_id}; use another first, or force")
            sealing = [m for m in self._others() if m.metadata.keyring.startswith(key_id)]
            if sealing and not force:
                raise Conflict(
                    f"{_names(sealing)} {_seal(sealing)} with key {key_id} still and would not be"
                    " heard; use another there first, or force",
                    members=_listed(sealing),
                )
            await self._change({i: key for i, key in self._keys.items() if i != key_id})
            return self._changed("key-removed", key_id)

    def _others(self) -> list[Member]:
        members = sorted(self._members(), key=lambda m: (m.name, m.node_id))
        return [member for member in members if not member.is_self and member.state != "left"]

    async def _change(self, keys: dict[str, bytes]) -> None:
        """Not cancellable half way: what is on disk is in force. Raises StoreError."""
        ring = tuple(keys.values())
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(write_keyring, self._path, ring)
            except ConfigError as error:
                raise StoreError("the keyring cannot be saved", private=str(error)) from error
            self._keys = keys
            self._install(ring)

    def _changed(self, kind: EventKind, key: str) -> KeyChange:
        self._note(kind, key)
        return KeyChange(key, True, tuple(self._keys))

    def _unchanged(self, key: str) -> KeyChange:
        return KeyChange(key, False, tuple(self._keys))


def advertised(keyring: str) -> tuple[str, ...]:
    """The key ids in a member's metadata."""
    return tuple(keyring[i : i + KEY_ID_DIGITS] for i in range(0, len(keyring), KEY_ID_DIGITS))


def _listed(members: list[Member]) -> list[dict[str, str]]:
    return [{"name": m.name, "node_id": m.node_id, "state": m.state} for m in members]


def _names(members: list[Member]) -> str:
    names = [m.name if m.state == "alive" else f"{m.name} ({m.state})" for m in members]
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    more = len(names) - NAMES_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def _have(members: list[Member]) -> str:
    return "has" if len(members) == 1 else "have"


def _seal(members: list[Member]) -> str:
    return "seals" if len(members) == 1 else "seal"
