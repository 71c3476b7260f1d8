"""A deploy is acknowledged by as many nodes as was asked for, and outlives those that die."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio

from protocol.ids import Digest, NodeId
from protocol.replicas import Site, placement

from .cluster import Lab, Running, lab, says

NAMES = "abcdef"


async def start(cluster: Lab, count: int, **sections: dict[str, Any]) -> list[Running]:
    nodes = [await cluster.start(name, **sections) for name in NAMES[:count]]
    await cluster.agree()
    return nodes


def on_disk(node: Running, digest: str) -> bool:
    return (node.config.data_dir / "blobs" / digest[:2] / f"{digest}.module").exists()


async def order(node: Running, module: str) -> list[str]:
    members = (await node.ask("GET", "/v1/members"))["members"]
    names = {member["node_id"]: member["name"] for member in members}
    sites = [Site(NodeId(member["node_id"]), member["region"]) for member in members]
    return [names[site.node_id] for site in placement(Digest(module), sites, len(sites))]


async def test_a_deploy_is_on_three_disks_when_it_is_acknowledged(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        nodes = await start(cluster, 5)
        deployed = await nodes[0].deploy("f", says("three"))
        module = deployed["module"]
        placed = (await order(nodes[0], module))[:3]
        assert sorted(deployed["replicas"]) == sorted(placed)
        assert all(on_disk(cluster.nodes[name], module) for name in placed)
        others = [node for node in nodes if node.name not in {*placed, "a"}]
        assert not any(on_disk(node, module) for node in others)
        for name in placed:
            known = await cluster.nodes[name].ask("GET", "/v1/functions/f")
            assert known["summary"]["version"] == deployed["version"]
        again = await nodes[0].deploy("f", says("three"))
        assert (again["created"], again["replicas"]) == (False, deployed["replicas"])


async def test_what_was_acknowledged_outlives_its_origin_at_once(tmp_path: Path) -> None:
    """Killed the moment it has answered; what the others have, they have on disk."""
    async with lab(tmp_path) as cluster:
        nodes = await start(cluster, 4)
        deployed = await nodes[0].deploy("f", says("outlives"))
        await cluster.kill("a")
        names = [name for name in deployed["replicas"] if name != "a"]
        assert len(names) >= 2
        for name in names[1:]:
            await cluster.kill(name)
        last = cluster.nodes[names[0]]
        await cluster.kill(names[0])
        last = await cluster.start(names[0], gossip={"seeds": cluster.seeds()})
        assert (await cluster.knows(last, "/f")).content == b"outlives"


async def test_an_origin_that_dies_before_it_answers_loses_nothing_else(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        nodes = await start(cluster, 4)
        first = await nodes[0].deploy("f", says("first"))
        stored = await nodes[0].ask("PUT", "/v1/modules", content=says("second"))
        body = msgspec.json.encode({"module": stored["module"]})

        async def die() -> None:
            await trio.sleep(0.004)
            await cluster.kill("a")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            with suppress(httpx.TransportError):
                await nodes[0].control("PUT", "/v1/functions/f", content=body)
        answers = {(await cluster.knows(node, "/f")).content for node in nodes[1:]}
        assert answers <= {b"first", b"second"}
        again = await nodes[1].deploy("f", says("second"))
        assert len(again["replicas"]) == 3
        assert first["version"] != again["version"]
        for node in nodes[1:]:
            assert (await cluster.knows(node, "/f")).status_code == 200
