"""Looks over TCP, stopped processes, refusals, and what is told of them. SPEC §5.3, §5.4."""

from __future__ import annotations

import msgspec
import pytest
from protocol_support import Wire, address_of, make_gossip
from test_membership_wire import Insider, events, states, word

from protocol import streamprobes as streamprobes_module
from protocol.events import (
    Accused,
    MemberDown,
    MemberRefuted,
    MemberSuspect,
    StreamOutcome,
    StreamProbe,
    StreamProbeEnd,
)
from protocol.gossip import Gossip
from protocol.messages import Down, MemberRow, Suspect
from protocol.presets import LAN, without_lifeguard


def discard(machine: Gossip) -> None:
    while machine.poll_transmit() is not None:
        pass


def run(
    machine: Gossip, start_s: float, until_s: float, outcome: StreamOutcome | None = None
) -> list[object]:
    """Fires timers into silence; every look over TCP finds `outcome`."""
    seen: list[object] = []
    while (deadline := machine.next_deadline()) is not None and deadline < until_s:
        start_s = max(start_s, deadline)
        machine.on_timer(start_s)
        discard(machine)
        for event in events(machine):
            seen.append(event)
            if isinstance(event, StreamProbe) and outcome is not None:
                machine.on_stream_probe(event.probe_id, outcome, start_s)
    return seen


def down_at_s(outcome: StreamOutcome | None) -> float:
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, False))
    at_s = 0.0
    while states(machine)["n2"] != "down":
        at_s += 0.25
        run(machine, at_s - 0.25, at_s, outcome)
    return at_s


def test_a_stalled_suspect_is_given_time_and_then_declared() -> None:
    silent_s, stalled_s = down_at_s(None), down_at_s("stalled")
    assert silent_s < LAN.suspicion_min_s * LAN.suspicion_max_factor + 2
    assert LAN.stall_patience_s <= stalled_s <= LAN.stall_patience_s + 2
    assert down_at_s("silent") == silent_s


def test_a_pong_over_tcp_ends_the_probe_and_nobody_is_suspected() -> None:
    machine, other = make_gossip(0), Insider(1)
    other.say(machine, other.alive)
    seen = run(machine, 0.0, 30.0, "pong")
    assert not any(isinstance(event, MemberSuspect) for event in seen)
    counts = machine.statistics().probing
    assert counts.acks_stream == counts.probes - machine.statistics().probes_running
    assert (counts.probes_failed, counts.suspicions_raised) == (0, 0)


def test_a_look_stays_open_while_stalled_and_ends_with_the_suspicion() -> None:
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    seen = run(machine, 0.0, 4.0, "stalled")
    probes = [e for e in seen if isinstance(e, StreamProbe) and e.member.name == "n2"]
    assert len(probes) == 1, "one connection each, however often it is looked at"
    assert machine.statistics().stream_probes_open == 2
    third.say(machine, msgspec.structs.replace(third.alive, incarnation=1), now=4.0)
    told = events(machine)
    assert StreamProbeEnd(probes[0].probe_id) in told
    (refuted,) = [event for event in told if isinstance(event, MemberRefuted)]
    assert refuted.reason.stream == "stalled"
    machine.on_stream_probe(probes[0].probe_id, "refused", 4.1)
    machine.on_stream_probe(10**9, "refused", 4.1)
    assert states(machine)["n2"] == "alive", "late reports are ignored"


def test_a_stalled_process_that_is_then_killed_is_known_at_once() -> None:
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, False))
    seen = run(machine, 0.0, 3.0, "stalled")
    (probe,) = [e for e in seen if isinstance(e, StreamProbe) and e.member.name == "n2"]
    machine.on_stream_probe(probe.probe_id, "refused", 3.0)
    assert states(machine)["n2"] == "suspect"
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, True), now=3.1)
    assert states(machine)["n2"] == "down"
    (down,) = [event for event in events(machine) if isinstance(event, MemberDown)]
    assert down.reason.refusals == 2
    assert down.reason.accuser == "n1"
    assert "refused to 2" in down.reason.text


def test_open_looks_are_bounded_and_the_last_look_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamprobes_module, "OPEN_MAX", 1)
    machine = make_gossip(0)
    others = [Insider(index) for index in range(1, 4)]
    others[0].say(machine, *(other.alive for other in others))
    for other in others[1:]:
        others[0].say(machine, Suspect(other.raw, 1, 0, others[0].raw, False))
    run(machine, 0.0, 11.0, "stalled")
    assert machine.statistics().stream_probes_open == 1
    assert "down" not in states(machine).values(), "nobody is condemned unseen"
    run(machine, 11.0, 60.0, "stalled")
    assert set(states(machine).values()) == {"alive", "down"}


def test_who_hears_a_refusal_at_first_hand_looks_for_itself_at_once() -> None:
    """Far more members than verifiers: it is the first hand that counts."""
    machine = make_gossip(0)
    others = [Insider(index) for index in range(1, 40)]
    for at in range(0, len(others), 10):
        others[0].say(machine, *(other.alive for other in others[at : at + 10]))
    victim = others[5]
    events(machine)
    discard(machine)
    others[0].say(machine, Suspect(victim.raw, 1, 0, others[0].raw, True), now=1.0)
    assert any(isinstance(event, StreamProbe) for event in events(machine))
    pinged = []
    while (datagram := machine.poll_transmit()) is not None:
        pinged.append(datagram.address)
    assert victim.address in pinged
    machine.note_refused(victim.address, 1.001)
    assert machine.member(victim.node).state == "down"  # type: ignore[union-attr]


def test_accusations_are_told_of_with_the_accuser() -> None:
    machine, other = make_gossip(0), Insider(7)
    own = bytes.fromhex(machine.node_id)
    other.say(machine, other.alive)
    other.say(machine, word(Suspect, own))
    other.say(machine, word(Down, own, incarnation=1))
    said = [event for event in events(machine) if isinstance(event, Accused)]
    assert said == [Accused("n7", "suspect"), Accused("n7", "down")]
    assert machine.statistics().probing.refutations == 2


def test_the_reason_says_which_paths_failed() -> None:
    wire = Wire(6)
    wire.join_all()
    del wire.machines[address_of(5)]
    wire.run(8)
    reasons = [e.reason for i in range(5) for e in wire.seen(f"n{i}", MemberSuspect)]
    own = [reason for reason in reasons if reason.direct_ms is not None]
    assert own, "somebody raised it"
    assert all((r.helpers, r.nacks, r.stream, r.accusers) == (3, 3, None, 1) for r in own)
    downs = [e.reason for i in range(5) for e in wire.seen(f"n{i}", MemberDown)]
    assert len(downs) == 5
    assert any(reason.accusers > 3 for reason in downs)
    assert any(reason.suspected_ms >= 2000 for reason in downs)


def test_a_death_taken_back_is_counted() -> None:
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive, word(Down, third.raw))
    third.say(machine, msgspec.structs.replace(third.alive, incarnation=1))
    other.say(machine, Down(third.raw, 1, 1, other.raw))
    Insider(2, generation=2).say(machine, msgspec.structs.replace(third.alive, generation=2))
    counts = machine.statistics().probing
    assert (counts.deaths, counts.false_deaths) == (2, 1)


def test_a_process_that_was_stopped_looks_again_before_any_verdict() -> None:
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, False))
    run(machine, 0.0, 1.5)
    assert states(machine)["n2"] == "suspect"
    machine.on_timer(30.0)
    assert states(machine)["n2"] == "suspect"
    assert machine.statistics().probing.stalls == 1
    third.say(machine, msgspec.structs.replace(third.alive, incarnation=1), now=30.1)
    run(machine, 30.1, 30.2)
    assert states(machine)["n2"] == "alive"
    assert "down" not in states(machine).values()


def test_plain_swim_declares_without_a_last_look() -> None:
    machine, other, third = make_gossip(0, knobs=without_lifeguard(LAN)), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, False))
    seen = run(machine, 0.0, LAN.suspicion_min_s + 0.1, "stalled")
    assert states(machine)["n2"] == "down"
    assert not any(isinstance(event, StreamProbe) for event in seen)


def told_down(machine: Gossip, teller: Insider, victim: Insider, now: float) -> None:
    machine._membership.on_row(MemberRow("down", victim.alive), teller.node, now)
    machine.on_timer(now)


def test_a_death_told_by_a_sync_needs_one_look_of_this_nodes_own() -> None:
    for outcome, within_s in (("refused", 0.0), (None, 2.0), ("stalled", LAN.stall_patience_s)):
        machine, other, third = make_gossip(0), Insider(1), Insider(2)
        other.say(machine, other.alive, third.alive)
        told_down(machine, other, third, 0.0)
        assert states(machine)["n2"] == "suspect"
        if outcome == "refused":
            machine.note_refused(third.address, 0.0)
        run(machine, 0.0, within_s, outcome)  # type: ignore[arg-type]
        wanted = "suspect" if outcome == "stalled" else "down"
        assert states(machine)["n2"] == wanted, outcome
