"""From messages to sealed datagrams: what each is bound to, what fills it. SPEC §4.3, §4.5.

Owned by Gossip. Bound: TRANSMITS_MAX datagrams; above it the oldest is lost, as the network might
have lost it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .broadcasts import Broadcasts
from .codec import FRAME_BYTES, encode_message, join_messages
from .events import Datagram
from .member import Address
from .messages import (
    ACCUSATION_BYTES_MAX,
    ACK_BYTES_MAX,
    ALIVE_BYTES_MAX,
    MESSAGES_MAX,
    SINCE,
    Down,
    Pad,
    Ping,
    Suspect,
)
from .presets import Knobs
from .probing import Send
from .rng import Rng
from .seal import DATAGRAM_BYTES_MAX, LONG_BYTES, TAG_BYTES, Seal
from .suspicion import retransmit_limit
from .table import Peer, Table
from .timers import Timers
from .traffic import Traffic

TRANSMITS_MAX: Final = 8192
ROUND_SPACING_S: Final = 0.005
ROUND_SPACING_MAX_S: Final = 0.025
"""Least time between two rounds, times the updates that wait, up to the latter: a burst of news
shares its datagrams. When 30 nodes join at once, each hears of 29 others within half a second."""
ROUND_KEY: Final = ("gossip", 0)
METADATA_GROWTH_BYTES: Final = 32
"""By so much a restarted member's introduction may be longer than the one known, to be told."""
PAD_BYTES: Final = 5
"""Of a Pad without its zeros."""


class Outbox:
    def __init__(
        self,
        *,
        seal: Seal,
        table: Table,
        broadcasts: Broadcasts,
        knobs: Knobs,
        rng: Rng,
        timers: Timers,
        own: bytes,
        wire: int,
        traffic: Traffic,
    ) -> None:
        self._seal = seal
        self._table = table
        self._broadcasts = broadcasts
        self._knobs = knobs
        self._rng = rng
        self._timers = timers
        self._own = own
        self._wire = wire
        self._traffic = traffic
        self._waiting: deque[Datagram] = deque()
        self._round_at_s: float | None = None
        self.lost = 0

    def __len__(self) -> int:
        """Datagrams that wait for the driver."""
        return len(self._waiting)

    def poll(self) -> Datagram | None:
        return self._waiting.popleft() if self._waiting else None

    def send(self, send: Send) -> None:
        """A member that is suspected or held down hears of it first, so that it can refute."""
        peer = self._table.get(send.to) if send.to is not None else None
        parts = [encode_message(message) for message in send.messages]
        accusation = self._accusation(peer)
        if accusation is not None:
            parts.append(encode_message(accusation))
        if isinstance(send.messages[0], Ping) and self._may_have_restarted(peer):
            self._knock(send, peer, parts)
        elif send.bytes_max or (send.generation and not _same(peer, send.generation)):
            self._answer(send, peer, parts)
        elif peer is not None:
            self._emit(send.address, peer, parts)

    def _accusation(self, peer: Peer | None) -> Suspect | Down | None:
        if peer is None or (peer.state == "suspect" and not self._knobs.buddy):
            return None
        return peer.accusation(self._own)

    def _may_have_restarted(self, peer: Peer | None) -> bool:
        return peer is None or peer.state != "alive" or self._seal.links.doubted(peer.raw)

    def _knock(self, send: Send, peer: Peer | None, parts: list[bytes]) -> None:
        """A ping that opens in any generation of the receiver, and so could be replayed to it: it
        says no more, and is as long as the answer may be."""
        alive = ALIVE_BYTES_MAX
        if peer is not None:
            alive = len(encode_message(peer.alive_message())) + METADATA_GROWTH_BYTES
        answer = ACK_BYTES_MAX + ACCUSATION_BYTES_MAX + alive
        missing = answer - sum(map(len, parts)) - PAD_BYTES
        if missing > 0:
            parts.append(encode_message(Pad(bytes(missing))))
        receiver = bytes.fromhex(send.to) if send.to is not None else b""
        self._put(send.address, self._seal.seal(join_messages(parts), receiver), parts)

    def _answer(self, send: Send, peer: Peer | None, parts: list[bytes]) -> None:
        """To a generation that the table has not got, or to what may be a recording."""
        assert send.to is not None
        limit = send.bytes_max or DATAGRAM_BYTES_MAX
        room = limit - LONG_BYTES - TAG_BYTES - 1
        fitting: list[bytes] = []
        for part in parts:
            if len(part) <= room:
                room -= len(part)
                fitting.append(part)
        if fitting and fitting[0] is parts[0]:
            data = self._seal.seal(
                join_messages(fitting),
                bytes.fromhex(send.to),
                send.generation,
                known=_same(peer, send.generation),
            )
            self._put(send.address, data, fitting)

    def _emit(self, address: Address, peer: Peer, parts: list[bytes]) -> None:
        wire = min(self._wire, peer.metadata.wire)
        header = self._seal.header_bytes(peer.raw, peer.generation, wire)
        room = DATAGRAM_BYTES_MAX - header - TAG_BYTES - FRAME_BYTES - sum(map(len, parts))
        limit = retransmit_limit(self._knobs.retransmit_factor, len(self._table))
        parts = [part for part in parts if SINCE.get(part[1], 1) <= wire]
        parts += self._broadcasts.take(
            room, MESSAGES_MAX - len(parts), limit=limit, wire=wire, receiver=peer.raw
        )
        if not parts:
            return
        payload = join_messages(parts)
        if header == LONG_BYTES:
            data = self._seal.seal(payload, peer.raw, peer.generation, known=True)
        else:
            data = self._seal.seal_short(payload, peer.raw, peer.generation)
        self._put(address, data, parts)

    def _put(self, address: Address, data: bytes, parts: list[bytes]) -> None:
        if len(self._waiting) >= TRANSMITS_MAX:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(Datagram(address, data))
        self._traffic.note_sent(len(data), parts)

    def news(self, now: float) -> None:
        """Something new is to be told: a round at once, or as soon as the spacing allows."""
        spacing_s = min(ROUND_SPACING_S * len(self._broadcasts), ROUND_SPACING_MAX_S)
        earliest = now if self._round_at_s is None else self._round_at_s + spacing_s
        if earliest <= now:
            self.round(now)
        else:
            self._timers.set_earlier(ROUND_KEY, earliest)

    def round(self, now: float) -> None:
        """Pending updates to a few random members, and again after the interval while any pend."""
        self._timers.cancel(ROUND_KEY)
        if not self._table.reachable:
            # Nobody hears it. Whoever comes learns by sync what holds then; what was thought of the
            # others while cut off from them all (that they are down) must not reach them later.
            self._broadcasts.clear()
        if not len(self._broadcasts):
            return
        self._round_at_s = now
        for peer in self._table.sample(self._rng, self._knobs.gossip_fanout):
            accusation = self._accusation(peer)
            parts = [] if accusation is None else [encode_message(accusation)]
            self._emit(peer.address, peer, parts)
        if len(self._broadcasts):
            self._timers.set(ROUND_KEY, now + self._knobs.gossip_interval_s)


def _same(peer: Peer | None, generation: int) -> bool:
    return peer is not None and peer.generation == generation
