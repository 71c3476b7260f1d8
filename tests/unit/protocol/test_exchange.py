"""protocol.exchange: which source is asked for what, and when. SPEC §10.5."""

from __future__ import annotations

import random

from exchange_support import ALL, CONFIG, FRAMES, MANIFEST, A, B, C, D, Rig, blob_of

from protocol.bitsets import bits_of, decode_bits, encode_bits
from protocol.exchange_events import (
    Close,
    Completed,
    Dial,
    FetchConfig,
    FetchersNamed,
    ManifestVerified,
    SegmentVerified,
    Send,
    SourceBanned,
)
from protocol.manifest import (
    encode_manifest,
    manifest_digest,
)
from protocol.streams import (
    Cancel,
    GetAny,
    GetSegment,
    Have,
    ManifestReply,
    Nothing,
    Offer,
    SegmentReply,
    Want,
)


def test_a_whole_fetch_from_one_holder() -> None:
    rig = Rig(A)
    assert rig.sent() == [Dial(A)]
    asked = rig.start(A)
    got: list[int] = []
    while asked:
        request = asked.pop(0)
        assert isinstance(request, GetAny)
        got.append(rig.give(request, len(got)))
        asked += rig.segments()
    events = rig.events()
    assert events == [SegmentVerified(i, FRAMES[i], A) for i in ALL]
    rig.fetch.stored(ALL, rig.now)
    assert rig.events() == [Completed()]
    *news, close = rig.sent()
    assert close == Close(A, owed=0)
    assert [item.message.indices for item in news if isinstance(item, Send)] == [tuple(ALL)]  # type: ignore[union-attr]
    assert rig.fetch.next_deadline() is None
    rig.fetch.on_timer(1e9)
    rig.fetch.failed(A, "late", 1e9)
    rig.fetch.offer([C], 1e9)
    rig.fetch.wanted_by(D, b"", 1e9)
    rig.fetch.stored([1], 1e9)
    assert (rig.events(), rig.sent()) == ([], [])


def test_no_more_is_asked_of_a_seed_than_there_is_to_get() -> None:
    rig = Rig(A)
    asked = rig.start(A, present=set(ALL) - {2, 5})
    assert [type(message) for message in asked] == [GetAny, GetAny]
    rig.give(asked[1], 5)
    rig.give(asked[0], 2)
    assert rig.store() == [5, 2]
    assert rig.events() == [Completed()]


def test_nothing_missing_completes_at_once() -> None:
    rig = Rig(A)
    assert rig.start(A, ALL) == []
    assert rig.events() == [Completed()]


def test_a_stale_seed_is_asked_by_index() -> None:
    rig = Rig(A)
    first, *_ = rig.start(A)
    rig.reply(Nothing(first.id))
    (request,) = rig.segments()
    assert isinstance(request, GetSegment)


def test_a_seed_that_gave_all_away_is_left_alone_for_a_moment_if_others_may_have_it() -> None:
    rig = Rig(A)
    first, *_ = rig.start(A)
    rig.fetch.meet([B], rig.now)
    rig.join(B, ())
    rig.reply(Nothing(first.id))
    assert rig.segments(A) == []
    rig.wait(CONFIG.dry_s + 0.2)
    assert any(isinstance(message, GetSegment) for message in rig.segments(A))


def test_the_window_grows_with_the_rate_and_is_bounded() -> None:
    data = random.Random(2).randbytes(6_000_000)
    manifest, frames = blob_of(data)
    config = FetchConfig(window_bytes=10 * max(manifest.wire_lengths))
    rig = Rig(A, expected=manifest_digest(manifest), blob=manifest.blob, config=config)
    want, request = rig.connect(A)
    assert request is not None
    rig.reply(Offer(want.id, True, ()))
    rig.reply(ManifestReply(request.id), encode_manifest(manifest))
    rig.events()
    rig.fetch.resume((), rig.now)
    asked = rig.segments()
    assert len(asked) == config.window_segments_first
    most = 0
    for index in range(manifest.segments):
        rig.now += 0.001
        rig.reply(SegmentReply(asked.pop(0).id, index), frames[index])
        asked += rig.segments()
        most = max(most, len(asked))
    assert most == 10


def test_a_slow_source_has_the_smallest_window() -> None:
    rig = Rig(A)
    asked = rig.start(A)
    for index in range(8):
        rig.now += 1.0
        rig.give(asked.pop(0), index)
        asked += rig.segments()
    assert len(asked) == CONFIG.window_segments_min


def test_rarest_first_and_every_source_at_once() -> None:
    rig = Rig(A, B, C)
    assert rig.sent() == [Dial(A), Dial(B)]
    # B and C have most; 4 is only at B, 9 only at C: each is asked for that first
    asked_a = rig.start(A)
    rig.reply(Nothing(asked_a[0].id))
    asked_b = rig.join(B, {1, 2, 3, 4})
    asked_c = rig.join(C, {1, 2, 3, 9})
    assert asked_c[0].index == 9  # type: ignore[union-attr]
    assert {message.index for message in asked_b} <= {1, 2, 3, 4}  # type: ignore[union-attr]
    indices = [m.index for m in asked_b + asked_c]  # type: ignore[union-attr]
    assert len(set(indices)) == len(indices), "nothing twice"


def test_news_of_other_fetchers_is_used() -> None:
    rig = Rig(A)
    rig.start(A)
    rig.fetch.meet([B], rig.now)
    assert Dial(B) in rig.sent()
    assert rig.join(B, ()) == []
    assert not rig.fetch.pending
    rig.fetch.have(B, [4, 5], rig.now)
    assert rig.fetch.pending
    assert {message.index for message in rig.segments(B)} == {4, 5}  # type: ignore[union-attr]
    rig.fetch.have(B, [4], rig.now)
    assert not rig.fetch.pending
    rig.fetch.have(B, [MANIFEST.segments], rig.now)
    assert SourceBanned(B, "have: announces segments that do not exist") in rig.events()


def test_news_before_the_manifest_counts_too() -> None:
    rig = Rig(A, B)
    rig.connect(B)
    rig.fetch.have(B, [3], rig.now)
    want, _ = rig.connect(A)
    rig.reply(Offer(want.id, False, ()), b"")
    rig.reply(ManifestReply(2), encode_manifest(MANIFEST), B)
    assert rig.events() == [ManifestVerified(MANIFEST)]
    rig.fetch.resume((), rig.now)
    assert [m.index for m in rig.segments(B)] == [3]  # type: ignore[union-attr]


def test_a_fetcher_that_asks_this_node_is_a_source() -> None:
    rig = Rig(A)
    rig.start(A)
    rig.fetch.wanted_by(B, b"", rig.now)
    assert rig.sent() == [Dial(B)]
    rig.join(B, ())
    rig.fetch.wanted_by(B, encode_bits(bits_of([6]), MANIFEST.segments), rig.now)
    assert [m.index for m in rig.segments(B)] == [6]  # type: ignore[union-attr]
    rig.fetch.wanted_by(B, b"\xff" * 9, rig.now)
    assert [type(event) for event in rig.events()] == [SourceBanned]


def test_named_fetchers_are_told_to_the_driver() -> None:
    rig = Rig(A)
    want, _ = rig.connect(A)
    rig.reply(Offer(want.id, True, (B, C)))
    assert rig.events() == [FetchersNamed((B, C))]


def test_what_is_on_disk_is_announced_in_one_notice() -> None:
    rig = Rig(A)
    asked = rig.start(A)
    rig.fetch.meet([B], rig.now)
    rig.join(B, ())
    for index, request in enumerate(asked):
        rig.give(request, index)
    rig.sent()
    rig.wait(1.0)
    assert not any(isinstance(message, Have) for message in rig.asked()), "not on disk yet"
    stored = rig.store()
    rig.wait(CONFIG.announce_delay_max_s)
    notices = [item for item in rig.sent() if isinstance(item, Send)]
    haves = [item for item in notices if isinstance(item.message, Have)]
    assert {item.peer for item in haves} == {A, B}
    assert all(item.message == Have(MANIFEST.blob, tuple(stored)) for item in haves)


def test_news_goes_along_with_the_next_request() -> None:
    rig = Rig(A)
    first, second, *_ = rig.start(A)
    rig.fetch.meet([B], rig.now)
    rig.join(B, ())
    rig.wait(1.0)
    rig.give(first, 0)
    rig.sent()
    rig.store()
    assert rig.sent() == [], "it waits for company"
    rig.give(second, 1)
    to_a = rig.asked(A)
    assert to_a[0] == Have(MANIFEST.blob, (0,))
    assert isinstance(to_a[1], GetAny)
    rig.wait(2 * CONFIG.announce_delay_max_s)
    haves = [s for s in rig.sent() if isinstance(s, Send) and isinstance(s.message, Have)]
    assert haves == [Send(B, Have(MANIFEST.blob, (0,)))]


def test_who_was_told_with_a_request_is_told_the_rest_later() -> None:
    rig = Rig(A)
    first, second, *_ = rig.start(A)
    rig.fetch.meet([B], rig.now)
    rig.join(B, ())
    rig.now += 30.0
    rig.fetch.heard(A, rig.now)
    rig.wait(0.2)
    rig.give(first, 0)
    rig.store()
    rig.give(second, 1)
    rig.wait(0.9 * CONFIG.announce_delay_max_s)
    rig.store()
    rig.sent()
    rig.wait(0.2 * CONFIG.announce_delay_max_s)
    assert rig.sent() == [Send(B, Have(MANIFEST.blob, (0, 1)))], "A was told a moment ago"
    rig.wait(CONFIG.announce_delay_max_s)
    told = [s for s in rig.sent() if isinstance(s, Send) and isinstance(s.message, Have)]
    assert told == [Send(A, Have(MANIFEST.blob, (1,)))]


def test_a_want_says_what_is_here() -> None:
    rig = Rig(A)
    rig.start(A, present={1, 2})
    rig.fetch.meet([B], rig.now)
    rig.sent()
    rig.fetch.connected(B, rig.now)
    bodies = [s.body for s in rig.sent() if isinstance(s, Send) and isinstance(s.message, Want)]
    assert [decode_bits(body, MANIFEST.segments) for body in bodies] == [0b110]


def test_the_endgame_asks_others_too_and_cancels() -> None:
    rig = Rig(A)
    asked = rig.start(A, present=set(ALL) - {2, 5})
    rig.reply(SegmentReply(asked[0].id, 2), FRAMES[2])
    rig.reply(Nothing(asked[1].id))
    (late,) = rig.segments(A)
    assert late.index == 5  # type: ignore[union-attr]
    rig.fetch.meet([B], rig.now)
    assert rig.join(B, {5}) == [], "A was asked only now"
    rig.wait(CONFIG.endgame_age_s + 0.2)
    (again,) = rig.segments(B)
    assert again.index == 5  # type: ignore[union-attr]
    rig.give(again, peer=B)
    assert Send(A, Cancel(late.id)) in rig.sent()
    rig.reply(SegmentReply(late.id, 5), FRAMES[5])
    assert rig.fetch.wasted_bytes == len(FRAMES[5])
    assert rig.store() == [2, 5]
