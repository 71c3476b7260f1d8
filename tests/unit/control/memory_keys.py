"""A node's key rotation with members that a test makes up; only its keyring file is real."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edged.keyring import read_keyring, write_keyring
from edged.keys import KeyService
from protocol.ids import NodeId
from protocol.member import Member, MemberState, Metadata
from protocol.seal import key_id

OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
OLD_ID, NEW_ID, OTHER_ID = (key_id(key).hex() for key in (OLD, NEW, OTHER))


def member(name: str, *keys: bytes, state: MemberState = "alive", is_self: bool = False) -> Member:
    return Member(
        node_id=NodeId(name.encode().hex().ljust(32, "0")),
        state=state,
        generation=1,
        incarnation=0,
        metadata=Metadata(
            name,
            ("127.0.0.1", 1),
            ("127.0.0.1", 1),
            keyring="".join(key_id(key).hex() for key in keys),
        ),
        rtt_s=None,
        is_self=is_self,
        changed_at_s=0.0,
    )


class MemoryKeys:
    """Node n1, holding OLD; `others` may be changed."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = Path(self._directory.name) / "keyring"
        write_keyring(self.path, [OLD])
        self.installed: list[tuple[bytes, ...]] = [(OLD,)]
        self.on_disk_first: list[bool] = []
        self.others: list[Member] = []
        self.noted: list[tuple[str, str]] = []
        self.service = KeyService(
            (OLD,),
            path=self.path,
            members=lambda: [member("n1", *self.installed[-1], is_self=True), *self.others],
            install=self._install,
            note=lambda kind, name: self.noted.append((kind, name)),
        )

    def _install(self, keys: tuple[bytes, ...]) -> None:
        self.on_disk_first.append(read_keyring(self.path) == keys)
        self.installed.append(keys)
