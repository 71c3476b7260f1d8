"""Every message on the wire, as frozen tagged structs with their limits. SPEC §4.6, §5–§7.

A datagram's payload is an array of `Message`; a sync payload is one `SyncRequest`, `SyncAnswer`
or `SyncPush`. Node ids and digests are raw bytes here and hex text everywhere else. Decoding
checks every length and range; what the types cannot say is checked by the machine concerned.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from .member import Address, Metadata

RawNodeId = Annotated[bytes, Meta(min_length=16, max_length=16)]
RawDigest = Annotated[bytes, Meta(min_length=32, max_length=32)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
U32 = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
U8 = Annotated[int, Meta(ge=0, le=255)]
Form = Literal["module", "artifact", "snapshot"]

MESSAGES_MAX: Final = 128
"""A datagram has room for about 100 of the smallest."""
SYNC_BYTES_MAX: Final = 1024 * 1024
SYNC_RECORDS_MAX: Final = 256
"""Each new one costs a signature check of 0.19 ms, in one step of the receiver's loop: 50 ms."""
SYNC_ITEMS_MAX: Final = 16_384
LOAD_FULL: Final = 255


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


# ------------------------------------------------------------ probing
class Ping(_Wire, frozen=True, tag=1):
    """Answer with Ack(seq)."""

    seq: U32


class Ack(_Wire, frozen=True, tag=2):
    """Of a ping; relayed by a helper when the ping was indirect. Digest and load are the sender's
    own, whoever was pinged."""

    seq: U32
    digest: U32
    """Low half of the state digest."""
    load: U8
    """Busy share of its capacity; LOAD_FULL is all of it."""


class PingReq(_Wire, frozen=True, tag=3):
    """Ping `target` for me and send its Ack on under my `seq`, or a Nack in time."""

    seq: U32
    target: RawNodeId
    address: Address


class Nack(_Wire, frozen=True, tag=4):
    """I am here and heard your PingReq, but the target did not answer me."""

    seq: U32


# ------------------------------------------------------------ membership
class Alive(_Wire, frozen=True, tag=5):
    """Said first by the node itself."""

    node: RawNodeId
    generation: U63
    incarnation: U32
    metadata: Metadata


class Suspect(_Wire, frozen=True, tag=6):
    """`accuser` got no answer from `node`; `refused`: its host said that nobody listens there."""

    node: RawNodeId
    generation: U63
    incarnation: U32
    accuser: RawNodeId
    refused: bool


class Down(_Wire, frozen=True, tag=7):
    node: RawNodeId
    generation: U63
    incarnation: U32
    accuser: RawNodeId


class Left(_Wire, frozen=True, tag=8):
    """Said by the node itself when it goes; final for its generation."""

    node: RawNodeId
    generation: U63
    incarnation: U32


# ------------------------------------------------------------ catalog and holdings
class RecordUpdate(_Wire, frozen=True, tag=9):
    """An encoded Record that fits a datagram."""

    record: Annotated[bytes, Meta(min_length=1, max_length=1200)]


class RecordHint(_Wire, frozen=True, tag=10):
    """A record that does not fit exists; whoever lacks it asks the sender for a sync."""

    key: Annotated[str, Meta(min_length=3, max_length=160)]
    hlc: U63


class HoldingsUpdate(_Wire, frozen=True, tag=11):
    """Final state of every digest that changed in (since, version]; form "" is: not held."""

    node: RawNodeId
    generation: U63
    since: U63
    version: U63
    changes: Annotated[
        tuple[tuple[RawDigest, Literal["module", "artifact", "snapshot", ""]], ...],
        Meta(max_length=32),
    ]


class Pad(_Wire, frozen=True, tag=12):
    """Nothing, at length: a datagram that anyone could have recorded is at least as long as what it
    is answered with."""

    zeros: Annotated[bytes, Meta(max_length=1200)]


ALIVE_BYTES_MAX: Final = 640
ACK_BYTES_MAX: Final = 14
ACCUSATION_BYTES_MAX: Final = 53
"""Encoded, with every field at its longest."""

SINCE: Final[dict[int, int]] = {}
"""Tag of a message → the wire version that brought it, where that is not 1."""

ProbeMessage = Ping | Ack | PingReq | Nack
Word = Alive | Suspect | Down | Left
News = Word | RecordUpdate | RecordHint | HoldingsUpdate
Message = ProbeMessage | News | Pad


# ------------------------------------------------------------ sync
class HoldingsFull(_Wire, frozen=True):
    node: RawNodeId
    generation: U63
    version: U63
    held: Annotated[tuple[tuple[RawDigest, Form], ...], Meta(max_length=4096)]


class MemberRow(_Wire, frozen=True):
    state: Literal["alive", "suspect", "down", "left"]
    alive: Alive


_Rows = Annotated[tuple[MemberRow, ...], Meta(max_length=SYNC_ITEMS_MAX)]
_Records = Annotated[
    tuple[Annotated[bytes, Meta(min_length=1, max_length=20 * 1024)], ...],
    Meta(max_length=SYNC_RECORDS_MAX),
]
_Holdings = Annotated[tuple[HoldingsFull, ...], Meta(max_length=SYNC_ITEMS_MAX)]
_Packed = Annotated[bytes, Meta(max_length=SYNC_BYTES_MAX)]


class SyncRequest(_Wire, frozen=True, tag=20):
    """What the asker has: itself, and one packed item per member and per record."""

    sender: Alive
    members: _Packed
    """MEMBER_ITEM each: node, generation, incarnation, state, holdings version."""
    records: _Packed
    """catalog.ITEM each: key hash, hlc, low bits of the entry hash."""


class SyncAnswer(_Wire, frozen=True, tag=21):
    """What the asker lacks, and what the answerer wants in turn."""

    sender: Alive
    members: _Rows
    records: _Records
    holdings: _Holdings
    want_members: _Packed
    """16 bytes each."""
    want_records: _Packed
    """8 bytes (key hash) each."""
    want_holdings: _Packed
    """16 bytes each."""
    more: bool
    """Cut at the size limit; sync again."""


class SyncPush(_Wire, frozen=True, tag=22):
    """What the answerer wanted."""

    members: _Rows
    records: _Records
    holdings: _Holdings
    more: bool


SyncPayload = SyncRequest | SyncAnswer | SyncPush
