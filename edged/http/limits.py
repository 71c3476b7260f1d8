"""What one HTTP listener puts up with, and what it tells its owner.

Every wait, buffer and count of the adapter has its bound here; what happens on overflow stands
beside it. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

MEBIBYTE = 1024 * 1024


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one listener."""

    header_bytes_max: int = 16 * 1024
    """Request line and headers together; more is 431 (nginx 4 x 8 KiB, Node.js 16 KiB)."""
    request_line_bytes_max: int = 8 * 1024
    """431 (nginx: one 8 KiB buffer, RFC 9112 §3 asks for at least 8,000)."""
    header_count_max: int = 100
    """431 (Apache: 100)."""
    body_bytes_max: int = 256 * MEBIBYTE
    """413, at once from Content-Length, while reading for chunked bodies. The application may have
    a tighter bound of its own."""
    connections_max: int = 1024
    """Open connections. For one more, that which has waited longest without a request gives way
    (nginx: reusable connections); if there is none, the newcomer is answered 503 and closed."""
    give_way_after_s: float = 1.0
    """Only a connection that has waited so long gives way, idle or within its headers: time for
    the request that a client sends right after it has connected, at any round trip on earth."""
    header_timeout_s: float = 10.0
    """From a connection's opening, later from a request's first byte, to the end of its headers;
    408, or nothing where no byte came."""
    body_timeout_s: float = 30.0
    """For the whole body, however it trickles: 408."""
    idle_timeout_s: float = 75.0
    """Keep-alive without a request; the connection is closed."""
    write_stall_s: float = 20.0
    """A client that is so far behind `write_bytes_per_s_min` with its answer is cut; so is one that
    takes no byte for so long. What it took faster earns no more patience than this."""
    write_bytes_per_s_min: int = 4096
    """Below it an answer does not end, it holds memory: at the 240 B/s of IIS and Kestrel (and 500
    of Apache's mod_reqtimeout) one of 8 MiB could be held for hours. A GPRS phone is faster."""
    unsent_bytes_max: int = 256 * MEBIBYTE
    """Answers in memory that clients have not taken yet, all together; above it those furthest
    behind are cut. An answer that is larger alone is cut if its client does not take it at once."""
    linger_s: float = 2.0
    """After an answer to a request whose body is unread: how long its rest is thrown away so that
    the client reads the answer instead of a reset (nginx: lingering_close)."""
    linger_bytes_max: int = 16 * MEBIBYTE
    """At most so much is thrown away."""
    drain_grace_s: float = 0.5
    """On draining an idle connection is kept so long, as its next request may be on the wire."""
    says_farewell: bool = False
    """An idle connection that closes because the listener drains gets a 503 first: a client whose
    request crosses it learns that nobody has read that. For clients that know of it (peers)."""

    @property
    def tick_s(self) -> float:
        """How often deadlines are looked at: a quarter of the shortest, so a timeout comes at most
        that much late and no request pays for a timer."""
        shortest = min(
            self.header_timeout_s,
            self.body_timeout_s,
            self.idle_timeout_s,
            self.write_stall_s,
            self.linger_s,
        )
        return min(max(shortest / 4, 0.01), 1.0)


def _ignore(_: str) -> None:
    return None


class HttpHooks(msgspec.Struct, frozen=True, kw_only=True):
    """How the listener's owner hears of what never reaches the application."""

    rejected: Callable[[str], None] = _ignore
    """A request or connection was refused or cut; gets a short stable reason: an error code of
    edged.errors, "connections", "gave-way", "idle", "write-stall", "unsent-bytes", "client-gone" or
    "drain"."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Headers of every answer that the adapter makes itself."""
    unserved_headers: tuple[tuple[bytes, bytes], ...] = ()
    """More of them, where it has read nothing of a request, or nothing but its head's beginning."""
    wall_s: Callable[[], float] = time.time
    """Of the Date header."""


class HttpStatistics(msgspec.Struct, frozen=True):
    """A moment's view of a listener."""

    connections: int
    in_flight: int
    """Requests whose application is running."""
    accepted: int
    requests: int
    unsent_bytes: int
    """Of answers in memory whose clients are slow."""
    draining: bool
