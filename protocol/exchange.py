"""Getting one blob from the nodes that hold it: the machine, without the network. SPEC §10.

Owns which holder is asked for which segment, and what counts as an answer. Invariants: the
manifest is used only after it hashed to the digest a signed record names; a segment leaves the
machine only after it verified against that manifest, and once; a holder whose bytes do not verify
is never asked again in this fetch. Holders are asked one at a time, nearest first, with a window
of requests in flight; `_pick_source` and `_pick_segment` are the whole policy, so that asking
several at once changes those two and nothing else.

The driver obeys `poll_transmit` (Dial, Send, Close), reports back with `connected`, `failed`,
`receive` and `heard`, handles `poll_event`, and calls `on_timer` when `next_deadline` is reached.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from .errors import LocalProtocolError, RemoteProtocolError
from .exchange_events import (
    Close,
    Completed,
    Dial,
    Event,
    Failed,
    FetchConfig,
    HoldersWanted,
    ManifestVerified,
    SegmentVerified,
    Send,
    SourceBanned,
    SourceLost,
    Transmit,
)
from .ids import Digest, NodeId, digest_of
from .manifest import Manifest, decode_manifest
from .streams import ErrorReply, GetManifest, GetSegment, ManifestReply, Reply, SegmentReply

SOURCES_MAX: Final = 64
"""Holders one fetch considers; a blob everyone holds is not searched for on everyone."""
PERMANENT_CODES: Final = frozenset({"blob-not-found", "blob-corrupt"})
"""Error replies after which asking the same holder again is no use."""


class _State(Enum):
    IDLE = "idle"
    DIALING = "dialing"
    ACTIVE = "active"
    SPENT = "spent"


@dataclass(slots=True)
class _Source:
    peer: NodeId
    rank: int
    state: _State = _State.IDLE
    attempts: int = 0
    ready_at: float = 0.0
    heard_at: float = 0.0
    replied_at: float = 0.0
    asked: dict[int, int | None] = field(default_factory=dict)
    """Request id to segment index (None: the manifest), oldest first."""
    reason: str = ""


class Fetch:
    """One blob. Times are any monotonic seconds, the same everywhere."""

    def __init__(
        self,
        blob: Digest,
        manifest_digest: Digest,
        *,
        config: FetchConfig | None = None,
        now: float,
    ) -> None:
        """Its first event is HoldersWanted."""
        self.blob: Final = blob
        self.manifest: Manifest | None = None
        self._manifest_digest = manifest_digest
        self._config = config or FetchConfig()
        self._sources: dict[NodeId, _Source] = {}
        self._missing: list[int] = []  # heap of segments nobody is asked for
        self._wanted: set[int] = set()  # segments not yet handed out
        self._resumed = False
        self._finished = False
        self._starved = False
        self._next_id = 0
        self._transmits: deque[Transmit] = deque()
        self._events: deque[Event] = deque()
        self._advance(now)

    # ------------------------------------------------------------ what the driver reports
    def offer(self, peers: Iterable[NodeId], now: float) -> None:
        """Holders, nearest first; known ones are not counted again. When it answers HoldersWanted
        with nobody new, the fetch has failed."""
        for peer in peers:
            if peer not in self._sources and len(self._sources) < SOURCES_MAX:
                self._sources[peer] = _Source(peer, rank=len(self._sources), ready_at=now)
        self._advance(now)
        if self._starved and not self._finished:
            reasons = tuple((source.peer, source.reason) for source in self._sources.values())
            self._finish(Failed(reasons))

    def connected(self, peer: NodeId, now: float) -> None:
        source = self._sources.get(peer)
        if source is None or source.state is not _State.DIALING:
            return
        source.state = _State.ACTIVE
        source.heard_at = source.replied_at = now
        self._ask(source, now)

    def failed(self, peer: NodeId, reason: str, now: float) -> None:
        """The connection could not be made, or is gone."""
        source = self._sources.get(peer)
        if source is not None and source.state in (_State.DIALING, _State.ACTIVE):
            self._lose(source, reason, now)

    def heard(self, peer: NodeId, now: float) -> None:
        """Bytes came, or the driver itself was busy until now: the progress timeout restarts."""
        source = self._sources.get(peer)
        if source is not None and source.state is _State.ACTIVE:
            source.heard_at = max(source.heard_at, now)

    def receive(self, message: Reply, body: bytes, peer: NodeId, now: float) -> None:
        """A reply. Never raises for what a peer says: a wrong reply bans the peer."""
        source = self._sources.get(peer)
        if self._finished or source is None or source.state is not _State.ACTIVE:
            return  # from a connection that was closed meanwhile
        source.heard_at = source.replied_at = now
        try:
            self._accept(source, message, body, now)
        except RemoteProtocolError as error:
            self._ban(source, str(error), now)
            return
        self._ask(source, now)
        self._advance(now)

    def resume(self, present: Iterable[int], now: float) -> None:
        """Segments that are on disk already and verified, after ManifestVerified."""
        if self.manifest is None or self._resumed:
            raise LocalProtocolError("resume answers ManifestVerified, once")
        self._resumed = True
        self._wanted = set(range(self.manifest.segments)) - set(present)
        self._missing = sorted(self._wanted)  # a sorted list is a heap
        self._complete_if_done()
        for source in self._sources.values():
            self._ask(source, now)
        self._advance(now)

    def on_timer(self, now: float) -> None:
        for source in list(self._sources.values()):
            due = self._deadline_of(source)
            if due is None or due > now:
                continue
            if source.state is _State.DIALING:
                self._lose(source, f"no connection in {self._config.connect_timeout_s:g} s", now)
            elif source.heard_at + self._config.progress_timeout_s <= now:
                self._lose(source, f"sent nothing for {self._config.progress_timeout_s:g} s", now)
            else:
                self._lose(source, f"no whole reply in {self._config.reply_timeout_s:g} s", now)
        self._advance(now)

    def next_deadline(self) -> float | None:
        """When to call on_timer; None: nothing is waited for but the driver."""
        if self._finished:
            return None
        deadlines = [self._deadline_of(source) for source in self._sources.values()]
        if not self._busy():
            deadlines += [
                source.ready_at for source in self._sources.values() if source.state is _State.IDLE
            ]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def poll_transmit(self) -> Transmit | None:
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # ------------------------------------------------------------ policy
    def _pick_source(self, now: float) -> _Source | None:
        """Least tried, then nearest; only one at a time."""
        if self._busy():
            return None
        ready = [
            source
            for source in self._sources.values()
            if source.state is _State.IDLE and source.ready_at <= now
        ]
        return min(ready, key=lambda source: (source.attempts, source.rank), default=None)

    def _pick_segment(self, source: _Source) -> int | None:
        """In order: with one holder there is nothing to gain from another, and a crash leaves a
        prefix. None: the window is full, or all is asked for."""
        assert self.manifest is not None
        if not self._missing:
            return None
        lengths = self.manifest.wire_lengths
        waiting = sum(lengths[index] for index in source.asked.values() if index is not None)
        if (
            len(source.asked) >= self._config.window_segments_min
            and waiting + lengths[self._missing[0]] > self._config.window_bytes
        ):
            return None
        return heapq.heappop(self._missing)

    # ------------------------------------------------------------ mechanism
    def _busy(self) -> bool:
        return any(
            source.state in (_State.DIALING, _State.ACTIVE) for source in self._sources.values()
        )

    def _advance(self, now: float) -> None:
        if self._finished:
            return
        source = self._pick_source(now)
        if source is not None:
            source.state = _State.DIALING
            source.heard_at = now
            source.attempts += 1
            self._transmits.append(Dial(source.peer))
        starved = all(source.state is _State.SPENT for source in self._sources.values())
        if starved and not self._starved:
            self._events.append(HoldersWanted())
        self._starved = starved

    def _ask(self, source: _Source, now: float) -> None:
        if self._finished or source.state is not _State.ACTIVE:
            return
        if self.manifest is None:
            self._request(source, None, now)
            return
        if not self._resumed:
            return
        while (index := self._pick_segment(source)) is not None:
            self._request(source, index, now)

    def _request(self, source: _Source, index: int | None, now: float) -> None:
        if not source.asked:  # an idle holder is not late
            source.heard_at = source.replied_at = now
        request_id = self._next_id
        self._next_id = (self._next_id + 1) & 0xFFFF_FFFF
        source.asked[request_id] = index
        message = (
            GetManifest(request_id, self.blob)
            if index is None
            else GetSegment(request_id, self.blob, index)
        )
        self._transmits.append(Send(source.peer, message))

    def _accept(self, source: _Source, message: Reply, body: bytes, now: float) -> None:
        """Raises RemoteProtocolError: the peer lies or is broken."""
        if message.id not in source.asked:
            raise RemoteProtocolError("reply", f"nobody asked for reply {message.id}")
        index = source.asked[message.id]
        if isinstance(message, ErrorReply):
            retry = message.code not in PERMANENT_CODES
            self._lose(source, f"{message.code}: {message.text}", now, retry=retry)
        elif isinstance(message, ManifestReply) and index is None:
            del source.asked[message.id]
            self._accept_manifest(body)
        elif isinstance(message, SegmentReply) and index is not None and message.index == index:
            assert self.manifest is not None
            self.manifest.check_segment(index, body)
            del source.asked[message.id]
            source.attempts = 1  # a link that carries something is worth another try
            self._wanted.discard(index)
            self._events.append(SegmentVerified(index, body, source.peer))
            self._complete_if_done()
        else:
            raise RemoteProtocolError("reply", f"{type(message).__name__} to another question")

    def _accept_manifest(self, body: bytes) -> None:
        """Raises RemoteProtocolError. A manifest that is what the record names, and yet wrong, is
        the record's fault: no other holder could do better."""
        if digest_of(body) != self._manifest_digest:
            raise RemoteProtocolError("manifest", "does not hash to the record's manifest digest")
        try:
            manifest = decode_manifest(body)
        except RemoteProtocolError as error:
            self._finish(Failed(((None, f"the record names a bad manifest: {error}"),)))
            return
        if manifest.blob != self.blob:
            self._finish(Failed(((None, "the record names another blob's manifest"),)))
            return
        self.manifest = manifest
        self._events.append(ManifestVerified(manifest))

    def _lose(self, source: _Source, reason: str, now: float, *, retry: bool = True) -> None:
        self._drop(source, reason)
        if retry and source.attempts < self._config.attempts_max:
            source.state = _State.IDLE
            source.ready_at = now + self._config.retry_delay_s
        self._events.append(SourceLost(source.peer, reason))
        self._advance(now)

    def _ban(self, source: _Source, reason: str, now: float) -> None:
        self._drop(source, reason)
        self._events.append(SourceBanned(source.peer, reason))
        self._advance(now)

    def _drop(self, source: _Source, reason: str) -> None:
        """Closes, and puts back what the holder still owed."""
        source.state = _State.SPENT
        source.reason = reason
        for index in source.asked.values():
            if index is not None:
                heapq.heappush(self._missing, index)
        source.asked.clear()
        self._transmits.append(Close(source.peer))

    def _complete_if_done(self) -> None:
        if not self._wanted:
            self._finish(Completed())

    def _finish(self, event: Completed | Failed) -> None:
        """Nothing follows this event; connections are closed."""
        self._finished = True
        for source in self._sources.values():
            if source.state in (_State.DIALING, _State.ACTIVE):
                source.state = _State.SPENT
                source.asked.clear()
                self._transmits.append(Close(source.peer))
        self._events.append(event)

    def _deadline_of(self, source: _Source) -> float | None:
        if source.state is _State.DIALING:
            return source.heard_at + self._config.connect_timeout_s
        if source.state is _State.ACTIVE and source.asked:
            return min(
                source.heard_at + self._config.progress_timeout_s,
                source.replied_at + self._config.reply_timeout_s,
            )
        return None
