"""A node that nobody answers asks over a stream whether a later run of it is known. SPEC §5.1."""

from __future__ import annotations

import pytest
from protocol_support import Wire, address_of, make_gossip
from test_membership_judging import run
from test_membership_wire import Insider, events

from protocol.events import IdentityClash, SeedsSilent
from protocol.gossip import Gossip
from protocol.joining import ASKED_AT_ONCE, SILENT_S
from protocol.member import Address
from protocol.presets import LAN, LOCAL, WAN, Knobs


def asked(machine: Gossip, start_s: float, until_s: float) -> list[tuple[Address, ...]]:
    told = run(machine, start_s, until_s)
    return [event.addresses for event in told if isinstance(event, SeedsSilent)]


@pytest.mark.parametrize("knobs", [LAN, LOCAL, WAN])
def test_silent_seeds_are_asked(knobs: Knobs) -> None:
    machine = make_gossip(0, knobs=knobs)
    machine.join([address_of(0), address_of(1)], 0.0)
    assert asked(machine, 0.0, SILENT_S - 0.1) == []
    assert asked(machine, SILENT_S - 0.1, SILENT_S + 0.4) == [(address_of(1),)], "not itself"
    assert 2 <= len(asked(machine, SILENT_S + 0.4, 4 * SILENT_S + 0.4)) <= 3, "but now and then"


def test_of_many_a_few_at_a_time() -> None:
    machine = make_gossip(0)
    seeds = [address_of(number) for number in range(1, 7)]
    machine.join(seeds, 0.0)
    first, second = asked(machine, 0.0, 2 * SILENT_S + 1.5)
    assert len(first) == len(second) == ASKED_AT_ONCE
    assert set(first + second) == set(seeds)


def test_whoever_is_not_alone_asks_nobody() -> None:
    machine, other = make_gossip(0), Insider(1)
    machine.join([address_of(2)], 0.0)
    other.say(machine, other.alive)
    assert asked(machine, 0.0, SILENT_S + 1) == []
    assert asked(make_gossip(3), 0.0, 20.0) == [], "nor who has no seeds"


def test_a_former_self_hears_nothing_and_asks() -> None:
    wire = Wire(2)
    wire.machines[address_of(1)] = make_gossip(1, generation=9)
    wire.join_all()
    wire[1].leave(wire.now)
    wire.run(20)
    assert wire.seen("n1", SeedsSilent) == [], "it had been answered"
    wire.machines[address_of(1)] = make_gossip(1, generation=8, now=wire.now)
    wire[1].join([address_of(0)], wire.now)
    wire.run(SILENT_S + 1.5)
    assert wire.states(1) == {"n1": "alive"}
    assert wire.seen("n1", SeedsSilent) == [SeedsSilent((address_of(0),))]


def test_a_later_run_of_this_node_is_a_clash() -> None:
    machine, other = make_gossip(0, generation=5), Insider(1)
    for known in (0, 4, 5):
        machine.on_generation_known(known, 1.0)
    assert events(machine) == []
    machine.on_generation_known(6, 1.0)
    assert events(machine) == [IdentityClash(6, shunned=True)]
    other.say(machine, other.alive)
    events(machine)
    machine.on_generation_known(7, 2.0)
    assert IdentityClash(7) in events(machine), "somebody hears it"
    machine.leave(3.0)
    events(machine)
    machine.on_generation_known(8, 3.0)
    assert events(machine) == []
