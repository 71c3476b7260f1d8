"""One source of a fetch: what it has, what it was asked, how fast it is. SPEC §10.5.

Plain state of protocol.exchange.Fetch, which alone changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from .exchange_events import FetchConfig
from .ids import NodeId

PERMANENT_CODES: Final = frozenset({"blob-not-found", "blob-corrupt"})
"""Error replies after which asking the same source again is no use."""
RATE_SAMPLE_S: Final = 0.05
"""Bytes are counted for so long, or an RTT, before they make a rate: replies come in bursts."""
DENIALS_MAX: Final = 16
"""Segments a source may announce and then not have; an honest one may have lost its disk."""
DUPLICATES_MAX: Final = 32
"""Segments a source may send that are here already before it is asked by index only."""
USELESS_MAX: Final = 4
"""Times in a row a source is connected to for nothing."""
REVIVALS_MAX: Final = 4
REVIVAL_DELAY_S: Final = 5.0


class State(Enum):
    IDLE = "idle"
    DIALING = "dialing"
    ACTIVE = "active"
    SPENT = "spent"


class Kind(Enum):
    """Of a request."""

    WANT = "want"
    MANIFEST = "manifest"
    ANY = "any"
    SEGMENT = "segment"


@dataclass(slots=True)
class Ask:
    kind: Kind
    index: int
    """Of Kind.SEGMENT."""
    sent_at: float
    cancelled: bool = False


@dataclass(slots=True)
class Source:
    peer: NodeId
    rank: float
    """Nearer holders first; a fetcher anywhere among them."""
    state: State = State.IDLE
    attempts: int = 0
    revivals: int = 0
    ready_at: float = 0.0
    heard_at: float = 0.0
    replied_at: float = 0.0
    reason: str = ""
    banned: bool = False
    asked: dict[int, Ask] = field(default_factory=dict)
    """By request id, oldest first."""
    segments_asked: int = 0
    """Of `asked`, those for segments that are not cancelled."""

    # What it has: everything, or `has`.
    offered: bool = False
    complete: bool = False
    has: int = 0
    bitmap: bytes = b""
    """Not decoded yet: there is no manifest."""
    untold: int = 0
    """Segments stored here that it does not know of."""
    untold_since: float = 0.0
    told_at: float = 0.0
    """When it last told what it has."""
    useful_at: float = 0.0
    """When it last owed or sent a segment."""
    seeds: bool = True
    """It gives what it has sent to nobody, when asked for any segment."""
    dry_at: float = 0.0
    """When it had none of those left."""
    manifestless: bool = False
    denials: int = 0
    duplicates: int = 0

    # How fast it is.
    rtt_s: float = 0.0
    rate: float = 0.0
    """Wire bytes per second while it owes some; 0: not known."""
    sample_from: float = 0.0
    sample_bytes: int = 0
    sent_bytes: int = 0
    """Of replies, in this fetch."""

    def connect(self, now: float) -> None:
        """A new connection knows nothing of the old one."""
        self.state = State.ACTIVE
        self.heard_at = self.replied_at = self.told_at = self.useful_at = now
        self.offered = self.complete = self.manifestless = False
        self.seeds = True
        self.has = self.untold = 0
        self.bitmap = b""
        self.rtt_s = self.rate = 0.0
        self.denials = self.duplicates = self.segments_asked = 0

    def note_untold(self, bits: int, now: float) -> None:
        if not self.untold:
            self.untold_since = now
        self.untold |= bits

    @property
    def hopeless(self) -> bool:
        """Connected to for nothing too often."""
        return self.attempts >= USELESS_MAX

    @property
    def owed(self) -> int | None:
        """Replies still to come, if all of them are small; None: there is no connection, or it is
        not worth waiting for."""
        small = all(ask.cancelled or ask.kind is Kind.WANT for ask in self.asked.values())
        return len(self.asked) if self.state is State.ACTIVE and small else None

    def deny(self) -> bool:
        """It had not what it said it had. Whether once too often."""
        self.denials += 1
        return self.denials > DENIALS_MAX

    def repeat(self) -> None:
        """It sent what was here already: it may not choose for ever."""
        self.duplicates += 1
        self.seeds = self.seeds and self.duplicates < DUPLICATES_MAX

    def revive(self, now: float) -> None:
        """It asks this node, so it is alive: given up a while ago, it is worth another try."""
        if self.state is not State.SPENT or self.banned or self.revivals >= REVIVALS_MAX:
            return
        if self.ready_at + REVIVAL_DELAY_S <= now:
            self.revivals += 1
            self.attempts = 0
            self.state = State.IDLE

    def measure(self, size_bytes: int, now: float) -> None:
        """A reply of that size came."""
        self.sample_bytes += size_bytes
        self.sent_bytes += size_bytes
        spent_s = now - self.sample_from
        if spent_s >= max(RATE_SAMPLE_S, self.rtt_s):
            sample = self.sample_bytes / spent_s
            self.rate = 0.5 * (self.rate + sample) if self.rate else sample
            self.sample_from, self.sample_bytes = now, 0

    def window(self, config: FetchConfig, segment_bytes: int) -> int:
        """Segments to have asked for: the rate times the time a request takes, which doubles a rate
        that the window itself held down with each round trip."""
        if not self.rate:
            wanted = config.window_segments_first
        else:
            ahead_bytes = self.rate * (self.rtt_s + config.window_delay_s)
            wanted = int(ahead_bytes / segment_bytes) + 1
        most = max(config.window_segments_min, config.window_bytes // segment_bytes)
        return min(max(wanted, config.window_segments_min), most)

    def deadline(self, config: FetchConfig) -> tuple[float, str] | None:
        """When it is given up, and why."""
        if self.state is State.DIALING:
            timeout_s = config.connect_timeout_s * (1 << max(self.attempts - 1, 0))
            return self.heard_at + timeout_s, f"no connection in {timeout_s:g} s"
        if self.state is State.ACTIVE and self.asked:
            silent = self.heard_at + config.progress_timeout_s
            late = self.replied_at + config.reply_timeout_s
            if silent <= late:
                return silent, f"sent nothing for {config.progress_timeout_s:g} s"
            return late, f"no whole reply in {config.reply_timeout_s:g} s"
        return None
