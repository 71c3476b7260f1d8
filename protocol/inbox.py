"""From sealed datagrams to messages: whom to hear, what opens, what a recording may say. SPEC §4.4,
§4.5, §4.8.

Owned by Gossip. A datagram that is refused leaves no trace but in the budgets of its source.
"""

from __future__ import annotations

from .codec import decode_packet, split_packet
from .errors import RemoteProtocolError
from .member import Address
from .messages import Down, Message, Pad, Ping, Suspect
from .seal import Opened, Seal
from .sources import Sources
from .table import Peer, Table
from .traffic import Traffic


class Inbox:
    def __init__(
        self, *, seal: Seal, table: Table, own: Peer, traffic: Traffic, now: float
    ) -> None:
        self._seal = seal
        self._table = table
        self._own = own
        self._traffic = traffic
        self.sources = Sources(lambda address: table.at_address(address) is not None, now)

    def take(
        self, data: bytes, source: Address, now: float
    ) -> tuple[Opened, list[tuple[Message, bytes]], int]:
        """The datagram, consumed; what of it counts, as messages and as they were encoded; how many
        messages do not.

        Raises RemoteProtocolError: as Gossip.receive_datagram."""
        self.sources.admit(source, now)
        try:
            opened = self._seal.open(data)
        except RemoteProtocolError:
            self.sources.refused(source, now)
            raise
        self.sources.opened(source, opened.sender, now, bound=opened.bound)
        messages = decode_packet(opened.payload)
        self._check_sender(opened)
        self._seal.commit(opened)
        parts = split_packet(opened.payload)
        self._traffic.note_received(len(data), messages, parts)
        used = [
            (message, part)
            for message, part in zip(messages, parts, strict=True)
            if opened.bound or self._proves_itself(message)
        ]
        return opened, used, len(messages) - len(used)

    def _check_sender(self, opened: Opened) -> None:
        if opened.sender == self._own.node_id:
            raise RemoteProtocolError("own-datagram", f"generation {opened.generation}")
        peer = self._table.get(opened.sender)
        if peer is not None and opened.generation < peer.generation:
            raise RemoteProtocolError("stale-generation", f"{opened.generation} of {peer.node_id}")

    def _proves_itself(self, message: Message) -> bool:
        """Whether it may stand in what could be a recording: nothing that changes more than this
        node's own incarnation may."""
        if isinstance(message, (Suspect, Down)):
            return message.node == self._own.raw
        return isinstance(message, (Ping, Pad))
