"""What the kernel gets is marked so that it hands on no more than UNIT_BYTES as one."""

from __future__ import annotations

import random
import socket

import pytest
import trio
from network_support import MakeTrust, connected_pair

from edged.network import tls
from edged.network.tls import PACE_BYTES, UNIT_BYTES
from protocol.streams import Done, SegmentReply, encode_frame, frame_head

BODY = random.Random(6).randbytes(128 * 1024)


class Recorder:
    """Instead of a stream's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.units = [0]
        """Bytes between two marks."""
        self.marked: list[int] = []

    def send(self, data: memoryview, flags: int = 0) -> int:
        sent = self._socket.send(data, flags)
        self.units[-1] += sent
        if flags & socket.MSG_EOR and sent == len(data):
            self.marked.append(self.units[-1])
            self.units.append(0)
        return sent


async def test_bulk_leaves_in_units(make_trust: MakeTrust) -> None:
    fetcher, holder = await connected_pair(make_trust)
    recorder = holder._stream._sender = Recorder(holder._stream._socket)  # type: ignore[assignment]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                frame = (frame_head(SegmentReply(number, number), len(BODY)), BODY)
                nursery.start_soon(holder.send_encoded, frame)
                assert await fetcher.receive() == (SegmentReply(number, number), BODY)
    first, *others = recorder.marked  # the first began with the handshake
    assert 0 < first <= UNIT_BYTES
    assert set(others) == {UNIT_BYTES}
    assert sum(recorder.units) > 3 * len(BODY)
    await holder.aclose()
    await fetcher.aclose()


@pytest.mark.parametrize(("fast_bytes_s", "in_units"), [(0, False), (10**15, True)])
async def test_a_stream_that_goes_fast_is_left_to_the_kernel(
    make_trust: MakeTrust, monkeypatch: pytest.MonkeyPatch, fast_bytes_s: int, in_units: bool
) -> None:
    monkeypatch.setattr(tls, "FAST_BYTES_S", fast_bytes_s)
    fetcher, holder = await connected_pair(make_trust)

    async def pass_on(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                frame = (frame_head(SegmentReply(number, number), len(BODY)), BODY)
                nursery.start_soon(holder.send_encoded, frame)
                assert await fetcher.receive() == (SegmentReply(number, number), BODY)

    with trio.fail_after(10):
        await pass_on(PACE_BYTES // len(BODY) + 1)
        recorder = holder._stream._sender = Recorder(holder._stream._socket)  # type: ignore[assignment]
        await pass_on(2)
    assert bool(recorder.marked) == in_units
    await holder.aclose()
    await fetcher.aclose()


async def test_small_messages_may_leave_together(make_trust: MakeTrust) -> None:
    fetcher, holder = await connected_pair(make_trust)
    recorder = fetcher._stream._sender = Recorder(fetcher._stream._socket)  # type: ignore[assignment]
    with trio.fail_after(10):
        for number in range(40):
            assert fetcher.post(encode_frame(Done(f"{number:064x}")))
            assert await holder.receive() == (Done(f"{number:064x}"), b"")
    assert recorder.marked == []
    await holder.aclose()
    await fetcher.aclose()
