"""A deploy is acknowledged by as many nodes as was asked for, and outlives those that die."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import wasmtime

from edged import assembly
from protocol.ids import Digest, NodeId, digest_of
from protocol.replicas import Site, placement
from protocol.replication import ReplicationConfig

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


async def test_the_next_in_order_replaces_a_full_disk(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        nodes = await start(cluster, 3)
        full = await cluster.start("full", store={"min_free_bytes": 1 << 60})
        await cluster.agree()
        module = (await nodes[0].ask("PUT", "/v1/modules", content=says("x")))["module"]
        body = msgspec.json.encode({"module": module, "replicas": 3})
        deployed = await nodes[0].ask("PUT", "/v1/functions/f", content=body)
        assert deployed["replicas"] == ["a", "b", "c"]
        body = msgspec.json.encode({"module": module, "replicas": 4})
        refused = await nodes[0].control("PUT", "/v1/functions/g", content=body)
        assert (refused.status_code, refused.json()["wanted"]) == (503, 4)
        assert refused.json()["type"] == "urn:edged:error:under-replicated"
        assert refused.json()["failed"]["full"].startswith("disk-full: ")
        assert refused.headers["retry-after"]
        assert (await nodes[0].control("GET", "/v1/functions/g")).status_code == 404
        assert not on_disk(full, module)


async def test_too_few_nodes_are_told_of_and_made_good(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        first = await cluster.start("a", replication={"repair_after_s": 0.3})
        deployed = await first.deploy("f", says("alone"))
        assert (deployed["replicas"], deployed["wanted"]) == (["a"], 3)
        view = (await first.ask("GET", "/v1/functions/f"))["replicas"]
        assert (view["wanted"], view["holders"], view["missing"]) == (3, 1, [])
        assert (await first.deploy("g", says("alone"), replicas=1))["wanted"] == 1
        shared = (await first.ask("GET", "/v1/functions/g"))["replicas"]
        assert (shared["wanted"], shared["asked_by"]) == (3, "f")
        assert view["under_replicated"]
        assert (await first.ask("GET", "/v1/status"))["replication"]["under_replicated"] == 1
        assert await first.metric("edged_under_replicated") == 1
        for name in "bc":
            await cluster.start(name, replication={"repair_after_s": 0.3})
        while (await first.ask("GET", "/v1/functions/f"))["replicas"]["under_replicated"]:
            await trio.sleep(0.05)
        assert await first.metric("edged_under_replicated") == 0


async def test_what_a_dead_node_had_is_made_again_elsewhere(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        nodes = await start(cluster, 5, replication={"repair_after_s": 0.5})
        code = bytes(wasmtime.wat2wasm(says("again")))
        module = digest_of(code)
        ranking = await order(nodes[0], module)
        dead, heir = ranking[0], ranking[3]
        # Through a node that belongs to the placement: no other has a copy.
        await cluster.nodes[dead].deploy("f", code)
        watching = cluster.nodes[ranking[1]]
        await cluster.kill(dead)
        expected = {
            "wanted": 3,
            "asked_by": "f",
            "placed": [ranking[1], ranking[2], heir],
            "missing": [],
            "holders": 3,
            "under_replicated": False,
        }
        while (await watching.ask("GET", "/v1/functions/f"))["replicas"] != expected:
            await trio.sleep(0.05)
        assert (await watching.ask("GET", "/v1/status"))["replication"]["under_replicated"] == 0
        assert on_disk(cluster.nodes[heir], module)
        while not await cluster.nodes[heir].metric("edged_repairs_total"):
            await trio.sleep(0.02)
        rows = (await cluster.nodes[heir].ask("GET", "/v1/events"))["events"]
        told = [(row["kind"], row["name"]) for row in rows if row["kind"].startswith("repair")]
        assert told == [("repair-started", "f"), ("repair-done", "f")]
        assert await watching.metric("edged_under_replicated") == 0


async def test_a_surplus_copy_goes_when_its_placement_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin is not of the placement; nor is one that a request made fetch it."""

    def soon(**_: float) -> ReplicationConfig:
        return ReplicationConfig(repair_after_s=600, surplus_after_s=0.4)

    monkeypatch.setattr(assembly, "ReplicationConfig", soon)
    async with lab(tmp_path) as cluster:
        nodes = await start(cluster, 6, runtime={"loaded_max": 1})
        stored = [
            await nodes[0].ask("PUT", "/v1/modules", content=says(f"f{index}"))
            for index in range(12)
        ]
        orders = [await order(nodes[0], one["module"]) for one in stored]
        index = next(at for at, found in enumerate(orders) if "a" not in found[:3])
        module, placed = stored[index]["module"], orders[index][:3]
        body = msgspec.json.encode({"module": module})
        deployed = await nodes[0].ask("PUT", "/v1/functions/f", content=body)
        assert sorted(placed) == deployed["replicas"]
        await nodes[0].deploy("other", says("other"))  # unmaps f, as one is kept
        assert (await nodes[0].get("/other")).content == b"other"
        while on_disk(nodes[0], module):
            await trio.sleep(0.05)
        assert all(on_disk(cluster.nodes[name], module) for name in placed)
        while not await nodes[0].metric("edged_copies_dropped_total"):
            await trio.sleep(0.02)
        rows = (await nodes[0].ask("GET", "/v1/events"))["events"]
        assert ("copy-dropped", "f") in [(row["kind"], row["name"]) for row in rows]
        assert (await nodes[0].get("/f")).content == f"f{index}".encode()


async def test_two_versions_from_two_sides_of_a_partition_both_survive(tmp_path: Path) -> None:
    """Each side acknowledges its own; when they meet, the later one is current everywhere, and the
    other can be rolled back to."""
    async with lab(tmp_path) as cluster:
        for name, seed in (("a", None), ("b", "a"), ("c", None), ("d", "c")):
            seeds = [] if seed is None else [cluster.nodes[seed].addresses.gossip_address]
            await cluster.start(name, gossip={"seeds": seeds})
        await cluster.agree("a", "b")
        await cluster.agree("c", "d")
        one = await cluster.nodes["a"].deploy("f", says("one"))
        two = await cluster.nodes["c"].deploy("f", says("two"))
        assert (one["replicas"], two["replicas"]) == (["a", "b"], ["c", "d"])
        seeds = [cluster.nodes["c"].addresses.gossip_address]
        await cluster.nodes["a"].ask("POST", "/v1/join", json={"seeds": seeds})
        await cluster.agree()
        for node in cluster.nodes.values():
            assert (await node.get("/f")).content == b"two"
        versions = (await cluster.nodes["d"].ask("GET", "/v1/functions/f/versions"))["versions"]
        assert [row["version"] for row in versions] == [two["version"], one["version"]]
        back = await cluster.nodes["d"].ask(
            "POST", "/v1/functions/f/rollback", json={"version": None}
        )
        assert (back["version"], len(back["replicas"])) == (one["version"], 3)
        assert (await cluster.nodes["d"].get("/f")).content == b"one"
