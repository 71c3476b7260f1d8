"""Real sockets: nodes find each other, spread records, notice deaths; noise at the port is only
counted."""

from __future__ import annotations

import io
import random
import socket
from pathlib import Path

import msgspec
import pytest
import trio
from network_support import GossipNode, MakeTrust, gossiping, until, wall_ms

from edged.errors import ConfigError, PeerError
from edged.network import gossip as gossip_module
from edged.network.gossip import SYNCS_MAX, WISHES_MAX
from edged.network.sockets import NAME_TTL_S, NAMES_MAX, GossipSockets, Names, bind_gossip
from edged.network.streams import dial
from edged.telemetry import Log
from edged.trust import create_ca
from protocol import catalog as catalog_module
from protocol.catalog import Catalog, SavedRecord
from protocol.events import MemberDown, MemberLeft, MemberUp, RecordsAccepted, RecordsPurged
from protocol.function import FunctionSpec, Policy, encode_spec
from protocol.ids import NodeId, digest_of
from protocol.presets import LOCAL
from protocol.records import encoded_records
from protocol.seal import DATAGRAM_BYTES_MAX, Keyring, Seal
from protocol.streams import ErrorReply, Sync
from protocol.syncmessages import SYNC_RECORDS_MAX

SMALL = FunctionSpec(
    abi="raw", module=digest_of(b"m"), module_bytes=100, manifest=digest_of(b"manifest")
)
BIG = msgspec.structs.replace(SMALL, policy=Policy(env={"TEXT": "x" * 8000}))


def all_see(nodes: list[GossipNode], **states: str) -> bool:
    return all(node.states() == states for node in nodes)


def join_all(nodes: list[GossipNode]) -> None:
    for node in nodes[1:]:
        node.service.join([nodes[0].seed])


async def test_three_nodes_converge_spread_records_and_notice_a_death(
    make_trust: MakeTrust, log: Log
) -> None:
    trusts = [make_trust(name) for name in "abc"]
    async with gossiping(log, *trusts) as nodes:
        a, b, c = nodes
        join_all(nodes)
        await until(lambda: all_see(nodes, a="alive", b="alive", c="alive"))

        b.deploy("small", SMALL)
        a.deploy("big", BIG)  # no datagram holds it: word spreads, the record comes by sync
        expected = {"small": SMALL, "big": BIG}
        await until(
            lambda: all(
                {name: row.spec for name, row in node.gossip.catalog.functions()} == expected
                for node in nodes
            )
        )
        await until(lambda: {k.split("/")[1] for k in c.saved} == {"small", "big"})
        await until(lambda: len({node.gossip.catalog.state_digest() for node in nodes}) == 1)
        assert any(isinstance(event, RecordsAccepted) for event in c.events)

        a.gossip.holdings.set_local(SMALL.module, True)
        a.service.notify()
        await until(lambda: c.gossip.holdings.holders(SMALL.module) == [a.trust.node_id])

        b.kill()
        await until(lambda: all_see([a, c], a="alive", b="down", c="alive"))
        for node in (a, c):
            await until(lambda node=node: any(isinstance(e, MemberDown) for e in node.events))
            downs = [event for event in node.events if isinstance(event, MemberDown)]
            assert [event.member.name for event in downs] == ["b"]
            ups = {event.member.name for event in node.events if isinstance(event, MemberUp)}
            assert ups == {"a", "b", "c"} - {node.trust.name}


async def test_a_node_that_leaves_is_not_a_death(make_trust: MakeTrust, log: Log) -> None:
    trusts = [make_trust(name) for name in "ab"]
    async with gossiping(log, *trusts) as nodes:
        a, b = nodes
        join_all(nodes)
        await until(lambda: all_see(nodes, a="alive", b="alive"))
        with trio.fail_after(5):
            await b.service.leave()
        await until(lambda: a.states() == {"a": "alive", "b": "left"})
        await until(lambda: any(isinstance(event, MemberLeft) for event in a.events))
        assert not any(isinstance(event, MemberDown) for event in a.events)
        assert b.sockets.udp.fileno() == -1


async def test_a_restarted_node_is_back_at_once(make_trust: MakeTrust, log: Log) -> None:
    trusts = [make_trust(name) for name in "ab"]
    async with gossiping(log, *trusts) as nodes, trio.open_nursery() as nursery:
        a, b = nodes
        join_all(nodes)
        await until(lambda: all_see(nodes, a="alive", b="alive"))
        a.deploy("f", SMALL)
        b.kill()
        again = GossipNode(b.trust, await bind_gossip("127.0.0.1", 0), log, generation=2)
        await nursery.start(again.run)
        again.service.join([a.seed])
        await until(lambda: all_see([a, again], a="alive", b="alive"))
        await until(lambda: again.gossip.catalog.lookup("f") is not None)
        (member,) = (m for m in a.gossip.members() if m.name == "b")
        assert member.generation == 2
        assert member.metadata.gossip_address == again.sockets.address
        nursery.cancel_scope.cancel()


async def test_noise_at_the_gossip_port_is_counted_and_nothing_else(
    make_trust: MakeTrust, log: Log, tmp_path: Path
) -> None:
    create_ca(tmp_path / "ca2")
    foreign = make_trust("f", ca_directory=tmp_path / "ca2")
    trusts = [make_trust(name) for name in "ab"]
    rng = random.Random(4)
    async with gossiping(log, *trusts) as nodes:
        a, b = nodes
        tap = tapped(b)
        join_all(nodes)
        await until(lambda: all_see(nodes, a="alive", b="alive"))
        await until(lambda: len(tap) >= 3)
        genuine = list(tap)
        stranger = Seal(Keyring(foreign.keyring_keys), foreign.node_id, 1)
        member = Seal(Keyring(a.trust.keyring_keys), foreign.node_id, 1)
        noise = [
            b"",
            b"\x00",
            *(rng.randbytes(size) for size in (20, 60, 500, DATAGRAM_BYTES_MAX, 1201, 9000)),
            *genuine,  # replayed
            *(data[: len(data) // 2] for data in genuine),
            *(data[:-1] for data in genuine),
            *(flipped(data, rng) for data in genuine),
            *(data + b"x" for data in genuine),
            stranger.seal(b"hello"),  # another cluster's key
            member.seal(b"altered")[:-1] + b"\x00",
            member.seal(b"\xc1"),  # our key, no message in it
            member.seal(rng.randbytes(900)),
        ]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for data in noise:
                sock.sendto(data, a.sockets.address)
                await trio.lowlevel.checkpoint()
        await until(lambda: sum(a.dropped().values()) >= len(noise))
        assert a.dropped()["kernel"] >= 9, "noise, and another cluster's datagrams"
        assert {"kernel", "seal-replay", "seal-open", "codec"} <= set(a.dropped())
        assert not {"seal-magic", "seal-short", "seal-long", "seal-key"} & set(a.dropped())
        assert a.states() == {"a": "alive", "b": "alive"}
        b.deploy("after", SMALL)
        await until(lambda: a.gossip.catalog.lookup("after") is not None)
        assert b.states() == {"a": "alive", "b": "alive"}


def tapped(node: GossipNode) -> list[bytes]:
    """What `node` sends from now on, as seen on the wire."""
    seen: list[bytes] = []
    send = node.sockets.send

    def record(data: bytes, address: tuple[str, int]) -> str | None:
        seen.append(data)
        return send(data, address)

    node.sockets.send = record  # type: ignore[method-assign]
    return seen


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


async def test_hostile_syncs_are_refused(make_trust: MakeTrust, log: Log) -> None:
    a_trust, b_trust = make_trust("a"), make_trust("b")
    async with gossiping(log, a_trust, b_trust) as (a, b):
        genuine = b.gossip.sync_begin(a_trust.node_id, trio.current_time())
        bodies = [
            b"",
            b"\xc1" * 100,
            genuine[:-3],
            random.Random(1).randbytes(1_000_000),
            b"\x90",
            a.gossip.sync_begin(b_trust.node_id, trio.current_time()),  # a's own word, said by b
        ]
        with trio.fail_after(10):
            connection = await dial(a.sockets.address, b_trust, expected=a_trust.node_id)
            for number, body in enumerate(bodies):
                await connection.send(Sync(number), body)
                frame = await connection.receive()
                assert frame is not None
                assert isinstance(frame[0], ErrorReply)
                assert frame[0].code == "peer"
            await connection.aclose()
        assert a.states() == {"a": "alive"}
        b.service.join([a.seed])
        await until(lambda: all_see([a, b], a="alive", b="alive"))


async def test_a_full_disk_does_not_stop_gossip(
    make_trust: MakeTrust, log: Log, log_text: io.StringIO
) -> None:
    trusts = [make_trust(name) for name in "ab"]
    async with gossiping(log, *trusts) as nodes:
        a, b = nodes
        b.fail_saves = True
        join_all(nodes)
        await until(lambda: all_see(nodes, a="alive", b="alive"))
        a.deploy("f", SMALL)
        await until(lambda: b.gossip.catalog.lookup("f") is not None)
        await until(lambda: "records not saved" in log_text.getvalue())
        assert b.saved == {}
        b.fail_saves = False
        a.deploy("g", SMALL)
        await until(lambda: {"a/f", "a/g"} <= b.saved.keys())


async def test_a_late_save_of_a_peers_record_spares_newer_own_ones(
    make_trust: MakeTrust, log: Log
) -> None:
    trusts = [make_trust(name) for name in "ab"]
    async with gossiping(log, *trusts) as nodes:
        a, b = nodes
        join_all(nodes)
        await until(lambda: all_see(nodes, a="alive", b="alive"))
        async with b.persisting:
            a.deploy("f", SMALL)
            await until(lambda: b.gossip.catalog.lookup("f") is not None)
            assert b.saved == {}, "its turn has not come"
            removal = b.gossip.catalog.prepare_remove("f", wall_ms=wall_ms())
            await b.commit(removal)
            b.deploy("g", SMALL)  # never saved: not ours to save
        a.deploy("h", SMALL)
        await until(lambda: "a/h" in b.saved)
        own = dict(encoded_records(removal))
        assert {key: b.saved[key] for key in own} == own
        assert {key.split("/")[1] for key in b.saved} == {"f", "h"}


async def test_what_the_catalog_forgets_leaves_the_disk(
    make_trust: MakeTrust, log: Log, log_text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "TOMBSTONES_MAX", 0)
    async with gossiping(log, make_trust("a")) as (a,):
        catalog = a.gossip.catalog
        for name in ("gone", "back", "stays"):
            await a.commit(catalog.prepare_deploy(name, encode_spec(SMALL), wall_ms=wall_ms()))
            if name != "stays":
                await a.commit(catalog.prepare_remove(name, wall_ms=wall_ms()))
        stale = {key for key in a.saved if "/stays" not in key}
        assert len(stale) == 4
        async with a.persisting:
            keep_house(a)
            await a.commit(catalog.prepare_deploy("back", encode_spec(SMALL), wall_ms=wall_ms()))
        await until(lambda: {key.split("/")[1] for key in a.saved} == {"back", "stays"})
        assert len(a.saved) == 4
        await until(lambda: any(isinstance(event, RecordsPurged) for event in a.events))

        a.fail_saves = True
        a.publish(catalog.prepare_remove("back", wall_ms=wall_ms()))
        keep_house(a)
        await until(lambda: "records not dropped" in log_text.getvalue())
        assert "a/back" in a.saved


async def test_a_disk_that_hangs_does_not_stop_gossip(
    make_trust: MakeTrust, log: Log, log_text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far more happens than may wait for the disk; all of it is there when the disk is back."""
    monkeypatch.setattr(gossip_module, "EVENTS_MAX", 4)
    async with gossiping(log, make_trust("a"), make_trust("b")) as nodes:
        a, b = nodes
        join_all(nodes)
        await until(lambda: all_see(nodes, a="alive", b="alive"))
        await b.persisting.acquire()
        for number in range(20):
            a.deploy(f"f{number}", SMALL)
            await until(lambda n=number: b.gossip.catalog.lookup(f"f{n}") is not None)
        acks = a.gossip.statistics().probing.acks_direct
        await until(lambda: a.gossip.statistics().probing.acks_direct > acks)
        assert all_see(nodes, a="alive", b="alive")
        assert "does the disk hang?" in log_text.getvalue()
        b.persisting.release()
        await until(lambda: len(b.saved) == 40)
        a.deploy("after", SMALL)
        await until(lambda: len(b.saved) == 42)
        assert b.service._owed == {}


def keep_house(node: GossipNode) -> None:
    node.gossip._timers.set(("house", 0), 0.0)
    node.service.notify()


async def test_a_sync_in_pieces_goes_on_however_slow_the_peer(
    make_trust: MakeTrust, log: Log
) -> None:
    """One sync brings it all: nothing else would ask again."""
    a, b = make_trust("a"), make_trust("b")
    source = Catalog(b.anchor, b.private_key, b.credential)
    stored: dict[str, bytes] = {}
    for number in range(SYNC_RECORDS_MAX):
        records = source.prepare_deploy(f"f{number}", encode_spec(SMALL), wall_ms=wall_ms())
        stored.update(encoded_records(records))
    knobs = msgspec.structs.replace(LOCAL, sync_quiet_s=3600.0, sync_interval_s=3600.0)
    async with gossiping(log, a, b, knobs=knobs) as nodes:
        slow, full = nodes
        slow.syncs_take_s = 0.2
        rows = [SavedRecord(key, encoded) for key, encoded in stored.items()]
        assert full.gossip.catalog.load(rows) == ((), ())
        full.service.join([slow.seed])
        await until(lambda: len(slow.gossip.catalog) == len(stored))


async def test_syncs_that_wait_are_bounded_and_forget_the_dead(
    make_trust: MakeTrust, log: Log
) -> None:
    trusts = [make_trust(name) for name in "ab"]
    async with gossiping(log, *trusts) as nodes, trio.open_nursery() as helpers:
        a, _ = nodes
        join_all(nodes)
        await until(lambda: all_see(nodes, a="alive", b="alive"))
        (b_member,) = (member for member in a.gossip.members() if member.name == "b")
        a.service._syncing.update({NodeId(f"{n:032x}"): None for n in range(SYNCS_MAX)})
        strangers = [NodeId(f"{n:032x}") for n in range(100, 101 + WISHES_MAX)]
        for node_id in strangers[: WISHES_MAX - 1]:
            a.service._start_sync(helpers, msgspec.structs.replace(b_member, node_id=node_id))
        a.service._start_sync(helpers, b_member)
        a.service._start_sync(helpers, msgspec.structs.replace(b_member, node_id=strangers[-1]))
        assert len(a.service._wished) == WISHES_MAX
        a.service._end_sync(helpers, NodeId(f"{0:032x}"))
        assert b_member.node_id in a.service._syncing, "strangers are passed over"
        assert a.service._wished == {}
        helpers.cancel_scope.cancel()


async def test_seeds_may_be_names_unknown_or_this_node_itself(
    make_trust: MakeTrust, log: Log
) -> None:
    trusts = [make_trust(name) for name in "ab"]
    async with gossiping(log, *trusts) as nodes:
        a, b = nodes
        port = a.sockets.address[1]
        b.service.join([b.seed, "no-such-host.invalid:1", f"localhost:{port}"])
        await until(lambda: all_see(nodes, a="alive", b="alive"))
        for seed in ("nowhere", "host:port", ":1"):
            with pytest.raises(ConfigError, match=r"gossip\.seeds"):
                b.service.join([seed])


async def test_a_member_whose_streams_are_dead_still_gossips(
    make_trust: MakeTrust, log: Log, log_text: io.StringIO
) -> None:
    """Syncs with it fail and are told of; nothing else happens."""
    trusts = [make_trust(name) for name in "ab"]
    async with trio.open_nursery() as nursery:
        a = GossipNode(trusts[0], await bind_gossip("127.0.0.1", 0), log)
        b = GossipNode(trusts[1], await bind_gossip("127.0.0.1", 0), log)
        await nursery.start(a.run)
        for listener in b.sockets.listeners:
            await listener.aclose()
        await nursery.start(b.service.run)
        b.service.join([a.seed])
        await until(lambda: all_see([a, b], a="alive", b="alive"))
        b.deploy("big", BIG)
        await until(lambda: "sync failed" in log_text.getvalue())
        assert all_see([a, b], a="alive", b="alive")
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- sockets
async def test_udp_and_tcp_share_a_port() -> None:
    sockets = await bind_gossip("127.0.0.1", 0)
    host, port = sockets.address
    assert host == "127.0.0.1"
    assert sockets.listeners[0].socket.getsockname() == (host, port)
    with pytest.raises(ConfigError, match=f"gossip.bind = '127.0.0.1:{port}': .*choose another"):
        await bind_gossip("127.0.0.1", port)
    with pytest.raises(ConfigError, match="choose another"):
        await bind_gossip("192.0.2.1", 0)
    with pytest.raises(ConfigError, match="no such address"):
        await bind_gossip("no-such-host.invalid", 0)
    await close(sockets)
    again = await bind_gossip("127.0.0.1", port)
    assert again.address == (host, port)
    await close(again)


async def close(sockets: GossipSockets) -> None:
    sockets.close()
    for listener in sockets.listeners:
        await listener.aclose()


async def test_what_the_kernel_says_of_datagrams() -> None:
    a, b = await bind_gossip("127.0.0.1", 0), await bind_gossip("127.0.0.1", 0)
    gone = b.address
    await close(b)
    assert a.send(b"x", gone) is None
    with trio.fail_after(5):
        await trio.lowlevel.wait_readable(a.udp)
    # The pending error does not cost the next datagram.
    assert a.send(b"to myself", a.address) is None
    assert a.send(b"x" * 70_000, a.address) == "send-emsgsize"
    with trio.fail_after(5):
        while not (received := a.receive(1)):
            await trio.lowlevel.wait_readable(a.udp)
    assert received == [(b"to myself", a.address)]
    assert a.refused(10) == [gone]
    assert a.refused(10) == []
    assert a.receive(1) == []
    assert a.send(b"x", ("::1", 1)).startswith("send-")  # type: ignore[union-attr]
    await close(a)


async def test_names_are_looked_up_without_blocking_once() -> None:
    names = Names()
    assert names.numeric(("127.0.0.1", 7), 0.0) == ("127.0.0.1", 7)
    assert names.numeric(("::1", 7), 0.0) == ("::1", 7)
    assert names.numeric(("localhost", 7), 0.0) is None
    assert names.numeric(("localhost", 7), 0.0) is None
    assert names.take_wanted() == ["localhost"]
    assert names.numeric(("localhost", 7), 0.0) is None
    assert names.take_wanted() == [], "it is being looked up"
    with trio.fail_after(10):
        await names.look_up("localhost", socket.AF_INET)
    now = trio.current_time()
    assert names.numeric(("localhost", 7), now) == ("127.0.0.1", 7)
    assert names.take_wanted() == []
    assert names.numeric(("localhost", 7), now + 60) == ("127.0.0.1", 7), "stale but useful"
    assert names.take_wanted() == ["localhost"]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64, "nul\0"])
async def test_names_that_are_not_found_are_asked_for_once(host: str) -> None:
    names = Names()
    assert names.numeric((host, 7), trio.current_time()) is None
    assert names.take_wanted() == [host]
    with trio.fail_after(20):
        await names.look_up(host, socket.AF_INET)
    now = trio.current_time()
    assert names.numeric((host, 7), now) is None
    assert names.take_wanted() == []
    assert names.numeric((host, 7), now + NAME_TTL_S) is None
    assert names.take_wanted() == [host]


async def test_a_failure_does_not_take_away_what_is_known() -> None:
    names = Names()
    with trio.fail_after(10):
        await names.look_up("localhost", socket.AF_INET)
        await names.look_up("localhost", socket.AF_UNIX)  # no such address
    assert names.numeric(("localhost", 7), trio.current_time()) == ("127.0.0.1", 7)


async def test_names_wanted_at_once_are_bounded() -> None:
    names = Names()
    for number in range(NAMES_MAX):
        names.numeric((f"h{number}", 7), 0.0)
    assert len(names.take_wanted()) == NAMES_MAX
    assert names.numeric(("one-more", 7), 0.0) is None
    assert names.take_wanted() == []


HOSTILE_ADDRESSES = [("a..b", 1), ("x" * 64, 1), ("nul\0", 1), ("127.0.0.1", 1 << 16)]


@pytest.mark.parametrize("address", [("no-such-host.invalid", 1), *HOSTILE_ADDRESSES])
async def test_an_unreachable_peer_is_a_peer_error(
    make_trust: MakeTrust, address: tuple[str, int]
) -> None:
    with trio.fail_after(10), pytest.raises(PeerError):
        await dial(address, make_trust("a"), expected=None)


async def test_nothing_is_sent_to_what_is_no_address() -> None:
    sockets = await bind_gossip("127.0.0.1", 0)
    for address in HOSTILE_ADDRESSES:
        assert sockets.send(b"x", address) in ("send-address", "send-other")
    await close(sockets)
