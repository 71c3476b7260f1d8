"""Each fault's evidence: what it takes, and that without it the fault is not proven."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from blake3 import blake3
from fake_field import FakeField

from edged.cluster.process import Process, started_ticks
from edged.errors import Unreachable
from edged.lab.chaos import control
from edged.lab.chaos.control import Answer
from edged.lab.chaos.faults import FAULTS, Fault, Unproven, fault_of
from edged.lab.chaos.faults.inside import flip_a_bit
from edged.lab.chaos.faults.processes import refuses
from edged.lab.chaos.field import process_state
from edged.lab.history import Planned
from edged.links import EMPTY, with_rules
from edged.topology import Rule

NAMES = ["n1", "n2", "n3"]
CUT = {"cut": "drop", "one_way": False}


def fault(field: FakeField, action: str, *targets: str, **settings: Any) -> Fault:
    planned = Planned(t_s=1.0, id="4", action=action, targets=targets, settings=settings)
    return fault_of(field, planned)


def peer(name: str, *, cut: int = 0, sent: int = 0, latency_ms: float = 0.0) -> control.LinkPeer:
    return control.LinkPeer(
        name=name,
        region="r",
        link=control.Link(latency_ms=latency_ms),
        datagrams=sent,
        datagrams_dropped={"cut": cut, "loss": 7},
    )


@pytest.fixture
def sleeper() -> Iterator[Process]:
    child = subprocess.Popen(["sleep", "60"])
    yield Process(child.pid, started_ticks(child.pid) or 0)
    child.kill()
    child.wait()


def test_every_action_of_a_timeline_has_its_fault() -> None:
    for action, kind in FAULTS.items():
        settings = {"how": "kill"} if action == "region-loss" else {}
        assert isinstance(fault(FakeField(NAMES), action, "n1", **settings), kind)


# ---------------------------------------------------------------- partitions
async def test_a_partition_is_proven_by_loss_in_each_direction(
    autojump_clock: trio.testing.MockClock,
) -> None:
    field = FakeField(NAMES)
    field.counted = {("n1", "n2"): peer("n2", cut=3), ("n2", "n1"): peer("n1")}
    partition = fault(field, "partition", "node:n1", "|", "node:n2", "node:n3", **CUT)
    await partition.begin()
    (rule,) = field.document.rules
    assert (rule.sources, rule.targets, rule.cut) == (("node:n1",), ("node:n2", "node:n3"), "drop")

    async def lose() -> None:
        await trio.sleep(1.0)
        field.counted["n1", "n2"] = peer("n2", cut=5)
        await trio.sleep(1.0)
        field.counted["n2", "n1"] = peer("n1", cut=1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        evidence = await partition.prove()
    assert evidence == "dropped: 2 from n1 to n2+n3, 1 from n2+n3 to n1"
    assert trio.current_time() >= 2.0
    knocks = [(name, json.loads(body)) for name, path, body in field.puts if path == "/v1/join"]
    assert knocks == [("n1", {"seeds": ["h:3"]}), ("n2", {"seeds": ["h:3"]})], "something to lose"


async def test_what_was_lost_before_or_by_chance_is_no_evidence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    field = FakeField(NAMES)
    field.counted = {("n1", "n2"): peer("n2", cut=3), ("n2", "n1"): peer("n1", cut=3)}
    partition = fault(field, "partition", "node:n1", "|", "node:n2", **CUT)
    await partition.begin()
    with pytest.raises(Unproven, match="nothing was dropped"):
        await partition.prove()


async def test_one_way_needs_one_direction_only(autojump_clock: trio.testing.MockClock) -> None:
    field = FakeField(NAMES)
    settings = {"cut": "reset", "one_way": True}
    partition = fault(field, "partition", "node:n1", "|", "node:n2", **settings)
    await partition.begin()
    assert (field.document.rules[0].both, field.document.rules[0].cut) == (False, "reset")
    field.counted = {("n1", "n2"): msgspec.structs.replace(peer("n2"), streams_reset=1)}
    assert await partition.prove() == "dropped: 1 from n1 to n2"


async def test_an_ended_fault_takes_back_its_own_rules_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    field = FakeField(NAMES)
    other = Rule(sources=("*",), targets=("*",), loss=0.1, label="fault 9")
    field.document = with_rules(EMPTY, [other])
    partition = fault(field, "partition", "node:n1", "|", "node:n2", **CUT)
    await partition.begin()
    assert len(field.document.rules) == 2
    await partition.end()
    assert field.document.rules == (other,)


async def test_a_region_is_cut_by_its_name(autojump_clock: trio.testing.MockClock) -> None:
    field = FakeField(NAMES)
    await fault(field, "region-loss", "n2", region="r2", how="cut").begin()
    (rule,) = field.document.rules
    assert (rule.sources, rule.targets) == (("r2",), ("!r2",))


async def test_a_link_is_proven_by_use_of_the_changed_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    field = FakeField(NAMES)
    field.counted = {("n1", "n2"): peer("n2", sent=5), ("n2", "n1"): peer("n1", sent=5)}
    link = fault(field, "link", "r1", "→", "*", latency_ms=40.0, both=True)
    await link.begin()
    (rule,) = field.document.rules
    assert (rule.sources, rule.targets, rule.both, rule.latency_ms) == (("r1",), ("*",), True, 40)
    field.counted["n1", "n2"] = peer("n2", sent=9)
    with pytest.raises(Unproven, match="no link of it has changed"):
        await link.prove()
    field.counted["n1", "n2"] = peer("n2", sent=9, latency_ms=40.0)
    assert (await link.prove()).startswith("n1 sent 4 datagrams to n2 over")


# ---------------------------------------------------------------- inside a node
def lab(**changed: Any) -> Answer:
    told = {"clock_skew_ms": 0, "disk_full": False, "clock_ms": 0, "machine_ms": 0} | changed
    return Answer(200, json.dumps(told).encode())


async def test_a_clock_is_read_back(autojump_clock: trio.testing.MockClock) -> None:
    field = FakeField(NAMES)
    skew = fault(field, "clock-skew", "n1", skew_ms=60_000)
    await skew.begin()
    assert field.puts == [("n1", "/v1/lab", b'{"clock_skew_ms":60000}')]
    field.answers["n1", "/v1/lab"] = lab(clock_ms=1_060_050, machine_ms=1_000_000)
    assert await skew.prove() == "n1: its clock is 60050 ms ahead"
    field.answers["n1", "/v1/lab"] = lab(clock_ms=1_000_000, machine_ms=1_000_000)
    with pytest.raises(Unproven, match="0 ms ahead, not 60000"):
        await skew.prove()


async def test_a_disk_is_full_when_it_refuses_a_module(
    autojump_clock: trio.testing.MockClock,
) -> None:
    field = FakeField(NAMES)
    full = fault(field, "disk-full", "n1")
    await full.begin()
    with pytest.raises(Unproven, match="a write was not refused: 201"):
        await full.prove()
    field.answers["n1", "/v1/modules"] = Answer(507, b'{"detail": "no space left"}')
    assert await full.prove() == "n1: a module was refused, 507 no space left"


async def test_switches_of_a_node_are_turned_one_by_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    field = FakeField(NAMES)
    skew, full = fault(field, "clock-skew", "n1", skew_ms=5), fault(field, "disk-full", "n1")
    await skew.begin()
    await full.begin()
    await skew.end()
    await full.end()
    assert [json.loads(body) for _, _, body in field.puts] == [
        {"clock_skew_ms": 5},
        {"clock_skew_ms": 5, "disk_full": True},
        {"disk_full": True},
        {},
    ]


async def test_a_node_without_switches_says_so(autojump_clock: trio.testing.MockClock) -> None:
    field = FakeField(NAMES)
    field.answers["n1", "/v1/lab"] = Answer(409, b'{"detail": "set lab.enabled = true"}')
    with pytest.raises(Unreachable, match=r"n1: lab switches: 409 set lab\.enabled"):
        await fault(field, "disk-full", "n1").begin()
    field.machines["n1"].runs = False
    assert await fault(field, "disk-full", "n1").end() == "switched off", "by its death"


# ---------------------------------------------------------------- on disk
def test_one_bit_is_flipped_in_place(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    data = bytes(range(256))
    path.write_bytes(data)
    path.chmod(0o444)
    inode = path.stat().st_ino
    before, after = flip_a_bit(path)
    now = path.read_bytes()
    assert (before, after) == (blake3(data).hexdigest(), blake3(now).hexdigest())
    assert sum((a ^ b).bit_count() for a, b in zip(data, now, strict=True)) == 1
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o444)


async def test_damage_needs_a_file_that_is_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = FakeField(NAMES)
    monkeypatch.setattr(field, "directory", lambda name: tmp_path / name, raising=False)
    corrupt = fault(field, "corrupt", "n2", function="hello", what="module")
    field.answers["n2", "/v1/functions/hello"] = Answer(404, b"")
    with pytest.raises(Unproven, match="n2 does not know function hello"):
        await corrupt.begin()
    del field.answers["n2", "/v1/functions/hello"]
    field.deployed["hello"] = "v1"
    with pytest.raises(Unproven, match="n2 has no module of hello on disk"):
        await corrupt.begin()
    module = "ab" * 32
    blobs = tmp_path / "n2" / "data" / "blobs" / "ab"
    blobs.mkdir(parents=True)
    (blobs / f"{module}.module").write_bytes(b"\0asm rest")
    await corrupt.begin()
    assert (await corrupt.prove()).startswith(f"n2: {module}.module: ")
    assert (blobs / f"{module}.module").read_bytes() != b"\0asm rest"


# ---------------------------------------------------------------- processes
def test_a_port_refuses_when_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert not refuses(address)
    assert refuses(address)


async def test_a_slowed_process_is_seen_stopped_and_running(
    sleeper: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = FakeField(NAMES)
    monkeypatch.setattr(field, "process", lambda _: sleeper, raising=False)
    slow = fault(field, "slow-cpu", "n1", share=0.5)
    await slow.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.sustain)
        assert "n1: stopped" in await slow.prove()
        nursery.cancel_scope.cancel()
    await slow.end()
    assert process_state(sleeper) in ("R", "S"), "woken, whether or not it sleeps again by now"


async def test_who_still_runs_was_not_killed(
    sleeper: Process, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = FakeField(NAMES)

    async def spare(_: str) -> Process:
        return sleeper

    monkeypatch.setattr(field, "kill", spare, raising=False)
    kill = fault(field, "kill", "n1")
    await kill.begin()
    with pytest.raises(Unproven, match=f"process {sleeper.pid} runs"):
        await kill.prove()


async def test_a_pause_is_seen_in_the_process_table(
    sleeper: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = FakeField(NAMES)

    async def stop(_: str) -> None:
        signal.pidfd_send_signal(handle, signal.SIGSTOP)

    handle = os.pidfd_open(sleeper.pid)
    try:
        monkeypatch.setattr(field, "process", lambda _: sleeper, raising=False)
        monkeypatch.setattr(field, "pause", stop, raising=False)
        pause = fault(field, "pause", "n1")
        await pause.begin()
        assert await pause.prove() == f"n1: process {sleeper.pid} is in state T"
    finally:
        os.close(handle)
