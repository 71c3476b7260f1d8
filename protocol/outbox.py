"""From messages to sealed datagrams: fills each with pending updates, keeps what waits. SPEC §4.3.

Owned by Gossip. Bound: TRANSMITS_MAX datagrams; above it the oldest is lost, as the network might
have lost it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .broadcasts import Broadcasts
from .codec import MESSAGE_BYTES_MAX, encode_message, join_messages
from .events import Datagram
from .member import Address
from .messages import MESSAGES_MAX, Down, Suspect
from .presets import Knobs
from .probing import Send
from .rng import Rng
from .seal import Seal
from .suspicion import retransmit_limit
from .table import Peer, Table
from .timers import Timers

TRANSMITS_MAX: Final = 8192
ROUND_SPACING_S: Final = 0.005
"""Least time between two rounds: a burst of news shares its datagrams."""
ROUND_KEY: Final = ("gossip", 0)


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
    ) -> None:
        self._seal = seal
        self._table = table
        self._broadcasts = broadcasts
        self._knobs = knobs
        self._rng = rng
        self._timers = timers
        self._own = own
        self._waiting: deque[Datagram] = deque()
        self._round_at_s: float | None = None
        self.sent = 0
        self.sent_bytes = 0
        self.lost = 0

    def poll(self) -> Datagram | None:
        if not self._waiting:
            return None
        datagram = self._waiting.popleft()
        self.sent += 1
        self.sent_bytes += len(datagram.data)
        return datagram

    def send(self, send: Send) -> None:
        """A member that is suspected or held down hears of it first, so that it can refute."""
        parts = [encode_message(message) for message in send.messages]
        peer = self._table.get(send.to) if send.to is not None else None
        accusation = self._accusation(peer)
        if accusation is not None:
            parts.append(encode_message(accusation))
        self._emit(send.address, parts)

    def _accusation(self, peer: Peer | None) -> Suspect | Down | None:
        if peer is None or (peer.state == "suspect" and not self._knobs.buddy):
            return None
        return peer.accusation(self._own)

    def _emit(self, address: Address, parts: list[bytes]) -> None:
        room = MESSAGE_BYTES_MAX - sum(map(len, parts))
        limit = retransmit_limit(self._knobs.retransmit_factor, len(self._table))
        parts += self._broadcasts.take(room, MESSAGES_MAX - len(parts), limit=limit)
        if not parts:
            return
        if len(self._waiting) >= TRANSMITS_MAX:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(Datagram(address, self._seal.seal(join_messages(parts))))

    def news(self, now: float) -> None:
        """Something new is to be told: a round at once, or as soon as the spacing allows."""
        earliest = now if self._round_at_s is None else self._round_at_s + ROUND_SPACING_S
        if earliest <= now:
            self.round(now)
        else:
            self._timers.set_earlier(ROUND_KEY, earliest)

    def round(self, now: float) -> None:
        """Pending updates to a few random members, and again after the interval while any pend."""
        self._timers.cancel(ROUND_KEY)
        others = self._table.others()
        if not len(self._broadcasts) or not others:
            return
        self._round_at_s = now
        for peer in self._rng.sample(others, min(self._knobs.gossip_fanout, len(others))):
            accusation = self._accusation(peer)
            self._emit(peer.address, [] if accusation is None else [encode_message(accusation)])
        if len(self._broadcasts):
            self._timers.set(ROUND_KEY, now + self._knobs.gossip_interval_s)
