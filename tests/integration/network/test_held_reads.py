"""The kernel collects the rest of a segment before it wakes its reader, and never for ever."""

from __future__ import annotations

import math
import random
import socket

import trio
import trio.testing
from network_support import MakeTrust, connected_pair

from edged.network.streams import Connection
from edged.network.tls import HOLD_BYTES_MIN
from protocol.streams import Reply, SegmentReply, frame_head

BODY = random.Random(5).randbytes(128 * 1024)
PART = 12_000
"""One TLS record, so that it comes as a whole."""


def collected(connection: Connection[Reply]) -> int:
    """What the kernel waits for before it wakes the reader."""
    sock = connection._stream._socket
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


async def test_the_rest_of_a_body_is_waited_for_as_a_whole(make_trust: MakeTrust) -> None:
    fetcher, holder = await connected_pair(make_trust)
    with trio.fail_after(10):
        await holder.send_encoded((frame_head(SegmentReply(1, 0), len(BODY)), BODY[:PART]))
        assert await fetcher.fill(hold=True)
        assert fetcher.next_frame() is None
        async with trio.open_nursery() as nursery:

            async def rest() -> None:
                await trio.testing.wait_all_tasks_blocked()
                missing = len(BODY) - PART
                assert missing <= collected(fetcher) <= missing + 22 * math.ceil(missing / 16384)
                await holder.send_encoded((BODY[PART:],))

            nursery.start_soon(rest)
            while (frame := fetcher.next_frame()) is None:
                assert await fetcher.fill(hold=True)
        assert frame == (SegmentReply(1, 0), BODY)
    await holder.aclose()
    await fetcher.aclose()


async def test_a_part_is_had_when_the_rest_is_not_waited_for_any_longer(
    make_trust: MakeTrust,
) -> None:
    fetcher, holder = await connected_pair(make_trust)
    with trio.fail_after(10):
        await holder.send_encoded((frame_head(SegmentReply(1, 0), len(BODY)), BODY[:PART]))
        assert await fetcher.fill(hold=True)
        assert fetcher.next_frame() is None
        heard_at = fetcher.heard_at
        async with trio.open_nursery() as nursery:

            async def stall() -> None:
                await holder.send_encoded((BODY[PART : PART + HOLD_BYTES_MIN],))
                await trio.testing.wait_all_tasks_blocked()
                assert collected(fetcher) > HOLD_BYTES_MIN
                fetcher.hold_no_longer()

            nursery.start_soon(stall)
            assert await fetcher.fill(hold=True)
        assert fetcher.heard_at > heard_at
        assert fetcher.mid_frame
    await holder.aclose()
    await fetcher.aclose()


async def test_nothing_is_held_between_frames_nor_from_who_does_not_ask_for_it(
    make_trust: MakeTrust,
) -> None:
    fetcher, holder = await connected_pair(make_trust)
    with trio.fail_after(10):
        await holder.send_encoded((frame_head(SegmentReply(1, 0), len(BODY)), BODY[:PART]))
        assert await fetcher.fill(hold=True)
        assert fetcher.next_frame() is None
        with trio.move_on_after(0.01):
            await fetcher.fill(hold=True)
        assert collected(fetcher) > 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder.send_encoded, (BODY[PART:],))
            assert await fetcher.receive() == (SegmentReply(1, 0), BODY)
        assert collected(fetcher) == 1
        async with trio.open_nursery() as nursery:

            async def small() -> None:
                await trio.testing.wait_all_tasks_blocked()
                assert collected(fetcher) == 1
                await holder.send(SegmentReply(2, 1), b"small")

            nursery.start_soon(small)
            assert await fetcher.fill(hold=True)
        assert fetcher.next_frame() == (SegmentReply(2, 1), b"small")
    await holder.aclose()
    await fetcher.aclose()
