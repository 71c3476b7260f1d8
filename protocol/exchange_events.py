"""What passes between a protocol.exchange.Fetch and its driver: commands, events. SPEC §10."""

from __future__ import annotations

import msgspec

from .ids import NodeId
from .manifest import Manifest
from .streams import Cancel, GetAny, GetManifest, GetSegment, Have, Want


class FetchConfig(msgspec.Struct, frozen=True):
    sources_max: int = 12
    """Sources a fetch chooses to be connected to. Random graphs of that degree spread a blob
    through 200 nodes within a few per cent of the bound (tests/sim_exchange)."""
    dial_backs_max: int = 20
    """Beyond those, fetchers that dialled this node: only where both dial does each hear of what
    the other gets."""
    dials_first: int = 2
    """Before the manifest tells how much there is to do."""
    source_segments: int = 8
    """One more source for so many missing segments: a TLS handshake costs as much CPU as these."""
    window_bytes: int = 2 * 1024 * 1024
    """Wire bytes asked of one source and not yet there: 20 MB/s at 100 ms of RTT."""
    window_segments_min: int = 2
    """So the link never idles between two of them."""
    window_segments_first: int = 3
    """While the source's rate is not known."""
    window_delay_s: float = 0.03
    """Added to the RTT: what a source and this node take to turn one reply into a request."""
    inflight_bytes_max: int = 16 * 1024 * 1024
    """Asked of all sources together."""
    connect_timeout_s: float = 1.0
    """TCP and TLS: three round trips, in the same or the next region; doubled at each retry."""
    progress_timeout_s: float = 5.0
    """A source that sends no byte for so long is left. Timing out on progress and not per segment
    keeps a slow link alive."""
    reply_timeout_s: float = 60.0
    """From one whole reply to the next: a source may not trickle bytes for ever."""
    attempts_max: int = 2
    """Connections to one source without a verified byte between them."""
    retry_delay_s: float = 0.5
    """Before a source that failed is tried again."""
    announce_delay_s: float = 0.005
    announce_share: float = 0.04
    announce_delay_max_s: float = 0.25
    """News of segments goes along with the next request, or alone when it waited for about that
    share of the time the fetch took so far, within these bounds. A small blob spreads at once, and
    a large one is not spent on notices: told alone within 30 ms, 36 MB among nine nodes took 2.8
    (100 Mbit/s) to 4.5 (25 Mbit/s) of them per segment, each a packet that wakes a node."""
    endgame_segments: int = 8
    endgame_age_s: float = 0.5
    """When at most so many are missing and the oldest request is so old, others are asked too."""
    dry_s: float = 0.25
    """After a holder has sent each segment to somebody, news of where they are gets so long to come
    round before it is asked for one of them again."""
    renew_s: float = 0.6
    """A source without anything of use is asked what it has once more after so long without news:
    one that cannot dial this node cannot tell it."""
    idle_s: float = 2.0
    """Without anything of use for so long, it gives way to one not tried yet."""
    holders_s: float = 2.0
    """Between looks at who holds the blob by now."""
    patience_s: float = 10.0
    """With nobody left but fetchers that lack the same segments."""


class Dial(msgspec.Struct, frozen=True):
    """Open a connection; answer with `connected` or `failed`."""

    peer: NodeId


class Send(msgspec.Struct, frozen=True):
    peer: NodeId
    message: GetManifest | GetSegment | GetAny | Want | Have | Cancel
    body: bytes = b""


class Close(msgspec.Struct, frozen=True):
    """Drop the connection, or the attempt to make it, and everything read from it; what was to be
    sent before still goes out."""

    peer: NodeId
    owed: int | None = None
    """Rather keep it: after so many more replies, none of them large, it is as good as new."""


Transmit = Dial | Send | Close


class ManifestVerified(msgspec.Struct, frozen=True):
    """Answer with `resume` as soon as it is known what is on disk."""

    manifest: Manifest


class SegmentVerified(msgspec.Struct, frozen=True):
    """Answer with `stored` when it is on disk."""

    index: int
    wire: bytes
    peer: NodeId


class SourceLost(msgspec.Struct, frozen=True):
    """The source failed this time; it may be tried again."""

    peer: NodeId
    reason: str


class SourceBanned(msgspec.Struct, frozen=True):
    """The source sent bytes that do not verify, or broke the protocol; worth telling people."""

    peer: NodeId
    reason: str


class FetchersNamed(msgspec.Struct, frozen=True):
    """Others that fetch the same blob, as a source says. Answer with `meet` for those that are
    members."""

    peers: tuple[NodeId, ...]


class HoldersWanted(msgspec.Struct, frozen=True):
    """Who holds the blob now? Answer with `offer`."""


class Completed(msgspec.Struct, frozen=True):
    """Every segment has been handed out and is stored."""


class Failed(msgspec.Struct, frozen=True):
    """No source is left, or (`reasons` of one entry without a peer) the record itself is wrong."""

    reasons: tuple[tuple[NodeId | None, str], ...]


Event = (
    ManifestVerified
    | SegmentVerified
    | SourceLost
    | SourceBanned
    | FetchersNamed
    | HoldersWanted
    | Completed
    | Failed
)
