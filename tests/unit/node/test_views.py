"""Which peers can answer for this node, and in which order they are asked."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast, get_args

import msgspec

from edged.clock import Clock
from edged.interfaces import ReplicationView
from edged.telemetry import Metrics
from edged.views import KEY_DIGITS, Views
from protocol.holdings import Holdings
from protocol.ids import ArtifactKey, NodeId, digest_of
from protocol.member import Member, Metadata
from protocol.messages import Form

MODULE = digest_of(b"module")
SELF = NodeId("00" * 16)


@dataclass
class FakeGossip:
    """What Views reads of Gossip."""

    holdings: Holdings
    table: list[Member]

    def members(self) -> list[Member]:
        return self.table


def node(number: int) -> NodeId:
    return NodeId(f"{number:02x}" * 16)


class World:
    def __init__(self) -> None:
        self.gossip = FakeGossip(Holdings(SELF, 1), [])
        self.views = Views(
            gossip=cast("Any", self.gossip),
            store=cast("Any", None),
            runtime=cast("Any", SimpleNamespace(artifact_key="k" * 64, keys={"fast": "f" * 64})),
            functions=cast("Any", None),
            state=lambda: "ready",
            uptime_s=lambda: 0.0,
            metrics=Metrics(),
            load=lambda: 0.0,
            replication=ReplicationView,
            reason=lambda _: "",
            trust_expires_s=2e9,
            clock=Clock(),
        )

    def add(self, number: int, form: Form, **fields: Any) -> None:
        metadata = Metadata(
            name=f"n{number}",
            gossip_address=("127.0.0.1", 1),
            stream_address=("127.0.0.1", 1),
            gateway_url="http://127.0.0.1:1",
        )
        member = Member(
            node_id=node(number),
            state=fields.pop("state", "alive"),
            generation=1,
            incarnation=0,
            metadata=msgspec.structs.replace(metadata, **fields.pop("metadata", {})),
            rtt_s=fields.pop("rtt_s", 0.001),
            is_self=node(number) == SELF,
            changed_at_s=0.0,
            **fields,
        )
        self.gossip.table.append(member)
        theirs = Holdings(member.node_id, 1)
        theirs.set_local(MODULE, True, form)
        self.gossip.holdings.show(member.node_id, 1)
        self.gossip.holdings.merge_update(theirs.delta())

    def ready(self) -> list[str]:
        return [peer.name for peer in self.views.peers_ready({MODULE: 0.0})]

    def holding(self) -> list[str]:
        return [peer.name for peer in self.views.peers_holding(MODULE)]


def test_ready_is_who_has_code_and_a_gateway_and_last_who_builds() -> None:
    world = World()
    world.add(1, "module")
    world.add(2, "building")
    world.add(3, "ready")
    world.add(4, "artifact")
    world.add(5, "ready", metadata={"gateway_url": ""})
    world.add(6, "building", rtt_s=0.0001)
    world.add(7, "building", rtt_s=0.1)
    world.add(8, "running", rtt_s=0.0005)
    world.add(9, "ready", state="suspect")
    assert world.ready() == ["n8", "n3", "n4", "n6", "n2"]
    assert world.holding() == ["n6", "n8", "n1", "n2", "n3", "n5", "n9", "n7"]


def test_any_code_of_a_function_makes_a_peer_ready_for_it() -> None:
    world = World()
    world.add(1, "module")
    world.add(2, "building")
    other = digest_of(b"snapshot")
    for number, digest, form in ((1, other, "ready"), (2, other, "running"), (2, MODULE, "module")):
        theirs = Holdings(node(number), 2)
        theirs.set_local(digest, True, form)  # type: ignore[arg-type]
        world.gossip.holdings.show(node(number), 2)
        world.gossip.holdings.merge_update(theirs.delta())
    codes = {other: 0.0, MODULE: 0.0}
    assert [peer.name for peer in world.views.peers_ready(codes)] == ["n1", "n2"]
    assert world.ready() == []


def test_whose_code_takes_longer_for_a_call_comes_later() -> None:
    world = World()
    world.add(1, "ready", rtt_s=0.001)
    world.add(2, "ready", rtt_s=0.05)
    world.add(3, "ready", rtt_s=0.09)
    snapshot = digest_of(b"snapshot")
    for number in (2, 3):
        theirs = Holdings(node(number), 2)
        theirs.set_local(snapshot, True, "ready")
        theirs.set_local(MODULE, True, "ready")
        world.gossip.holdings.show(node(number), 2)
        world.gossip.holdings.merge_update(theirs.delta())
    for init_s, names in ((2.0, ["n2", "n3", "n1"]), (0.06, ["n2", "n1", "n3"])):
        codes = {snapshot: 0.0, MODULE: init_s}
        assert [peer.name for peer in world.views.peers_ready(codes)] == names


def test_an_artifact_is_held_by_who_shows_it_for_its_key() -> None:
    world = World()
    ours, fast = ArtifactKey("a" * 64), ArtifactKey("f" * 64)
    for number, form in enumerate(get_args(Form), start=1):
        world.add(number, form, metadata={"artifact_key": ours[:KEY_DIGITS]})
    world.add(8, "ready", metadata={"artifact_key": "b" * KEY_DIGITS})
    assert world.views.holder_count(MODULE, ours) == 2
    assert world.views.holder_count(MODULE, ArtifactKey("b" * 64)) == 1
    assert world.views.holder_count(MODULE, None) == len(get_args(Form)) + 1, "in any form"
    assert world.views.holder_count(MODULE, fast) is None, "nobody shares it"


def test_the_nearest_comes_first_unless_it_is_busy() -> None:
    world = World()
    world.add(1, "ready", rtt_s=0.020, load=0.0)
    world.add(2, "ready", rtt_s=0.005, load=0.9)
    world.add(3, "ready", rtt_s=0.010)
    world.add(4, "ready", rtt_s=None)
    world.add(5, "ready", rtt_s=0.001, load=1.0)
    assert world.ready() == ["n3", "n1", "n2", "n5", "n4"]
