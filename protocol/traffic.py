"""Counters of datagrams by direction and of messages by type. SPEC §4.6 names the types.

Owned by Gossip. The bytes of a datagram are those of its messages plus its envelope (header, tag
and array header); IP and UDP headers are not counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, get_args

from .messages import Message

ENVELOPE: Final = "envelope"
"""Stands beside the message types in counters of bytes."""


TAGS: Final[dict[type, int]] = {kind: kind.__struct_config__.tag for kind in get_args(Message)}
NAMES: Final = {
    tag: re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower() for kind, tag in TAGS.items()
}
"""Tag → "ping", "ping-req" and so on."""


class Count:
    """One direction."""

    def __init__(self) -> None:
        self.datagrams = 0
        self.bytes = 0
        self._messages: Counter[int] = Counter()
        self._message_bytes: Counter[int] = Counter()

    def note(self, datagram_bytes: int, messages: Iterable[tuple[int, int]]) -> None:
        """`messages`: (tag, encoded bytes)."""
        self.datagrams += 1
        self.bytes += datagram_bytes
        for tag, size in messages:
            self._messages[tag] += 1
            self._message_bytes[tag] += size

    def messages(self) -> dict[str, int]:
        return {NAMES[tag]: count for tag, count in sorted(self._messages.items())}

    def message_bytes(self) -> dict[str, int]:
        by_type = {NAMES[tag]: size for tag, size in sorted(self._message_bytes.items())}
        return {**by_type, ENVELOPE: self.bytes - sum(self._message_bytes.values())}


class Traffic:
    def __init__(self) -> None:
        self.sent = Count()
        self.received = Count()

    def note_sent(self, datagram_bytes: int, parts: Sequence[bytes]) -> None:
        """`parts`: encoded messages, whose second byte is the tag."""
        self.sent.note(datagram_bytes, ((part[1], len(part)) for part in parts))

    def note_received(
        self, datagram_bytes: int, messages: Sequence[Message], parts: Sequence[bytes]
    ) -> None:
        """`parts`: the messages as they were encoded, maybe by another implementation."""
        pairs = zip(messages, parts, strict=True)
        self.received.note(datagram_bytes, ((TAGS[type(one)], len(part)) for one, part in pairs))
