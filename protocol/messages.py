"""Every message on the wire, as frozen tagged structs with their limits. SPEC §4.6, §5–§7.

A datagram's payload is an array of `Message`; sync payloads are in syncmessages. Node ids and
digests are raw bytes here and hex text everywhere else. Decoding checks every length and range;
what the types cannot say is checked by the machine concerned.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from .member import Address, Metadata

RawNodeId = Annotated[bytes, Meta(min_length=16, max_length=16)]
RawDigest = Annotated[bytes, Meta(min_length=32, max_length=32)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
U32 = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
U8 = Annotated[int, Meta(ge=0, le=255)]
Form = Literal["module", "running", "building", "ready", "artifact"]
"""module: its bytes; running: the same, and code of a fast compiler; building: its bytes, and its
artifact is being compiled; ready: its bytes and an accepted artifact for the node's own artifact
key; artifact: that artifact only."""

MESSAGES_MAX: Final = 128
"""A datagram has room for about 100 of the smallest."""
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


class Finding(IntEnum):
    """What an accuser found where `node` should be: nothing; a kernel that takes connections for a
    process that says nothing; or a host's word that nobody listens there."""

    SILENT = 0
    STALLED = 1
    REFUSED = 2


class Suspect(_Wire, frozen=True, tag=6):
    """`accuser` got no answer from `node`."""

    node: RawNodeId
    generation: U63
    incarnation: U32
    accuser: RawNodeId
    finding: Finding


class Down(_Wire, frozen=True, tag=7):
    node: RawNodeId
    generation: U63
    incarnation: U32
    accuser: RawNodeId
    final: bool
    """Whatever others find: two were refused, or the longest patience is over."""


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
        tuple[tuple[RawDigest, Form | Literal[""]], ...],
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
class MemberRow(_Wire, frozen=True):
    """A row of a member table, as syncs carry it (syncmessages)."""

    state: Literal["alive", "suspect", "down", "left"]
    alive: Alive
