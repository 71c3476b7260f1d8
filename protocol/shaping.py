"""One direction of a path between two nodes, and what becomes of what is sent over it.

Rules: a Pipe serialises at its bandwidth, all flows of a node share it; a datagram that finds the
queue full, or that is lost, is gone; the others arrive after the latency and their own stray from
it, in whatever order. A Flow is a stream over a pipe: its bytes arrive in order and all of them, so
what a datagram loses it pays in time, and it may have no more than a window under way. Half of the
queue is all that flows may fill: a node that sends a blob is still heard. SPEC §13.

The caller moves bytes and keeps time: `now` comes in, the instant of arrival goes out.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal

import msgspec

from .rng import Rng

Jitter = Literal["uniform", "normal", "pareto"]
"""uniform: within ± jitter; normal: jitter is the standard deviation; pareto: now and then very
late (shape 3). The median delay is the latency, whichever it is."""
Cut = Literal["drop", "reset"]
"""drop: silence, and connections hang; reset: they are refused, and those that stand are reset."""
Drop = Literal["cut", "queue", "loss"]
"""Why a datagram did not get through."""

QUEUE_S: Final = 0.2
"""Of the bandwidth, is what waits at most: what routers were long built for is 100 to 300 ms."""
QUEUE_BYTES_MIN: Final = 15_000
"""Ten packets, on links so slow that QUEUE_S would be fewer."""
PIECE_S: Final = 0.005
"""How long one flow may have the link before the others' turn."""
SEGMENT_BYTES: Final = 1448
"""Of TCP over Ethernet with timestamps: what is lost is one of these."""
PIECE_BYTES_MAX: Final = 256 * 1024
WINDOW_BYTES: Final = 2 * 1024 * 1024
"""Under way and not acknowledged: half of Linux's default (tcp_wmem) at most."""
RETRANSMIT_S: Final = 0.2
"""Linux's least retransmission timeout (RFC 6298 would have 1 s)."""
FAST_SEGMENTS: Final = 4
"""So many make three duplicate acknowledgements (RFC 5681 §3.2); fewer wait for the timeout."""
RECOVERY_S_MAX: Final = 60.0
REORDER_S: Final = 0.01
"""Least range of what comes out of turn; on longer links it is the latency."""
PARETO_MAX: Final = 20.0
"""Times the jitter, about, is the latest: one delay in 8,000 would be later."""
_PARETO_MEDIAN: Final = 2 ** (1 / 3)


class Link(msgspec.Struct, frozen=True):
    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    """Share of datagrams; streams pay for it in time."""
    bandwidth_bytes_s: float | None = None
    """None: unlimited."""
    jitter: Jitter = "uniform"
    correlation: float = 0.0
    """Of each delay with the one before, and of each loss, 0 to below 1."""
    duplicate: float = 0.0
    reorder: float = 0.0
    """Share of datagrams that come so late that later ones overtake them."""
    cut: Cut | None = None


CLEAR: Final = Link()
"""What is sent arrives at once."""


class Pipe:
    """What one node sends over one link."""

    def __init__(self, link: Link, rng: Rng) -> None:
        self.link = link
        self._rng = rng
        self._free_at = -math.inf
        """When all that was accepted has left the sender."""
        self._delays = _Chain(rng)
        self._losses = _Chain(rng)

    def change(self, link: Link, now: float) -> None:
        """What waits leaves at the new bandwidth; what was accepted arrives as it was told."""
        waiting = self.queue_bytes(now)
        self.link = link
        rate = link.bandwidth_bytes_s
        self._free_at = now if rate is None else now + waiting / rate

    def queue_bytes(self, now: float) -> float:
        rate = self.link.bandwidth_bytes_s
        return 0.0 if rate is None else max(0.0, self._free_at - now) * rate

    def offer(self, size: int, now: float) -> tuple[float, ...] | Drop:
        """A datagram: when it arrives, or both of its copies; or why it does not."""
        link = self.link
        if link.cut is not None:
            return "cut"
        rate = link.bandwidth_bytes_s
        if rate is not None and self.queue_bytes(now) + size > queue_bytes_max(rate):
            return "queue"
        left_at = self._transmit(size, now)
        if link.loss and self._losses.uniform(link.correlation) < link.loss:
            return "loss"
        arrival = left_at + self.delay()
        if link.reorder and self._rng.random() < link.reorder:
            arrival += self._rng.random() * max(link.latency_s, REORDER_S)
        if link.duplicate and self._rng.random() < link.duplicate:
            return arrival, left_at + self.delay()
        return (arrival,)

    def room_at(self) -> float:
        """From when on the queue has room for a flow's next piece; inf: not before a change."""
        if self.link.cut is not None:
            return math.inf
        rate = self.link.bandwidth_bytes_s
        return -math.inf if rate is None else self._free_at - queue_bytes_max(rate) / rate / 2

    def piece_bytes(self) -> int:
        """The most that a flow puts on the link at once."""
        rate = self.link.bandwidth_bytes_s
        if rate is None:
            return PIECE_BYTES_MAX
        return int(min(max(rate * PIECE_S, SEGMENT_BYTES), PIECE_BYTES_MAX))

    def pass_piece(self, size: int, now: float, rtt_s: float) -> float:
        """When a piece of a flow has arrived whole, what of it was lost included; the flow sees to
        its order."""
        return self._transmit(size, now) + self.delay() + self._recovery_s(size, rtt_s)

    def delay(self) -> float:
        link = self.link
        if not link.jitter_s:
            return link.latency_s
        match link.jitter:
            case "uniform":
                stray = 2 * self._delays.uniform(link.correlation) - 1
            case "normal":
                stray = self._delays.normal(link.correlation)
            case "pareto":
                late = 1 - self._delays.uniform(link.correlation)
                stray = min(late ** (-1 / 3) if late else math.inf, PARETO_MAX) - _PARETO_MEDIAN
        return max(0.0, link.latency_s + stray * link.jitter_s)

    def _transmit(self, size: int, now: float) -> float:
        rate = self.link.bandwidth_bytes_s
        if rate is None:
            return now
        self._free_at = max(self._free_at, now) + size / rate
        return self._free_at

    def _recovery_s(self, size: int, rtt_s: float) -> float:
        """What is lost of a piece is sent again together, one round trip later; a loss among that
        only after the timeout, and so on."""
        loss = self.link.loss
        if not loss:
            return 0.0
        segments = max(1.0, size / SEGMENT_BYTES)
        timeout_s = rtt_s + RETRANSMIT_S
        wait_s = rtt_s if segments >= FAST_SEGMENTS else timeout_s
        total_s = 0.0
        while total_s < RECOVERY_S_MAX:
            if self._losses.uniform(self.link.correlation) >= 1 - (1 - loss) ** segments:
                return total_s
            total_s += wait_s
            segments = max(1.0, segments * loss)
            wait_s, timeout_s = timeout_s, 2 * timeout_s
        return RECOVERY_S_MAX


class Flow:
    """One stream over a pipe: how much may be sent, and when it arrives."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self._arrival = -math.inf
        self._under_way: deque[tuple[float, int]] = deque()
        """(arrival, bytes) of what is not acknowledged."""
        self.under_way_bytes = 0

    def room(self, now: float, back: Link, window: int = WINDOW_BYTES) -> int:
        """Bytes that may be sent now; `back` is the link that acknowledgements take."""
        self._acknowledge(now, back)
        free = window - self.under_way_bytes
        if free <= 0 or self.pipe.room_at() > now:
            return 0
        return min(free, self.pipe.piece_bytes())

    def room_at(self, back: Link, window: int = WINDOW_BYTES) -> float:
        """When `room` should be asked again; inf: not before a link changes."""
        at = self.pipe.room_at()
        excess = self.under_way_bytes - window
        for arrival, size in self._under_way:
            if excess < 0:
                break
            excess -= size
            if excess < 0:
                at = max(at, math.inf if back.cut is not None else arrival + back.latency_s)
        return at

    def send(self, size: int, now: float, back: Link) -> float:
        """When these bytes arrive, after all before them."""
        rtt_s = self.pipe.link.latency_s + back.latency_s
        self._arrival = max(self._arrival, self.pipe.pass_piece(size, now, rtt_s))
        self._under_way.append((self._arrival, size))
        self.under_way_bytes += size
        return self._arrival

    def end(self, now: float) -> float:
        """When the end of the stream arrives."""
        self._arrival = max(self._arrival, now + self.pipe.delay())
        return self._arrival

    def _acknowledge(self, now: float, back: Link) -> None:
        if back.cut is not None:
            return
        while self._under_way and self._under_way[0][0] + back.latency_s <= now:
            self.under_way_bytes -= self._under_way.popleft()[1]


class _Chain:
    """Draws of which each is correlated with the one before: a first-order autoregression of
    normal ones, read through their distribution. So shares and distributions stay what they are,
    whatever the correlation; netem's mixing of uniform draws narrows them."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._last: float | None = None

    def uniform(self, correlation: float) -> float:
        """In [0, 1]."""
        if not correlation:
            return self._rng.random()
        return 0.5 * math.erfc(-self.normal(correlation) / math.sqrt(2))

    def normal(self, correlation: float) -> float:
        """Standard; Box and Muller's."""
        radius = math.sqrt(-2 * math.log(1 - self._rng.random()))
        drawn = radius * math.cos(2 * math.pi * self._rng.random())
        if correlation and self._last is not None:
            drawn = correlation * self._last + math.sqrt(1 - correlation**2) * drawn
        self._last = drawn
        return drawn


def queue_bytes_max(bandwidth_bytes_s: float) -> float:
    return max(QUEUE_S * bandwidth_bytes_s, QUEUE_BYTES_MIN)
