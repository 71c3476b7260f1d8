"""When a node decides about a function's code, what it keeps, and what it tells of it."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing
from planning_support import (
    MIBIBYTE,
    MODULE,
    NOTHING,
    SNAPSHOT,
    World,
    function,
    info,
    peer,
)

from edged.errors import BadRequest
from edged.inputs import UNPROVEN
from edged.planning import DRIFT, FAILED_S, IN_USE_S
from protocol.costs import Room

PEER = peer(1)


async def test_a_function_without_init_has_no_snapshot_to_choose() -> None:
    world = World(function(init_s=None))
    world.held_by(PEER)
    assert world.planning.asked(world.view) == ("module",)
    view = world.planning.explain("f", {})
    assert [row.form for row in view.rows] == ["forward", "artifact", "module"]


async def test_what_nobody_has_is_tried_as_the_module() -> None:
    world = World(function(init_s=None))
    assert world.planning.asked(world.view) == ("module",)
    assert world.planning.explain("f", {}).form is None


async def test_the_link_decides_between_fetching_a_snapshot_and_making_it() -> None:
    slow, fast = World(function()), World(function())
    for world, bytes_s in ((slow, 125e3), (fast, 125e6)):
        world.held_by(PEER)
        world.measure(bytes_s, PEER)
    assert slow.planning.asked(slow.view)[0] == "snapshot-here"
    assert fast.planning.asked(fast.view)[0] == "snapshot"


async def test_a_busy_compiler_is_left_to_others_where_native_code_can_be_had() -> None:
    world = World(function(init_s=None))
    world.held_by(PEER)
    world.seen[MODULE] = world.seen[MODULE]._replace(builders=(PEER,), code_bytes=64 * 1024)
    world.measure(1e6, PEER)
    assert world.planning.explain("f", {"waiting": 1.0}).best == "module"
    with world.rates.job(SNAPSHOT, 60.0):
        view = world.planning.explain("f", {"waiting": 1.0})
        assert view.best == "artifact"
        assert 50 < {row.form: row for row in view.rows}["module"].queue_s < 60
        with world.rates.job(MODULE, 5.0):
            queued = {row.name: row.value for row in world.planning.explain("f", {}).inputs}
            assert 59 < queued["compile-queue"] <= 60, "nothing of its own"


async def test_a_snapshot_that_nobody_is_believed_about_is_made_here_whatever_the_link() -> None:
    world = World(function(delta_wire=MIBIBYTE))
    world.held_by(PEER)
    world.measure(125e6, PEER)
    assert world.planning.asked(world.view)[0] in ("snapshot", "snapshot-delta")
    world.proven = False
    assert set(world.planning.asked(world.view)) == {"snapshot-here", "module"}
    world.seen[SNAPSHOT] = world.seen[SNAPSHOT]._replace(info=info(SNAPSHOT, MIBIBYTE, MIBIBYTE))
    rows = {row.form: row for row in world.planning.explain("f", {}).rows}
    assert rows["snapshot"].lacks == rows["snapshot-delta"].lacks == UNPROVEN
    assert rows["snapshot-here"].build_s > 1, "though its bytes are here"


async def test_with_peers_that_answer_meanwhile_the_link_decides_too() -> None:
    for bytes_s, form in ((125e3, "snapshot-here"), (125e6, "snapshot")):
        world = World(function())
        world.held_by(PEER)
        world.measure(bytes_s, PEER)
        world.peers_ready = [(PEER, True)]
        assert world.planning.asked(world.view)[0] == form


async def test_a_module_that_is_here_serves_unless_a_peer_with_the_snapshot_is_sooner() -> None:
    for answers, init_s in ((True, 2.0), (False, 2.0), (True, 0.001)):
        world = World(function(init_s=init_s), preferred="snapshot")
        world.held_by(PEER)
        world.seen[MODULE] = NOTHING._replace(near=True, info=info(MODULE, MIBIBYTE, MIBIBYTE))
        world.peers_ready = [(PEER, True)] if answers else []
        planning, view = world.planning, world.view
        assert planning.forwards(view, MODULE), "nobody has decided yet"
        assert planning.asked(view)[0] == "snapshot"
        assert planning.forwards(view, MODULE) == (answers and init_s > 1)
        assert not planning.forwards(view, SNAPSHOT)
    chosen = World(function(), preferred="module")
    chosen.held_by(PEER)
    chosen.peers_ready = [(PEER, True)]
    assert chosen.planning.asked(chosen.view)[0] == "module"
    assert not chosen.planning.forwards(chosen.view, MODULE)


async def test_a_peer_with_the_snapshot_goes_on_answering_where_it_cannot_be_had() -> None:
    world = World(function(init_s=2.0))
    world.seen[MODULE] = NOTHING._replace(near=True, info=info(MODULE, MIBIBYTE, MIBIBYTE))
    world.free = (Room(20 * MIBIBYTE, 0.0),)
    world.peers_ready = [(PEER, True)]
    planning, view = world.planning, world.view
    for took_s in (0.03, 0.05, 0.04):
        assert set(planning.asked(view)) == {"forward", "artifact", "module"}
        assert planning.forwards(view, MODULE), "though the module may be what is chosen by now"
        planning.answered(PEER.node_id, view, took_s)
    assert planning.chosen(view.version) != "forward"
    world.peers_ready = []
    planning.asked(view)
    assert not planning.forwards(view, MODULE)


async def test_few_calls_forward_and_more_pay_for_code_of_ones_own() -> None:
    world = World(function(init_s=2.0))
    world.held_by(PEER)
    world.peers_ready = [(PEER, True)]
    forms = [world.planning.asked(world.view)]
    world.planning.answered(PEER.node_id, world.view, 0.05)
    forms.append(world.planning.asked(world.view))
    assert forms[-1][0] != "forward"
    assert "forward" in forms[-1]
    assert "forward" not in world.planning.wanted(world.view, "request", may_forward=False)


async def test_what_failed_is_left_alone_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(function())
    world.held_by(PEER)
    world.measure(125e6, PEER)
    first = world.planning.asked(world.view)[0]
    world.planning.failed(world.view, first, "no space")
    second = world.planning.wanted(world.view, "request")
    assert first not in second
    world.planning.got(world.view, second[0])
    view = world.planning.explain("f", {})
    assert view.failed == {first: "no space"}
    assert view.held == second[0]
    await trio.sleep(FAILED_S + 1)
    assert first in world.planning.wanted(world.view, "request")


async def test_a_preferred_form_is_taken_where_it_can_be_had() -> None:
    world = World(function(), preferred="snapshot")
    world.seen[MODULE] = NOTHING._replace(holders=(PEER,))
    assert world.planning.asked(world.view)[0] != "snapshot"
    world.held_by(PEER)
    assert world.planning.asked(world.view)[0] == "snapshot"
    assert world.planning.explain("f", {}).preferred == "snapshot"


async def test_functions_nobody_asks_for_are_not_looked_at(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(function())
    world.held_by(PEER)
    world.planning.asked(world.view)
    await trio.sleep(IN_USE_S + 1)
    world.seen = {MODULE: NOTHING}
    world.planning.check()
    assert world.changed == []
    assert world.events == []


async def test_an_explanation_has_every_input_and_decides_nothing() -> None:
    world = World(function(delta_wire=MIBIBYTE))
    world.held_by(PEER)
    world.measure(1e6, PEER)
    before = world.planning.explain("f", {})
    assert before.held is None
    assert before.decided_at_s is None
    inputs = {row.name: row for row in before.inputs}
    assert inputs["bandwidth"].source == "measured"
    assert inputs["bandwidth"].value == pytest.approx(1e6, rel=0.05)
    assert 0 < inputs["bandwidth"].confidence <= 1
    assert inputs["init"].source == "stated"
    assert inputs["horizon"].source == "config"
    assert {row.form for row in before.rows} >= {"snapshot", "snapshot-delta", "snapshot-here"}
    after = world.planning.explain("f", {"bandwidth": 1e9, "rate": 5.0})
    changed = {row.name: row for row in after.inputs if row.source == "what-if"}
    assert {name: row.value for name, row in changed.items()} == {"bandwidth": 1e9, "rate": 5.0}
    again = world.planning.explain("f", {})
    assert (again.form, again.held, again.changes) == (before.form, None, ())
    assert msgspec.json.decode(msgspec.json.encode(after), type=type(after)).form == after.form


async def test_native_code_is_expected_to_hold_the_data_as_they_are_and_more_for_the_code() -> None:
    world = World(function(snapshot_wire=8 * MIBIBYTE), preferred="snapshot-artifact")
    world.seen[SNAPSHOT] = NOTHING._replace(holders=(PEER,), builders=(PEER,))
    rows = {row.form: row for row in world.planning.explain("f", {}).rows}
    row = rows["snapshot-artifact"]  # of 36 MiB, 2 of them code
    assert 34 * MIBIBYTE + 4 * MIBIBYTE < row.stored_bytes < 34 * MIBIBYTE + 8 * MIBIBYTE
    assert 8 * MIBIBYTE < row.wire_bytes < 12 * MIBIBYTE
    native_bytes = 40 * MIBIBYTE
    world.seen[SNAPSHOT] = world.seen[SNAPSHOT]._replace(native_bytes=native_bytes)
    rows = {row.form: row for row in world.planning.explain("f", {}).rows}
    assert rows["snapshot-artifact"].stored_bytes == native_bytes
    world.seen = {MODULE: NOTHING._replace(builders=(PEER,), native_bytes=1)}
    rows = {row.form: row for row in world.planning.explain("f", {}).rows}
    assert rows["artifact"].wire_bytes > 0, "of a size that cannot be"


async def test_a_flip_is_where_the_winner_changes() -> None:
    world = World(function())
    world.held_by(PEER)
    world.measure(1e6, PEER)
    what_if = {"waiting": 1.0, "rate": 1.0}
    view = world.planning.explain("f", what_if)
    flips = {flip.input: flip for flip in view.flips}
    assert flips
    for name, flip in flips.items():
        there = world.planning.explain("f", what_if | {name: flip.to_value})
        assert there.best == flip.form != view.best


@pytest.mark.parametrize(
    "what_if", [{"weather": 1.0}, {"bandwidth": -1.0}, {"bandwidth": 0.0}, {"rate": float("inf")}]
)
async def test_an_input_that_cannot_be_is_refused(what_if: dict[str, float]) -> None:
    world = World(function())
    world.held_by(PEER)
    with pytest.raises(BadRequest):
        world.planning.explain("f", what_if)


async def test_a_decision_that_took_anothers_place_says_which_input_moved() -> None:
    world = World(function(init_s=1.0))
    world.held_by(PEER)
    world.measure(125e3, PEER)
    assert world.planning.asked(world.view)[0] == "snapshot-here"
    world.measure(125e6, PEER)
    world.waits = 1
    world.planning.check()
    assert world.changed[0][0] == "snapshot"
    ((name, change),) = world.events
    assert (name, world.planning.explain("f", {}).changes) == ("f", (change,))
    assert (change.before, change.after) == ("snapshot-here", "snapshot")
    assert change.input == "bandwidth"
    assert change.input_after > DRIFT * change.input_before


async def test_what_moved_further_and_matters_less_is_not_named() -> None:
    world = World(function(init_s=1.0))
    near, far = peer(1, rtt_s=0.0002), peer(1, rtt_s=0.02)
    world.held_by(near)
    world.measure(12.5e6, near)
    world.waits = 1
    assert world.planning.asked(world.view)[0] == "snapshot"
    world.held_by(far)
    world.measure(0.5e6, near)
    world.planning.check()
    ((_, change),) = world.events
    assert (change.before, change.after) == ("snapshot", "snapshot-here")
    assert change.input_before / change.input_after < 100  # and the round trip by that
    assert change.input == "bandwidth"


async def test_an_input_that_went_by_steps_is_told_from_where_it_began() -> None:
    world = World(function(init_s=1.0))
    world.held_by(PEER)
    bytes_s = 125e3
    world.measure(bytes_s, PEER)
    assert world.planning.asked(world.view)[0] == "snapshot-here"
    world.waits = 1
    while not world.events:
        bytes_s *= 1.5
        world.measure(bytes_s, PEER)
        world.planning.check()
    ((_, change),) = world.events
    assert change.input == "bandwidth"
    assert change.input_before == pytest.approx(125e3, rel=0.1)
    assert change.input_after > 1.5**2 * change.input_before


async def test_a_form_that_can_be_had_only_now_owes_its_choice_to_no_input() -> None:
    world = World(function(init_s=30.0))
    world.seen[MODULE] = NOTHING._replace(holders=(PEER,))
    world.measure(125e6, PEER)
    world.waits = 1
    assert world.planning.asked(world.view)[0] == "snapshot-here"
    other = peer(1, rtt_s=0.03)
    world.held_by(other)
    world.planning.check()
    ((_, change),) = world.events
    assert (change.after, change.input) == ("snapshot", "")


async def test_a_form_for_which_there_is_no_room_is_not_chosen() -> None:
    world = World(function())
    world.held_by(PEER)
    world.measure(125e6, PEER)
    assert world.planning.asked(world.view)[0] == "snapshot"
    crowded = World(function())
    crowded.held_by(PEER)
    crowded.measure(125e6, PEER)
    crowded.free = (Room(20 * MIBIBYTE, 0.0),)
    forms = crowded.planning.asked(crowded.view)
    assert forms == ("module",)
    crowded.free = (Room(20 * MIBIBYTE, 0.0), Room(500 * MIBIBYTE, 1e-6))
    assert crowded.planning.asked(crowded.view)[0] == "snapshot"


async def test_what_room_costs_is_an_input_and_a_reason() -> None:
    """While the snapshot is on its way the disk fills with what is worth more than having it."""
    world = World(function(init_s=0.5))
    world.held_by(PEER)
    world.measure(12.5e6, PEER)
    world.free = (Room(500 * MIBIBYTE, 0.0),)
    world.waits = 1
    assert world.planning.asked(world.view)[0] == "snapshot"
    world.free = (Room(20 * MIBIBYTE, 0.0), Room(500 * MIBIBYTE, 0.02))
    world.planning.check()
    ((_, change),) = world.events
    assert (change.before, change.after) == ("snapshot", "module")
    assert (change.trigger, change.input, change.input_before) == ("pressure", "pressure", 0.0)
    view = world.planning.explain("f", {})
    told = next(one for one in view.inputs if one.name == "pressure")
    assert told.value == pytest.approx(change.input_after)
    assert world.planning.explain("f", {"pressure": 0.0}).best == "snapshot"
