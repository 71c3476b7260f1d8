"""What two nodes say to each other in a sync: frozen tagged structs and their limits. SPEC §7.3.

The asker says SyncOpen, then SyncList and SyncExchange as often as it takes; the answerer keeps
nothing between them. Lists of fixed-size items travel packed, so that ten thousand decode at once.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from .buckets import BUCKETS, DIGESTS_BYTES, GROUPS, PLACES
from .messages import U32, U63, Alive, Form, MemberRow, RawDigest, RawNodeId

SYNC_BYTES_MAX: Final = 1024 * 1024
SYNC_RECORDS_MAX: Final = 256
"""Each new one costs a signature check of 0.1 to 0.19 ms; the driver has them checked beside the
loop, and merging 256 then takes it 10 ms."""
SYNC_ROWS_MAX: Final = 2048
"""Member rows and holdings, each, in one message."""
CHANGES_MAX: Final = 4096 + 1024
"""All that a node may hold, and the removals that are remembered."""


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


_Packed = Annotated[bytes, Meta(max_length=SYNC_BYTES_MAX)]
_Digests = Annotated[bytes, Meta(min_length=DIGESTS_BYTES, max_length=DIGESTS_BYTES)]
_Rows = Annotated[tuple[MemberRow, ...], Meta(max_length=SYNC_ROWS_MAX)]
_Records = Annotated[
    tuple[Annotated[bytes, Meta(min_length=1, max_length=20 * 1024)], ...],
    Meta(max_length=SYNC_RECORDS_MAX),
]


class HoldingsSet(_Wire, frozen=True):
    """What `node` holds: all of it (`since` 0), or the final state of every digest that changed
    in (since, version]; form "" is: not held."""

    node: RawNodeId
    generation: U63
    since: U63
    version: U63
    changes: Annotated[
        tuple[tuple[RawDigest, Form | Literal[""]], ...], Meta(max_length=CHANGES_MAX)
    ]


_Holdings = Annotated[tuple[HoldingsSet, ...], Meta(max_length=SYNC_ROWS_MAX)]


class Outline(_Wire, frozen=True):
    """Of the groups or places that were asked about: some in items, some in finer digests."""

    lists: Annotated[
        tuple[tuple[Annotated[int, Meta(ge=0, lt=PLACES)], _Packed], ...],
        Meta(max_length=BUCKETS),
    ]
    digests: Annotated[
        tuple[tuple[Annotated[int, Meta(ge=0, lt=GROUPS)], _Digests], ...],
        Meta(max_length=GROUPS),
    ]


class SyncOpen(_Wire, frozen=True, tag=20):
    """The asker itself, and digests over the 64 groups of members and of records."""

    sender: Alive
    members: _Digests
    records: _Digests


class SyncOutline(_Wire, frozen=True, tag=21):
    """Answer to SyncOpen: all groups that differ; and to SyncList: as many of its places as fit,
    from the first on."""

    sender: Alive
    members: Outline
    """sync.MEMBER_ITEM: node, generation, incarnation, state, holdings version."""
    records: Outline
    """catalog.ITEM: key hash, hlc, low bits of the entry digest."""


class SyncList(_Wire, frozen=True, tag=22):
    """Please list these places (packed, 2 bytes each)."""

    members: Annotated[bytes, Meta(max_length=2 * BUCKETS)]
    records: Annotated[bytes, Meta(max_length=2 * BUCKETS)]


class SyncExchange(_Wire, frozen=True, tag=23):
    """What the asker wants, and what it knows better."""

    want_members: Annotated[bytes, Meta(max_length=16 * SYNC_ROWS_MAX)]
    """16 bytes each."""
    want_records: Annotated[bytes, Meta(max_length=8 * SYNC_RECORDS_MAX)]
    """8 bytes (key hash) each."""
    want_holdings: Annotated[bytes, Meta(max_length=32 * SYNC_ROWS_MAX)]
    """sync.HOLDINGS_WANT each: node, and what the asker has: generation, version."""
    members: _Rows
    records: _Records
    holdings: _Holdings


class SyncDelivery(_Wire, frozen=True, tag=24):
    """What was wanted; `served` counts the wants of each kind that were dealt with, from the first
    on: the rest did not fit. `taken`: how many of the pushed items were news."""

    members: _Rows
    records: _Records
    holdings: _Holdings
    served: tuple[U32, U32, U32]
    taken: U32


SyncRequest = SyncOpen | SyncList | SyncExchange
SyncReply = SyncOutline | SyncDelivery
SyncPayload = SyncRequest | SyncReply
