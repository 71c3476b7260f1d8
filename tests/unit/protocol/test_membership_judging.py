"""Looks over TCP, stopped processes, refusals, and what is told of them. SPEC §5.3, §5.4."""

from __future__ import annotations

import msgspec
import pytest
from protocol_support import Wire, address_of, make_gossip
from test_membership_wire import Insider, events, states, word

from protocol import streamprobes as streamprobes_module
from protocol.codec import decode_packet, join_messages
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
from protocol.messages import Ack, Down, Finding, MemberRow, Message, Suspect
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
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, Finding.SILENT))
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
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, Finding.SILENT))
    seen = run(machine, 0.0, 3.0, "stalled")
    (probe,) = [e for e in seen if isinstance(e, StreamProbe) and e.member.name == "n2"]
    machine.on_stream_probe(probe.probe_id, "refused", 3.0)
    assert states(machine)["n2"] == "suspect"
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, Finding.REFUSED), now=3.1)
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
        others[0].say(machine, Suspect(other.raw, 1, 0, others[0].raw, Finding.SILENT))
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
    others[0].say(machine, Suspect(victim.raw, 1, 0, others[0].raw, Finding.REFUSED), now=1.0)
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
    other.say(machine, Down(third.raw, 1, 1, other.raw, False))
    Insider(2, generation=2).say(machine, msgspec.structs.replace(third.alive, generation=2))
    counts = machine.statistics().probing
    assert (counts.deaths, counts.false_deaths) == (2, 1)


def test_a_process_that_was_stopped_looks_again_before_any_verdict() -> None:
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, Finding.SILENT))
    run(machine, 0.0, 1.5)
    assert states(machine)["n2"] == "suspect"
    machine.on_timer(30.0)
    assert states(machine)["n2"] == "suspect"
    assert machine.statistics().probing.stalls == 1
    third.say(machine, msgspec.structs.replace(third.alive, incarnation=1), now=30.1)
    run(machine, 30.1, 30.2)
    assert states(machine)["n2"] == "alive"
    assert "down" not in states(machine).values()


def test_a_suspicion_that_begins_with_a_stop_is_not_of_the_future() -> None:
    """The accusation is read before the timer tells that this process was stopped."""
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    run(machine, 0.0, 1.0)
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, Finding.SILENT), now=21.0)
    machine.on_timer(21.0)
    assert machine.statistics().probing.stalls == 1
    events(machine)
    third.say(machine, msgspec.structs.replace(third.alive, incarnation=1), now=21.5)
    (refuted,) = (event for event in events(machine) if isinstance(event, MemberRefuted))
    assert refuted.reason.suspected_ms == 500


def test_plain_swim_declares_without_a_last_look() -> None:
    machine, other, third = make_gossip(0, knobs=without_lifeguard(LAN)), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, Finding.SILENT))
    seen = run(machine, 0.0, LAN.suspicion_min_s + 0.1, "stalled")
    assert states(machine)["n2"] == "down"
    assert not any(isinstance(event, StreamProbe) for event in seen)


def told_down(machine: Gossip, teller: Insider, victim: Insider, now: float) -> None:
    machine._membership.on_row(MemberRow("down", victim.alive), teller.node, now)
    machine.on_timer(now)


def test_a_death_told_by_a_sync_needs_one_look_of_this_nodes_own() -> None:
    for outcome, within_s in (("refused", 0.0), (None, 2.5), ("stalled", LAN.stall_patience_s)):
        machine, other, third = make_gossip(0), Insider(1), Insider(2)
        other.say(machine, other.alive, third.alive)
        told_down(machine, other, third, 0.0)
        assert states(machine)["n2"] == "suspect"
        if outcome == "refused":
            machine.note_refused(third.address, 0.0)
        run(machine, 0.0, within_s, outcome)  # type: ignore[arg-type]
        wanted = "suspect" if outcome == "stalled" else "down"
        assert states(machine)["n2"] == wanted, outcome


def accused(finding: Finding) -> tuple[Gossip, Insider, Insider]:
    """n1 tells n0 that n2 is suspect."""
    machine, other, third = make_gossip(0), Insider(1), Insider(2)
    other.say(machine, other.alive, third.alive)
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, finding))
    return machine, other, third


def listening(machine: Gossip) -> list[Message]:
    """Where all that it goes on to spread is found."""
    said: list[Message] = []
    put = machine._broadcasts.put

    def note(key: str, data: bytes) -> None:
        said.extend(decode_packet(join_messages([data])))
        put(key, data)

    machine._broadcasts.put = note  # type: ignore[method-assign]
    return said


def test_a_hasty_down_does_not_outweigh_what_this_node_sees() -> None:
    machine, other, third = accused(Finding.SILENT)
    run(machine, 0.0, 1.0, "stalled")
    other.say(machine, Down(third.raw, 1, 0, other.raw, False), now=1.0)
    run(machine, 1.0, 11.0, "stalled")
    assert states(machine)["n2"] == "suspect"
    third.say(machine, msgspec.structs.replace(third.alive, incarnation=1), now=11.0)
    assert states(machine)["n2"] == "alive"
    assert machine.statistics().probing.deaths == 0


def test_a_final_down_does() -> None:
    machine, other, third = accused(Finding.SILENT)
    run(machine, 0.0, 1.0, "stalled")
    said = listening(machine)
    other.say(machine, Down(third.raw, 1, 0, other.raw, True), now=1.0)
    assert states(machine)["n2"] == "down"
    assert said == [Down(third.raw, 1, 0, other.raw, True)], "passed on as it is"


def test_another_who_sees_it_stopped_buys_it_time_but_not_for_ever() -> None:
    machine, _, third = accused(Finding.STALLED)
    run(machine, 0.0, LAN.stall_patience_s, "silent")
    assert states(machine)["n2"] == "suspect"
    said = listening(machine)
    seen = run(machine, LAN.stall_patience_s, LAN.stall_patience_s + 2.0, "silent")
    downs = [event for event in seen if isinstance(event, MemberDown)]
    (down,) = [event for event in downs if event.member.name == "n2"]
    assert (down.reason.stalls, down.reason.stream) == (1, "silent")
    assert "seems stopped to 1" in down.reason.text
    assert Down(third.raw, 1, 0, bytes.fromhex(machine.node_id), True) in said
    assert states(machine)["n2"] == "down"


def test_whoever_saw_it_stopped_and_is_refused_then_holds_up_nothing() -> None:
    machine, other, third = accused(Finding.STALLED)
    run(machine, 0.0, 1.0, "silent")
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, Finding.REFUSED), now=1.0)
    other.say(machine, Suspect(third.raw, 1, 0, other.raw, Finding.STALLED), now=1.0)
    run(machine, 1.0, LAN.stall_patience_s - 0.5, "silent")
    assert states(machine)["n2"] == "down"


def test_what_a_look_finds_is_told_to_others() -> None:
    machine, _, third = accused(Finding.SILENT)
    own, said = bytes.fromhex(machine.node_id), listening(machine)
    probes = [e for e in run(machine, 0.0, 1.0) if isinstance(e, StreamProbe)]
    (look,) = [probe.probe_id for probe in probes if probe.member.name == "n2"]
    assert Suspect(third.raw, 1, 0, own, Finding.SILENT) in said
    said.clear()
    machine.on_stream_probe(look, "stalled", 1.0)
    machine.on_stream_probe(look, "stalled", 1.1)
    assert said == [Suspect(third.raw, 1, 0, own, Finding.STALLED)], "once"
    machine.on_stream_probe(look, "refused", 1.2)
    assert said[1:] == [Suspect(third.raw, 1, 0, own, Finding.REFUSED)]


def test_a_verdict_waits_for_the_first_look_over_tcp_and_no_longer() -> None:
    """Told of a death, the node pings and dials at once."""
    for reported_s in (1.0, None):
        machine, other, third = make_gossip(0), Insider(1), Insider(2)
        other.say(machine, other.alive, third.alive)
        told_down(machine, other, third, 0.0)
        looks = [e.probe_id for e in run(machine, 0.0, 1.0) if isinstance(e, StreamProbe)]
        assert states(machine)["n2"] == "suspect"
        if reported_s is not None:
            machine.on_stream_probe(looks[0], "silent", reported_s)
        known_s = reported_s or streamprobes_module.LOOK_S
        run(machine, 1.0, known_s)
        assert states(machine)["n2"] == "suspect"
        run(machine, known_s, known_s + 4 * LAN.direct_timeout_max_s)
        assert states(machine)["n2"] == "down"


def last_looks(machine: Gossip, until_s: float) -> list[tuple[float, int, int]]:
    """(time, its seq, helpers) of each last look at n2 in silence; n1 goes on answering."""
    found: list[tuple[float, int, int]] = []
    prober, now = machine._membership.prober, 0.0
    while (deadline := machine.next_deadline()) is not None and deadline < until_s:
        now = max(now, deadline)
        machine.on_timer(now)
        discard(machine)
        for seq, probe in list(prober._probes.items()):
            if probe.target.metadata.name == "n1":
                machine._membership.on_ack(Ack(seq, 0, 0), probe.target.node_id, now)
            elif probe.last_look and seq not in [known for _, known, _ in found]:
                found.append((now, seq, len(probe.helpers)))
    return found


def test_the_last_look_takes_all_paths_until_patience_ends() -> None:
    machine, _, _ = accused(Finding.STALLED)
    looks = last_looks(machine, LAN.stall_patience_s + 1.0)
    assert [helpers for _, _, helpers in looks] == [1] * (len(looks) - 1) + [0]
    assert looks[-1][0] >= LAN.stall_patience_s, "nobody else can hold it up any more"
    assert states(machine) == {"n0": "alive", "n1": "alive", "n2": "down"}
    again, other, _ = accused(Finding.SILENT)
    ((asked_s, seq, _),) = last_looks(again, LAN.suspicion_min_s + 0.1)
    again._membership.on_ack(Ack(seq, 0, 0), other.node, asked_s)
    run(again, asked_s, asked_s + LAN.suspicion_min_s - 0.1)
    assert states(again)["n2"] == "suspect", "a helper heard it"


def test_where_enough_others_accuse_no_verdict_waits_for_an_own_look() -> None:
    for accusers, waits in ((LAN.confirmations, False), (LAN.confirmations - 1, True)):
        machine, crowd = make_gossip(0), [Insider(index) for index in range(1, 40)]
        for at in range(0, len(crowd), 10):
            crowd[0].say(machine, *(one.alive for one in crowd[at : at + 10]))
        judge, table = machine._membership.judge, machine._table
        peers = [table.get(one.node) for one in crowd[10:]]
        victim = next(peer for peer in peers if peer and not judge._is_verifier(peer))
        for accuser in crowd[:accusers]:
            crowd[0].say(machine, Suspect(victim.raw, 1, 0, accuser.raw, Finding.SILENT))
        look_at_s = victim.suspicion.deadline()  # type: ignore[union-attr]
        run(machine, 0.0, look_at_s)
        while machine.statistics().health:
            machine._membership.prober.health.change(-1)
        run(machine, look_at_s, look_at_s + 2 * LAN.direct_timeout_max_s)
        assert victim.state == ("suspect" if waits else "down")
