"""The syncs of one node, on both sides: bytes in, bytes out, what arrives is handed on. SPEC §7.3.

The answering side keeps nothing between two messages. Of the asking side, one `Asking` per peer
says what comes next; the driver carries bytes until it says None.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, assert_never

import msgspec

from .asking import Asking
from .codec import decode_sync_reply, decode_sync_request, encode_sync
from .errors import LocalProtocolError, RemoteProtocolError
from .ids import NodeId
from .messages import Alive, MemberRow
from .records import NO_PROOFS, Proofs
from .sync import Sync
from .syncmessages import (
    HoldingsSet,
    SyncDelivery,
    SyncExchange,
    SyncList,
    SyncOpen,
    SyncOutline,
    SyncReply,
    SyncRequest,
)
from .syncpolicy import SyncPolicy

ASKING_MAX: Final = 64
"""Syncs under way; the one begun longest ago is forgotten, and its driver refused."""


class Arrived(NamedTuple):
    """From an authenticated peer, to be taken in."""

    peer: NodeId
    rows: Sequence[MemberRow] = ()
    records: Sequence[bytes] = ()
    holdings: Sequence[HoldingsSet] = ()
    proofs: Proofs = NO_PROOFS
    """Of `records`."""


class TakeIn(Protocol):
    def __call__(self, arrived: Arrived, now: float, wall_ms: int, /) -> int:
        """How many items were news. Refused ones are counted and left out."""
        ...


class Syncing:
    def __init__(self, sync: Sync, policy: SyncPolicy, *, take_in: TakeIn) -> None:
        self._sync = sync
        self._policy = policy
        self._take_in = take_in
        self._asking: OrderedDict[NodeId, Asking] = OrderedDict()
        self.answered = 0
        self.begun = 0
        self.futile = 0
        """Ended without any news on either side."""

    # ------------------------------------------------------------ asking
    def begin(self, peer: NodeId) -> bytes:
        asking = Asking(peer, self._sync)
        self._asking.pop(peer, None)
        self._asking[peer] = asking
        if len(self._asking) > ASKING_MAX:
            self._asking.popitem(last=False)
        self.begun += 1
        return encode_sync(asking.open())

    def next(
        self, reply: bytes, peer: NodeId, now: float, wall_ms: int, proofs: Proofs
    ) -> bytes | None:
        """Raises RemoteProtocolError: "sync", "sync-peer"; LocalProtocolError: nothing begun."""
        asking = self._asking.get(peer)
        if asking is None:
            raise LocalProtocolError(f"no sync with {peer} was begun")
        message = decode_sync_reply(reply)
        match message:
            case SyncOutline():
                check_sender(message.sender, peer)
                asking.on_outline(message)
                row = MemberRow("alive", message.sender)
                asking.news += self._take_in(Arrived(peer, (row,)), now, wall_ms)
            case SyncDelivery():
                arrived = Arrived(peer, message.members, message.records, message.holdings, proofs)
                asking.check_delivery(message)
                news = self._take_in(arrived, now, wall_ms)
                asking.on_delivery(message, news=news)
            case _:
                assert_never(message)
        request = asking.next()
        if asking.bulky and not self._policy.may_carry_bulk(peer, now):
            request = None  # another peer is sending the same
        if request is not None:
            return encode_sync(request)
        del self._asking[peer]
        self._policy.ended(peer, now, news=asking.news)
        self.futile += not asking.news
        return None

    def failed(self, peer: NodeId) -> None:
        """The stream broke, or the peer's word was refused."""
        if self._asking.pop(peer, None) is not None:
            self._policy.failed(peer)

    # ------------------------------------------------------------ answering
    def answer(
        self, request: bytes, peer: NodeId, now: float, wall_ms: int, proofs: Proofs
    ) -> bytes:
        """Raises RemoteProtocolError: "sync", "sync-peer"; the state is as before."""
        message = decode_sync_request(request)
        reply: SyncReply
        match message:
            case SyncOpen():
                check_sender(message.sender, peer)
                reply = self._sync.outline(message)
                row = MemberRow("alive", message.sender)
                self._take_in(Arrived(peer, (row,)), now, wall_ms)
                self.answered += 1
            case SyncList():
                reply = self._sync.list_places(message)
            case SyncExchange():
                delivery = self._sync.deliver(message)
                arrived = Arrived(peer, message.members, message.records, message.holdings, proofs)
                taken = self._take_in(arrived, now, wall_ms)
                reply = msgspec.structs.replace(delivery, taken=taken)
            case _:
                assert_never(message)
        return encode_sync(reply)

    # ------------------------------------------------------------ signatures beside the loop
    @staticmethod
    def records_in(payload: bytes, *, reply: bool) -> tuple[bytes, ...]:
        """The records a payload brings; () of one that does not decode."""
        message: SyncRequest | SyncReply
        try:
            message = decode_sync_reply(payload) if reply else decode_sync_request(payload)
        except RemoteProtocolError:
            return ()
        return message.records if isinstance(message, SyncDelivery | SyncExchange) else ()


def check_sender(sender: Alive, peer: NodeId) -> None:
    if sender.node.hex() != peer:
        raise RemoteProtocolError("sync-peer", f"{sender.node.hex()} speaks as {peer}")
