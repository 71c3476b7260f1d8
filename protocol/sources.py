"""Who may still be listened to: budgets of datagrams that do not open, and of those that do.
SPEC §4.8.

Owned by Gossip. A source that sends what does not open is dropped unread for a while, unless a
member is known to speak from there: anybody can write a member's address on a datagram, and must
not silence it so. Bounds: SOURCES_MAX sources, PROVEN_MAX addresses, SENDERS_MAX senders.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Final

from .budget import Budget
from .errors import RemoteProtocolError
from .ids import NodeId
from .member import Address

SOURCES_MAX: Final = 1024
REFUSED_PER_S: Final = 16.0
REFUSED_BURST: Final = 64.0
"""Per source. A restarted or misconfigured peer sends a few per second."""
BLOCK_S: Final = 2.0
BLOCKED_TOLD_MAX: Final = 16
STRANGERS_PER_S: Final = 1000.0
STRANGERS_BURST: Final = 2000.0
"""All that are not members together: opening one costs up to 10 µs, so 1 % of a core. Behind it a
flood from ever new addresses is dropped unread, and so is who joins in that moment, who tries again
until it is heard."""
STRANGERS_BLOCK_S: Final = 0.05
PROVEN_MAX: Final = 4096
SENDERS_MAX: Final = 16_384
SENDER_PER_S: Final = 1000.0
SENDER_BURST: Final = 4000.0
"""Per member, of datagrams that open: several times what the liveliest cluster was seen to send."""


class Sources:
    def __init__(self, is_member: Callable[[Address], bool], now: float) -> None:
        """`is_member`: whether the member table has that gossip address."""
        self._is_member = is_member
        self._refused: OrderedDict[Address, Budget] = OrderedDict()
        self._blocked: OrderedDict[Address, float] = OrderedDict()
        """Until when."""
        self._strangers = Budget(STRANGERS_PER_S, STRANGERS_BURST, now)
        self._strangers_until_s = now
        self._proven: OrderedDict[Address, None] = OrderedDict()
        """Where members speak from that call themselves otherwise (NAT)."""
        self._senders: OrderedDict[NodeId, Budget] = OrderedDict()

    def __len__(self) -> int:
        """Sources under a ban that may have ended."""
        return len(self._blocked)

    def blocked(self, now: float) -> tuple[Address, ...]:
        """The latest of them, for a driver that can have them dropped further out."""
        if not self._blocked:
            return ()
        latest = islice(reversed(self._blocked.items()), BLOCKED_TOLD_MAX)
        return tuple(
            source for source, until_s in latest if until_s > now and not self._spoken_for(source)
        )

    def admit(self, source: Address, now: float) -> None:
        """Raises RemoteProtocolError("source-limit"): not to be read."""
        if not self._blocked and now >= self._strangers_until_s:
            return
        until_s = max(self._blocked.get(source, now), self._strangers_until_s)
        if until_s > now and not self._spoken_for(source):
            raise RemoteProtocolError("source-limit", f"nothing from {source[0]} for a while")

    def refused(self, source: Address, now: float) -> None:
        """What came from there did not open."""
        if self._spoken_for(source):
            return
        if not self._strangers.spend(1, now):
            self._strangers_until_s = now + STRANGERS_BLOCK_S
        budget = self._refused.get(source)
        if budget is None:
            budget = self._refused[source] = Budget(REFUSED_PER_S, REFUSED_BURST, now)
            if len(self._refused) > SOURCES_MAX:
                self._refused.popitem(last=False)
        if not budget.spend(1, now):
            self._blocked.pop(source, None)
            self._blocked[source] = now + BLOCK_S
        while self._blocked:
            oldest = next(iter(self._blocked))
            if len(self._blocked) <= SOURCES_MAX and self._blocked[oldest] > now:
                break
            del self._blocked[oldest]

    def opened(self, source: Address, sender: NodeId, now: float, *, bound: bool) -> None:
        """Raises RemoteProtocolError("sender-limit"): not to be used."""
        if bound and source not in self._proven and not self._is_member(source):
            self._proven[source] = None
            if len(self._proven) > PROVEN_MAX:
                self._proven.popitem(last=False)
        budget = self._senders.get(sender)
        if budget is None:
            budget = self._senders[sender] = Budget(SENDER_PER_S, SENDER_BURST, now)
            if len(self._senders) > SENDERS_MAX:
                self._senders.popitem(last=False)
        if not budget.spend(1, now):
            raise RemoteProtocolError("sender-limit", f"{sender} sends too much")

    def _spoken_for(self, source: Address) -> bool:
        return source in self._proven or self._is_member(source)
