"""Whatever bytes and replies come: only RemoteProtocolError, only verified segments, an end."""

from __future__ import annotations

import contextlib
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.bitsets import Counts, bits_of, decode_bits, encode_bits, first_from, indices_of
from protocol.errors import RemoteProtocolError
from protocol.exchange import Fetch
from protocol.exchange_events import (
    Close,
    Completed,
    Dial,
    Failed,
    FetchConfig,
    FetchersNamed,
    HoldersWanted,
    ManifestVerified,
    SegmentVerified,
    Send,
    SourceBanned,
)
from protocol.ids import NodeId, digest_of
from protocol.manifest import build_manifest, encode_manifest, manifest_digest, segment_bytes_for
from protocol.streams import (
    Cancel,
    ErrorReply,
    GetAny,
    GetManifest,
    GetSegment,
    Have,
    ManifestReply,
    Message,
    Nothing,
    Offer,
    Ping,
    Pong,
    Reply,
    SegmentReply,
    Sync,
    SyncReply,
    Want,
    encode_frame,
    reply_reader,
    request_reader,
)

DATA = random.Random(5).randbytes(150_000)
SIZE = segment_bytes_for(len(DATA))
FRAMES = [zstandard.compress(DATA[at : at + SIZE], 1) for at in range(0, len(DATA), SIZE)]
MANIFEST = build_manifest(digest_of(DATA), len(DATA), FRAMES)
PEERS = [NodeId(f"{n:032x}") for n in range(6)]

ids = st.integers(0, 0xFFFF_FFFF)
blobs = st.binary(max_size=8).map(digest_of)
indices = st.integers(0, 8191)
codes = st.from_regex(r"\A[a-z][a-z-]{0,31}\Z")
bodies = st.binary(max_size=300)
requests: st.SearchStrategy[tuple[Message, bytes]] = st.one_of(
    st.tuples(st.builds(Ping, ids), st.just(b"")),
    st.tuples(st.builds(Sync, ids), bodies),
    st.tuples(st.builds(GetManifest, ids, blobs), st.just(b"")),
    st.tuples(st.builds(GetSegment, ids, blobs, indices), st.just(b"")),
    st.tuples(st.builds(GetAny, ids, blobs), st.just(b"")),
    st.tuples(st.builds(Want, ids, blobs), bodies),
    st.tuples(st.builds(Cancel, ids), st.just(b"")),
    st.tuples(
        st.builds(Have, blobs, st.lists(indices, min_size=1, max_size=9).map(tuple)), st.just(b"")
    ),
)
replies: st.SearchStrategy[tuple[Reply, bytes]] = st.one_of(
    st.tuples(st.builds(Pong, ids), st.just(b"")),
    st.tuples(st.builds(SyncReply, ids), bodies),
    st.tuples(st.builds(ManifestReply, ids), bodies),
    st.tuples(st.builds(SegmentReply, ids, indices), bodies),
    st.tuples(st.builds(Offer, ids, st.booleans(), st.just(())), bodies),
    st.tuples(st.builds(Nothing, ids), st.just(b"")),
    st.tuples(st.builds(ErrorReply, ids, codes, st.text(max_size=200)), st.just(b"")),
)


@given(st.lists(requests, max_size=6), st.lists(replies, max_size=6), st.randoms())
def test_frames_round_trip_however_they_are_cut(frames, answers, rng) -> None:  # type: ignore[no-untyped-def]
    for make, expected in ((request_reader, frames), (reply_reader, answers)):
        data = b"".join(encode_frame(message, body) for message, body in expected)
        whole, bytewise, cut = make(), make(), make()
        whole.feed(data)
        got: list[list[object]] = [list(iter(whole.next_frame, None)), [], []]
        for at in range(len(data)):
            bytewise.feed(data[at : at + 1])
            got[1] += iter(bytewise.next_frame, None)
        at = 0
        while at < len(data):
            size = rng.randrange(1, 200)
            cut.feed(data[at : at + size])
            got[2] += iter(cut.next_frame, None)
            at += size
        assert got == [expected] * 3


@given(st.lists(st.binary(max_size=200), max_size=8))
@settings(max_examples=300)
def test_arbitrary_bytes_raise_only_remote_protocol_error(chunks: list[bytes]) -> None:
    for reader in (request_reader(), reply_reader()):
        with contextlib.suppress(RemoteProtocolError):
            for chunk in chunks:
                reader.feed(chunk)
                while reader.next_frame() is not None:
                    pass


@given(requests, st.integers(0, 400), st.integers(1, 255))
@settings(max_examples=300)
def test_a_damaged_frame_raises_only_remote_protocol_error(frame, at, flip) -> None:  # type: ignore[no-untyped-def]
    data = bytearray(encode_frame(*frame))
    data[at % len(data)] ^= flip
    reader = request_reader()
    reader.feed(bytes(data))
    with contextlib.suppress(RemoteProtocolError):
        while reader.next_frame() is not None:
            pass


@given(st.sets(st.integers(0, 70)), st.integers(0, 70))
def test_bitsets_are_sets(indices: set[int], start: int) -> None:
    bits = bits_of(indices)
    assert list(indices_of(bits)) == sorted(indices)
    assert decode_bits(encode_bits(bits, 71), 71) == bits
    if indices:
        later = [index for index in indices if index >= start]
        assert first_from(bits, start) == min(later or indices)


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 20))), max_size=30))
def test_counts_count(steps: list[tuple[bool, set[int]]]) -> None:
    counts, model = Counts(), [0] * 21
    for add, indices in steps:
        if add:
            counts.add(bits_of(indices))
        else:
            indices = {index for index in indices if model[index]}
            counts.remove(bits_of(indices))
        for index in indices:
            model[index] += 1 if add else -1
        assert counts.counted() == bits_of(i for i in range(21) if model[i])
        least = min(model)
        assert counts.least((1 << 21) - 1) == bits_of(i for i in range(21) if model[i] == least)


BEHAVIOURS = (
    "good", "dead", "slow", "corrupt", "gone", "liar", "quits", "bad-manifest",
    "fetcher", "empty-fetcher", "denies", "repeats",
)  # fmt: skip
HONEST = ("good", "dead", "slow", "gone", "quits", "fetcher", "empty-fetcher", "repeats")
SEGMENTS = MANIFEST.segments
WHOLE = (1 << SEGMENTS) - 1


class World:
    """Sources of various honesty around one machine; time is virtual."""

    def __init__(self, behaviours: list[str], present: set[int], seed: int) -> None:
        self.rng = random.Random(seed)
        self.behaviours = dict(zip(PEERS, behaviours, strict=False))
        self.present = present
        self.now = 0.0
        self.config = FetchConfig(sources_max=3, patience_s=2.0)
        self.fetch = Fetch(
            MANIFEST.blob,
            manifest_digest(MANIFEST),
            config=self.config,
            rng=random.Random(seed + 1),
            now=self.now,
        )
        self.has = {
            peer: bits_of(self.rng.sample(range(SEGMENTS), SEGMENTS // 2))
            if behaviour == "fetcher"
            else 0
            for peer, behaviour in self.behaviours.items()
        }
        self.open: dict[NodeId, list[Message]] = {}
        self.got: dict[int, bytes] = {}
        self.unstored: list[int] = []
        self.banned: list[NodeId] = []
        self.end: Completed | Failed | None = None

    def run(self) -> None:
        for _ in range(6000):
            for event in iter(self.fetch.poll_event, None):
                assert self.end is None, "nothing follows the end"
                self.on_event(event)
            for transmit in iter(self.fetch.poll_transmit, None):
                self.on_transmit(transmit)
            if self.end is not None and not self.fetch._events:
                assert not self.open, "every connection is closed"
                return
            self.step()
        pytest.fail("no end")

    def on_event(self, event: object) -> None:
        match event:
            case HoldersWanted():
                holders = [p for p, b in self.behaviours.items() if "fetcher" not in b]
                self.fetch.offer(holders, self.now)
            case FetchersNamed(peers):
                self.fetch.meet([peer for peer in peers if peer in self.behaviours], self.now)
            case ManifestVerified():
                assert event.manifest == MANIFEST
                self.fetch.resume(self.present, self.now)
            case SegmentVerified():
                assert event.wire == FRAMES[event.index]
                assert event.index not in self.got
                assert event.index not in self.present
                self.got[event.index] = event.wire
                self.unstored.append(event.index)
            case Completed() | Failed():
                self.end = event
            case SourceBanned():
                self.banned.append(event.peer)

    def on_transmit(self, transmit: object) -> None:
        match transmit:
            case Dial(peer):
                assert peer not in self.banned
                assert peer not in self.open
                self.open[peer] = []
                assert len(self.open) <= self.config.sources_max + self.config.dial_backs_max
                if self.behaviours[peer] == "dead":
                    self.fetch.failed(peer, "refused", self.now)
                else:
                    self.fetch.connected(peer, self.now)
            case Send(peer, message):
                if isinstance(message, Have):
                    assert set(message.indices) <= self.present | set(self.got)
                elif not isinstance(message, Cancel):
                    self.open[peer].append(message)
                    segments = [m for m in self.open[peer] if isinstance(m, GetSegment | GetAny)]
                    assert len(segments) <= 2 * SEGMENTS
            case Close(peer):
                del self.open[peer]

    def step(self) -> None:
        """Something happens, in whatever order."""
        choices = [peer for peer, q in self.open.items() if q and self.behaviours[peer] != "slow"]
        if self.unstored and (not choices or self.rng.random() < 0.3):
            new, self.unstored = self.unstored, []
            self.fetch.stored(new, self.now)
        elif choices:
            self.now += 0.01
            peer = self.rng.choice(choices)
            self.answer(peer, self.open[peer].pop(0))
        if self.rng.random() < 0.2 and self.behaviours:
            self.rumour(self.rng.choice(list(self.behaviours)))
        deadline = self.fetch.next_deadline()
        if deadline is not None and (deadline <= self.now or not choices):
            self.now = max(self.now, deadline)
            self.fetch.on_timer(self.now)

    def rumour(self, peer: NodeId) -> None:
        """Another fetcher says something on its own connection."""
        if "fetcher" not in self.behaviours[peer]:
            return
        if self.rng.random() < 0.5:
            bitmap = encode_bits(self.has[peer], SEGMENTS)
            self.fetch.wanted_by(peer, bitmap, self.now)
        elif self.has[peer]:
            self.fetch.have(peer, indices_of(self.has[peer]), self.now)

    def answer(self, peer: NodeId, request: Message) -> None:
        behaviour = self.behaviours[peer]
        reply: tuple[Reply, bytes]
        assert isinstance(request, Want | GetManifest | GetSegment | GetAny)
        if behaviour == "gone":
            reply = (ErrorReply(request.id, "blob-not-found", "no"), b"")
        elif behaviour == "liar":
            index = self.rng.randrange(SEGMENTS)
            reply = (SegmentReply(self.rng.getrandbits(8), index), FRAMES[0])
        elif isinstance(request, Want):
            bitmap = encode_bits(self.has[peer], SEGMENTS) if behaviour == "fetcher" else b""
            reply = (Offer(request.id, "fetcher" not in behaviour, tuple(PEERS)), bitmap)
        elif isinstance(request, GetManifest):
            if behaviour == "empty-fetcher":
                reply = (ErrorReply(request.id, "blob-not-found", "not yet"), b"")
            else:
                cut = 1 if behaviour == "bad-manifest" else 0
                body = encode_manifest(MANIFEST)
                reply = (ManifestReply(request.id), body[: len(body) - cut])
        else:
            segment = self.segment(peer, behaviour, request)
            if segment is None:
                return
            reply = segment
        self.fetch.receive(*reply, peer, self.now)

    def segment(
        self, peer: NodeId, behaviour: str, request: GetSegment | GetAny
    ) -> tuple[Reply, bytes] | None:
        if behaviour == "denies":
            return Nothing(request.id), b""
        if isinstance(request, GetAny):
            index = 0 if behaviour == "repeats" else self.rng.randrange(SEGMENTS)
        else:
            index = request.index
            if behaviour == "fetcher" and not self.has[peer] >> index & 1:
                return Nothing(request.id), b""
        body = FRAMES[index]
        if behaviour == "corrupt" and self.rng.random() < 0.5:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if behaviour == "quits" and self.rng.random() < 0.4:
            self.fetch.failed(peer, "reset", self.now)
            return None
        return SegmentReply(request.id, index), body


@given(
    st.lists(st.sampled_from(BEHAVIOURS), max_size=6),
    st.sets(st.integers(0, SEGMENTS - 1)),
    st.integers(0, 1_000_000),
)
@settings(max_examples=300, deadline=None)
def test_every_fetch_ends_and_completes_if_one_holder_is_honest(
    behaviours: list[str], present: set[int], seed: int
) -> None:
    world = World(behaviours, present, seed)
    world.run()
    if "good" in behaviours:
        assert isinstance(world.end, Completed)
    if isinstance(world.end, Completed):
        assert set(world.got) | present == set(range(SEGMENTS))
    else:
        assert isinstance(world.end, Failed)
        assert {peer for peer, _ in world.end.reasons} <= set(world.behaviours)
    assert all(world.behaviours[peer] not in HONEST for peer in world.banned)
    ledger = world.fetch._ledger
    if isinstance(world.end, Failed):
        assert (ledger.assigned, ledger.any_asked, ledger.inflight) == (0, 0, 0), "all put back"
        assert ledger.available.counted() == 0
