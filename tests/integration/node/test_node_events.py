"""Each node's event log tells what happened in its cluster, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from .cluster import LOOP, Running, lab, says


async def wait_for(node: Running, kind: str, name: str) -> dict[str, Any]:
    after = 0
    while True:
        view = await node.ask("GET", f"/v1/events?after={after}&wait_s=30")
        after = view["next_after"]
        for row in view["events"]:
            if (row["kind"], row["name"]) == (kind, name):
                return row


async def what_a_tells(a: Running) -> None:
    """Counters in status, as metrics, and of each member."""
    gossip = (await a.ask("GET", "/v1/status"))["gossip"]
    assert gossip["probing"]["false_deaths"] == 0
    for direction in ("in", "out"):
        total = sum(gossip["message_bytes"][direction].values())
        assert total == gossip["datagram_bytes"][direction] > 0
        assert "envelope" in gossip["message_bytes"][direction]
    while (await a.metric('edged_gossip_acks_total{path="direct"}')) == 0:
        await trio.sleep(0.05)
    assert await a.metric("edged_gossip_probes_total") > 0
    assert await a.metric('edged_gossip_messages_total{direction="out",type="ping"}') > 0
    assert await a.metric("edged_gossip_false_deaths_total") == 0
    me, other = (await a.ask("GET", "/v1/members"))["members"]
    assert (me["health"] is None, other["health"]) == (False, None)
    assert 0 < me["since_s"] <= other["since_s"] + 60
    assert other["why"] == ""


async def test_events_of_a_cluster(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        b = await cluster.start("b")
        await cluster.agree()
        up = await wait_for(a, "member-up", "b")
        assert up["node"] == "a"
        deployed = await a.deploy("hello", says("one"))
        published = await wait_for(a, "record-published", "hello")
        accepted = await wait_for(b, "record-accepted", "hello")
        assert {published["detail"], accepted["detail"]} <= {
            "a/hello",
            f"v/hello/{deployed['version']}",
        }
        await what_a_tells(a)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.stop, "b")
            left = await wait_for(a, "member-left", "b")
        rows = (await a.ask("GET", "/v1/events?after=0"))["events"]
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
        assert up["seq"] < published["seq"] < left["seq"]


async def test_members_hear_how_busy_a_node_is(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        b = await cluster.start("b")
        await cluster.agree()
        await a.deploy("spin", LOOP.encode(), policy={"timeout_ms": 3000})

        async def load_of_a() -> float:
            return (await b.ask("GET", "/v1/members"))["members"][0]["load"] or 0.0

        assert await load_of_a() == 0.0
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(a.get, "/spin")
            while await load_of_a() < 0.2:
                await trio.sleep(0.2)
        while await load_of_a() > 0.15:  # what this test itself takes remains
            await trio.sleep(0.5)
