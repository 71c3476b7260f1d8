"""Getting one blob from nodes that hold or fetch it: the machine, without the network. SPEC §10.

Owns which source is asked for which segment, and what counts as an answer. Invariants: the manifest
is used only after it hashed to the digest a signed record names; a segment leaves the machine only
after it verified against that manifest, and once; a source whose bytes do not verify is never asked
again in this fetch; what is asked of all sources together is bounded. Policy: `_ask_one` (which
segment), `Source.window` (how many), `_dial_more` (of whom).

The driver obeys `poll_transmit` (Dial, Send, Close), reports back with `connected`, `failed`,
`receive`, `heard` and `stored`, handles `poll_event`, and calls `on_timer` when `next_deadline` is
reached. What other fetchers tell on their own connections comes in with `meet` and `have`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from .bitsets import bits_of, decode_bits, encode_bits
from .errors import LocalProtocolError, RemoteProtocolError
from .exchange_circle import Circle
from .exchange_events import (
    Close,
    Completed,
    Dial,
    Event,
    Failed,
    FetchConfig,
    FetchersNamed,
    HoldersWanted,
    ManifestVerified,
    SegmentVerified,
    Send,
    SourceBanned,
    SourceLost,
    Transmit,
)
from .exchange_sources import PERMANENT_CODES, Ask, Kind, Source, State
from .ids import Digest, NodeId, digest_of
from .ledger import Ledger, News, notices
from .manifest import Manifest, decode_manifest
from .rng import Rng
from .streams import (
    Cancel,
    ErrorReply,
    GetAny,
    GetManifest,
    GetSegment,
    ManifestReply,
    Nothing,
    Offer,
    Reply,
    SegmentReply,
    Want,
)

TICK_S: Final = 0.1
"""How exactly timeouts are kept: one look at all sources instead of a timer for each."""


class Fetch:
    """One blob. Times are any monotonic seconds, the same everywhere."""

    def __init__(
        self,
        blob: Digest,
        manifest_digest: Digest,
        *,
        config: FetchConfig | None = None,
        rng: Rng,
        now: float,
    ) -> None:
        """Its first event is HoldersWanted."""
        self.blob: Final = blob
        self.manifest: Manifest | None = None
        self.wasted_bytes = 0
        """Received and not needed: duplicates, cancelled too late."""
        self._manifest_digest = manifest_digest
        self._config = config or FetchConfig()
        self._rng = rng
        self._sources = Circle(self._config)
        self._ledger = Ledger()
        self._segment_bytes = 1  # of wire, on average
        self._news = News(self._config, now)
        self._manifest_from: Source | None = None
        self._resumed = self._finished = self._starved = self._choked = self._yielding = False
        self._next_id = 0
        self._tick_at = now + TICK_S
        self._holders_at = now + self._config.holders_s
        self._hope_at = now  # when something last went forward
        self._transmits: deque[Transmit] = deque()
        self._events: deque[Event] = deque([HoldersWanted()])
        self._looking = True

    # ------------------------------------------------------------ what the driver reports
    def offer(self, peers: Iterable[NodeId], now: float) -> None:
        """Holders, nearest first; known ones are not counted again. If nobody is left to ask and it
        answers HoldersWanted with nobody new, the fetch has failed."""
        self._looking = False
        for rank, peer in enumerate(peers):
            self._sources.add(peer, rank, now)
        if self._finished:
            return
        self._dial_more(now)
        self._starved = self._is_starved(now)
        if self._starved:
            self._finish(Failed(tuple((s.peer, s.reason) for s in self._sources)))

    def meet(self, peers: Iterable[NodeId], now: float) -> None:
        """Members that fetch the blob too, as others say."""
        for peer in peers:
            self._sources.add(peer, self._rng.random() * self._config.sources_max, now)
        self._advance(now)

    def wanted_by(self, peer: NodeId, bitmap: bytes, now: float) -> None:
        """It asked this node, so it is alive, and so has what its bitmap says."""
        self._sources.add(peer, self._rng.random() * self._config.sources_max, now)
        source = self._sources.get(peer)
        if source is None or self._finished:
            return
        source.revive(now)
        room = self._sources.room(self._ledger.missing.bit_count()) + self._config.dial_backs_max
        if source.state is State.IDLE and source.ready_at <= now and room > 0:
            self._dial(source, now)
        if source.state is State.ACTIVE and not source.complete:
            try:
                self._take_bitmap(source, bitmap, now)
            except RemoteProtocolError as error:
                self._ban(source, str(error), now)
                return
            self._ask(source, now)

    def have(self, peer: NodeId, indices: Iterable[int], now: float) -> None:
        """What a fetcher announced on its own connection to this node."""
        source = self._sources.get(peer)
        if source is None or source.state is not State.ACTIVE or source.complete:
            return
        bits = bits_of(indices)
        if self.manifest is None:
            source.has |= bits
            return
        try:
            self._learn(source, source.has | bits, now)
        except RemoteProtocolError as error:
            self._ban(source, str(error), now)
        else:
            self._ask(source, now)

    def connected(self, peer: NodeId, now: float) -> None:
        source = self._sources.get(peer)
        if self._finished or source is None or source.state is not State.DIALING:
            return
        source.connect(now)
        self._want(source, now)
        self._ask(source, now)
        self._advance(now)

    def failed(self, peer: NodeId, reason: str, now: float) -> None:
        """The connection could not be made, or is gone."""
        source = self._sources.get(peer)
        if source is not None and source.state in (State.DIALING, State.ACTIVE):
            self._lose(source, reason, now)

    def heard(self, peer: NodeId, now: float) -> None:
        """Bytes came, or the driver itself was busy until now: the progress timeout restarts."""
        source = self._sources.get(peer)
        if source is not None and source.state is State.ACTIVE:
            source.heard_at = max(source.heard_at, now)

    def receive(self, message: Reply, body: bytes, peer: NodeId, now: float) -> None:
        """A reply. Never raises for what a peer says: a wrong reply bans the peer."""
        source = self._sources.get(peer)
        if self._finished or source is None or source.state is not State.ACTIVE:
            return  # from a connection that was closed meanwhile
        source.heard_at = source.replied_at = now
        try:
            self._accept(source, message, body, now)
        except RemoteProtocolError as error:
            self._ban(source, str(error), now)
            return
        self._ask(source, now)

    def resume(self, present: Iterable[int], now: float) -> None:
        """Segments that are on disk already and verified, after ManifestVerified."""
        if self.manifest is None or self._resumed:
            raise LocalProtocolError("resume answers ManifestVerified, once")
        self._resumed = True
        self._hope_at = now
        have = sorted(present)
        self._ledger.begin(self.manifest.segments, have)
        for source in self._sources.active():
            source.note_untold(self._ledger.stored, now)
            self._tell(source)  # before it is asked: a seed sends what it believes we lack
        self._advance(now)
        self._ask_all(now)
        self._complete_if_done()

    def stored(self, indices: Iterable[int], now: float) -> None:
        """Verified segments that are on disk now: others may be told."""
        if self._finished:
            return
        new = bits_of(indices)
        self._ledger.stored |= new
        self._note_news(new, now)
        self._complete_if_done()

    def choke(self, now: float, *, on: bool) -> None:
        """While on, no more is asked for: this node cannot take it (memory, disk)."""
        if self._choked and not on:
            for source in self._sources:
                source.heard_at = max(source.heard_at, now)
        self._choked = on
        self._ask_all(now)

    def give_way(self, *, on: bool) -> None:
        """While on, ask for the least that keeps it going: others are waited for more."""
        self._yielding = on

    def rates(self) -> dict[NodeId, tuple[int, float]]:
        """Bytes that each source sent, and how many per second while it owed some."""
        return {s.peer: (s.sent_bytes, s.rate) for s in self._sources if s.rate}

    def on_timer(self, now: float) -> None:
        if self._news.due is not None and self._news.due <= now:
            self._send_news(now)
        if self._finished or now < self._tick_at:
            return
        self._tick_at = now + TICK_S
        for source in self._sources:
            self._check(source, now)
        if self._holders_at <= now:
            self._look(now)
        self._advance(now)
        self._ask_all(now)

    def next_deadline(self) -> float | None:
        """When to call on_timer; None: it is over."""
        if self._finished:
            return None
        return self._tick_at if self._news.due is None else min(self._news.due, self._tick_at)

    @property
    def pending(self) -> bool:
        """There is something to poll."""
        return bool(self._transmits or self._events)

    def poll_transmit(self) -> Transmit | None:
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # ------------------------------------------------------------ policy: whom to ask
    def _advance(self, now: float) -> None:
        if self._finished:
            return
        self._dial_more(now)
        was, self._starved = self._starved, self._is_starved(now)
        if self._starved and not was and not self._looking:
            self._look(now)

    def _dial_more(self, now: float) -> None:
        room = self._sources.room(self._ledger.missing.bit_count())
        for source in self._sources.next(room, now):
            self._dial(source, now)

    def _dial(self, source: Source, now: float) -> None:
        source.state = State.DIALING
        source.heard_at = now
        source.attempts += 1
        self._transmits.append(Dial(source.peer))

    def _is_starved(self, now: float) -> bool:
        """Nobody is left; or only fetchers that lack what this node lacks, for too long."""
        if self._sources.untried:
            return False
        active = self._sources.active()
        if not active:
            return True
        if self._choked or (self.manifest is not None and not self._resumed):
            return False
        asked = self._manifest_from
        if asked is not None and (asked.complete or not asked.offered):
            return False
        if any(source.segments_asked for source in active):
            return False
        return self._hope_at + self._config.patience_s <= now

    def _look(self, now: float) -> None:
        self._holders_at = now + self._config.holders_s
        self._looking = True
        self._events.append(HoldersWanted())

    def _check(self, source: Source, now: float) -> None:
        deadline = source.deadline(self._config)
        if deadline is not None and deadline[0] <= now and not self._choked:
            self._lose(source, deadline[1], now)
        elif source.state is State.ACTIVE and not source.asked:
            if source.complete or source.has & self._ledger.missing:
                return
            if self._sources.idle and source.useful_at + self._config.idle_s <= now:
                self._drop(source, "had nothing of use")
                source.ready_at = now + self._config.idle_s
                if not source.hopeless:
                    source.state = State.IDLE
            elif source.told_at + self._config.renew_s <= now:
                source.manifestless = False
                self._want(source, now)

    # ------------------------------------------------------------ policy: what to ask for
    def _ask_all(self, now: float) -> None:
        for source in self._sources:
            self._ask(source, now)

    def _ask(self, source: Source, now: float) -> None:
        if self._finished or source.state is not State.ACTIVE:
            return
        if self.manifest is None:
            if self._manifest_from is None and not source.manifestless:
                self._manifest_from = source
                request = GetManifest(self._id(), self.blob)
                self._request(source, request, Ask(Kind.MANIFEST, 0, now))
            return
        if not self._resumed or self._choked:
            return
        room = source.window(self._config, self._segment_bytes) if not self._yielding else 1
        most = max(self._config.inflight_bytes_max // self._segment_bytes, 1)
        while source.segments_asked < room and self._ledger.inflight < most:
            if not self._ask_one(source, now):
                return

    def _ask_one(self, source: Source, now: float) -> bool:
        request: GetAny | GetSegment
        if self._seeding(source):
            # Not more than there is to get: the next might be one that others are asked for.
            if self._ledger.any_asked >= self._ledger.free.bit_count() and source.segments_asked:
                return False
            request, ask = GetAny(self._id(), self.blob), Ask(Kind.ANY, 0, now)
        elif self._sources.is_dry(source, now):
            return False
        else:
            index = self._choose(source, now)
            if index is None:
                return False
            request = GetSegment(self._id(), self.blob, index)
            ask = Ask(Kind.SEGMENT, index, now)
        if not source.segments_asked:
            source.sample_from, source.sample_bytes = now, 0
        source.useful_at = now
        self._ledger.note(source, ask)
        if source.untold:  # with a request it costs no packet of its own
            self._tell(source)
        self._request(source, request, ask)
        return True

    def _seeding(self, source: Source) -> bool:
        """Whether to take what the source likes to give: it has all, and spreads it among many
        fetchers. With several such and no other fetcher, their choices would only collide."""
        if not source.complete or not source.seeds or not self._ledger.free:
            return False
        others = [other for other in self._sources.offering() if other is not source]
        return not others or not all(other.complete for other in others)

    def _choose(self, source: Source, now: float) -> int | None:
        """Rarest first, ties by chance; at the end also what others are slow with."""
        assert self.manifest is not None
        index = self._ledger.rarest(source, int(self._rng.random() * self.manifest.segments))
        endgame = self._ledger.missing.bit_count() <= self._config.endgame_segments
        if index is not None or not endgame:
            return index
        return self._ledger.late(source, now - self._config.endgame_age_s)

    # ------------------------------------------------------------ mechanism
    def _id(self) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFF_FFFF
        return self._next_id

    def _want(self, source: Source, now: float) -> None:
        bitmap = b""
        if self.manifest is not None:
            bitmap = encode_bits(self._ledger.stored, self.manifest.segments)
        source.told_at = now
        source.untold = 0
        self._request(source, Want(self._id(), self.blob), Ask(Kind.WANT, 0, now), bitmap)

    def _request(
        self,
        source: Source,
        message: Want | GetManifest | GetAny | GetSegment,
        ask: Ask,
        body: bytes = b"",
    ) -> None:
        if not source.asked:  # an idle source is not late
            source.heard_at = source.replied_at = ask.sent_at
        source.asked[message.id] = ask
        self._transmits.append(Send(source.peer, message, body))

    def _note_news(self, bits: int, now: float) -> None:
        if bits:
            self._news.note(now)
            for source in self._sources.active():
                source.note_untold(bits, now)

    def _send_news(self, now: float) -> None:
        """To those that wait for it; who was told with a request a moment ago, is told later."""
        before = now - self._news.settled(now)
        for source in self._sources.active():
            if not source.untold:
                continue
            if source.untold_since <= before:
                self._tell(source)
            else:
                self._news.note(now)

    def _tell(self, source: Source) -> None:
        """What it lacks; to one that has everything, while it chooses what to send, all."""
        news, source.untold = source.untold, 0
        if not (source.complete and not source.seeds):
            for notice in notices(self.blob, news if source.complete else news & ~source.has):
                self._transmits.append(Send(source.peer, notice))

    def _accept(self, source: Source, message: Reply, body: bytes, now: float) -> None:
        """Raises RemoteProtocolError: the peer lies or is broken."""
        ask = source.asked.pop(message.id, None)
        if ask is None:
            raise RemoteProtocolError("reply", f"nobody asked for reply {message.id}")
        match message:
            case ErrorReply():
                self._on_error(source, ask, message, now)
            case Offer() if ask.kind is Kind.WANT:
                self._on_offer(source, message, body, ask, now)
            case ManifestReply() if ask.kind is Kind.MANIFEST:
                self._manifest_from = None
                self._accept_manifest(body, now)
            case SegmentReply() if ask.kind in (Kind.ANY, Kind.SEGMENT):
                self._release(source, ask)
                self._on_segment(source, ask, message, body, now)
            case Nothing() if ask.kind in (Kind.ANY, Kind.SEGMENT):
                self._release(source, ask)
                self._on_nothing(source, ask, now)
            case _:
                source.asked[message.id] = ask  # still owed, and so put back when it is dropped
                raise RemoteProtocolError("reply", f"{type(message).__name__} to another question")

    def _on_error(self, source: Source, ask: Ask, message: ErrorReply, now: float) -> None:
        if ask.kind is Kind.MANIFEST and source.offered and not source.complete:
            self._manifest_from = None  # a fetcher that has no manifest itself yet
            source.manifestless = True
            self._ask_all(now)
            return
        self._release(source, ask)
        finishing = source.offered and not source.complete  # neither part nor whole yet
        retry = finishing or message.code not in PERMANENT_CODES
        self._lose(source, f"{message.code}: {message.text}", now, retry=retry)

    def _on_offer(self, source: Source, offer: Offer, body: bytes, ask: Ask, now: float) -> None:
        source.offered = True
        source.told_at = now
        rtt_s = now - ask.sent_at
        source.rtt_s = min(source.rtt_s, rtt_s) if source.rtt_s else rtt_s
        if offer.complete and not source.complete:
            source.complete = True
            if self.manifest is not None:
                self._ledger.learn(source, 0)  # who has all makes nothing rarer
                source.has = (1 << self.manifest.segments) - 1
        elif not source.complete:
            self._take_bitmap(source, body, now)
        if offer.fetchers:
            self._events.append(FetchersNamed(offer.fetchers))

    def _take_bitmap(self, source: Source, bitmap: bytes, now: float) -> None:
        """Raises RemoteProtocolError: not a bitmap of this blob."""
        if self.manifest is None:
            source.bitmap = bitmap
        else:
            self._learn(source, decode_bits(bitmap, self.manifest.segments), now)

    def _learn(self, source: Source, has: int, now: float) -> None:
        """Raises RemoteProtocolError: there are no such segments."""
        if self.manifest is not None and has >> self.manifest.segments:
            raise RemoteProtocolError("have", "announces segments that do not exist")
        if self._ledger.learn(source, has):
            self._hope_at = now
        source.told_at = now

    def _accept_manifest(self, body: bytes, now: float) -> None:
        """Raises RemoteProtocolError. A manifest that is what the record names, and yet wrong, is
        the record's fault: no other holder could do better."""
        if digest_of(body) != self._manifest_digest:
            raise RemoteProtocolError("manifest", "does not hash to the record's manifest digest")
        try:
            manifest = decode_manifest(body)
            if manifest.blob != self.blob:
                raise RemoteProtocolError("manifest", "another blob's manifest")  # noqa: TRY301
        except RemoteProtocolError as error:
            self._finish(Failed(((None, f"the record names a wrong manifest: {error}"),)))
            return
        self.manifest = manifest
        self._segment_bytes = max(manifest.wire_bytes // manifest.segments, 1)
        self._events.append(ManifestVerified(manifest))
        for source in self._sources:
            if source.complete:
                source.has = (1 << manifest.segments) - 1
            elif source.state is State.ACTIVE:
                announced, source.has = source.has, 0
                try:
                    bits = decode_bits(source.bitmap, manifest.segments)
                    self._learn(source, bits | announced, now)
                except RemoteProtocolError as error:
                    self._ban(source, str(error), now)

    def _on_segment(
        self, source: Source, ask: Ask, message: SegmentReply, body: bytes, now: float
    ) -> None:
        assert self.manifest is not None
        index = message.index
        if ask.kind is Kind.SEGMENT and index != ask.index:
            raise RemoteProtocolError("reply", f"segment {index} instead of {ask.index}")
        source.measure(len(body), now)
        if index < self.manifest.segments and not self._ledger.missing >> index & 1:
            self.wasted_bytes += len(body)
            source.repeat()
            return
        self.manifest.check_segment(index, body)
        source.attempts = 1  # a link that carries something is worth another try
        source.revivals = 0
        source.useful_at = self._hope_at = now
        for other, request_id in self._ledger.arrived(index):
            self._transmits.append(Send(other.peer, Cancel(request_id)))
        self._events.append(SegmentVerified(index, body, source.peer))

    def _on_nothing(self, source: Source, ask: Ask, now: float) -> None:
        if ask.cancelled:
            return
        if ask.kind is Kind.ANY:
            source.seeds = False
            source.dry_at = now
            return
        if source.deny():
            self._lose(source, "has not what it announces", now, retry=False)
            return
        if source.complete:
            source.complete = False
            self._ledger.available.add(source.has)
        self._learn(source, source.has & ~(1 << ask.index), now)

    def _release(self, source: Source, ask: Ask) -> None:
        """Nothing is due for this request any more."""
        if ask.kind is Kind.MANIFEST:
            self._manifest_from = None
        elif ask.kind is not Kind.WANT:
            self._ledger.release(source, ask)

    def _lose(self, source: Source, reason: str, now: float, *, retry: bool = True) -> None:
        self._drop(source, reason)
        source.ready_at = now
        if retry and source.attempts < self._config.attempts_max:
            source.state = State.IDLE
            source.ready_at = now + self._config.retry_delay_s
        self._events.append(SourceLost(source.peer, reason))
        self._advance(now)
        self._ask_all(now)

    def _ban(self, source: Source, reason: str, now: float) -> None:
        self._drop(source, reason)
        source.banned = True
        self._events.append(SourceBanned(source.peer, reason))
        self._advance(now)
        self._ask_all(now)

    def _drop(self, source: Source, reason: str, *, owed: int | None = None) -> None:
        """Closes, and puts back what the source still owed."""
        source.state = State.SPENT
        source.reason = reason
        for ask in source.asked.values():
            self._release(source, ask)
        source.asked.clear()
        if self.manifest is not None:
            self._ledger.forget(source)
        self._transmits.append(Close(source.peer, owed))

    def _complete_if_done(self) -> None:
        assert self.manifest is not None
        if not self._finished and self._ledger.stored.bit_count() == self.manifest.segments:
            for source in self._sources.active():
                self._tell(source)
            self._finish(Completed())

    def _finish(self, event: Completed | Failed) -> None:
        """Nothing follows this event; connections are closed, or kept by the driver."""
        self._finished = True
        for source in self._sources:
            if source.state in (State.DIALING, State.ACTIVE):
                self._drop(source, source.reason, owed=source.owed)
        self._events.append(event)
