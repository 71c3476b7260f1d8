"""What the gossip machine tells its driver, and what it asks of it. SPEC §4–§7."""

from __future__ import annotations

from typing import Literal

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
    """New metadata."""

    member: Member


StreamOutcome = Literal["pong", "stalled", "refused", "silent"]
"""Of a look over TCP. `pong`: it answered, it lives. `stalled`: its kernel took the connection and
the process has said nothing yet: stopped, or starved. `refused`: nobody listens. `silent`: no
connection, or none that tells anything."""


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a member is suspected or held down, as far as this node knows."""

    accuser: str
    """Name (or id, if unknown) of the first accuser heard of; of the declarer where this node
    heard of the death only."""
    accusers: int
    refusals: int
    """How many nodes were told that nobody listens there."""
    stalls: int = 0
    """How many found its host there and the process stopped."""
    direct_ms: int | None = None
    """This node's own ping went unanswered for so long; None: it has not probed."""
    helpers: int = 0
    """Asked to probe for this node."""
    nacks: int = 0
    """Helpers that heard nothing either; the others said nothing at all."""
    stream: StreamOutcome | None = None
    suspected_ms: int = 0

    @property
    def text(self) -> str:
        """One line for an operator."""
        parts = [f"accused by {self.accuser}"]
        if self.accusers > 1:
            parts[0] += f" and {self.accusers - 1} more"
        if self.direct_ms is not None:
            parts.append(f"own ping unanswered for {self.direct_ms} ms")
        if self.helpers:
            silent = self.helpers - self.nacks
            parts.append(
                f"{self.helpers} helpers asked: {self.nacks} heard nothing, {silent} were silent"
            )
        if self.stream is not None:
            parts.append(f"stream {self.stream}")
        if self.refusals:
            parts.append(f"refused to {self.refusals}")
        if self.stalls:
            parts.append(f"seems stopped to {self.stalls}")
        if self.suspected_ms:
            parts.append(f"suspected for {self.suspected_ms} ms")
        return "; ".join(parts)


class MemberSuspect(msgspec.Struct, frozen=True):
    member: Member
    reason: Reason


class MemberRefuted(msgspec.Struct, frozen=True):
    """A suspected member said that it lives; `reason` is what had spoken against it."""

    member: Member
    reason: Reason


class MemberDown(msgspec.Struct, frozen=True):
    member: Member
    reason: Reason


class Accused(msgspec.Struct, frozen=True):
    """`accuser` (a name, or an id) says this node is suspect, down or left; it contradicted."""

    accuser: str
    state: Literal["suspect", "down", "left"]


class MemberLeft(msgspec.Struct, frozen=True):
    member: Member


class RecordsAccepted(msgspec.Struct, frozen=True):
    """Records learned from peers, verified and applied: (key, encoded record), to be persisted."""

    records: tuple[tuple[str, bytes], ...]


class RecordsPurged(msgspec.Struct, frozen=True):
    """Records the catalog has forgotten (tombstones above its room; records of the future, by their
    operator's word): keys to be dropped from disk, unless `catalog.encoded(key)` says that one is
    back."""

    keys: tuple[str, ...]


class HoldingsChanged(msgspec.Struct, frozen=True):
    """A peer's holdings are not what they were; ask `holdings.holders`."""

    node_id: NodeId


class SyncWanted(msgspec.Struct, frozen=True):
    """Please run one stream sync with `peer` now: send what Gossip.sync_begin gives, then what
    sync_next makes of each reply, until that is None; sync_failed if it breaks. Rate-limited and
    bounded by the machine."""

    peer: Member


class StreamProbe(msgspec.Struct, frozen=True):
    """Please look at `member` over TCP: connect, then TLS and Ping, and report with
    Gossip.on_stream_probe: `stalled` as soon as the connection stands, then whatever becomes of it.
    Keep a stalled one open, as it tells at once when the process wakes or dies. The machine keeps
    at most streamprobes.OPEN_MAX open."""

    probe_id: int
    member: Member


class StreamProbeEnd(msgspec.Struct, frozen=True):
    """Nobody waits for this probe any more; close it."""

    probe_id: int


class IdentityClash(msgspec.Struct, frozen=True):
    """Peers know a newer generation of this very node id: another process runs under this
    identity, or the persisted generation was lost and the clock that replaced it is behind. Restart
    gossip above `generation`."""

    generation: int
    shunned: bool = False
    """A peer said so over a stream, and no member is reachable: as none hears a former self, no
    waiting changes that."""


class SeedsSilent(msgspec.Struct, frozen=True):
    """This node is alone, and its seeds answer no knock: ping these over a stream, and report to
    Gossip.on_generation_known which generation of this node each knows."""

    addresses: tuple[Address, ...]


Event = (
    MemberUp
    | MemberUpdated
    | MemberSuspect
    | MemberRefuted
    | MemberDown
    | MemberLeft
    | RecordsAccepted
    | RecordsPurged
    | HoldingsChanged
    | SyncWanted
    | StreamProbe
    | StreamProbeEnd
    | Accused
    | IdentityClash
    | SeedsSilent
)
