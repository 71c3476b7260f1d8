"""protocol.exchange: one holder at a time, verified segments only, fail over, resume. SPEC §10."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import zstandard

from protocol.errors import LocalProtocolError
from protocol.exchange import SOURCES_MAX, Fetch
from protocol.exchange_events import (
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
from protocol.ids import Digest, NodeId, digest_of
from protocol.manifest import (
    Manifest,
    build_manifest,
    encode_manifest,
    manifest_digest,
    segment_bytes_for,
)
from protocol.streams import (
    ErrorReply,
    GetManifest,
    GetSegment,
    ManifestReply,
    Pong,
    Reply,
    SegmentReply,
)

A, B, C = (NodeId(letter * 32) for letter in "abc")
DATA = random.Random(1).randbytes(600_000)


def blob_of(data: bytes) -> tuple[Manifest, list[bytes]]:
    size = segment_bytes_for(len(data))
    frames = [zstandard.compress(data[at : at + size], 1) for at in range(0, len(data), size)]
    return build_manifest(digest_of(data), len(data), frames), frames


MANIFEST, FRAMES = blob_of(DATA)


class Rig:
    """A machine with its outputs drained after each input."""

    def __init__(
        self,
        *peers: NodeId,
        expected: Digest | None = None,
        blob: Digest = MANIFEST.blob,
        config: FetchConfig | None = None,
    ) -> None:
        self.now = 100.0
        self.fetch = Fetch(blob, expected or manifest_digest(MANIFEST), config=config, now=self.now)
        assert self.events() == [HoldersWanted()]
        self.fetch.offer(peers, self.now)

    def events(self) -> list[Event]:
        return list(iter(self.fetch.poll_event, None))

    def sent(self) -> list[Transmit]:
        return list(iter(self.fetch.poll_transmit, None))

    def asked(self) -> list[GetManifest | GetSegment]:
        return [item.message for item in self.sent() if isinstance(item, Send)]

    def connect(self, peer: NodeId) -> GetManifest:
        assert Dial(peer) in self.sent()
        self.fetch.connected(peer, self.now)
        (message,) = self.asked()
        assert isinstance(message, GetManifest)
        return message

    def reply(self, message: Reply, body: bytes = b"", peer: NodeId = A) -> None:
        self.fetch.receive(message, body, peer, self.now)

    def start(self, peer: NodeId = A, present: Iterable[int] = ()) -> list[GetSegment]:
        """Through the manifest; what is asked for next."""
        request = self.connect(peer)
        self.reply(ManifestReply(request.id), encode_manifest(MANIFEST), peer)
        assert self.events() == [ManifestVerified(MANIFEST)]
        self.fetch.resume(present, self.now)
        return self.segments()

    def segments(self) -> list[GetSegment]:
        asked = self.asked()
        assert all(isinstance(message, GetSegment) for message in asked)
        return [message for message in asked if isinstance(message, GetSegment)]

    def give(self, request: GetSegment, peer: NodeId = A) -> None:
        self.reply(SegmentReply(request.id, request.index), FRAMES[request.index], peer)

    def wait(self) -> None:
        deadline = self.fetch.next_deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        self.fetch.on_timer(self.now)


def test_a_whole_fetch_from_the_nearest_holder() -> None:
    rig = Rig(A, B)
    asked = rig.start(A)
    got = []
    while asked:
        request = asked.pop(0)
        rig.give(request)
        got += rig.events()
        asked += rig.segments() if len(got) < MANIFEST.segments else []
    assert got[:-1] == [SegmentVerified(i, FRAMES[i], A) for i in range(MANIFEST.segments)]
    assert got[-1] == Completed()
    assert rig.sent() == [Close(A)]
    assert rig.fetch.next_deadline() is None
    rig.fetch.on_timer(1e9)
    rig.fetch.failed(A, "late", 1e9)
    rig.fetch.offer([C], 1e9)
    assert rig.events() == []
    assert rig.sent() == []


def test_only_what_is_missing_is_asked_for() -> None:
    rig = Rig(A)
    present = set(range(MANIFEST.segments)) - {2, 5}
    asked = rig.start(A, present)
    assert [message.index for message in asked] == [2, 5]
    rig.give(asked[1])  # any order
    rig.give(asked[0])
    assert [type(event) for event in rig.events()] == [
        SegmentVerified,
        SegmentVerified,
        Completed,
    ]


def test_nothing_missing_completes_at_once() -> None:
    rig = Rig(A)
    assert rig.start(A, range(MANIFEST.segments)) == []
    assert rig.events() == [Completed()]


def test_the_window_bounds_what_is_asked_for_at_once() -> None:
    config = FetchConfig(window_bytes=3 * max(MANIFEST.wire_lengths))
    rig = Rig(A, config=config)
    asked = rig.start(A)
    assert [message.index for message in asked] == [0, 1, 2]
    rig.give(asked[0])
    assert [message.index for message in rig.segments()] == [3]
    narrow = Rig(A, config=FetchConfig(window_bytes=1))
    assert len(narrow.start(A)) == FetchConfig().window_segments_min


def test_no_holder_at_all() -> None:
    rig = Rig()
    assert rig.events() == [Failed(())]
    assert rig.fetch.next_deadline() is None


def test_dead_holders_are_tried_in_order_then_once_more_then_it_fails() -> None:
    rig = Rig(A, B)
    dialled = []
    seen: list[Event] = []
    for _ in range(4):
        (peer,) = (item.peer for item in rig.sent() if isinstance(item, Dial))
        dialled.append(peer)
        rig.fetch.failed(peer, "refused", rig.now)
        seen += rig.events()
        if len(dialled) == 2:
            assert rig.sent() == [Close(B)]
            rig.wait()
    assert dialled == [A, B, A, B]
    assert seen == [*(SourceLost(peer, "refused") for peer in dialled), HoldersWanted()]
    rig.fetch.offer([B, A], rig.now)
    assert rig.events() == [Failed(((A, "refused"), (B, "refused")))]


def test_a_holder_that_cannot_be_reached_in_time_is_left() -> None:
    rig = Rig(A, B)
    assert rig.sent() == [Dial(A)]
    rig.fetch.heard(A, rig.now + 100)  # nothing was connected, so nothing can be heard
    rig.wait()
    assert rig.now == 100 + FetchConfig().connect_timeout_s
    assert rig.sent() == [Close(A), Dial(B)]
    assert rig.events() == [SourceLost(A, "no connection in 3 s")]
    rig.fetch.connected(A, rig.now)  # too late
    assert rig.sent() == []


def test_a_stalled_holder_is_left_and_what_it_owed_is_asked_of_the_next() -> None:
    rig = Rig(A, B)
    asked = rig.start(A)
    rig.give(asked[0])
    assert rig.events() == [SegmentVerified(0, FRAMES[0], A)]
    rig.now += 4.9
    rig.fetch.on_timer(rig.now)
    assert rig.events() == []
    rig.wait()
    assert rig.now == 105.0
    assert rig.sent()[-2:] == [Close(A), Dial(B)]
    assert rig.events() == [SourceLost(A, "sent nothing for 5 s")]
    rig.fetch.connected(B, rig.now)
    assert [message.index for message in rig.segments()] == list(range(1, MANIFEST.segments))
    rig.give(asked[1])  # A's, from a closed connection
    assert rig.events() == []


def test_bytes_keep_a_slow_holder_but_not_for_ever() -> None:
    rig = Rig(A, B)
    rig.start(A)
    lost: list[Event] = []
    while not lost:
        rig.now += 4
        rig.fetch.heard(A, rig.now)
        rig.fetch.on_timer(rig.now)
        lost = rig.events()
    assert lost == [SourceLost(A, "no whole reply in 60 s")]
    assert rig.now == 160


def test_wrong_bytes_ban_the_holder_and_the_next_one_serves() -> None:
    rig = Rig(A, B)
    asked = rig.start(A)
    wrong = bytearray(FRAMES[0])
    wrong[len(wrong) // 2] ^= 1
    rig.reply(SegmentReply(asked[0].id, 0), bytes(wrong))
    (event,) = rig.events()
    assert isinstance(event, SourceBanned)
    assert event.peer == A
    assert rig.sent() == [Close(A), Dial(B)]
    rig.fetch.connected(B, rig.now)
    asked = rig.segments()
    rig.fetch.failed(B, "gone", rig.now)
    assert rig.events() == [SourceLost(B, "gone")]
    rig.wait()
    assert rig.sent() == [Close(B), Dial(B)], "A is never asked again"
    rig.fetch.failed(B, "gone", rig.now)
    assert rig.events() == [SourceLost(B, "gone"), HoldersWanted()]
    rig.fetch.offer([A, B], rig.now)
    (failed,) = rig.events()
    assert isinstance(failed, Failed)
    assert dict(failed.reasons)[A].startswith("segment: 0")


def test_a_link_that_carries_something_is_tried_again_and_again() -> None:
    rig = Rig(A)
    asked = rig.start(A)
    for _ in range(MANIFEST.segments - 1):
        rig.give(asked[0])
        rig.fetch.failed(A, "reset", rig.now)
        rig.sent()
        rig.wait()
        assert rig.sent() == [Dial(A)]
        rig.fetch.connected(A, rig.now)
        asked = rig.segments()
    rig.give(asked[0])
    assert rig.events()[-1] == Completed()


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (SegmentReply(99, 0), FRAMES[0]),
        (SegmentReply(1, 1), FRAMES[1]),
        (SegmentReply(1, 0), FRAMES[0] + b"x"),
        (SegmentReply(1, 0), b""),
        (ManifestReply(1), encode_manifest(MANIFEST)),
        (Pong(1), b""),
    ],
    ids=["unasked", "other index", "longer", "empty", "manifest", "pong"],
)
def test_a_reply_nobody_asked_for_bans(reply: Reply, body: bytes) -> None:
    rig = Rig(A)
    assert rig.start(A)[0] == GetSegment(1, MANIFEST.blob, 0)
    rig.reply(reply, body)
    assert [type(event) for event in rig.events()] == [SourceBanned, HoldersWanted]


def test_a_manifest_that_is_not_the_record_s_bans() -> None:
    other, _ = blob_of(DATA[:-1])
    for body in (encode_manifest(other), encode_manifest(MANIFEST)[:-1], b""):
        rig = Rig(A, B)
        request = rig.connect(A)
        rig.reply(ManifestReply(request.id), body)
        assert [type(event) for event in rig.events()] == [SourceBanned]
        assert rig.sent() == [Close(A), Dial(B)]


def test_a_segment_in_place_of_the_manifest_bans() -> None:
    rig = Rig(A)
    request = rig.connect(A)
    rig.reply(SegmentReply(request.id, 0), FRAMES[0])
    assert isinstance(rig.events()[0], SourceBanned)


@pytest.mark.parametrize("body", [b"", b"\xc1", encode_manifest(blob_of(b"other")[0])])
def test_a_record_that_names_a_wrong_manifest_fails_at_once(body: bytes) -> None:
    """Every holder would serve the same: nobody is banned for it, nobody else is asked."""
    rig = Rig(A, B, expected=digest_of(body))
    request = rig.connect(A)
    rig.reply(ManifestReply(request.id), body)
    (event,) = rig.events()
    assert isinstance(event, Failed)
    assert event.reasons[0][0] is None
    assert rig.sent() == [Close(A)]


def test_a_holder_without_the_blob_is_not_asked_twice() -> None:
    rig = Rig(A, B)
    request = rig.connect(A)
    rig.reply(ErrorReply(request.id, "blob-not-found", "gone"))
    assert rig.events() == [SourceLost(A, "blob-not-found: gone")]
    request = rig.connect(B)
    rig.reply(ErrorReply(request.id, "overloaded", "later"), peer=B)
    rig.events()
    rig.sent()
    rig.wait()
    assert rig.sent() == [Dial(B)]


def test_offers_are_bounded_and_counted_once() -> None:
    rig = Rig(A)
    rig.fetch.offer([A, B, A], rig.now)
    rig.fetch.offer([NodeId(f"{n:032x}") for n in range(200)], rig.now)
    assert len(rig.fetch._sources) == SOURCES_MAX
    assert rig.sent() == [Dial(A)]


def test_a_holder_learned_of_later_is_used() -> None:
    rig = Rig(A)
    rig.reply(ErrorReply(rig.connect(A).id, "blob-not-found", ""))
    assert rig.events() == [SourceLost(A, "blob-not-found: "), HoldersWanted()]
    rig.fetch.offer([A, C], rig.now)
    assert rig.sent() == [Close(A), Dial(C)]
    rig.fetch.connected(C, rig.now)
    assert rig.events() == []


def test_the_manifest_survives_the_holder_it_came_from() -> None:
    rig = Rig(A, B)
    request = rig.connect(A)
    rig.reply(ManifestReply(request.id), encode_manifest(MANIFEST))
    rig.fetch.failed(A, "gone", rig.now)
    assert rig.sent() == [Close(A), Dial(B)]
    rig.fetch.connected(B, rig.now)
    assert rig.sent() == [], "not before it is known what is on disk"
    assert rig.fetch.next_deadline() is None, "that is the driver's time"
    rig.fetch.resume([], rig.now)
    assert rig.segments()[0].index == 0


def test_resume_answers_the_manifest_once() -> None:
    rig = Rig(A)
    with pytest.raises(LocalProtocolError):
        rig.fetch.resume([], rig.now)
    rig.start(A)
    with pytest.raises(LocalProtocolError):
        rig.fetch.resume([], rig.now)


def test_what_strangers_say_is_ignored() -> None:
    rig = Rig(A)
    rig.sent()
    rig.reply(Pong(0), peer=C)
    rig.reply(Pong(0), peer=A)  # dialled, not connected
    rig.fetch.failed(C, "x", rig.now)
    rig.fetch.connected(C, rig.now)
    rig.fetch.heard(C, rig.now)
    assert rig.events() == []
    assert rig.sent() == []
