"""protocol.replication, one decision at a time. tests/sim_replicas has whole clusters. SPEC §11."""

from __future__ import annotations

from random import Random

import pytest

from protocol.ids import Digest, NodeId, digest_of
from protocol.modules import Wanted
from protocol.replicas import Site, placement, ranking
from protocol.replication import (
    ANSWER_S,
    PROMISE_S,
    RETRY_S,
    RETRY_S_MAX,
    AskHolders,
    Drop,
    Event,
    Repair,
    Replication,
    ReplicationConfig,
)

CONFIG = ReplicationConfig(repair_after_s=30.0, surplus_after_s=400.0, repairs_max=2)
ONE, TWO = digest_of(b"manifest one"), digest_of(b"manifest two")
SITES = [Site(NodeId(f"{index:032x}"), "eu") for index in range(8)]
IDS = [site.node_id for site in SITES]


class World:
    """Node 0 among eight."""

    def __init__(self) -> None:
        self.now = 0.0
        self.disk: set[Digest] = set()
        self.elsewhere: dict[Digest, list[NodeId]] = {}
        self.used: set[Digest] = set()
        self.machine = Replication(
            SITES[0],
            CONFIG,
            Random(1),
            held=lambda blob: blob in self.disk,
            holders=lambda blob: self.elsewhere.get(blob, []),
            in_use=lambda blob: blob in self.used,
        )
        for site in SITES:
            self.machine.member_up(site, 0.0)

    def blob(self, *, mine: bool, count: int = 1) -> list[Digest]:
        """Blobs whose placement has node 0, or has not."""
        found = (digest_of(number.to_bytes(4)) for number in range(10_000))
        fitting = (one for one in found if (SITES[0] in placement(one, SITES, 3)) is mine)
        return [next(fitting) for _ in range(count)]

    def want(self, *blobs: Digest, manifests: tuple[Digest, ...] = (ONE,)) -> None:
        for blob in blobs:
            self.machine.want(blob, Wanted(manifests, 3), self.now)

    def hold(self, blob: Digest) -> None:
        self.disk.add(blob)
        self.machine.touch(blob, self.now)

    def until(self, limit_s: float) -> list[Event]:
        """What the machine asks for up to then, at its first event's time."""
        while True:
            self.machine.on_timer(self.now)
            events = []
            while (event := self.machine.poll_event()) is not None:
                events.append(event)
            deadline = self.machine.next_deadline()
            if events or deadline is None or deadline > limit_s:
                return events
            self.now = deadline

    def asked(self, blob: Digest) -> AskHolders:
        (event,) = self.until(self.now + 10_000)
        assert isinstance(event, AskHolders)
        assert event.blob == blob
        return event

    def answer(self, event: AskHolders, *held: bool) -> list[Event]:
        for peer, one in zip(event.peers, held, strict=True):
            self.machine.confirmed(event.blob, peer, self.now, held=one)
        return self.until(self.now)


def test_a_missing_copy_is_fetched_after_a_grace_that_shrinks_with_the_copies_left() -> None:
    for copies, at_least, at_most in ((3, 30, 45), (2, 20, 30), (1, 10, 15)):
        world = World()
        (blob,) = world.blob(mine=True)
        world.elsewhere[blob] = IDS[1 : 1 + copies]
        world.want(blob)
        assert world.until(at_least - 0.1) == []
        assert world.until(at_most) == [Repair(blob, ONE, copies)]


def test_nobody_who_has_it_is_waited_for_without_end() -> None:
    world = World()
    (blob,) = world.blob(mine=True)
    world.want(blob)
    assert world.until(10_000) == []
    world.elsewhere[blob] = [IDS[3]]
    assert world.until(10_100) == [Repair(blob, ONE, 1)]


def test_two_at_a_time_and_the_next_when_one_is_done() -> None:
    world = World()
    blobs = world.blob(mine=True, count=5)
    for blob in blobs:
        world.elsewhere[blob] = IDS[1:3]
    world.want(*blobs)
    begun = world.until(100)
    while world.machine.repairing < 2:
        begun += world.until(100)
    assert world.until(1000) == []
    assert (world.machine.repairing, world.machine.waiting) == (2, 3)
    first = begun[0]
    assert isinstance(first, Repair)
    world.disk.add(first.blob)
    world.machine.repaired(first.blob, world.now, ok=True)
    assert len(world.until(world.now)) == 1
    assert world.machine.repairing == 2


def test_failures_are_tried_again_ever_later_by_each_manifest_in_turn() -> None:
    world = World()
    (blob,) = world.blob(mine=True)
    world.elsewhere[blob] = IDS[1:3]
    world.want(blob, manifests=(ONE, TWO))
    tried = []
    for attempt in range(9):
        (event,) = world.until(world.now + 1000)
        assert isinstance(event, Repair)
        tried.append(event.manifest)
        world.machine.repaired(blob, world.now, ok=False)
        deadline = world.machine.next_deadline()
        assert deadline is not None
        delay_s = min(RETRY_S * 2 ** (attempt + 1), RETRY_S_MAX)
        assert delay_s <= deadline - world.now <= 1.5 * delay_s
    assert tried[:4] == [ONE, TWO, ONE, TWO]


def test_whoever_is_back_in_time_ends_the_wait() -> None:
    world = World()
    blob = next(
        one for one in world.blob(mine=False, count=50) if ranking(one, SITES)[3] == SITES[0]
    )
    world.elsewhere[blob] = IDS[1:3]
    world.want(blob)
    gone = world.machine.placed(blob)[0]
    world.machine.member_gone(gone, 0.0)
    assert IDS[0] in world.machine.placed(blob)
    assert world.machine.next_deadline() is not None
    site = SITES[IDS.index(gone)]
    world.machine.member_up(site, 5.0)
    assert world.machine.next_deadline() is None
    world.machine.member_gone(gone, 6.0)
    world.machine.member_up(Site(gone, "us"), 7.0)
    assert Site(gone, "us").node_id in world.machine.placed(blob)


def test_a_surplus_copy_goes_only_if_all_of_its_placement_promise() -> None:
    world = World()
    (blob,) = world.blob(mine=False)
    world.want(blob)
    world.hold(blob)
    event = world.asked(blob)
    assert world.now >= CONFIG.surplus_after_s
    assert event.peers == world.machine.placed(blob)
    assert world.answer(event, True, True, False) == []
    assert world.answer(event, True, True, True) == [], "too late: it has given up"
    event = world.asked(blob)
    assert world.answer(event, True, True, True) == [Drop(blob)]
    world.disk.discard(blob)
    world.machine.dropped(blob, world.now)
    assert world.machine.next_deadline() is None


def test_late_answers_and_strangers_count_for_nothing() -> None:
    world = World()
    (blob,) = world.blob(mine=False)
    world.want(blob)
    world.hold(blob)
    event = world.asked(blob)
    for _ in range(3):
        world.machine.confirmed(blob, IDS[0], world.now, held=True)
        world.machine.confirmed(blob, event.peers[0], world.now, held=True)
    assert world.until(world.now) == []
    world.now += ANSWER_S + 0.1
    assert world.answer(event, True, True, True) == []


@pytest.mark.parametrize("what", ["placement", "use", "wanted"])
def test_what_changes_between_question_and_answer_stops_it(what: str) -> None:
    world = World()
    (blob,) = world.blob(mine=False)
    world.want(blob)
    world.hold(blob)
    event = world.asked(blob)
    if what == "placement":
        world.machine.member_gone(event.peers[0], world.now)
    elif what == "use":
        world.used.add(blob)
    else:
        world.machine.want(blob, None, world.now)
    assert world.answer(event, True, True, True) == []
    assert world.machine.promise(blob, world.now), "it is not asking any more"


def test_who_asks_promises_nothing_and_who_promised_asks_nobody() -> None:
    world = World()
    (blob,) = world.blob(mine=False)
    assert not world.machine.promise(blob, 0.0), "it is not here"
    world.want(blob)
    world.hold(blob)
    event = world.asked(blob)
    assert not world.machine.promise(blob, world.now)
    assert world.answer(event, False, True, True) == []
    assert world.machine.promise(blob, world.now)
    assert world.machine.promised(blob, world.now + PROMISE_S - 1)
    assert not world.machine.promised(blob, world.now + PROMISE_S)
    promised_at = world.now
    world.asked(blob)
    assert world.now >= promised_at + PROMISE_S


def test_a_copy_in_use_is_looked_at_and_left() -> None:
    world = World()
    (blob,) = world.blob(mine=False)
    world.want(blob)
    world.hold(blob)
    world.used.add(blob)
    assert world.until(5000) == []
    world.used.clear()
    since = world.now
    world.asked(blob)
    assert world.now - since >= CONFIG.surplus_after_s


def test_lacking_counts_what_nodes_say() -> None:
    world = World()
    mine, other = world.blob(mine=True)[0], world.blob(mine=False)[0]
    world.want(mine, other)
    world.elsewhere = {mine: IDS[1:3], other: IDS[1:4]}
    assert world.machine.lacking() == [mine]
    world.disk.add(mine)
    assert world.machine.lacking() == []
    assert world.machine.placed(digest_of(b"unwanted")) == ()
    for node in IDS[1:]:
        world.machine.member_gone(node, world.now)
    world.elsewhere.clear()
    assert world.machine.lacking() == [mine, other], "also if there are no more nodes"
