"""Each checker fails when it should: broken histories, by hand."""

from __future__ import annotations

import pytest
from protocol_support import spec_bytes, version_record
from simulator import Conditions, Simulation, SimulationFailure
from simulator.bounds import detection_s, explains_s, heal_s, probe_rounds
from simulator.checkers.accuracy import Accuracy
from simulator.checkers.agreement import Agreement
from simulator.checkers.catalog import Ledger, Shown, equal, order_of
from simulator.checkers.completeness import Completeness
from simulator.checkers.holdings import holdings_wrong
from simulator.checkers.limits import Limits
from simulator.faultlog import FaultLog
from simulator.network import Cuts

from protocol.ids import digest_of
from protocol.presets import LAN, WAN
from protocol.records import Record, encode_record

CALM = Conditions()
GENERATION = 7


def calm_log(nodes: int = 3) -> FaultLog:
    log = FaultLog()
    log.network(Cuts(), CALM, 0.0)
    for index in range(nodes):
        log.started(index, GENERATION, 0.0)
    return log


def accuracy_of(log: FaultLog, nodes: int = 3) -> Accuracy:
    return Accuracy(log, LAN, lambda: range(nodes))


# ---------------------------------------------------------------- accuracy
def test_a_healthy_node_declared_down_is_not_explained() -> None:
    accuracy = accuracy_of(calm_log())
    assert accuracy.declared(0, 1, GENERATION, 100.0).why == ""
    assert [death.victim for death in accuracy.unexplained] == [1]


def test_true_deaths_are_told_from_false_ones() -> None:
    log = calm_log()
    log.died(1, 90.0, left=False)
    log.died(2, 90.0, left=True)
    accuracy = accuracy_of(log)
    assert accuracy.declared(0, 1, GENERATION, 89.0).why == ""
    assert accuracy.declared(0, 1, GENERATION, 91.0).why == "dead"
    assert accuracy.declared(0, 2, GENERATION, 91.0).why == "left"
    log.started(1, GENERATION + 1, 95.0)
    assert accuracy.declared(0, 1, GENERATION, 96.0).why == "dead"
    assert accuracy.declared(0, 1, GENERATION + 1, 96.0).why == ""
    assert len(accuracy.false) == 2


def test_a_pause_explains_only_if_long_and_recent_and_the_victims() -> None:
    log = calm_log()
    log.paused(1, 80.0, 95.0)
    accuracy = accuracy_of(log)
    assert accuracy.declared(0, 1, GENERATION, 87.0).why == ""
    assert accuracy.declared(0, 1, GENERATION, 95.0).why == "paused"
    assert accuracy.declared(1, 0, GENERATION, 95.0).why == ""
    late_s = 95.0 + explains_s(LAN)
    assert accuracy.declared(0, 1, GENERATION, late_s).why == ""
    log.paused(2, 90.0, 90.0 + accuracy.pause_tolerated_s)
    assert accuracy.declared(0, 2, GENERATION, 99.0).why == ""


def test_a_bad_network_shortens_no_pause() -> None:
    log = calm_log()
    log.network(Cuts(), Conditions(loss=0.1), 50.0)
    log.paused(1, 80.0, 87.9)
    accuracy = accuracy_of(log)
    assert accuracy.declared(0, 1, GENERATION, 87.0).why == ""
    assert len(accuracy.unexplained) == 1


def test_loss_explains_only_when_it_is_heavy() -> None:
    for loss, why in ((0.2, ""), (0.5, "loss")):
        log = calm_log()
        log.network(Cuts(), Conditions(loss=loss), 50.0)
        assert accuracy_of(log).declared(0, 1, GENERATION, 60.0).why == why


def test_a_cut_explains_only_if_no_helper_has_both() -> None:
    one_pair = Cuts(oneway=[(frozenset({0}), frozenset({1}))])
    from_all = Cuts(oneway=[(frozenset({0, 2}), frozenset({1}))])
    split = Cuts(groups={0: 0, 1: 1, 2: 0})
    for cuts, why in ((one_pair, ""), (from_all, "partition"), (split, "partition")):
        log = calm_log()
        log.network(cuts, CALM, 50.0)
        log.network(Cuts(), CALM, 60.0)
        accuracy = accuracy_of(log)
        assert accuracy.declared(0, 1, GENERATION, 61.0).why == why
        assert accuracy.declared(0, 1, GENERATION, 61.0 + explains_s(LAN)).why == ""


def test_a_helper_that_was_stopped_is_none() -> None:
    log = calm_log()
    log.network(Cuts(oneway=[(frozenset({0}), frozenset({1}))]), CALM, 50.0)
    log.paused(2, 52.0, 53.0)
    assert accuracy_of(log).declared(0, 1, GENERATION, 55.0).why == "partition"


# ---------------------------------------------------------------- completeness
def test_a_death_nobody_notices_is_missed_by_the_undisturbed() -> None:
    log = calm_log()
    checker = Completeness(log, bound_s=10.0)
    log.died(1, 100.0, left=False)
    checker.died(1, GENERATION, 100.0)
    log.paused(2, 104.0, 106.0)

    def blind(observer: int, subject: int) -> int | None:
        return GENERATION

    assert not checker.check([0, 2], blind, 109.0)
    assert [one.observer for one in checker.check([0, 2], blind, 111.0)] == [0]
    assert [one.observer for one in checker.check([0, 2], blind, 117.0)] == [0, 2]
    assert not checker.check([0, 2], lambda observer, subject: None, 117.0)
    assert not checker.check([0, 2], blind, 200.0), "once all knew it is done"


def test_a_new_generation_is_no_missed_death() -> None:
    log = calm_log()
    checker = Completeness(log, bound_s=10.0)
    checker.died(1, GENERATION, 100.0)
    assert not checker.check([0], lambda observer, subject: GENERATION + 1, 150.0)


def test_bounds_follow_the_knobs() -> None:
    assert probe_rounds(2) == 3
    assert probe_rounds(1000) == 21
    assert probe_rounds(1000, 0.2) > 21
    assert detection_s(LAN, 10) < detection_s(WAN, 10) < heal_s(WAN, 10)
    assert detection_s(LAN, 10) < detection_s(LAN, 1000) < 60


# ---------------------------------------------------------------- agreement
def test_agreement_looks_at_what_was_touched_both_ways() -> None:
    views = {(a, b): GENERATION for a in range(3) for b in range(3)}
    agreement = Agreement(3)

    def wrong() -> list[tuple[int, int]]:
        return agreement.wrong(
            [0, 1, 2], lambda a, b: GENERATION, lambda a, b: views[a, b], limit=9
        )

    assert wrong() == []
    views[1, 2] = None  # type: ignore[assignment]
    assert wrong() == [], "nobody said that it changed"
    agreement.touch(1)
    assert wrong() == [(1, 2)]
    agreement.touch(2)
    assert set(wrong()) == {(1, 2)}


# ---------------------------------------------------------------- bounds, holdings
@pytest.mark.parametrize(
    ("gauges", "broken"),
    [
        ({"datagram": 1200, "updates": 2048, "probes": 64, "relays": 256, "members": 3}, ""),
        ({"datagram": 1201}, "datagram: 1201, at most 1200"),
        ({"updates": 2049}, "updates: 2049"),
        ({"probes": 65}, "probes: 65"),
        ({"timers": 10_000, "members": 10}, "timers: 10000"),
        ({"events": 10_000, "members": 10}, "events: 10000"),
    ],
)
def test_limits(gauges: dict[str, int], broken: str) -> None:
    found = Limits().broken(gauges)
    assert bool(found) == bool(broken)
    assert broken in "".join(found)


def test_holdings_that_differ_from_the_disk() -> None:
    disks = {0: {"a"}, 1: {"b"}}

    def found(believed: set[str]) -> list[tuple[int, int]]:
        shown = {(0, 0): {"a"}, (0, 1): believed, (1, 0): {"a"}, (1, 1): {"b"}}
        return holdings_wrong([0, 1], disks, lambda a, b: shown[a, b], lambda a, b: True)

    assert found({"b"}) == []
    assert found({"b", "c"}) == [(0, 1)]
    assert found(set()) == [(0, 1)]


# ---------------------------------------------------------------- catalog
SPEC = spec_bytes("one")
VERSION = version_record("f", SPEC, hlc=200)


def ledger_of(*records: Record, disk: int = 0) -> Ledger:
    ledger = Ledger()
    ledger.signed(records)
    ledger.saved(disk, [encode_record(record) for record in records])
    return ledger


def test_an_acknowledged_record_that_is_gone() -> None:
    ledger = ledger_of(VERSION)
    key = next(iter(ledger.kept()))
    assert ledger.lost({}) == [f"{key}: an acknowledged record is lost"]
    assert ledger.lost({key: order_of(VERSION)}) == []


def test_a_record_whose_only_disk_was_lost_may_go() -> None:
    ledger = ledger_of(VERSION)
    ledger.wiped(0)
    assert ledger.lost({}) == []
    ledger.saved(1, [encode_record(VERSION)])
    assert ledger.lost({}) != []


def test_a_removed_record_that_is_back() -> None:
    gone = version_record("f", SPEC, hlc=400, tombstone=True)
    ledger = ledger_of(VERSION, gone)
    key = next(iter(ledger.kept()))
    assert "it was removed" in ledger.lost({key: order_of(VERSION)})[0]
    assert ledger.lost({}) == []
    later = version_record("f", SPEC, hlc=500)
    ledger.signed([later])
    assert ledger.lost({key: order_of(later)}) == []


def test_an_older_record_that_won() -> None:
    newer = version_record("f", SPEC, hlc=400)
    ledger = ledger_of(VERSION, newer)
    key = next(iter(ledger.kept()))
    assert "a later change is lost" in ledger.lost({key: order_of(VERSION)})[0]


def test_a_record_that_nobody_signed() -> None:
    assert "nobody signed" in Ledger().lost({"v/f/x": order_of(VERSION)})[0]


def test_a_node_that_shows_what_it_knew_to_be_removed() -> None:
    gone = version_record("f", SPEC, hlc=400, tombstone=True)
    ledger = ledger_of(VERSION, gone)
    key = next(iter(ledger.kept()))
    shown = [Shown(key, order_of(VERSION))]
    assert ledger.resurrected(0, shown) == [key]
    assert ledger.resurrected(1, shown) == [], "another node did not know"


def test_catalogs_that_differ() -> None:
    here = {"v/f/x": order_of(VERSION)}
    assert equal({0: here, 1: dict(here), 2: {}}) == [2]
    assert equal({0: here}) == []


# ---------------------------------------------------------------- wired into a simulation
def formed(nodes: int = 4) -> Simulation:
    sim = Simulation(nodes=nodes, seed=1)
    sim.start_all()
    sim.checks.settle("joined")
    sim.run(1)
    return sim


def test_a_simulation_fails_on_a_false_death() -> None:
    sim = formed()
    sim.declared_down(sim.nodes[0], sim.nodes[1], sim.nodes[1].generation)
    with pytest.raises(SimulationFailure, match=r"accuracy(.|\n)*n0 declared n1 down: nothing"):
        sim.run(2)


def test_a_simulation_fails_on_a_death_unseen() -> None:
    sim = formed()
    sim.checks.completeness.died(1, sim.nodes[1].generation, sim.now)
    with pytest.raises(SimulationFailure, match="completeness: n0 has not noticed"):
        sim.run(60)


def test_a_simulation_fails_on_a_lost_deploy() -> None:
    sim = formed()
    sim.deploy(sim.nodes[0], "hello")
    sim.checks.settle("spread")
    spec = spec_bytes("never gossiped")
    record = version_record("other", spec, hlc=1 << 40)
    sim.ledger.signed([record])
    sim.ledger.saved(0, [encode_record(record)])
    with pytest.raises(SimulationFailure, match=r"catalog: .*acknowledged record is lost"):
        sim.checks.settle("again")


def test_a_simulation_fails_on_a_large_datagram() -> None:
    sim = formed()
    sim.network.count(bytes(1201))
    with pytest.raises(SimulationFailure, match="bounds: n0 has datagram: 1201"):
        sim.run(2)


def test_a_simulation_fails_when_holdings_never_agree() -> None:
    sim = formed()
    sim.nodes[0].disk.held[digest_of(b"unsaid")] = True
    with pytest.raises(SimulationFailure, match="holdings differ from the disks"):
        sim.checks.settle("holdings")
