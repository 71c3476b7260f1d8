"""Whatever bytes and replies come: only RemoteProtocolError, only verified segments, an end."""

from __future__ import annotations

import contextlib
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.exchange import Fetch
from protocol.exchange_events import (
    Close,
    Completed,
    Dial,
    Failed,
    FetchConfig,
    HoldersWanted,
    ManifestVerified,
    SegmentVerified,
    Send,
    SourceBanned,
)
from protocol.ids import NodeId, digest_of
from protocol.manifest import build_manifest, encode_manifest, manifest_digest, segment_bytes_for
from protocol.streams import (
    ErrorReply,
    GetManifest,
    GetSegment,
    ManifestReply,
    Message,
    Ping,
    Pong,
    Reply,
    SegmentReply,
    Sync,
    SyncReply,
    encode_frame,
    reply_reader,
    request_reader,
)

DATA = random.Random(5).randbytes(400_000)
SIZE = segment_bytes_for(len(DATA))
FRAMES = [zstandard.compress(DATA[at : at + SIZE], 1) for at in range(0, len(DATA), SIZE)]
MANIFEST = build_manifest(digest_of(DATA), len(DATA), FRAMES)
PEERS = [NodeId(f"{n:032x}") for n in range(4)]

ids = st.integers(0, 0xFFFF_FFFF)
blobs = st.binary(max_size=8).map(digest_of)
indices = st.integers(0, 8191)
codes = st.from_regex(r"\A[a-z][a-z-]{0,31}\Z")
bodies = st.binary(max_size=300)
requests: st.SearchStrategy[tuple[Message, bytes]] = st.one_of(
    st.tuples(st.builds(Ping, ids), st.just(b"")),
    st.tuples(st.builds(Sync, ids, st.integers(0, 255)), bodies),
    st.tuples(st.builds(GetManifest, ids, blobs), st.just(b"")),
    st.tuples(st.builds(GetSegment, ids, blobs, indices), st.just(b"")),
)
replies: st.SearchStrategy[tuple[Reply, bytes]] = st.one_of(
    st.tuples(st.builds(Pong, ids), st.just(b"")),
    st.tuples(st.builds(SyncReply, ids), bodies),
    st.tuples(st.builds(ManifestReply, ids), bodies),
    st.tuples(st.builds(SegmentReply, ids, indices), bodies),
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


BEHAVIOURS = ("good", "dead", "slow", "corrupt", "gone", "liar", "quits", "bad-manifest")


class World:
    """Holders of various honesty around one machine; time is virtual."""

    def __init__(self, behaviours: list[str], present: set[int], seed: int) -> None:
        self.rng = random.Random(seed)
        self.behaviours = dict(zip(PEERS, behaviours, strict=False))
        self.present = present
        self.now = 0.0
        self.fetch = Fetch(
            MANIFEST.blob,
            manifest_digest(MANIFEST),
            config=FetchConfig(window_bytes=SIZE * 3),
            now=self.now,
        )
        self.open: dict[NodeId, list[Message]] = {}
        self.dials: dict[NodeId, int] = {}
        self.got: dict[int, bytes] = {}
        self.banned: list[NodeId] = []
        self.end: Completed | Failed | None = None

    def run(self) -> None:
        for _ in range(2000):
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
                self.fetch.offer(list(self.behaviours), self.now)
            case ManifestVerified():
                assert event.manifest == MANIFEST
                self.fetch.resume(self.present, self.now)
            case SegmentVerified():
                assert event.wire == FRAMES[event.index]
                assert event.index not in self.got
                assert event.index not in self.present
                self.got[event.index] = event.wire
            case Completed() | Failed():
                self.end = event
            case SourceBanned():
                self.banned.append(event.peer)

    def on_transmit(self, transmit: object) -> None:
        match transmit:
            case Dial(peer):
                assert peer not in self.banned
                assert not self.open, "one holder at a time"
                self.dials[peer] = self.dials.get(peer, 0) + 1
                self.open[peer] = []
                if self.behaviours[peer] == "dead":
                    self.fetch.failed(peer, "refused", self.now)
                else:
                    self.fetch.connected(peer, self.now)
            case Send(peer, message):
                self.open[peer].append(message)
                assert len(self.open[peer]) <= 4
            case Close(peer):
                del self.open[peer]

    def step(self) -> None:
        for peer, queue in self.open.items():
            if queue and self.behaviours[peer] != "slow":
                self.now += 0.01
                self.answer(peer, queue.pop(0))
                return
        deadline = self.fetch.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.fetch.on_timer(self.now)

    def answer(self, peer: NodeId, request: Message) -> None:
        behaviour = self.behaviours[peer]
        reply: tuple[Reply, bytes]
        if behaviour == "gone":
            reply = (ErrorReply(request.id, "blob-not-found", "no"), b"")
        elif behaviour == "liar":
            reply = (SegmentReply(self.rng.getrandbits(8), self.rng.randrange(9)), FRAMES[0])
        elif isinstance(request, GetManifest):
            body = encode_manifest(MANIFEST)
            reply = (ManifestReply(request.id), body[:-1] if behaviour == "bad-manifest" else body)
        else:
            assert isinstance(request, GetSegment)
            body = FRAMES[request.index]
            if behaviour == "corrupt" and self.rng.random() < 0.5:
                body = body[:-1] + bytes([body[-1] ^ 1])
            reply = (SegmentReply(request.id, request.index), body)
            if behaviour == "quits" and self.rng.random() < 0.4:
                self.fetch.failed(peer, "reset", self.now)
                return
        self.fetch.receive(*reply, peer, self.now)


@given(
    st.lists(st.sampled_from(BEHAVIOURS), max_size=4),
    st.sets(st.integers(0, MANIFEST.segments - 1)),
    st.integers(0, 1_000_000),
)
@settings(max_examples=300)
def test_every_fetch_ends_and_completes_if_one_holder_is_honest(
    behaviours: list[str], present: set[int], seed: int
) -> None:
    world = World(behaviours, present, seed)
    world.run()
    if "good" in behaviours:
        assert isinstance(world.end, Completed)
    if isinstance(world.end, Completed):
        assert set(world.got) | present == set(range(MANIFEST.segments))
    else:
        assert isinstance(world.end, Failed)
        assert {peer for peer, _ in world.end.reasons} == set(world.behaviours)
    assert all(world.behaviours[p] in ("corrupt", "liar", "bad-manifest") for p in world.banned)
