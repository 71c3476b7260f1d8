"""Days apart: nothing removed comes back, nothing acknowledged is lost. SPEC §6.7."""

from __future__ import annotations

import msgspec
import pytest
from protocol_support import (
    WALL_MS,
    Wire,
    address_of,
    alias_record,
    carry_sync,
    make_gossip,
    saved_records,
    spec_bytes,
)

from protocol.clock import hlc_of
from protocol.continuity import (
    AWAY_MS_MAX,
    GAP_MS,
    NO_WITNESS,
    SAVE_MS,
    WAIT_S,
    Continuity,
)
from protocol.errors import RemoteProtocolError
from protocol.events import AgreementMoved, RecordsAccepted, RecordsPurged
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
        self.agreements: dict[int, bytes] = {}
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
            elif isinstance(event, AgreementMoved):
                self.agreements[index] = event.saved
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
            if index in self.agreements:
                machine.resume(self.agreements[index], self.now, self.wall_ms)
            machine.load(saved_records(self.disks[index].items()), self.wall_ms)
            self.machines[address_of(index)] = machine
            machine.join([address_of(i) for i in range(len(self.disks))], self.now)

    def names(self, index: int) -> list[str]:
        return [name for name, _ in self[index].catalog.functions()]

    def agree(self) -> bool:
        return len({machine.state_digest() for machine in self.machines.values()}) == 1


@pytest.fixture
def world() -> World:
    """Three nodes that agree on `kept`, `gone` and `alone`."""
    world = World(3)
    world.join_all()
    for name in ("kept", "gone", "alone"):
        world.publish(0, name)
    world.settle(1000.0)
    assert world.agree()
    assert set(world.agreements) == {0, 1, 2}
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
    assert len(world[0].catalog) == 6, "the tombstones are forgotten"
    world.start(2)
    assert world[2].statistics().returning
    assert world.names(2) == ["alone", "gone", "kept", "mine"], "it serves meanwhile"
    world.settle(1500.0)
    assert world.agree()
    assert not world[2].statistics().returning
    assert [world.names(index) for index in range(3)] == [["alone", "kept", "mine", "new"]] * 3
    assert not [key for key in world.disks[2] if "/gone" in key]


@pytest.mark.parametrize("asks", [True, False])
def test_a_suspended_machine_finds_out_before_it_says_anything(world: World, asks: bool) -> None:
    """Its monotonic clock stood still, so no timer tells it that days have passed."""
    sleeper = world[2]
    world.stop(2)
    world.publish(0, "gone", remove=True)
    slept_at = world.now
    world.settle(100 * HOUR_S)
    awake = world[0]
    asker, answerer = (sleeper, awake) if asks else (awake, sleeper)
    carry_sync(asker, answerer, slept_at if asks else world.now, world.wall_ms)
    assert world.names(0) == ["alone", "kept"]


def test_two_that_were_suspended_together_do_not_vouch_for_each_other() -> None:
    one, two = Continuity(), Continuity()
    for continuity in (one, two):
        continuity.agree(WALL_MS, 5)
        continuity.agree(WALL_MS + AWAY_MS_MAX + 1, 5)
        assert continuity.returning


def test_what_was_removed_is_told_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one listing holds: each part is judged by itself, however many there are."""
    removed = [f"gone{number}" for number in range(60)]
    for name in removed:
        world.publish(0, name)
    world.settle(1000.0)
    assert world.agree()
    world.stop(2)
    for name in removed:
        world.publish(0, name, remove=True)
    world.settle(100 * HOUR_S)
    monkeypatch.setattr("protocol.sync.OUTLINE_BYTES_MAX", 60)
    world.start(2)
    world.settle(WAIT_S - 20.0)
    assert world.names(2) == ["alone", "gone", "kept"]
    world.settle(1500.0)
    assert world.agree()
    assert [world.names(index) for index in range(3)] == [["alone", "gone", "kept"]] * 3
    assert not [key for key in world.disks[2] if "gone1" in key]


def test_a_removal_that_nobody_heard_of_outlives_its_age(world: World) -> None:
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
    assert len(world[0].catalog) == 6, "kept for as long again, for who is cut off now"


def test_who_stayed_alone_is_a_witness_too(world: World) -> None:
    world.stop(1, 2)
    world.publish(0, "gone", remove=True)
    world.settle(100 * HOUR_S)
    assert world[0].statistics().returning, "the others may have gone on without it"
    world.start(1, 2)
    world.settle(WAIT_S + 1500.0)
    assert world.agree()
    assert [world.names(index) for index in range(3)] == [["alone", "kept"]] * 3


def test_who_was_cut_off_alone_is_judged_by_those_who_went_on(world: World) -> None:
    world.cut = {address_of(2)}
    world.publish(0, "gone", remove=True)
    world.publish(2, "mine")
    world.settle(100 * HOUR_S)
    world.cut = set()
    assert world[2].statistics().returning
    world.settle(WAIT_S + 1500.0)
    assert world.agree()
    assert [world.names(index) for index in range(3)] == [["alone", "kept", "mine"]] * 3


def test_a_cluster_that_was_off_as_a_whole_loses_nothing(world: World) -> None:
    world.stop(2)
    world.publish(0, "late")
    world.publish(1, "gone", remove=True)
    world.settle(1000.0)
    world.stop(0, 1)
    world.now += 100 * HOUR_S
    world.start(2)
    world.settle(3600.0)
    assert world[2].statistics().returning, "alone it cannot know"
    world.start(0, 1)
    assert all(world[index].statistics().returning for index in range(3))
    world.settle(WAIT_S + 1500.0)
    assert world.agree()
    assert not any(world[index].statistics().returning for index in range(3))
    for index in range(3):
        assert {"alone", "kept", "late"} <= set(world.names(index))


def test_a_younger_node_is_no_witness(world: World) -> None:
    """Node 0 alone has `last`; the others are lost for good, and who came later never knew it."""
    world.stop(2)
    world.publish(0, "last")
    world.settle(1000.0)
    world.stop(0, 1)
    world.now += 10 * HOUR_S
    world.disks[1] = {}
    world.agreements.pop(1)
    world.start(1, 2)
    world.settle(90 * HOUR_S)
    assert world.names(1) == world.names(2) == ["alone", "gone", "kept"]
    world.start(0)
    assert world[0].statistics().returning
    world.settle(WAIT_S + 1500.0)
    assert world.agree()
    assert "last" in world.names(2)


def test_two_returning_nodes_show_each_other_nothing_old() -> None:
    one, two = make_gossip(0), make_gossip(1)
    for machine in (one, two):
        saved = agreed_at(WALL_MS, hlc_of(WALL_MS))
        machine.resume(saved, 0.0, WALL_MS + AWAY_MS_MAX + 1)
        assert machine.statistics().returning
    old = alias_record("old", None, hlc=hlc_of(WALL_MS))
    new = alias_record("new", None, hlc=hlc_of(WALL_MS + 1))
    one.publish([old, new], 0.0)
    carry_sync(one, two, 0.0, WALL_MS + AWAY_MS_MAX + 1)
    carry_sync(two, one, 0.0, WALL_MS + AWAY_MS_MAX + 1)
    assert len(two.catalog) == 0
    third = make_gossip(2)
    carry_sync(one, third, 0.0, WALL_MS + 1)
    assert third.catalog.encoded("a/new") is not None
    assert third.catalog.encoded("a/old") is None
    assert one.statistics().returning, "who never agreed with anybody is no witness"
    assert one.catalog.encoded("a/old") is not None


def agreed_at(wall_ms: int, hlc: int) -> bytes:
    continuity = Continuity()
    continuity.agree(wall_ms, hlc)
    saved = continuity.take_unsaved()
    assert saved is not None
    return saved


def test_what_is_remembered_of_agreements() -> None:
    continuity = Continuity()
    assert (continuity.since, continuity.unspread_from) == (NO_WITNESS, -1)
    assert not continuity.unsaved
    continuity.look(WALL_MS + 10 * AWAY_MS_MAX)
    assert not continuity.returning, "what never agreed is all its own"
    continuity.agree(WALL_MS, 5)
    first = continuity.since
    assert first == hlc_of(WALL_MS)
    assert continuity.take_unsaved() is not None
    continuity.agree(WALL_MS + SAVE_MS - 1, 5)
    assert continuity.since == first
    assert not continuity.unsaved, "the time alone is saved coarsely"
    continuity.agree(WALL_MS + GAP_MS, 6)
    assert continuity.take_unsaved() is not None
    continuity.agree(WALL_MS + GAP_MS + SAVE_MS, 6)
    assert continuity.unsaved
    later_ms = WALL_MS + 100 * GAP_MS
    continuity.look(later_ms)
    assert continuity.since == NO_WITNESS, "it may have missed something"
    continuity.agree(later_ms, 6)
    assert continuity.since == hlc_of(later_ms)
    continuity.inherit(first, later_ms, 6)
    assert continuity.since == first, "until one that missed nothing told all"
    continuity.look(later_ms + AWAY_MS_MAX + 1)
    assert continuity.returning
    assert (continuity.since, continuity.unspread_from) == (NO_WITNESS, 6)
    continuity.agree(later_ms + AWAY_MS_MAX + 2, 9)
    assert continuity.returning
    assert not continuity.judged_by(hlc_of(later_ms))
    assert continuity.judged_by(first)
    continuity.keep()
    assert (continuity.returning, continuity.unspread_from) == (False, -1)
    for junk in (b"", b"\xff", b"\x93\x01\x02", b"\x93\xfe\x00\x00"):
        with pytest.raises(RemoteProtocolError, match="continuity"):
            continuity.resume(junk, WALL_MS)


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
