"""protocol.costs and planner: what real guests cost on real links, and who wins."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from planner_support import MBIT, PRICED, inputs

from protocol.caching import Worth, room_of, victims_of
from protocol.costs import (
    FORMS,
    SEGMENT_BYTES,
    Blob,
    Forward,
    Inputs,
    Option,
    Peer,
    Prices,
    Rented,
    Sources,
    options,
    sources_of,
)
from protocol.errors import LocalProtocolError
from protocol.planner import decide, worth_making

replace = msgspec.structs.replace


def row(given: Inputs, form: str) -> Option:
    return next(each for each in options(given) if each.form == form)


# ---------------------------------------------------------------- the table
def test_a_function_without_init_has_three_forms() -> None:
    given = inputs(init_s=0.0)
    assert [each.form for each in options(given)] == ["forward", "artifact", "module"]
    assert [each.form for each in options(inputs())] == list(FORMS)


def test_fetching_and_decompressing_go_on_at_once() -> None:
    sources = Sources(0.1, 1e6)
    module = Blob(wire_bytes=4 * SEGMENT_BYTES, size_bytes=8_000_000, sources=sources)
    transfer_s = 4 * SEGMENT_BYTES / 1e6
    slow = row(inputs(module=module, decompress_bytes_s=1e6, link_bytes_s=math.inf), "module")
    assert slow.rtt_s == pytest.approx(0.2)
    assert slow.transfer_s == pytest.approx(transfer_s)
    # 8 s of decompressing, and a quarter of the transfer before it can begin.
    assert slow.transfer_s + slow.decompress_s == pytest.approx(8 + transfer_s / 4)
    quick = row(inputs(module=module, decompress_bytes_s=1e9, link_bytes_s=math.inf), "module")
    assert quick.decompress_s == pytest.approx(0.008 / 4)


def test_module_and_delta_share_the_link() -> None:
    given = inputs(mbit=10)
    both = row(given, "snapshot-delta")
    assert both.wire_bytes == 256_000 + 691_000
    assert both.transfer_s == pytest.approx((256_000 + 691_000) / (10 * MBIT))
    assert both.rtt_s == pytest.approx(row(given, "snapshot").rtt_s)
    wide = row(replace(given, link_bytes_s=1e9), "snapshot-delta")
    assert wide.transfer_s == pytest.approx(691_000 / (10 * MBIT))
    here = row(inputs(mbit=10, here="module"), "snapshot-delta")
    assert here.wire_bytes == 691_000


def test_a_compile_waits_for_others_while_its_bytes_come() -> None:
    given = inputs(mbit=1)
    fetched_s = row(given, "module").ready_s - row(given, "module").build_s - given.load_s
    short = row(replace(given, compile_queue_s=fetched_s / 2), "module")
    assert short.ready_s == pytest.approx(row(given, "module").ready_s)
    long = row(replace(given, compile_queue_s=fetched_s + 1), "module")
    assert long.queue_s == pytest.approx(1.0)


def test_code_that_is_here_has_only_to_be_loaded() -> None:
    given = inputs(here="snapshot_artifact")
    for form in ("snapshot-artifact", "snapshot", "snapshot-delta", "snapshot-here"):
        assert row(given, form).ready_s == given.load_s
        assert row(given, form).wire_bytes == 0
    assert decide(given).form == "snapshot-artifact"
    assert row(given, "module").wire_bytes > 0


def test_a_snapshot_that_is_here_is_neither_fetched_nor_made_again() -> None:
    given = inputs(here="module snapshot")
    for form in ("snapshot", "snapshot-delta", "snapshot-here"):
        found = row(given, form)
        assert (found.wire_bytes, found.decompress_s) == (0, 0.0)
        assert found.build_s == pytest.approx(0.03 + 600_000 / 4.4e6)


def test_what_nobody_has_cannot_be_had() -> None:
    given = inputs(artifact=Blob(size_bytes=2_000_000), forward=None)
    assert row(given, "artifact").lacks == "no peer has it"
    assert row(given, "forward").lacks == "no peer answers it now"
    assert row(given, "module").lacks is None
    alone = inputs(init_s=0.0, module=Blob(size_bytes=9), artifact=Blob(size_bytes=9), forward=None)
    decision = decide(alone, "module")
    assert decision.form is None
    assert "no peer has it" in decision.why


def test_requests_that_come_meanwhile_take_what_answers_soonest() -> None:
    given = inputs(forward=Forward(rtt_s=1.0, per_call_s=0.0), init_s=0.0, prices=PRICED)
    given = replace(given, compile_fixed_s=3.0, rate_per_s=10.0, horizon_s=100.0, waiting=2)
    found = row(given, "module")
    forward_s, ready_s, call_s = row(given, "forward").per_call_s, found.ready_s, found.per_call_s
    assert found.wait_s == pytest.approx(2 * forward_s)
    steps = 200_000
    left_s = [ready_s * (at + 0.5) / steps for at in range(steps)]
    during_s = sum(min(forward_s, each + call_s) for each in left_s) * ready_s / steps
    assert found.calls_s == pytest.approx(10 * (during_s + (100 - ready_s) * call_s), rel=1e-4)
    alone = row(replace(given, forward=None), "module")
    during_s = ready_s * ready_s / 2 + ready_s * call_s
    assert alone.calls_s == pytest.approx(10 * (during_s + (100 - ready_s) * call_s))


def test_code_that_is_here_is_no_credit_to_what_takes_its_place() -> None:
    """Else each of two forms looks cheaper from the other, and they change places for ever."""
    given = inputs(here="module snapshot snapshot_artifact", prices=PRICED, waiting=0)
    assert row(given, "module").calls_s > 299 * row(given, "module").per_call_s
    assert decide(given, "snapshot-here").form != "module"


def test_room_costs_what_goes_for_it() -> None:
    worths = [
        Worth("dear", 5_000_000, 0.5),
        Worth("cheap", 3_000_000, 0.003),
        Worth("idle", 1_000_000, 0.0),
    ]
    room = room_of(worths, 2_000_000)
    assert room == ((2_000_000, 0.0), (3_000_000, 0.0), (6_000_000, 0.003), (11_000_000, 0.503))
    assert [each.name for each in victims_of(worths, 3_500_000)] == ["idle", "cheap"]
    assert victims_of(worths, 0) == ()
    given = inputs(room=room, waiting=0)
    free = row(replace(given, room=None), "module").total_s
    # 2.2 MB of native code and 0.7 of module; of the artifact alone 2.2.
    assert row(given, "module").total_s == pytest.approx(free)
    assert row(given, "snapshot-artifact").hold_price_s > 0.5 * given.horizon_s
    assert row(given, "snapshot").lacks == "no room for it"
    assert row(replace(given, room=()), "artifact").lacks == "no room for it"
    assert decide(given).form == "module"
    here = inputs(room=(), waiting=0, here="module snapshot snapshot_artifact")
    assert row(here, "snapshot").lacks is None


def test_sources_are_the_nearest_together() -> None:
    peers = [Peer(0.3, 1e6), Peer(0.1, 2e6), Peer(0.2, 0.0)]
    assert sources_of(peers) == Sources(0.1, 3e6)
    assert sources_of([]) is None
    many = [Peer(0.01 * number, 1e6) for number in range(50)]
    assert sources_of(many) == Sources(0.0, 12e6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"link_bytes_s": 0.0},
        {"run_s": -1.0},
        {"init_s": math.nan},
        {"horizon_s": math.inf},
        {"rate_per_s": -1.0},
        {"confidence": 1.5},
        {"waiting": -1},
    ],
)
def test_impossible_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        inputs(**wrong)


# ---------------------------------------------------------------- the decision
def test_links_decide_between_moving_and_making() -> None:
    """One function, two nodes: that behind 1 Mbit/s makes the snapshot that the other fetches."""
    assert decide(inputs(mbit=1)).form == "snapshot-here"
    assert decide(inputs(mbit=1000)).form == "snapshot-delta"


def test_a_call_that_is_seldom_made_is_forwarded() -> None:
    assert decide(inputs(rate_per_s=1e-6)).form == "forward"
    assert decide(inputs(rate_per_s=None)).form == "forward"
    rented = Rented(calls=5, forwarded=5, paid_s=0.31)
    decision = decide(inputs(rate_per_s=None, rented=rented), "forward")
    assert decision.form is not None
    assert decision.form.startswith("snapshot")
    assert "after 5 calls" in decision.why


def test_of_forms_that_cost_the_same_the_first_that_is_ready_wins_and_it_is_said_why() -> None:
    """As calls at an unknown rate are a peer's until either is here."""
    rented = Rented(calls=5, forwarded=5, paid_s=5.0)
    free = Prices()
    slow = decide(inputs(mbit=1, rate_per_s=None, rented=rented, prices=free, waiting=0))
    quick = decide(inputs(mbit=1000, rate_per_s=None, rented=rented, prices=free, waiting=0))
    assert slow.form != quick.form
    for decision in (slow, quick):
        rows = {each.form: each for each in decision.options}
        chosen = rows[decision.form or "forward"]
        equals = [each for each in rows.values() if each.total_s == chosen.total_s]
        assert len(equals) > 1
        assert chosen.ready_s == min(each.ready_s for each in equals)
        assert f"and is ready in {chosen.ready_s:.3g} s instead of" in decision.why


def test_what_is_held_is_given_up_by_a_margin_only() -> None:
    """Over a call or two a snapshot cannot win back its bytes' price."""
    given = inputs(here="artifact", horizon_s=1.0)
    first = decide(given)
    assert first.form == "artifact"
    best = min(options(given), key=lambda each: each.total_s)
    for horizon_s in (1.5, 2.0, 2.5, 3.0, 4.0, 6.0):
        later = decide(replace(given, horizon_s=horizon_s), "artifact")
        own = row(replace(given, horizon_s=horizon_s), "artifact")
        best = min(later.options, key=lambda each: each.total_s)
        assert later.changed == (best.total_s < own.total_s * (1 - later.margin))
    unsure = decide(replace(given, confidence=0.0), "artifact")
    assert unsure.margin > later.margin
    held = decide(replace(given, horizon_s=2.5, confidence=0.0), "artifact")
    assert held.form != held.best
    assert "is held" in held.why


def test_what_code_was_made_from_goes_without_a_margin() -> None:
    given = inputs(here="module snapshot snapshot_artifact", waiting=0, confidence=0.0)
    decision = decide(given, "snapshot-delta")
    assert decision.form == "snapshot-artifact"
    assert decide(given, "snapshot-artifact").form == "snapshot-artifact"
    here = inputs(here="module snapshot snapshot_artifact artifact", waiting=0, confidence=0.0)
    slower = replace(here, instantiate_snapshot_s=0.035)
    assert decide(slower, "snapshot-artifact").form == "snapshot-artifact"


def test_what_is_held_at_the_price_of_another_says_so() -> None:
    given = inputs(here="module snapshot snapshot_artifact", waiting=0, confidence=0.0)
    given = replace(given, prices=Prices(stored_s_per_byte_s=1e-20))
    decision = decide(given, "snapshot")
    assert (decision.form, decision.best) == ("snapshot", "snapshot-artifact")
    assert decision.why.startswith("snapshot is held: it costs ")
    assert decision.why.endswith(", as does snapshot-artifact")


def test_a_form_that_cannot_be_had_any_more_is_not_held() -> None:
    assert decide(inputs(forward=None), "forward").form != "forward"


# ---------------------------------------------------------------- at deploy
def test_a_snapshot_is_worth_making_for_who_is_called_often() -> None:
    def worth(calls: float | None, **changes: float) -> Any:
        given: dict[str, Any] = {
            "init_s": 0.034,
            "instantiate_s": 0.0003,
            "instantiate_snapshot_s": 0.0002,
            "making_cpu_s": 1.0,
            "extra_wire_bytes": 691_000,
            "extra_stored_bytes": 7_000_000,
            "nodes": 5,
            "horizon_s": 86_400.0,
            "link_bytes_s": 20 * MBIT,
            "prices": PRICED,
            "calls": calls,
        }
        return worth_making(**(given | changes))

    often = worth(10_000.0)
    assert often.worth
    assert often.saved_s == pytest.approx(10_000 * 0.0341)
    assert not worth(2.0).worth
    assert worth(None).worth
    even = worth(100.0).calls_even
    assert worth(even * 1.01).worth
    assert not worth(even * 0.99).worth
    useless = worth(1e9, instantiate_snapshot_s=0.1)
    assert not useless.worth
    assert useless.calls_even == math.inf
    with pytest.raises(LocalProtocolError):
        worth(-1.0)
