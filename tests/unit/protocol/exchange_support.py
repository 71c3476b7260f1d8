"""A Fetch with its outputs drained after each input, and the blob it fetches."""

from __future__ import annotations

import random
from collections.abc import Iterable

import zstandard

from protocol.bitsets import bits_of, encode_bits
from protocol.exchange import Fetch
from protocol.exchange_events import (
    Event,
    FetchConfig,
    HoldersWanted,
    ManifestVerified,
    SegmentVerified,
    Send,
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
    GetAny,
    GetManifest,
    GetSegment,
    ManifestReply,
    Offer,
    Reply,
    SegmentReply,
    Want,
)

A, B, C, D = (NodeId(letter * 32) for letter in "abcd")
DATA = random.Random(1).randbytes(200_000)
CONFIG = FetchConfig()


def blob_of(data: bytes) -> tuple[Manifest, list[bytes]]:
    size = segment_bytes_for(len(data))
    frames = [zstandard.compress(data[at : at + size], 1) for at in range(0, len(data), size)]
    return build_manifest(digest_of(data), len(data), frames), frames


MANIFEST, FRAMES = blob_of(DATA)
ALL = range(MANIFEST.segments)
"""Thirteen."""


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
        self.fetch = Fetch(
            blob,
            expected or manifest_digest(MANIFEST),
            config=config,
            rng=random.Random(7),
            now=self.now,
        )
        assert self.events() == [HoldersWanted()]
        self.fetch.offer(peers, self.now)

    def events(self) -> list[Event]:
        return list(iter(self.fetch.poll_event, None))

    def sent(self) -> list[Transmit]:
        return list(iter(self.fetch.poll_transmit, None))

    def asked(self, peer: NodeId | None = None) -> list[object]:
        sends = [item for item in self.sent() if isinstance(item, Send)]
        return [item.message for item in sends if peer in (None, item.peer)]

    def connect(self, peer: NodeId) -> tuple[Want, GetManifest | None]:
        """The Want, and the question for the manifest if it is the first."""
        self.fetch.connected(peer, self.now)
        want, *more = self.asked(peer)
        assert isinstance(want, Want)
        return want, next((m for m in more if isinstance(m, GetManifest)), None)

    def reply(self, message: Reply, body: bytes = b"", peer: NodeId = A) -> None:
        self.fetch.receive(message, body, peer, self.now)

    def start(self, peer: NodeId = A, present: Iterable[int] = ()) -> list[GetSegment | GetAny]:
        """Through offer and manifest of a complete holder; what is asked for next."""
        want, request = self.connect(peer)
        assert request is not None
        self.reply(Offer(want.id, True, ()), peer=peer)
        self.reply(ManifestReply(request.id), encode_manifest(MANIFEST), peer)
        assert self.events() == [ManifestVerified(MANIFEST)]
        self.fetch.resume(present, self.now)
        return self.segments()

    def join(self, peer: NodeId, has: Iterable[int] | None = None) -> list[GetSegment | GetAny]:
        """One more source, when the manifest is there; None: it has all."""
        want, _ = self.connect(peer)
        bitmap = b"" if has is None else encode_bits(bits_of(has), MANIFEST.segments)
        self.reply(Offer(want.id, has is None, ()), bitmap, peer)
        return self.segments(peer)

    def segments(self, peer: NodeId | None = None) -> list[GetSegment | GetAny]:
        return [m for m in self.asked(peer) if isinstance(m, GetSegment | GetAny)]

    def give(self, request: GetSegment | GetAny, index: int | None = None, peer: NodeId = A) -> int:
        if isinstance(request, GetSegment):
            index = request.index
        assert index is not None
        self.reply(SegmentReply(request.id, index), FRAMES[index], peer)
        return index

    def store(self) -> list[int]:
        """What the machine verified is on disk now."""
        events = self.events()
        new = [event.index for event in events if isinstance(event, SegmentVerified)]
        self.fetch.stored(new, self.now)
        return new

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.fetch.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.fetch.on_timer(self.now)
        self.now = end
