"""What peers get of this node's blobs: complete ones, and those it is fetching itself. SPEC §10.6.

A peer is given several segments at a time, read and verified in one thread hop, as many as left in
an instant the last time; on a slow link one by one, so that what it cancels is not sent. Memory for
what was read and has not left is bounded, and peers take turns for it (slots.UploadBudget).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from protocol.bitsets import bits_of, decode_bits, encode_bits
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest, NodeId
from protocol.manifest import Manifest, encode_manifest
from protocol.rng import Rng
from protocol.seeding import Seeding
from protocol.streams import (
    ERROR_TEXT_MAX,
    Cancel,
    Done,
    ErrorReply,
    GetAny,
    GetManifest,
    GetSegment,
    Have,
    ManifestReply,
    Nothing,
    Offer,
    Query,
    Reply,
    Request,
    SegmentReply,
    Want,
    frame_head,
)

from ..errors import BlobNotFound, EdgedError, info_of
from ..interfaces import BlobSource, PartialBlob
from ..telemetry import Metrics
from .hot import HotSegments
from .pace import Moving, Pace
from .slots import UploadBudget

UPLOAD_BYTES_MAX: Final = 64 * 1024 * 1024
PEER_BYTES_MAX: Final = 2 * 1024 * 1024
BATCH_BYTES_MAX: Final = 1024 * 1024
"""Read and sent at once."""
AHEAD_BYTES_MAX: Final = 512 * 1024
"""Read at once for one peer, what it did not ask for among it."""
PROMPT_S: Final = 0.005
"""A batch that left within that may be followed by one of twice its size."""
FRESH_S: Final = 30.0
"""Without a byte for so long, a blob is not being sent any more."""
BLOBS_PER_CONNECTION_MAX: Final = 64
"""A fetch uses its connections alone, so an honest peer wants one blob at a time on each."""


class Shared(Protocol):
    @property
    def partial(self) -> PartialBlob | None: ...

    @property
    def stored(self) -> int: ...


class Fetching(Protocol):
    """What the stream server needs of the exchange service."""

    @property
    def hot(self) -> HotSegments: ...

    def sharing(self, blob: Digest) -> Shared | None: ...

    def wanted(self, blob: Digest, peer: NodeId, bitmap: bytes) -> None: ...

    def announced(self, blob: Digest, peer: NodeId, indices: tuple[int, ...]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Held:
    """What this node has of a blob at the moment."""

    manifest: Manifest
    bits: int
    read: Callable[[Sequence[int]], Awaitable[list[bytes]]]


@dataclass(eq=False, slots=True)
class Sending:
    """One blob on one connection."""

    total_bytes: int
    pace: Pace = field(default_factory=Pace)

    def is_fresh(self) -> bool:
        """A peer that only keeps its connection holds nothing up."""
        return trio.current_time() - self.pace.moved_at < FRESH_S


@dataclass(eq=False, slots=True)
class Session:
    """One connection's requests."""

    peer: NodeId
    fetching: Fetching | None
    seeding: Seeding
    hot: HotSegments
    queue: deque[tuple[Query, bytes]] = field(default_factory=deque)
    body_bytes: int = 0
    batch_bytes: int = 0
    """Beyond one segment."""
    wanted: dict[Digest, None] = field(default_factory=dict)
    sending: dict[Digest, Sending] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    complete: dict[Digest, Manifest] = field(default_factory=dict)

    def add(self, request: Request, body: bytes) -> None:
        """A request or notice came."""
        match request:
            case Have():
                if request.blob in self.wanted:
                    bits = bits_of(request.indices)
                    self.seeding.have(request.blob, self.peer, bits)
                    if self.fetching is not None:
                        self.fetching.announced(request.blob, self.peer, request.indices)
            case Cancel():
                if any(waiting.id == request.id for waiting, _ in self.queue):
                    self.cancelled.add(request.id)
            case Done():
                self.sending.pop(request.blob, None)
                if request.blob in self.wanted:
                    self.leave(request.blob)
            case _:
                self.queue.append((request, body))
                self.body_bytes += len(body)

    def join(self, blob: Digest, has: int) -> None:
        """The peer wants it; `has` are the segments it has."""
        self.wanted[blob] = None
        self.seeding.join(blob, self.peer, has)
        self.hot.open(blob)

    def leave(self, blob: Digest) -> None:
        del self.wanted[blob]
        self.seeding.leave(blob, self.peer)
        self.hot.close(blob)
        self.complete.pop(blob, None)
        self.sending.pop(blob, None)

    def pop(self) -> Query:
        request, body = self.queue.popleft()
        self.body_bytes -= len(body)
        return request


class Uploads:
    def __init__(
        self, source: BlobSource, fetching: Fetching | None, metrics: Metrics, rng: Rng
    ) -> None:
        self._source = source
        self._fetching = fetching
        self._metrics = metrics
        self._seeding = Seeding(rng)
        self._hot = HotSegments() if fetching is None else fetching.hot
        self._reading: dict[Digest, trio.Lock] = {}
        self._budget = UploadBudget(UPLOAD_BYTES_MAX, PEER_BYTES_MAX)
        self._sessions: dict[Session, None] = {}

    def begin(self, peer: NodeId) -> Session:
        session = Session(peer, self._fetching, self._seeding, self._hot)
        self._sessions[session] = None
        return session

    def is_serving(self, blob: Digest) -> bool:
        """Some peer was given some of it a moment ago, and has not said that it is done."""
        return any(
            (sending := session.sending.get(blob)) is not None and sending.is_fresh()
            for session in self._sessions
        )

    def moving(self) -> list[Moving]:
        return [
            Moving(
                direction="upload",
                digest=blob,
                state="running",
                urgent=False,
                done_bytes=sending.pace.done_bytes,
                total_bytes=sending.total_bytes,
                rate_bytes_s=sending.pace.rate_bytes_s(),
                peers=(session.peer,),
                age_s=sending.pace.age_s(),
            )
            for session in self._sessions
            for blob, sending in session.sending.items()
            if sending.is_fresh()
        ]

    def end(self, session: Session) -> None:
        del self._sessions[session]
        for blob in list(session.wanted):
            session.leave(blob)

    async def answer(
        self, session: Session, request: GetManifest | Want, body: bytes
    ) -> tuple[Reply, bytes]:
        """Raises BlobNotFound and what else reading it raises; RemoteProtocolError."""
        if isinstance(request, GetManifest):
            held = await self._held(session, request.blob)
            if held is None:
                raise BlobNotFound(f"the manifest of blob {request.blob} is not here yet")
            return ManifestReply(request.id), encode_manifest(held.manifest)
        return await self._offer(session, request, body)

    async def _offer(self, session: Session, want: Want, bitmap: bytes) -> tuple[Reply, bytes]:
        blob, peer = want.blob, session.peer
        held = await self._held(session, blob)
        has = 0 if held is None else decode_bits(bitmap, held.manifest.segments)
        if blob in session.wanted:
            self._seeding.renew(blob, peer, has)
        elif len(session.wanted) >= BLOBS_PER_CONNECTION_MAX:
            raise RemoteProtocolError("want", "too many blobs on one connection")
        else:
            session.join(blob, has)
        others = self._seeding.others(blob, peer)
        if self._fetching is not None:
            self._fetching.wanted(blob, peer, bitmap)
        complete = blob in session.complete
        ours = b"" if complete or held is None else encode_bits(held.bits, held.manifest.segments)
        return Offer(want.id, complete, others), ours

    async def _held(self, session: Session, blob: Digest) -> _Held | None:
        """None: it is being fetched, and nothing of it is here yet. Raises BlobNotFound."""
        manifest = session.complete.get(blob)
        if manifest is None:
            shared = None if self._fetching is None else self._fetching.sharing(blob)
            if shared is not None:
                if shared.partial is None:
                    return None
                return _Held(shared.partial.manifest, shared.stored, shared.partial.read)
            manifest = await self._source.manifest(blob)
            session.complete[blob] = manifest
            while len(session.complete) > BLOBS_PER_CONNECTION_MAX:
                del session.complete[next(iter(session.complete))]

        async def read(indices: Sequence[int]) -> list[bytes]:
            return await self._source.wire_segments(blob, indices)

        return _Held(manifest, (1 << manifest.segments) - 1, read)

    # ------------------------------------------------------------ segments
    async def next_segments(self, session: Session) -> tuple[int, list[bytes]]:
        """Replies to the first requests of the queue: bytes taken from the budget until `sent`, and
        what to send."""
        first = session.queue[0][0]
        assert isinstance(first, GetSegment | GetAny)
        try:
            held = await self._held(session, first.blob)
        except EdgedError as error:
            session.pop()
            return 0, [_refusal(first.id, error)]
        if held is None:
            session.pop()
            return 0, [frame_head(Nothing(first.id))]
        replies, size = self._choose(session, first.blob, held)
        indices = [reply.index for reply in replies if isinstance(reply, SegmentReply)]
        await self._budget.take(session.peer, size)
        try:
            frames = await self._read(first.blob, held, indices)
        except EdgedError as error:
            self._budget.give_back(session.peer, size)
            session.complete.pop(first.blob, None)
            return 0, [_refusal(reply.id, error) for reply in replies]
        except BaseException:
            self._budget.give_back(session.peer, size)
            raise
        self._served(session, first.blob, held.manifest, sum(map(len, frames)))
        parts: list[bytes] = []
        waiting = iter(frames)
        for reply in replies:
            body = next(waiting) if isinstance(reply, SegmentReply) else b""
            parts += (frame_head(reply, len(body)), body)
        return size, parts

    def _served(self, session: Session, blob: Digest, manifest: Manifest, count: int) -> None:
        self._metrics.served_bytes.inc(count)
        if not count:
            return
        sending = session.sending.get(blob)
        if sending is None:
            sending = session.sending[blob] = Sending(manifest.wire_bytes)
            while len(session.sending) > BLOBS_PER_CONNECTION_MAX:
                del session.sending[next(iter(session.sending))]
        sending.pace.add(count)

    async def _read(self, blob: Digest, held: _Held, indices: Sequence[int]) -> list[bytes]:
        """From memory; else from the disk, together with what will be asked for next. What several
        peers need at once is read once. Raises as `held.read`."""
        frames = [self._hot.get(blob, index) for index in indices]
        if None not in frames:
            return [frame for frame in frames if frame is not None]
        lock = self._reading.setdefault(blob, trio.Lock())
        try:
            async with lock:
                have = {index: self._hot.get(blob, index) for index in indices}
                missing = [index for index, frame in have.items() if frame is None]
                ahead = self._ahead(blob, held, missing)
                read = await held.read([*missing, *ahead]) if missing else []
        finally:
            if not lock.statistics().tasks_waiting:
                self._reading.pop(blob, None)
        have.update(zip(missing, read, strict=False))
        for index, frame in zip([*missing, *ahead], read, strict=True):
            self._hot.put(blob, index, frame)
        return [frame for frame in have.values() if frame is not None]

    def _ahead(self, blob: Digest, held: _Held, missing: Sequence[int]) -> list[int]:
        """Segments that follow those, as a seed sends them in their order."""
        lengths = held.manifest.wire_lengths
        room = AHEAD_BYTES_MAX - sum(lengths[index] for index in missing)
        found: list[int] = []
        for index in range(missing[-1] + 1, len(lengths)) if missing else ():
            room -= lengths[index]
            if room < 0 or not held.bits >> index & 1 or self._hot.get(blob, index) is not None:
                break
            if index not in missing:
                found.append(index)
        return found

    def sent(self, session: Session, size: int, spent_s: float) -> None:
        """A batch has left, or was cut."""
        if not size:
            return
        self._budget.give_back(session.peer, size)
        if spent_s <= PROMPT_S:
            session.batch_bytes = min(2 * max(session.batch_bytes, size), BATCH_BYTES_MAX)
        else:
            session.batch_bytes = 0

    def _choose(self, session: Session, blob: Digest, held: _Held) -> tuple[list[Reply], int]:
        """As many requests for segments of this blob as fit the batch; one at least."""
        replies: list[Reply] = []
        size = 0
        while session.queue:
            request = session.queue[0][0]
            if not isinstance(request, GetSegment | GetAny) or request.blob != blob:
                break
            if size and size >= session.batch_bytes:
                break
            session.pop()
            reply = self._choose_one(session, request, held)
            if isinstance(reply, SegmentReply):
                size += held.manifest.wire_lengths[reply.index]
            replies.append(reply)
        return replies, size

    def _choose_one(self, session: Session, request: GetSegment | GetAny, held: _Held) -> Reply:
        blob, peer = request.blob, session.peer
        if request.id in session.cancelled:
            session.cancelled.discard(request.id)
            return Nothing(request.id)
        if isinstance(request, GetAny):
            picked = self._seeding.pick(blob, peer, held.bits)
            return Nothing(request.id) if picked is None else SegmentReply(request.id, picked)
        if request.index >= held.manifest.segments:
            text = f"blob {blob} has {held.manifest.segments} segments, not {request.index}"
            return ErrorReply(request.id, "blob-not-found", text)
        if not held.bits >> request.index & 1:
            return Nothing(request.id)
        self._seeding.sent(blob, peer, request.index)
        return SegmentReply(request.id, request.index)


def _refusal(request_id: int, error: EdgedError) -> bytes:
    reply = ErrorReply(request_id, info_of(error).code, str(error)[:ERROR_TEXT_MAX])
    return frame_head(reply)
