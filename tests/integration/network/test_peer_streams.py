"""Real TLS on localhost: who gets in, what a bad peer can do (nothing), how a drain ends."""

from __future__ import annotations

import contextlib
import random
import ssl
import time
from pathlib import Path

import pytest
import trio
from network_support import EchoSync, MakeTrust, MemorySource, serving

from edged.errors import PeerError
from edged.network.server import StreamLimits, StreamServer
from edged.network.streams import Connection, dial
from edged.telemetry import Log, Metrics
from edged.trust import Trust, create_ca, issue_node, load_trust
from protocol.ids import digest_of
from protocol.manifest import decode_manifest, manifest_digest
from protocol.streams import (
    ALPN,
    BODY_BYTES_MAX,
    Cancel,
    ErrorReply,
    GetManifest,
    GetSegment,
    ManifestReply,
    Ping,
    Pong,
    Reply,
    SegmentReply,
    Sync,
    SyncReply,
    encode_frame,
)

DATA = random.Random(1).randbytes(300_000)


async def hears_nothing(connection: Connection[Reply]) -> bool:
    """Whether the peer cuts the connection, politely or not, without a reply."""
    try:
        return await connection.receive() is None
    except PeerError:
        return True


async def raw_tls(address: tuple[str, int], context: ssl.SSLContext) -> trio.SSLStream:
    transport = await trio.open_tcp_stream(*address)
    stream = trio.SSLStream(transport, context, https_compatible=True)
    await stream.do_handshake()
    return stream


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """What the peer still said; a reset ends it like a close."""
    received = b""
    while True:
        try:
            data = await stream.receive_some(65536)
        except trio.BrokenResourceError:
            return received
        if not data:
            return received
        received += data


async def test_requests_are_answered_in_order_on_one_connection(
    make_trust: MakeTrust, log: Log
) -> None:
    source = MemorySource(DATA)
    blob = digest_of(DATA)
    expected = source.blobs[blob][0]
    a, b = make_trust("a"), make_trust("b")
    async with serving(a, source, log) as served:
        with trio.fail_after(10):
            connection = await dial(served.address, b, expected=a.node_id)
            assert connection.peer == a.node_id
            requests = [
                (Ping(1), b""),
                (GetManifest(2, blob), b""),
                *((GetSegment(3 + n, blob, n), b"") for n in range(expected.segments)),
                (Sync(90), b"x" * 1_000_000),
                (Sync(91), b"refuse"),
                (GetSegment(92, blob, expected.segments), b""),
                (GetManifest(93, digest_of(b"other")), b""),
            ]
            replies = []
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    for message, body in requests:
                        await connection.send(message, body)

                nursery.start_soon(ask)
                for _ in requests:
                    frame = await connection.receive()
                    assert frame is not None
                    replies.append(frame)
            assert [message.id for message, _ in replies] == [m.id for m, _ in requests]
            assert replies[0] == (Pong(1), b"")
            message, body = replies[1]
            assert isinstance(message, ManifestReply)
            manifest = decode_manifest(body, expected=manifest_digest(expected))
            for index in range(manifest.segments):
                message, body = replies[2 + index]
                assert message == SegmentReply(3 + index, index)
                manifest.check_segment(index, body)
            tail = replies[2 + manifest.segments :]
            assert tail[0] == (SyncReply(90), b"x" * 1_000_000)
            codes = [m.code for m, _ in tail[1:] if isinstance(m, ErrorReply)]
            assert codes == ["peer", "blob-not-found", "blob-not-found"]
            await connection.aclose()
        value = served.metrics.served_bytes.value
        assert value == manifest.wire_bytes


async def test_a_node_of_another_cluster_is_refused_by_both_sides(
    make_trust: MakeTrust, log: Log, tmp_path: Path
) -> None:
    create_ca(tmp_path / "ca2")
    ours, foreign = make_trust("a"), make_trust("f", ca_directory=tmp_path / "ca2")
    async with serving(ours, MemorySource(), log) as served:
        with trio.fail_after(10), pytest.raises(PeerError, match=r"handshake failed.*CERT"):
            await dial(served.address, foreign, expected=None)
        await served.wait_refused("handshake")


async def test_without_a_certificate_of_the_ca_nothing_is_answered(
    make_trust: MakeTrust, log: Log, tmp_path: Path
) -> None:
    """TLS 1.3: the client's handshake ends before the server has judged its certificate."""
    create_ca(tmp_path / "ca2")
    foreign = make_trust("f", ca_directory=tmp_path / "ca2")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    wrong = foreign.client_ssl_context()
    async with serving(make_trust("a"), MemorySource(DATA), log) as served:
        for count, context in enumerate((bare, wrong), 1):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.set_alpn_protocols([ALPN])
            with trio.fail_after(10):
                stream = await raw_tls(served.address, context)
                await stream.send_all(encode_frame(Ping(1)))
                assert await read_to_end(stream) == b""
                await served.wait_refused("handshake", count)


async def test_an_expired_certificate_is_refused(
    ca: Path, make_trust: MakeTrust, log: Log, tmp_path: Path
) -> None:
    then = time.time() - 3 * 86_400
    issue_node(ca, tmp_path / "old", name="old", days=1, wall_s=then)
    old = _load_regardless(tmp_path / "old")
    async with serving(make_trust("a"), MemorySource(), log) as served:
        with trio.fail_after(10):
            connection = await dial(served.address, old, expected=None)
            assert await hears_nothing(connection)
            await connection.aclose()
            await served.wait_refused("handshake")


def _load_regardless(directory: Path) -> Trust:
    """What a node that does not look at dates would hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edged.trust._check_dates", lambda *_: None)
        return load_trust(directory, wall_s=time.time() - 2.5 * 86_400)


async def test_the_peer_must_be_the_one_that_was_dialled(make_trust: MakeTrust, log: Log) -> None:
    a, b, c = make_trust("a"), make_trust("b"), make_trust("c")
    async with serving(a, MemorySource(), log) as served:
        with trio.fail_after(10), pytest.raises(PeerError, match="answered where"):
            await dial(served.address, b, expected=c.node_id)


async def test_another_protocol_version_is_refused(make_trust: MakeTrust, log: Log) -> None:
    b = make_trust("b")
    b.client_ssl_context().set_alpn_protocols(["edged/99"])
    async with serving(make_trust("a"), MemorySource(), log) as served:
        with trio.fail_after(10), pytest.raises(PeerError):
            await dial(served.address, b, expected=None)
        with trio.fail_after(10):
            await served.wait_refused("handshake")


async def test_nobody_there(make_trust: MakeTrust) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()
    await listeners[0].aclose()
    with trio.fail_after(10), pytest.raises(PeerError, match="cannot be reached"):
        await dial(address, make_trust("a"), expected=None)


GARBAGE = {
    "oversized": (BODY_BYTES_MAX + 10_000).to_bytes(4, "big") + b"\x00\x20",
    "huge": b"\xff\xff\xff\xff\x00\x20",
    "no head": b"\x00\x00\x00\x02\x00\x00",
    "head over frame": b"\x00\x00\x00\x05\x00\x20",
    "not msgpack": b"\x00\x00\x00\x06\x00\x04\xc1\xc1\xc1\xc1",
    "unknown tag": b"\x00\x00\x00\x05\x00\x03\x92\x7f\x01",
    "a reply": encode_frame(Pong(1)),
    "body where none may be": b"\x00\x00\x00\x06\x00\x03\x92\x01\x01\x00",
    "bad digest": b"\x00\x00\x00\x09\x00\x07\x93\x03\x01\xa3\x41\x42\x43",
    "http": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "noise": random.Random(2).randbytes(4096),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_from_a_member_ends_its_connection_only(
    make_trust: MakeTrust, log: Log, name: str
) -> None:
    a, b = make_trust("a"), make_trust("b")
    async with serving(a, MemorySource(DATA), log) as served:
        with trio.fail_after(10):
            good = await dial(served.address, b, expected=a.node_id)
            stream = await raw_tls(served.address, b.client_ssl_context())
            await stream.send_all(GARBAGE[name])
            assert await read_to_end(stream) == b""
            await served.wait_refused("protocol")
            await good.send(Ping(7))
            assert await good.receive() == (Pong(7), b"")
            await good.aclose()


async def test_bytes_that_are_not_tls(make_trust: MakeTrust, log: Log) -> None:
    async with serving(make_trust("a"), MemorySource(), log) as served:
        with trio.fail_after(10):
            for count, data in enumerate((b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff"), 1):
                stream = await trio.open_tcp_stream(*served.address)
                await stream.send_all(data)
                await stream.send_eof()
                await read_to_end(stream)
                await served.wait_refused("handshake", count)


async def test_slow_peers_are_cut(make_trust: MakeTrust, log: Log) -> None:
    limits = StreamLimits(handshake_timeout_s=1.0, idle_timeout_s=1.0, frame_timeout_s=0.3)
    a, b = make_trust("a"), make_trust("b")
    async with serving(a, MemorySource(), log, limits) as served:
        with trio.fail_after(10):
            silent = await trio.open_tcp_stream(*served.address)
            await read_to_end(silent)
            await served.wait_refused("handshake")
            idle = await dial(served.address, b, expected=None)
            assert await idle.receive() is None
            assert served.refused("protocol") == 0
            loris = await raw_tls(served.address, b.client_ssl_context())
            frame = encode_frame(Ping(1))
            async with trio.open_nursery() as nursery:

                async def trickle() -> None:
                    for byte in frame * 1000:
                        try:
                            await loris.send_all(bytes([byte]))
                        except trio.BrokenResourceError:
                            return
                        await trio.sleep(0.15)

                nursery.start_soon(trickle)
                await read_to_end(loris)
                nursery.cancel_scope.cancel()
            await served.wait_refused("protocol")


async def test_a_request_behind_more_notices_than_are_taken_at_once_is_answered(
    make_trust: MakeTrust, log: Log
) -> None:
    a, b = make_trust("a"), make_trust("b")
    async with serving(a, MemorySource(), log) as served:
        with trio.fail_after(10):
            connection = await dial(served.address, b, expected=None)
            notices = b"".join(encode_frame(Cancel(number)) for number in range(5000))
            await connection.send_encoded((notices, encode_frame(Ping(7))))
            assert await connection.receive() == (Pong(7), b"")
            await connection.aclose()


async def test_a_peer_that_takes_no_replies_is_cut(make_trust: MakeTrust, log: Log) -> None:
    limits = StreamLimits(write_timeout_s=0.3)
    a, b = make_trust("a"), make_trust("b")
    data = random.Random(3).randbytes(4_000_000)
    source = MemorySource(data)
    async with serving(a, source, log, limits) as served:
        with trio.fail_after(10):
            connection = await dial(served.address, b, expected=None)
            segments = source.blobs[digest_of(data)][0].segments
            with contextlib.suppress(PeerError):  # the cut may come while still asking
                for request_id in range(3000):
                    await connection.send(
                        GetSegment(request_id, digest_of(data), request_id % segments)
                    )
            await served.wait_refused("protocol")
            await connection.aclose()


async def test_a_half_closed_peer_gets_its_replies_and_the_task_ends(
    make_trust: MakeTrust, log: Log
) -> None:
    a, b = make_trust("a"), make_trust("b")
    async with serving(a, MemorySource(), log) as served:
        with trio.fail_after(10):
            stream = await raw_tls(served.address, b.client_ssl_context())
            await stream.send_all(encode_frame(Ping(1)) + encode_frame(Ping(2)))
            await stream.transport_stream.send_eof()
            assert await read_to_end(stream) == encode_frame(Pong(1)) + encode_frame(Pong(2))
            # and one that stops within a frame
            stream = await raw_tls(served.address, b.client_ssl_context())
            await stream.send_all(encode_frame(Ping(1))[:-1])
            await stream.transport_stream.send_eof()
            assert await read_to_end(stream) == b""
            await served.wait_refused("protocol")


async def test_connections_are_bounded_in_all_and_per_peer(make_trust: MakeTrust, log: Log) -> None:
    a, b, c = make_trust("a"), make_trust("b"), make_trust("c")
    limits = StreamLimits(connections_max=3, per_peer_max=2)
    async with serving(a, MemorySource(), log, limits) as served:
        with trio.fail_after(10):
            held = [await dial(served.address, b, expected=None) for _ in range(2)]
            for connection in held:
                await connection.send(Ping(1))
                assert await connection.receive() == (Pong(1), b"")
            third = await dial(served.address, b, expected=None)
            assert await third.receive() is None
            await served.wait_refused("per-peer")
            await third.aclose()
            other = await dial(served.address, c, expected=None)
            await other.send(Ping(1))
            assert await other.receive() == (Pong(1), b"")
            with pytest.raises(PeerError):
                await dial(served.address, c, expected=None)
            await served.wait_refused("crowded")
            await held[0].aclose()
            while True:  # the slot comes back
                try:
                    again = await dial(served.address, b, expected=None)
                    break
                except PeerError:
                    await trio.sleep(0.01)
            for connection in (held[1], other, again):
                await connection.aclose()


class SlowSource(MemorySource):
    def __init__(self, *blobs: bytes) -> None:
        super().__init__(*blobs)
        self.asked = trio.Event()
        self.go = trio.Event()

    async def wire_segment(self, digest, index):  # type: ignore[no-untyped-def]
        self.asked.set()
        await self.go.wait()
        return await super().wire_segment(digest, index)


async def test_a_stopping_server_finishes_the_reply_under_way(
    make_trust: MakeTrust, log: Log
) -> None:
    a, b = make_trust("a"), make_trust("b")
    source = SlowSource(DATA)
    async with serving(a, source, log) as served:
        with trio.fail_after(10):
            idle = await dial(served.address, b, expected=None)
            busy = await dial(served.address, b, expected=None)
            await busy.send(GetSegment(1, digest_of(DATA), 0))
            await source.asked.wait()
            served.server.stop()
            assert await idle.receive() is None
            with pytest.raises(PeerError):
                await dial(served.address, b, expected=None)
            source.go.set()
            frame = await busy.receive()
            assert frame is not None
            assert frame[0] == SegmentReply(1, 0)
            assert await busy.receive() is None
            await idle.aclose()
            await busy.aclose()
            assert await served.server.drained()
            assert served.server._open == 0


async def test_a_drain_has_an_end(make_trust: MakeTrust, log: Log) -> None:
    a, b = make_trust("a"), make_trust("b")
    source = SlowSource(DATA)
    limits = StreamLimits(drain_timeout_s=0.1)
    async with serving(a, source, log, limits) as served:
        with trio.fail_after(10):
            busy = await dial(served.address, b, expected=None)
            await busy.send(GetSegment(1, digest_of(DATA), 0))
            await source.asked.wait()
            served.server.stop()
            await served.server.drained()
            assert await hears_nothing(busy)
            await busy.aclose()
            assert await served.server.drained()


async def test_nobody_waits_for_a_server_that_does_not_run(make_trust: MakeTrust, log: Log) -> None:
    server = StreamServer(
        trust=make_trust("a"), source=MemorySource(), sync=EchoSync(), metrics=Metrics(), log=log
    )
    server.stop()
    with trio.fail_after(1):
        assert await server.drained()


async def test_who_says_nothing_does_not_keep_peers_out(make_trust: MakeTrust, log: Log) -> None:
    limits = StreamLimits(handshakes_max=4, handshake_timeout_s=60.0)
    a, b = make_trust("a"), make_trust("b")
    async with serving(a, MemorySource(), log, limits) as served:
        with trio.fail_after(10):
            silent = [await trio.open_tcp_stream(*served.address) for _ in range(12)]
            connection = await dial(served.address, b, expected=a.node_id)
            await connection.send(Ping(1))
            assert await connection.receive() == (Pong(1), b"")
            await served.wait_refused("handshake")
            for stream in silent:
                await stream.aclose()
            await connection.aclose()
