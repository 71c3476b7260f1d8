"""What the gossip machine tells its driver, and what it asks of it. SPEC §4–§7."""

from __future__ import annotations

import msgspec

from .ids import NodeId
from .member import Address, Member


class Datagram(msgspec.Struct, frozen=True):
    """Send `data` (sealed, at most 1,200 bytes) to `address`."""

    address: Address
    data: bytes


class MemberUp(msgspec.Struct, frozen=True):
    """A member joined, restarted (new generation), or came back from down."""

    member: Member


class MemberUpdated(msgspec.Struct, frozen=True):
    """New metadata, or a suspicion was refuted."""

    member: Member


class MemberSuspect(msgspec.Struct, frozen=True):
    member: Member


class MemberDown(msgspec.Struct, frozen=True):
    member: Member


class MemberLeft(msgspec.Struct, frozen=True):
    member: Member


class RecordsAccepted(msgspec.Struct, frozen=True):
    """Records learned from peers, verified and applied: (key, encoded record), to be persisted."""

    records: tuple[tuple[str, bytes], ...]


class RecordsPurged(msgspec.Struct, frozen=True):
    """Tombstones the catalog has forgotten: keys to be dropped from disk, unless
    `catalog.encoded(key)` says that one is back by then."""

    keys: tuple[str, ...]


class HoldingsChanged(msgspec.Struct, frozen=True):
    """A peer's holdings are not what they were; ask `holdings.holders`."""

    node_id: NodeId


class SyncWanted(msgspec.Struct, frozen=True):
    """Please run one stream sync with `peer` now (see Gossip.sync_begin); failure needs no report:
    it is asked for again while there is a reason. Rate-limited and bounded by the machine."""

    peer: Member


class IdentityClash(msgspec.Struct, frozen=True):
    """Peers know a newer generation of this very node id: another process runs under this
    identity, or the persisted generation was lost. Restart gossip above `generation`."""

    generation: int


Event = (
    MemberUp
    | MemberUpdated
    | MemberSuspect
    | MemberDown
    | MemberLeft
    | RecordsAccepted
    | RecordsPurged
    | HoldingsChanged
    | SyncWanted
    | IdentityClash
)
