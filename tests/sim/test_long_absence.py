"""Days apart: nothing removed comes back, nothing acknowledged is lost. SPEC §6.7."""

from __future__ import annotations

import msgspec
import pytest
from protocol_support import (
    WALL_MS,
    Wire,
    address_of,
    carry_sync,
    make_gossip,
    saved_records,
    spec_bytes,
)

from protocol.errors import RemoteProtocolError
from protocol.events import RecordsAccepted, RecordsPurged
from protocol.gossip import Gossip
from protocol.presets import LAN
from protocol.records import encoded_records
from protocol.syncpolicy import IMPATIENCE

HOUR_S = 3600.0
SLOW = msgspec.structs.replace(
    LAN,
    probe_interval_s=120.0,
    probe_window_s=20.0,
    gossip_interval_s=1.0,
    join_retry_s=300.0,
    reconnect_s=120.0,
    reap_down_s=200 * HOUR_S,
    sync_quiet_s=20.0,
    sync_backstop_s=9000.0,
)
"""Days of virtual time in seconds of ours."""


class World(Wire):
    """Machines with disks."""

    def __init__(self, count: int) -> None:
        super().__init__(count, knobs=SLOW)
        self.disks: dict[int, dict[str, bytes]] = {index: {} for index in range(count)}
        self.seen_events = 0
        self.generation = 1

    def settle(self, for_s: float) -> None:
        self.run(for_s)
        for name, event in self.events[self.seen_events :]:
            index = int(name[1:])
            if isinstance(event, RecordsAccepted):
                self.disks[index].update(event.records)
            elif isinstance(event, RecordsPurged):
                for key in event.keys:
                    self.disks[index].pop(key, None)
        self.seen_events = len(self.events)

    def publish(self, index: int, name: str, *, remove: bool = False) -> None:
        catalog = self[index].catalog
        if remove:
            records = catalog.prepare_remove(name, wall_ms=self.wall_ms)
        else:
            spec = spec_bytes(f"{name} {self.now}")
            records = catalog.prepare_deploy(name, spec, wall_ms=self.wall_ms)
        self.disks[index].update(encoded_records(records))
        self[index].publish(records, self.now)

    def stop(self, *indices: int) -> None:
        for index in indices:
            del self.machines[address_of(index)]

    def start(self, *indices: int) -> None:
        self.generation += 1
        for index in indices:
            machine = make_gossip(index, generation=self.generation, knobs=SLOW, now=self.now)
            machine.catalog.load(saved_records(self.disks[index].items()))
            self.machines[address_of(index)] = machine
            machine.join([address_of(i) for i in range(len(self.disks))], self.now)

    def names(self, index: int) -> list[str]:
        return [name for name, _ in self[index].catalog.functions()]

    def agree(self) -> bool:
        return len({machine.state_digest() for machine in self.machines.values()}) == 1


@pytest.fixture
def world() -> World:
    return formed(3)


def formed(count: int) -> World:
    """Nodes that agree on `kept`, `gone` and `alone`."""
    world = World(count)
    world.join_all()
    for name in ("kept", "gone", "alone"):
        world.publish(0, name)
    world.settle(1000.0)
    assert world.agree()
    return world


def test_after_a_partition_of_25_hours_nothing_deleted_comes_back(world: World) -> None:
    world.cut = {address_of(2)}
    world.publish(0, "gone", remove=True)
    world.publish(2, "mine")
    world.settle(25 * HOUR_S)
    assert world.names(2) == ["alone", "gone", "kept", "mine"]
    world.cut = set()
    world.settle(1500.0)
    assert world.agree()
    assert [world.names(index) for index in range(3)] == [["alone", "kept", "mine"]] * 3


def test_after_100_hours_a_node_neither_resurrects_nor_loses(world: World) -> None:
    world.cut = {address_of(2)}
    world.publish(2, "mine")
    world.settle(30.0)
    world.stop(2)
    world.cut = set()
    world.publish(0, "gone", remove=True)
    world.publish(1, "new")
    world.settle(100 * HOUR_S)
    world.start(2)
    assert world.names(2) == ["alone", "gone", "kept", "mine"], "it serves meanwhile"
    world.settle(1500.0)
    assert world.agree()
    assert [world.names(index) for index in range(3)] == [["alone", "kept", "mine", "new"]] * 3


def test_a_removal_that_nobody_heard_of_lasts(world: World) -> None:
    world.cut = {address_of(2)}
    world.publish(2, "gone", remove=True)
    world.settle(30.0)
    world.stop(2)
    world.cut = set()
    world.settle(100 * HOUR_S)
    assert "gone" in world.names(0)
    world.start(2)
    world.settle(1500.0)
    assert world.agree()
    assert [world.names(index) for index in range(3)] == [["alone", "kept"]] * 3


def test_absences_that_overlap_and_a_lone_survivor(world: World) -> None:
    """1 goes, then 2; 0 stays alone, removes, and meets 2, which knew nothing of it, before 1."""
    world.stop(1)
    world.publish(2, "late")
    world.settle(60 * HOUR_S)
    world.stop(2)
    world.publish(0, "gone", remove=True)
    world.settle(100 * HOUR_S)
    world.start(2)
    world.settle(1500.0)
    world.stop(0)
    world.settle(100 * HOUR_S)
    world.start(1)
    world.settle(1500.0)
    assert world.names(1) == world.names(2) == ["alone", "kept", "late"]
    world.start(0)
    world.settle(1500.0)
    assert world.agree()
    assert world.names(0) == ["alone", "kept", "late"]


def test_halves_that_each_had_company() -> None:
    """Each side changed what it liked, and nothing is guessed from what the other side lacks."""
    world = formed(5)
    world.stop(3, 4)
    world.publish(0, "gone", remove=True)
    world.publish(0, "ours")
    world.settle(10 * HOUR_S)
    world.stop(0, 1, 2)
    world.start(3, 4)
    world.publish(3, "alone", remove=True)
    world.publish(4, "theirs")
    world.settle(10 * HOUR_S)
    world.start(0, 1, 2)
    world.settle(3000.0)
    assert world.agree()
    assert [world.names(index) for index in range(5)] == [["kept", "ours", "theirs"]] * 5


def test_a_cluster_that_was_off_as_a_whole_loses_nothing(world: World) -> None:
    world.stop(2)
    world.publish(0, "late")
    world.publish(1, "gone", remove=True)
    world.settle(1000.0)
    world.stop(0, 1)
    world.now += 100 * HOUR_S
    world.start(2)
    world.settle(3600.0)
    world.start(0, 1)
    world.settle(1500.0)
    assert world.agree()
    assert [world.names(index) for index in range(3)] == [["alone", "kept", "late"]] * 3


def test_a_member_that_shows_nothing_erases_nothing(world: World) -> None:
    """Only what a `control` identity signed changes a catalog: the last holder of `last` meets a
    node that has an empty one after days, and keeps what it has."""
    world.stop(2)
    world.publish(0, "last")
    world.settle(1000.0)
    world.stop(0, 1)
    world.now += 100 * HOUR_S
    world.disks[1] = {}
    world.start(1)
    world.settle(100 * HOUR_S)
    world.start(0)
    world.settle(1500.0)
    assert world.agree()
    assert world.names(0) == world.names(1) == ["alone", "gone", "kept", "last"]


def test_what_nobody_takes_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """More refused records than an outline has room for: those behind them are found."""
    monkeypatch.setattr("protocol.sync.OUTLINE_BYTES_MAX", 400)
    one, two, author = make_gossip(0), make_gossip(1), make_gossip(2).catalog
    for number in range(100):
        records = author.prepare_deploy(f"good{number}", spec_bytes("g"), wall_ms=WALL_MS)
        one.publish(records, 0.0)
    for number in range(200):
        spec = spec_bytes(f"f{number}")
        ahead_ms = WALL_MS + 3600_000
        one.publish(one.catalog.prepare_deploy(f"f{number}", spec, wall_ms=ahead_ms), 0.0)
    carry_sync(two, one, 0.0, WALL_MS)
    assert two.catalog.function_count() == 100


def test_records_that_peers_refuse_for_ever_cost_ever_less() -> None:
    """A clock that was ahead: its node's peers refuse what it signed then."""
    wire = Wire(6)
    wire.join_all()
    ahead_ms = wire.wall_ms + 3600_000
    catalog = wire[0].catalog
    wire[0].publish(catalog.prepare_deploy("future", spec_bytes("f"), wall_ms=ahead_ms), wire.now)
    wire.run(60.0)

    def wanted() -> int:
        return sum(machine.statistics().syncs_wanted for machine in wire.machines.values())

    before = wanted()
    wire.run(600.0)
    assert wanted() - before <= 6 * (600 / 64 * IMPATIENCE + 10), "once 6 per second"
    assert all(wire[index].catalog.lookup("future") is None for index in range(1, 6))
    wire[3].publish(
        wire[3].catalog.prepare_deploy("now", spec_bytes("n"), wall_ms=wire.wall_ms), wire.now
    )
    wire.run(10.0)
    assert all(machine.catalog.lookup("now") for machine in wire.machines.values())


def test_records_of_the_future_can_be_discarded() -> None:
    machine: Gossip = make_gossip(0)
    catalog = machine.catalog
    ahead_ms = WALL_MS + 3600_000
    machine.publish(catalog.prepare_deploy("kept", spec_bytes("k"), wall_ms=WALL_MS), 0.0)
    machine.publish(catalog.prepare_deploy("kept", spec_bytes("f"), wall_ms=ahead_ms), 0.0)
    with pytest.raises(RemoteProtocolError, match="record-future"):
        catalog.prepare_deploy("x", spec_bytes("x"), wall_ms=WALL_MS)
    gone = machine.discard_future(1.0, WALL_MS)
    assert len(gone) == 2
    assert catalog.lookup("kept") is None, "the alias was moved in the future, and is gone"
    machine.publish(catalog.prepare_deploy("kept", spec_bytes("k"), wall_ms=WALL_MS + 1), 1.0)
    assert catalog.lookup("kept") is not None
    assert machine.discard_future(2.0, WALL_MS + 1) == []
    purged = [event for event in events_of(machine) if isinstance(event, RecordsPurged)]
    assert set(purged[0].keys) == set(gone)


def events_of(machine: Gossip) -> list[object]:
    events: list[object] = []
    while (event := machine.poll_event()) is not None:
        events.append(event)
    return events
