"""The asker's side of one sync with one peer: what to say next, until nothing differs. SPEC §7.3.

Open → outline of all that differs → list the places that only have digests, as many as one answer
holds at a time → exchange what is wanted for what is known better, in batches. It ends when all of
the outline is dealt with, or after ROUNDS_MAX. The owner (Gossip) applies what arrives and says how
much of it was news.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from .buckets import buckets_of, pack_places, place_of_group, unpack_digests
from .entries import Entry
from .errors import RemoteProtocolError
from .ids import NodeId
from .sync import (
    HASH,
    HEADROOM_BYTES,
    HOLDINGS_WANT,
    Budget,
    MemberItem,
    MemberTree,
    Sync,
    shown_order,
    sized_record,
    sized_row,
    sized_set,
    unpack_members,
    unpack_records,
)
from .syncmessages import (
    SYNC_BYTES_MAX,
    SYNC_RECORDS_MAX,
    SYNC_ROWS_MAX,
    HoldingsSet,
    Outline,
    SyncDelivery,
    SyncExchange,
    SyncList,
    SyncOpen,
    SyncOutline,
    SyncRequest,
)
from .table import Peer

ROUNDS_MAX: Final = 4096
"""A full catalog takes 512 exchanges of records and as many of tombstones, with large records some
more; nothing that converges needs so many."""
_PUSH_BYTES_MAX: Final = SYNC_BYTES_MAX - HEADROOM_BYTES - 48 * SYNC_ROWS_MAX - 8 * SYNC_RECORDS_MAX
"""What the wants leave of a payload."""
_NO_ITEM: Final = MemberItem(b"", (-1, False, 0, 0), 0)


Lists = tuple[tuple[int, bytes], ...]
"""(place, packed items)."""

K = TypeVar("K")
V = TypeVar("V")


class Asking:
    def __init__(self, peer: NodeId, sync: Sync) -> None:
        self.peer: Final = peer
        self._raw = bytes.fromhex(peer)
        self._sync = sync
        self._opened = False
        self._list_members: list[int] = []
        self._list_records: list[int] = []
        self._want_members: dict[bytes, None] = {}
        self._want_records: dict[int, tuple[int, int]] = {}
        """Key hash to (hlc, low)."""
        self._want_holdings: dict[bytes, None] = {}
        self._push_members: dict[NodeId, None] = {}
        self._push_records: dict[str, None] = {}
        self._push_holdings: dict[NodeId, tuple[int, int]] = {}
        """To the (generation, version) that the peer has."""
        self._asked = (0, 0, 0)
        self.news = 0
        """Items that changed something on either side."""
        self._rounds = 0

    @property
    def bulky(self) -> bool:
        """More records are on their way than one exchange holds."""
        return len(self._want_records) > SYNC_RECORDS_MAX

    # ------------------------------------------------------------ what to say
    def open(self) -> SyncOpen:
        sync = self._sync
        return SyncOpen(
            sync.own.alive_message(),
            sync.members().digests.groups(),
            sync.catalog.digests.groups(),
        )

    def next(self) -> SyncRequest | None:
        """The next request; None: done. What is known to be wanted is bounded: no more is listed
        while there is more of it than one exchange holds."""
        self._rounds += 1
        if self._rounds >= ROUNDS_MAX:
            return None
        unlisted = bool(self._list_members or self._list_records)
        exchange = None if unlisted and not self.bulky else self._exchange()
        if exchange is None and unlisted:
            return SyncList(pack_places(self._list_members), pack_places(self._list_records))
        return exchange

    def _exchange(self) -> SyncExchange | None:
        records = self._wanted_records()
        members = list(itertools.islice(self._want_members, SYNC_ROWS_MAX))
        holdings = list(itertools.islice(self._want_holdings, SYNC_ROWS_MAX))
        self._asked = (len(members), len(records), len(holdings))
        budget = Budget(_PUSH_BYTES_MAX)
        push_members = budget.fill(map(sized_row, self._peers_to_push()), SYNC_ROWS_MAX)
        push_records = budget.fill(map(sized_record, self._records_to_push()), SYNC_RECORDS_MAX)
        push_sets = budget.fill(map(sized_set, self._sets_to_push()), SYNC_ROWS_MAX)
        for row in push_members:
            del self._push_members[NodeId(row.alive.node.hex())]
        for key in list(self._push_records)[: len(push_records)]:
            del self._push_records[key]
        for held in push_sets:
            del self._push_holdings[NodeId(held.node.hex())]
        if not (any(self._asked) or push_members or push_records or push_sets):
            return None
        return SyncExchange(
            b"".join(members),
            b"".join(map(HASH.pack, records)),
            b"".join(map(self._holdings_want, holdings)),
            tuple(push_members),
            tuple(push_records),
            tuple(push_sets),
        )

    def _wanted_records(self) -> list[int]:
        """The next batch; what has come by other ways meanwhile is left out."""
        wanted: list[int] = []
        for hashed, order in list(self._want_records.items()):
            entry = self._sync.catalog.by_hash(hashed)
            if entry is not None and (entry.hlc > order[0] or (entry.hlc, entry.low) == order):
                del self._want_records[hashed]
                continue
            wanted.append(hashed)
            if len(wanted) == SYNC_RECORDS_MAX:
                break
        return wanted

    def _holdings_want(self, raw: bytes) -> bytes:
        return HOLDINGS_WANT.pack(raw, *self._sync.holdings.version(NodeId(raw.hex())))

    def _peers_to_push(self) -> Iterator[Peer]:
        for node_id in list(self._push_members):
            peer = self._sync.table.get(node_id)
            if peer is None:
                del self._push_members[node_id]
            else:
                yield peer

    def _records_to_push(self) -> Iterator[bytes]:
        for key in list(self._push_records):
            encoded = self._sync.catalog.encoded(key)
            if encoded is None:
                del self._push_records[key]
            else:
                yield encoded

    def _sets_to_push(self) -> Iterator[HoldingsSet]:
        for node_id, known in list(self._push_holdings.items()):
            held = self._sync.holdings.export(node_id, *known)
            if held is None:
                del self._push_holdings[node_id]
            else:
                yield held

    # ------------------------------------------------------------ what was said
    def on_outline(self, outline: SyncOutline) -> None:
        """Of all that differs, then of the places asked for. Raises RemoteProtocolError("sync")."""
        records, members = outline.records, outline.members
        if self._opened:
            self._tick_off(outline)
        self._compare_records(records.lists)
        self._compare_members(members.lists)
        if not self._opened:
            self._opened = True
            self._list_records = _differing(records, self._sync.catalog.digests.children)
            if members.digests:
                self._list_members = _differing(members, self._sync.members().digests.children)

    def _tick_off(self, outline: SyncOutline) -> None:
        """What was listed was asked for, and there is less to ask for now."""
        for part, places in (
            (outline.members, self._list_members),
            (outline.records, self._list_records),
        ):
            listed = [place for place, _ in part.lists]
            if part.digests or listed != places[: len(listed)]:
                raise RemoteProtocolError("sync", "something else was listed")
            del places[: len(listed)]
        if not (outline.members.lists or outline.records.lists):
            raise RemoteProtocolError("sync", "nothing was listed")

    def check_delivery(self, delivery: SyncDelivery) -> None:
        """Raises RemoteProtocolError("sync") if the peer served what was not asked, or nothing."""
        served, asked = delivery.served, self._asked
        if any(done > limit for done, limit in zip(served, asked, strict=True)):
            raise RemoteProtocolError("sync", "more was served than asked for")
        if any(asked) and not any(served):
            raise RemoteProtocolError("sync", "nothing was served")

    def on_delivery(self, delivery: SyncDelivery, *, news: int) -> None:
        """Checked, and taken in."""
        served = delivery.served
        self._asked = (0, 0, 0)
        self.news += news + delivery.taken
        _drop_first(self._want_members, served[0])
        _drop_first(self._want_records, served[1])
        _drop_first(self._want_holdings, served[2])

    def _compare_records(self, lists: Lists) -> None:
        catalog = self._sync.catalog
        pushed: list[Entry] = []
        wanted: dict[int, tuple[int, int]] = {}
        for place, packed in lists:
            listed = {hashed: (hlc, low) for hashed, hlc, low in unpack_records(packed)}
            for entry in catalog.at(place):
                other = listed.pop(entry.hashed, None)
                mine = entry.hlc, entry.low
                if other == mine:
                    continue
                if other is None or mine[0] >= other[0]:
                    pushed.append(entry)
                if other is not None and other[0] >= mine[0]:
                    wanted[entry.hashed] = other
            wanted.update(listed)
        # A version is signed just before its alias: in order of time a cut delta makes sense.
        self._want_records |= dict(sorted(wanted.items(), key=lambda item: item[1][0]))
        self._push_records |= dict.fromkeys(
            entry.key for entry in sorted(pushed, key=lambda entry: (entry.hlc, entry.key))
        )

    def _compare_members(self, lists: Lists) -> None:
        if not lists:
            return
        tree = self._sync.members()
        for place, packed in lists:
            self._compare_rows(tree, place, {item.node: item for item in unpack_members(packed)})

    def _compare_rows(self, tree: MemberTree, place: int, listed: dict[bytes, MemberItem]) -> None:
        """The peer's own row came with its outline, as the asker's with the opening."""
        holdings = self._sync.holdings
        for peer in tree.at(place):
            known = peer.raw in listed
            item = listed.pop(peer.raw, _NO_ITEM)
            order = shown_order(peer)
            if known or peer.reachable:
                if order > item.order:
                    self._push_members[peer.node_id] = None
                elif order < item.order and peer.raw != self._raw:
                    self._want_members[peer.raw] = None
            mine, other = holdings.version(peer.node_id), (item.generation, item.holdings)
            if mine[1] and mine > other and peer.reachable:
                self._push_holdings[peer.node_id] = (max(0, other[0]), other[1])
            elif item.holdings and other > mine:
                self._want_holdings[peer.raw] = None
        for raw, item in listed.items():
            if item.reachable:
                if raw != self._raw:
                    self._want_members[raw] = None
                if item.holdings:
                    self._want_holdings[raw] = None


def _differing(theirs: Outline, children: Callable[[int], bytes]) -> list[int]:
    """Buckets to be listed."""
    places: list[int] = []
    for group, packed in theirs.digests:
        pairs = zip(unpack_digests(packed), unpack_digests(children(group)), strict=True)
        buckets = buckets_of(place_of_group(group))
        places += [bucket for bucket, (a, b) in zip(buckets, pairs, strict=True) if a != b]
    return places


def _drop_first(pending: dict[K, V], count: int) -> None:
    for key in list(itertools.islice(pending, count)):
        del pending[key]
