"""What passes between a protocol.exchange.Fetch and its driver: commands, events. SPEC §10."""

from __future__ import annotations

from dataclasses import dataclass

from .ids import NodeId
from .manifest import Manifest
from .streams import GetManifest, GetSegment


@dataclass(frozen=True, slots=True)
class FetchConfig:
    window_bytes: int = 2 * 1024 * 1024
    """Wire bytes asked for and not yet there: 20 MB/s at 100 ms of RTT."""
    window_segments_min: int = 2
    """Asked for at once even where two segments exceed the window, so the link never idles."""
    connect_timeout_s: float = 3.0
    """TCP and TLS: three round trips at the worst RTT there is on Earth (~0.6 s), with slack."""
    progress_timeout_s: float = 5.0
    """A holder that sends no byte for so long is left. Timing out on progress and not per segment
    keeps a slow link alive."""
    reply_timeout_s: float = 60.0
    """From one whole reply to the next: a holder may not trickle bytes for ever."""
    attempts_max: int = 2
    """Connections to one holder without a verified byte between them."""
    retry_delay_s: float = 0.5
    """Before a holder that failed is tried again, when no other is left."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a connection; answer with `connected` or `failed`."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Send:
    peer: NodeId
    message: GetManifest | GetSegment


@dataclass(frozen=True, slots=True)
class Close:
    """Drop the connection, or the attempt to make it, and everything read from it."""

    peer: NodeId


Transmit = Dial | Send | Close


@dataclass(frozen=True, slots=True)
class ManifestVerified:
    """Answer with `resume` as soon as it is known what is on disk."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class SegmentVerified:
    index: int
    wire: bytes
    peer: NodeId


@dataclass(frozen=True, slots=True)
class SourceLost:
    """The holder failed this time; it may be tried again."""

    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class SourceBanned:
    """The holder sent bytes that do not verify, or broke the protocol; worth telling people."""

    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class HoldersWanted:
    """Everybody known has failed (or nobody is known). Answer with `offer`."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Every segment has been handed out."""


@dataclass(frozen=True, slots=True)
class Failed:
    """No holder is left, or (`reasons` of one entry without a peer) the record itself is wrong."""

    reasons: tuple[tuple[NodeId | None, str], ...]


Event = (
    ManifestVerified
    | SegmentVerified
    | SourceLost
    | SourceBanned
    | HoldersWanted
    | Completed
    | Failed
)
