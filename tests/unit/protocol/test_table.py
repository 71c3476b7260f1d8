"""The member table with and without a roster beneath it, against a plain list of members."""

from __future__ import annotations

import random

import pytest
from protocol_support import (
    CLUSTER_KEY,
    WALL_MS,
    address_of,
    anchor,
    credential_of,
    key_of,
    metadata_of,
    node_id,
)
from test_membership_wire import Insider

from protocol.gossip import Gossip, GossipConfig
from protocol.member import MemberState
from protocol.messages import Alive, Down
from protocol.roster import EMPTY, Roster
from protocol.seal import Keyring
from protocol.table import Peer, Table, closer

COUNT = 24
NODES = [node_id(f"n{i}") for i in range(COUNT)]


def alive(index: int) -> Alive:
    return Alive(bytes.fromhex(NODES[index]), 1, 0, metadata_of(f"n{index}", address_of(index)))


def admit(table: Table, index: int) -> Peer:
    word = alive(index)
    peer = table.add(NODES[index], word.node, word.metadata, is_self=index == 0, now=0.0)
    assert peer is not None
    table.update(peer, generation=1, incarnation=0, state="alive", now=0.0, metadata=word.metadata)
    return peer


def make_table(in_roster: int) -> Table:
    table = Table(roster=Roster(alive(index) for index in range(in_roster)))
    for index in [0, *range(max(1, in_roster), COUNT)]:
        admit(table, index)
    return table


def put(table: Table, index: int, state: MemberState, now: float = 1.0) -> None:
    peer = table.get(NODES[index])
    assert peer is not None
    table.update(peer, generation=1, incarnation=0, state=state, now=now)


@pytest.mark.parametrize("in_roster", [0, 1, 10, COUNT])
def test_a_table_is_its_model(in_roster: int) -> None:
    """Random changes; every way of asking agrees with a dict of states."""
    table, plain = make_table(in_roster), make_table(0)
    model: dict[int, MemberState] = dict.fromkeys(range(COUNT), "alive")
    rng = random.Random(7)
    for step in range(300):
        index = rng.randrange(1, COUNT)
        if index in model and rng.random() < 0.2 and model[index] in ("down", "left"):
            for one in (table, plain):
                peer = one.get(NODES[index])
                assert peer is not None
                one.remove(peer)
            del model[index]
        elif index not in model:
            for one in (table, plain):
                admit(one, index)
            model[index] = "alive"
        else:
            model[index] = rng.choice(["alive", "alive", "suspect", "down", "left"])
            for one in (table, plain):
                put(one, index, model[index], float(step))
        check(table, model, rng)
        assert table.state_digest() == plain.state_digest()


def check(table: Table, model: dict[int, MemberState], rng: random.Random) -> None:
    others = {NODES[i] for i, state in model.items() if i and state in ("alive", "suspect")}
    calm = {NODES[i] for i, state in model.items() if i and state == "alive"}
    assert len(table) == len(model)
    assert table.reachable == len(others)
    assert {peer.node_id: peer.state for peer in table.peers()} == {
        NODES[i]: state for i, state in model.items()
    }
    assert table.peers()[0].is_self
    assert sorted(peer.node_id for peer in table.others()) == sorted(others)
    assert {peer.node_id for peer in table.gone()} == {
        NODES[i] for i, state in model.items() if state in ("down", "left")
    }
    slots = [table.at_slot(slot) for slot in range(table.slots)]
    assert sorted(peer.node_id for peer in slots if peer is not None) == sorted(others)
    assert table.at_slot(table.slots) is None
    counts = {state: list(model.values()).count(state) for state in model.values()}
    assert table.states() == counts
    for count in (0, 2, 30):
        drawn = [peer.node_id for peer in table.sample(rng, count, but=NODES[1], alive=True)]
        assert len(drawn) == len(set(drawn)) == min(count, len(calm - {NODES[1]}))
        assert set(drawn) <= calm - {NODES[1]}
    for point in (NODES[0], NODES[3], "0" * 32, "f" * 32):
        after = sorted(others - {NODES[2]}, key=lambda node: (node <= point, node))
        assert table.after(point, but=NODES[2]) == (after[0] if after else None)  # type: ignore[arg-type]
    for index in model:
        peer = table.at_address(address_of(index))
        assert peer is not None
        assert peer.node_id == NODES[index]


def test_rows_are_copied_only_when_asked_for() -> None:
    roster = Roster(alive(index) for index in range(COUNT))
    table = Table(roster=roster, now=5.0)
    admit(table, 0)
    table.sample(random.Random(1), 3)
    assert len(table.peers()) == COUNT
    assert list(table._rows) == [NODES[0]]
    peer = table.get(NODES[4])
    assert peer is table.get(NODES[4])
    assert peer is not None
    assert (peer.state, peer.changed_at_s) == ("alive", 5.0)
    assert closer(NODES[0], NODES[1], NODES[1]) == NODES[1]
    assert len(EMPTY.rows) == 0


def test_a_machine_that_starts_from_a_roster_knows_all_without_events() -> None:
    roster = Roster(alive(index) for index in range(10))

    def machine(index: int) -> Gossip:
        return Gossip(
            GossipConfig(metadata=metadata_of(f"n{index}", address_of(index)), generation=1),
            Keyring([CLUSTER_KEY]),
            anchor(),
            key_of(f"n{index}"),
            credential_of(f"n{index}"),
            random.Random(index),
            now=0.0,
            wall_ms=WALL_MS,
            roster=roster,
        )

    one, other = machine(0), machine(3)
    assert len(one.members()) == 10
    assert one.poll_event() is None
    told = Insider(1)
    told.say(one, Down(bytes.fromhex(NODES[5]), 1, 0, told.raw, False))
    assert one.statistics().members == {"alive": 9, "down": 1}
    assert other.statistics().members == {"alive": 10}
