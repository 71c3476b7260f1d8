"""Digest and delta between two nodes, over a stream: members, records, holdings. SPEC §7.

Asker → request (what it has) → answerer → answer (what the asker lacks, what is wanted) → asker →
push (what was wanted). All pure reading here; Gossip applies what arrives. A payload is at most
SYNC_BYTES_MAX; what does not fit is left out and `more` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final, TypeVar

from .catalog import ITEM as RECORD_ITEM
from .catalog import Catalog
from .codec import encode_message
from .errors import RemoteProtocolError
from .holdings import Holdings
from .ids import NODE_ID_BYTES, NodeId
from .member import MemberState
from .messages import (
    SYNC_BYTES_MAX,
    SYNC_ITEMS_MAX,
    SYNC_RECORDS_MAX,
    HoldingsFull,
    MemberRow,
    SyncAnswer,
    SyncPush,
    SyncRequest,
)
from .table import RANK, Peer, Table, WordOrder, word_order

MEMBER_ITEM: Final = Struct(">16sQIBQ")
"""node id, generation, incarnation, state (RANK; suspect counts as alive), holdings version."""
_HASH: Final = Struct(">Q")
_STATES: Final[dict[int, MemberState]] = {rank: state for state, rank in RANK.items()}
_HEADROOM: Final = 4096
_HELD_BYTES: Final = 48
"""Upper bound of one encoded (digest, form)."""

T = TypeVar("T")


class _Budget:
    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self.more = False

    def fill(
        self, items: Iterable[tuple[T, int]], items_max: int = SYNC_ITEMS_MAX
    ) -> tuple[T, ...]:
        """Items from the first on while they fit; `more` is set by the first that does not."""
        taken: list[T] = []
        for item, size_bytes in items:
            if size_bytes > self._left or len(taken) == items_max:
                self.more = True
                break
            self._left -= size_bytes
            taken.append(item)
        return tuple(taken)


def _shown(peer: Peer) -> MemberState:
    """Suspicion is for gossip; a sync speaks of what lasts."""
    return "alive" if peer.state == "suspect" else peer.state


def _order(peer: Peer) -> WordOrder:
    return word_order(peer.generation, peer.incarnation, _shown(peer))


def _row(peer: Peer) -> tuple[MemberRow, int]:
    row = MemberRow(_shown(peer), peer.alive_message())
    return row, len(encode_message(row.alive)) + 16


def _full(full: HoldingsFull) -> tuple[HoldingsFull, int]:
    return full, 48 + _HELD_BYTES * len(full.held)


def _sized(record: bytes) -> tuple[bytes, int]:
    return record, len(record) + 5


class Sync:
    def __init__(self, own: Peer, table: Table, catalog: Catalog, holdings: Holdings) -> None:
        self._own = own
        self._table = table
        self._catalog = catalog
        self._holdings = holdings

    def request(self) -> SyncRequest:
        members = b"".join(
            MEMBER_ITEM.pack(
                peer.raw,
                peer.generation,
                peer.incarnation,
                RANK[_shown(peer)],
                self._holdings.version(peer.node_id)[1],
            )
            for peer in self._table.peers()
        )
        return SyncRequest(self._own.alive_message(), members, self._catalog.summary())

    def answer(self, request: SyncRequest) -> SyncAnswer:
        """Raises RemoteProtocolError("sync") for a malformed summary."""
        rows, sets, want_members, want_sets = self._compare_members(
            request.members, asker=request.sender.node
        )
        if len(request.records) % RECORD_ITEM.size:
            raise RemoteProtocolError("sync", "record summary is cut off")
        records, wanted = self._catalog.compare(request.records)
        want_records = b"".join(_HASH.pack(hashed) for hashed in wanted)
        wants = len(want_members) + len(want_records) + len(want_sets)
        budget = _Budget(SYNC_BYTES_MAX - _HEADROOM - wants)
        return SyncAnswer(
            sender=self._own.alive_message(),
            members=budget.fill(_row(peer) for peer in rows),
            records=budget.fill((_sized(record) for record in records), SYNC_RECORDS_MAX),
            holdings=budget.fill(_full(full) for full in sets),
            want_members=want_members,
            want_records=want_records,
            want_holdings=want_sets,
            more=budget.more,
        )

    def push(self, answer: SyncAnswer) -> SyncPush | None:
        """What `answer` wants; None if it wants nothing that is here.

        Raises RemoteProtocolError("sync") for malformed lists."""
        if len(answer.want_records) % _HASH.size:
            raise RemoteProtocolError("sync", "list of wanted records is cut off")
        peers = [self._table.get(node_id) for node_id in _unpack_nodes(answer.want_members)]
        fulls = [self._holdings.full(node_id) for node_id in _unpack_nodes(answer.want_holdings)]
        hashes = (hashed for (hashed,) in _HASH.iter_unpack(answer.want_records))
        records = self._catalog.select(hashes)
        budget = _Budget(SYNC_BYTES_MAX - _HEADROOM)
        push = SyncPush(
            members=budget.fill(_row(peer) for peer in peers if peer is not None),
            records=budget.fill((_sized(record) for record in records), SYNC_RECORDS_MAX),
            holdings=budget.fill(_full(full) for full in fulls if full is not None),
            more=budget.more,
        )
        return push if push.members or push.records or push.holdings or push.more else None

    def _compare_members(
        self, summary: bytes, *, asker: bytes
    ) -> tuple[list[Peer], list[HoldingsFull], bytes, bytes]:
        """(rows and sets the asker lacks, ids of rows and of sets that it has newer). Its own row
        came with the request."""
        if len(summary) % MEMBER_ITEM.size:
            raise RemoteProtocolError("sync", "member summary is cut off")
        theirs: dict[bytes, tuple[WordOrder, int]] = {}
        for raw, generation, incarnation, rank, version in MEMBER_ITEM.iter_unpack(summary):
            state = _STATES.get(rank)
            if state is None:
                raise RemoteProtocolError("sync", f"member state {rank}")
            theirs[raw] = (word_order(generation, incarnation, state), version)
        rows: list[Peer] = []
        sets: list[HoldingsFull] = []
        want_rows: list[bytes] = []
        want_sets: list[bytes] = []
        for peer in self._table.peers():
            generation, version = self._holdings.version(peer.node_id)
            order, their_version = theirs.pop(peer.raw, ((-1, False, 0, 0), 0))
            if order[0] >= 0 or peer.reachable:
                if _order(peer) > order:
                    rows.append(peer)
                elif _order(peer) < order and peer.raw != asker:
                    want_rows.append(peer.raw)
            mine, other = (generation, version), (order[0], their_version)
            if version and mine > other and peer.reachable:
                full = self._holdings.full(peer.node_id)
                if full is not None:
                    sets.append(full)
            elif their_version and other > mine:
                want_sets.append(peer.raw)
        for raw, (order, their_version) in theirs.items():
            if order[3] <= RANK["suspect"]:
                if raw != asker:
                    want_rows.append(raw)
                if their_version:
                    want_sets.append(raw)
        return rows, sets, b"".join(want_rows), b"".join(want_sets)


def _unpack_nodes(data: bytes) -> list[NodeId]:
    if len(data) % NODE_ID_BYTES:
        raise RemoteProtocolError("sync", "list of wanted nodes is cut off")
    return [
        NodeId(data[at : at + NODE_ID_BYTES].hex()) for at in range(0, len(data), NODE_ID_BYTES)
    ]
