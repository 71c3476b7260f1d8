"""protocol.exchange: sources that fail, lie, stall; and bounds. SPEC §10.5."""

from __future__ import annotations

import random

import pytest
from exchange_support import ALL, CONFIG, DATA, FRAMES, MANIFEST, A, B, C, Rig, blob_of

from protocol.errors import LocalProtocolError
from protocol.exchange_circle import SOURCES_MAX
from protocol.exchange_events import (
    Close,
    Dial,
    Event,
    Failed,
    FetchConfig,
    HoldersWanted,
    Send,
    SourceBanned,
    SourceLost,
)
from protocol.exchange_sources import DENIALS_MAX
from protocol.ids import NodeId, digest_of
from protocol.manifest import (
    encode_manifest,
    manifest_digest,
)
from protocol.streams import (
    ErrorReply,
    GetManifest,
    GetSegment,
    ManifestReply,
    Nothing,
    Offer,
    Pong,
    Reply,
    SegmentReply,
    Want,
)


def test_no_holder_at_all() -> None:
    rig = Rig()
    assert rig.events() == [Failed(())]
    assert rig.fetch.next_deadline() is None


def test_dead_holders_are_tried_once_more_then_it_fails() -> None:
    rig = Rig(A, B)
    dialled: list[NodeId] = []
    seen: list[Event] = []
    for _ in range(2):
        dials = [item.peer for item in rig.sent() if isinstance(item, Dial)]
        dialled += dials
        for peer in dials:
            rig.fetch.failed(peer, "refused", rig.now)
        seen += rig.events()
        rig.wait(CONFIG.retry_delay_s + 0.1)
    assert dialled == [A, B, A, B]
    assert seen == [*(SourceLost(peer, "refused") for peer in dialled), HoldersWanted()]
    rig.fetch.offer([B, A], rig.now)
    assert rig.events() == [Failed(((A, "refused"), (B, "refused")))]


def test_a_holder_that_cannot_be_reached_in_time_is_left() -> None:
    rig = Rig(A)
    rig.sent()
    rig.fetch.heard(A, rig.now + 100)  # nothing was connected, so nothing can be heard
    rig.wait(CONFIG.connect_timeout_s + 0.1)
    assert rig.sent() == [Close(A)]
    assert rig.events() == [SourceLost(A, "no connection in 1 s")]
    rig.fetch.connected(A, rig.now)  # too late
    assert rig.sent() == []
    rig.wait(1.0)
    assert Dial(A) in rig.sent()
    rig.wait(2 * CONFIG.connect_timeout_s + 0.1)
    assert SourceLost(A, "no connection in 2 s") in rig.events()


def test_a_source_that_sends_nothing_is_left_and_others_get_what_it_owed() -> None:
    rig = Rig(A)
    rig.start(A)
    rig.wait(CONFIG.progress_timeout_s - 0.5)
    rig.fetch.heard(A, rig.now)
    rig.wait(CONFIG.progress_timeout_s - 0.5)
    assert not any(isinstance(event, SourceLost) for event in rig.events()), "bytes were heard"
    rig.sent()
    rig.wait(1.0)
    assert SourceLost(A, "sent nothing for 5 s") in rig.events()
    rig.fetch.offer([A, B], rig.now)
    assert Dial(B) in rig.sent()
    assert len(rig.join(B)) == CONFIG.window_segments_first


def test_bytes_without_an_end_are_not_enough() -> None:
    rig = Rig(A)
    rig.start(A)
    for _ in range(int(CONFIG.reply_timeout_s) + 1):
        rig.wait(1.0)
        rig.fetch.heard(A, rig.now)
    assert SourceLost(A, "no whole reply in 60 s") in rig.events()


def test_an_idle_source_is_not_late() -> None:
    rig = Rig(A)
    asked = rig.start(A, present=set(ALL) - {1})
    rig.give(asked[0], 1)
    rig.wait(100)
    assert not any(isinstance(event, SourceLost) for event in rig.events())


def test_a_corrupt_source_is_banned_for_good() -> None:
    rig = Rig(A, B)
    asked = rig.start(A)
    wrong = bytearray(FRAMES[0])
    wrong[-1] ^= 1
    rig.reply(SegmentReply(asked[0].id, 0), bytes(wrong))
    (event,) = (event for event in rig.events() if isinstance(event, SourceBanned))
    assert event.peer == A
    assert "do not hash" in event.reason
    assert Close(A) in rig.sent()
    rig.fetch.offer([A], rig.now)
    rig.fetch.wanted_by(A, b"", rig.now + 100)
    rig.wait(20)
    assert Dial(A) not in rig.sent()


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (SegmentReply(99, 0), FRAMES[0]),
        (SegmentReply(3, 0), FRAMES[0] + b"x"),
        (SegmentReply(3, 0), b""),
        (SegmentReply(3, 4000), FRAMES[0]),
        (ManifestReply(3), encode_manifest(MANIFEST)),
        (Offer(3, True, ()), b""),
        (Pong(3), b""),
    ],
)
def test_replies_to_other_questions_ban(reply: Reply, body: bytes) -> None:
    rig = Rig(A)
    assert rig.start(A)[0].id == 3
    rig.reply(reply, body)
    assert isinstance(rig.events()[0], SourceBanned)


def test_a_segment_of_another_index_than_asked_bans() -> None:
    rig = Rig(A)
    first, *_ = rig.start(A)
    rig.reply(Nothing(first.id))
    request = next(m for m in rig.segments() if isinstance(m, GetSegment))
    other = (request.index + 1) % MANIFEST.segments
    rig.reply(SegmentReply(request.id, other), FRAMES[other])
    assert any(isinstance(event, SourceBanned) for event in rig.events())


def test_who_announces_and_denies_too_often_is_left() -> None:
    data = random.Random(3).randbytes(1_000_000)
    manifest, _ = blob_of(data)
    rig = Rig(A, expected=manifest_digest(manifest), blob=manifest.blob)
    want, request = rig.connect(A)
    assert request is not None
    rig.reply(Offer(want.id, True, ()))
    rig.reply(ManifestReply(request.id), encode_manifest(manifest))
    rig.events()
    rig.fetch.resume((), rig.now)
    asked = rig.segments()
    denied = 0
    while asked:
        request_id = asked.pop(0)
        denied += isinstance(request_id, GetSegment)
        rig.reply(Nothing(request_id.id))
        asked += rig.segments()
    assert denied > DENIALS_MAX
    assert SourceLost(A, "has not what it announces") in rig.events()


def test_error_replies_permanent_and_not() -> None:
    for code, again in (("blob-not-found", False), ("overloaded", True)):
        rig = Rig(A)
        want, _ = rig.connect(A)
        rig.reply(ErrorReply(want.id, code, "no"))
        assert SourceLost(A, f"{code}: no") in rig.events()
        rig.wait(1.0)
        assert (Dial(A) in rig.sent()) is again


def test_a_fetcher_without_a_manifest_is_kept_and_another_asked() -> None:
    rig = Rig(A, B)
    want, request = rig.connect(A)
    rig.connect(B)
    assert request is not None
    rig.reply(Offer(want.id, False, ()))
    rig.reply(ErrorReply(request.id, "blob-not-found", "not yet"))
    assert rig.events() == []
    (message,) = rig.asked(B)
    assert isinstance(message, GetManifest)


@pytest.mark.parametrize("wrong", ["bytes", "blob", "bounds"])
def test_manifests_that_are_not_the_blob_s(wrong: str) -> None:
    other, _ = blob_of(DATA[:-1])
    body = encode_manifest(other)
    if wrong == "bounds":
        body = b"\x90"
    rig = Rig(A, expected=None if wrong == "bytes" else digest_of(body))
    _, request = rig.connect(A)
    assert request is not None
    rig.reply(ManifestReply(request.id), body)
    event = rig.events()[0]
    if wrong == "bytes":
        assert event == SourceBanned(A, "manifest: does not hash to the record's manifest digest")
    else:
        assert isinstance(event, Failed), "no other holder could do better"
        assert event.reasons[0][0] is None


def test_an_incomplete_source_is_asked_anew_what_it_has() -> None:
    rig = Rig(A)
    rig.start(A)
    rig.fetch.meet([B], rig.now)
    rig.join(B, ())
    rig.wait(CONFIG.renew_s + 0.2)
    assert sum(isinstance(message, Want) for message in rig.asked(B)) == 1


def test_fetchers_that_all_lack_the_same_fail_after_a_while() -> None:
    rig = Rig(A, B)
    rig.start(A)
    rig.join(B, ())
    rig.reply(ErrorReply(3, "blob-not-found", "deleted"))
    assert [type(event) for event in rig.events()] == [SourceLost]
    for _ in range(30):
        rig.wait(1.0)
        for item in rig.sent():
            if isinstance(item, Send) and isinstance(item.message, Want):
                rig.reply(Offer(item.message.id, False, ()), bytes(2), B)
        if HoldersWanted() in rig.events():
            rig.fetch.offer([], rig.now)
    assert rig.fetch.next_deadline() is None


def test_a_choked_machine_asks_for_nothing() -> None:
    rig = Rig(A)
    asked = rig.start(A)
    rig.fetch.choke(rig.now, on=True)
    rig.give(asked[0], 0)
    assert rig.segments() == []
    rig.wait(50)
    assert not any(isinstance(event, SourceLost) for event in rig.events()), "our fault, not A's"
    rig.fetch.choke(rig.now, on=False)
    assert rig.segments() != []


def test_who_gives_way_asks_for_one_at_a_time() -> None:
    rig = Rig(A)
    asked = rig.start(A)
    rig.fetch.give_way(on=True)
    for index, request in enumerate(asked[:-1]):
        rig.give(request, index)
    assert rig.segments() == []
    rig.give(asked[-1], 7)
    assert len(rig.segments()) == 1


def test_resume_answers_the_manifest_once() -> None:
    rig = Rig(A)
    with pytest.raises(LocalProtocolError):
        rig.fetch.resume((), rig.now)
    rig.start(A)
    with pytest.raises(LocalProtocolError):
        rig.fetch.resume((), rig.now)


def test_sources_are_bounded() -> None:
    peers = [NodeId(f"{n:032x}") for n in range(SOURCES_MAX + 50)]
    rig = Rig(*peers)
    assert len([item for item in rig.sent() if isinstance(item, Dial)]) == CONFIG.dials_first
    rig.start(peers[0])
    rig.fetch.meet(peers, rig.now)
    dialled = sum(isinstance(item, Dial) for item in rig.sent()) + CONFIG.dials_first
    assert dialled <= CONFIG.sources_max
    for peer in peers:
        rig.fetch.wanted_by(peer, b"", rig.now)
    dialled += sum(isinstance(item, Dial) for item in rig.sent())
    assert dialled <= CONFIG.sources_max + CONFIG.dial_backs_max
    assert len(rig.fetch._sources) == SOURCES_MAX


def test_a_source_of_no_use_gives_way_to_one_not_tried() -> None:
    config = FetchConfig(sources_max=2, renew_s=60)
    rig = Rig(A, B, C, config=config)
    rig.start(A)
    rig.join(B, ())
    rig.sent()
    rig.wait(config.idle_s + 0.2)
    sent = rig.sent()
    assert Close(B) in sent
    assert Dial(C) in sent
