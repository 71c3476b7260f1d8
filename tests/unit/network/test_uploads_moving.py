"""What a node says it is sending: what was asked for just now, until the peer says it is done."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from edged.network.uploads import FRESH_S, Uploads
from edged.telemetry import Metrics
from protocol.ids import Digest, NodeId
from protocol.manifest import Manifest
from protocol.streams import Done, GetSegment

BLOB = Digest("ab" * 32)
MANIFEST = Manifest(
    codec="zstd",
    blob=BLOB,
    raw_bytes=32_000,
    segment_bytes=16_384,
    wire_digests=b"\0" * 64,
    wire_lengths=(700, 900),
)


class Source:
    async def manifest(self, digest: Digest) -> Manifest:
        return MANIFEST

    async def wire_segments(self, digest: Digest, indices: list[int]) -> list[bytes]:
        return [bytes(MANIFEST.wire_lengths[index]) for index in indices]


@pytest.fixture
def uploads() -> Uploads:
    return Uploads(Source(), None, Metrics(), random.Random(1))


async def test_until_the_peer_is_done(uploads: Uploads) -> None:
    session = uploads.begin(NodeId("cd" * 16))
    session.add(GetSegment(1, BLOB, 0), b"")
    assert not uploads.is_serving(BLOB)
    size, _ = await uploads.next_segments(session)
    uploads.sent(session, size, 0.0)
    moving = uploads.moving()
    assert [(one.digest, one.done_bytes, one.total_bytes) for one in moving] == [(BLOB, 700, 1600)]
    assert uploads.is_serving(BLOB)
    session.add(Done(BLOB), b"")
    assert uploads.moving() == []
    assert not uploads.is_serving(BLOB)
    uploads.end(session)


async def test_a_connection_that_is_only_kept_holds_nothing_up(
    uploads: Uploads, autojump_clock: trio.testing.MockClock
) -> None:
    session = uploads.begin(NodeId("cd" * 16))
    session.add(GetSegment(1, BLOB, 1), b"")
    await uploads.next_segments(session)
    await trio.sleep(FRESH_S - 1)
    assert uploads.is_serving(BLOB)
    await trio.sleep(2)
    assert not uploads.is_serving(BLOB)
    assert uploads.moving() == []
