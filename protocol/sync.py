"""What a node can say of its state in a sync: outlines, listings, deliveries. SPEC §7.3.

Pure reading for both sides of a sync; Gossip applies what arrives. A payload is at most
SYNC_BYTES_MAX. An outline names every group that differs, so that nothing which neither side takes
can stand in the way of the rest; of listings and deliveries, what does not fit is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple, TypeVar

from .buckets import (
    DIRECT_MAX,
    FIRST_GROUP,
    GROUPS,
    PER_GROUP,
    BucketDigests,
    place_of_group,
    unpack_digests,
    unpack_places,
)
from .catalog import Catalog
from .codec import encode_message
from .entries import ITEM as RECORD_ITEM
from .errors import RemoteProtocolError
from .holdings import Holdings
from .ids import NODE_ID_BYTES, NodeId
from .member import MemberState
from .messages import MemberRow
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
)
from .table import RANK, Peer, Table, WordOrder, word_order

MEMBER_ITEM: Final = Struct(">16sQIBQ")
"""node id, generation, incarnation, state (RANK; suspect counts as alive), holdings version."""
HOLDINGS_WANT: Final = Struct(">16sQQ")
"""node id; generation and version of the asker's copy."""
HASH: Final = Struct(">Q")
STATES: Final[dict[int, MemberState]] = {rank: state for state, rank in RANK.items()}
HEADROOM_BYTES: Final = 4096
"""Of a payload, for all that is not budgeted: sender, counters, array headers."""
OUTLINE_BYTES_MAX: Final = 256 * 1024
"""Of items: 13,000 records. Digests come on top, at most 64 KiB."""
_CHANGE_BYTES: Final = 48
"""Upper bound of one encoded (digest, form)."""
_PLACE_BYTES: Final = 8
"""Around one listing."""

T = TypeVar("T")
U = TypeVar("U")


class Budget:
    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes

    def fill(self, items: Iterable[tuple[T, int]], items_max: int) -> list[T]:
        """Items from the first on while they fit."""
        taken: list[T] = []
        for item, size_bytes in items:
            if size_bytes > self._left or len(taken) == items_max:
                break
            self._left -= size_bytes
            taken.append(item)
        return taken

    def fits(self, size_bytes: int) -> bool:
        if size_bytes > self._left:
            return False
        self._left -= size_bytes
        return True


class MemberItem(NamedTuple):
    """What one side has of a member; `node` is raw."""

    node: bytes
    order: WordOrder
    holdings: int

    @property
    def generation(self) -> int:
        return self.order[0]

    @property
    def reachable(self) -> bool:
        return self.order[3] <= RANK["suspect"]


def shown(peer: Peer) -> MemberState:
    """Suspicion is for gossip; a sync speaks of what lasts."""
    return "alive" if peer.state == "suspect" else peer.state


def shown_order(peer: Peer) -> WordOrder:
    return word_order(peer.generation, peer.incarnation, shown(peer))


def member_bucket(raw: bytes) -> int:
    """The top 12 bits of a node id, which is a hash itself."""
    return int.from_bytes(raw[:2]) >> 4


def unpack_members(data: bytes) -> Iterator[MemberItem]:
    """Raises RemoteProtocolError("sync")."""
    if len(data) % MEMBER_ITEM.size:
        raise RemoteProtocolError("sync", "member listing is cut off")
    for raw, generation, incarnation, rank, version in MEMBER_ITEM.iter_unpack(data):
        state = STATES.get(rank)
        if state is None:
            raise RemoteProtocolError("sync", f"member state {rank}")
        yield MemberItem(raw, word_order(generation, incarnation, state), version)


def unpack_records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(key hash, hlc, low). Raises RemoteProtocolError("sync")."""
    if len(data) % RECORD_ITEM.size:
        raise RemoteProtocolError("sync", "record listing is cut off")
    return RECORD_ITEM.iter_unpack(data)


def sized_row(peer: Peer) -> tuple[MemberRow, int]:
    row = MemberRow(shown(peer), peer.alive_message())
    return row, len(encode_message(row.alive)) + 16


def sized_record(record: bytes) -> tuple[bytes, int]:
    return record, len(record) + 5


def sized_set(held: HoldingsSet) -> tuple[HoldingsSet, int]:
    return held, 64 + _CHANGE_BYTES * len(held.changes)


class MemberTree:
    """The member table by buckets, for one message: made when asked for, as tables change often
    and syncs are rare."""

    def __init__(self, table: Table, holdings: Holdings) -> None:
        self._holdings = holdings
        self._groups: list[list[Peer]] = [[] for _ in range(GROUPS)]
        self._buckets: dict[int, list[Peer]] = {}
        self._digests = BucketDigests()
        for peer in table.peers():
            bucket = member_bucket(peer.raw)
            self._groups[bucket // PER_GROUP].append(peer)
            self._buckets.setdefault(bucket, []).append(peer)
            self._digests.toggle(bucket, peer.contribution)
            self._digests.toggle(bucket, holdings.contribution(peer.node_id))

    @property
    def digests(self) -> BucketDigests:
        return self._digests

    def at(self, place: int) -> list[Peer]:
        if place >= FIRST_GROUP:
            return self._groups[place - FIRST_GROUP]
        return self._buckets.get(place, [])

    def count_at(self, place: int) -> int:
        return len(self.at(place))

    def listing(self, place: int) -> bytes:
        return b"".join(
            MEMBER_ITEM.pack(
                peer.raw,
                peer.generation,
                peer.incarnation,
                RANK[shown(peer)],
                self._holdings.version(peer.node_id)[1],
            )
            for peer in self.at(place)
        )


class Sync:
    """Answers; the asker's side is asking.Asking, which reads through this too."""

    def __init__(self, own: Peer, table: Table, catalog: Catalog, holdings: Holdings) -> None:
        self.own = own
        self.table = table
        self.catalog = catalog
        self.holdings = holdings

    def members(self) -> MemberTree:
        return MemberTree(self.table, self.holdings)

    def record_listing(self, place: int) -> bytes:
        return b"".join(entry.item() for entry in self.catalog.at(place))

    def outline(self, request: SyncOpen) -> SyncOutline:
        """Of all the groups in which the asker differs."""
        budget = Budget(OUTLINE_BYTES_MAX)
        members, catalog = self.members(), self.catalog
        rows = _outline(request.members, members.digests, members.count_at, members.listing, budget)
        records = _outline(
            request.records, catalog.digests, catalog.count_at, self.record_listing, budget
        )
        return SyncOutline(self.own.alive_message(), rows, records)

    def list_places(self, request: SyncList) -> SyncOutline:
        """As many as fit, from the first on, members before records.

        Raises RemoteProtocolError("sync")."""
        budget = Budget(OUTLINE_BYTES_MAX)
        places = unpack_places(request.members)
        members = self.members() if places else None
        listed = _lists(places, members.listing, budget) if members is not None else ()
        record_places = unpack_places(request.records)
        records = _lists(record_places, self.record_listing, budget)
        return SyncOutline(self.own.alive_message(), Outline(listed, ()), Outline(records, ()))

    def deliver(self, request: SyncExchange) -> SyncDelivery:
        """Nothing is taken in by it. Raises RemoteProtocolError("sync") for malformed lists."""
        budget = Budget(SYNC_BYTES_MAX - HEADROOM_BYTES)
        peers = [self.table.get(node_id) for node_id in _unpack_nodes(request.want_members)]
        rows = budget.fill((_or_none(peer, sized_row) for peer in peers), SYNC_ROWS_MAX)
        if len(request.want_records) % HASH.size:
            raise RemoteProtocolError("sync", "list of wanted records is cut off")
        entries = (self.catalog.by_hash(one) for (one,) in HASH.iter_unpack(request.want_records))
        encoded = (entry.encoded if entry is not None else None for entry in entries)
        records = budget.fill((_or_none(one, sized_record) for one in encoded), SYNC_RECORDS_MAX)
        sets = budget.fill(
            (_or_none(one, sized_set) for one in self._sets(request.want_holdings)), SYNC_ROWS_MAX
        )
        return SyncDelivery(
            tuple(row for row in rows if row is not None),
            tuple(record for record in records if record is not None),
            tuple(one for one in sets if one is not None),
            (len(rows), len(records), len(sets)),
            taken=0,
        )

    def _sets(self, wants: bytes) -> Iterator[HoldingsSet | None]:
        if len(wants) % HOLDINGS_WANT.size:
            raise RemoteProtocolError("sync", "list of wanted holdings is cut off")
        for raw, generation, version in HOLDINGS_WANT.iter_unpack(wants):
            yield self.holdings.export(NodeId(raw.hex()), generation, version)


def _outline(
    theirs: bytes,
    digests: BucketDigests,
    count_at: Callable[[int], int],
    listing: Callable[[int], bytes],
    budget: Budget,
) -> Outline:
    """A group is listed at once if it is small, or if the asker has nothing there to compare, and
    while there is room; else its buckets' digests tell."""
    lists: list[tuple[int, bytes]] = []
    finer: list[tuple[int, bytes]] = []
    pairs = zip(unpack_digests(theirs), unpack_digests(digests.groups()), strict=True)
    for group, (other, mine) in enumerate(pairs):
        if other == mine:
            continue
        place = place_of_group(group)
        if not other or count_at(place) <= DIRECT_MAX:
            items = listing(place)
            if budget.fits(len(items) + _PLACE_BYTES):
                lists.append((place, items))
                continue
        finer.append((group, digests.children(group)))
    return Outline(tuple(lists), tuple(finer))


def _lists(
    places: list[int], listing: Callable[[int], bytes], budget: Budget
) -> tuple[tuple[int, bytes], ...]:
    def sized(place: int) -> tuple[tuple[int, bytes], int]:
        items = listing(place)
        return (place, items), len(items) + _PLACE_BYTES

    return tuple(budget.fill(map(sized, places), len(places)))


def _or_none(item: T | None, sized: Callable[[T], tuple[U, int]]) -> tuple[U | None, int]:
    return (None, 0) if item is None else sized(item)


def _unpack_nodes(data: bytes) -> list[NodeId]:
    if len(data) % NODE_ID_BYTES:
        raise RemoteProtocolError("sync", "list of wanted nodes is cut off")
    return [
        NodeId(data[at : at + NODE_ID_BYTES].hex()) for at in range(0, len(data), NODE_ID_BYTES)
    ]
