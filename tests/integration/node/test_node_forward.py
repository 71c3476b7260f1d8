"""Forwarding between whole nodes: TLS, gossip and compilers included."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import trio

from .cluster import Running, lab, says


async def ready(node: Running, name: str, *holders: str) -> None:
    """Until `node` has heard that `holders` have the function ready."""
    while True:
        shown = (await node.ask("GET", f"/v1/functions/{name}"))["holders"]
        if {row["node"] for row in shown if row["form"] == "ready"} >= set(holders):
            return
        await trio.sleep(0.02)


async def test_a_cold_node_forwards_while_one_fetch_and_one_compile_make_it_ready(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        b = await cluster.start("b", artifacts={"accept": "none", "eager": False})
        await cluster.agree()
        await a.deploy("f", says("herd"), policy={"concurrency": 100})
        await ready(b, "f", "a")
        wire = (await a.ask("GET", "/v1/functions/f/explain"))["forms"][1]["size_bytes"]
        starts: Counter[str] = Counter()

        async def call() -> None:
            answer = await b.get("/f")
            assert (answer.status_code, answer.content) == (200, b"herd")
            starts[answer.headers["x-edged-start"]] += 1
            if answer.headers["x-edged-start"] == "forwarded":
                assert answer.headers["x-edged-node"] == "a"
                assert answer.headers["x-edged-forwarded-by"] == "b"
                assert "forward;dur=" in answer.headers["server-timing"]

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(call)
        assert starts["forwarded"]
        while (await b.get("/f")).headers["x-edged-start"] != "warm":
            await trio.sleep(0.02)
        assert await b.metric("edged_compiles_total") == 1
        assert await b.metric("edged_fetched_wire_bytes_total") == wire
        answered = await b.metric('edged_forwards_total{result="answered"}')
        assert starts["forwarded"] <= answered


async def test_a_holder_that_stops_loses_no_forwarded_request(tmp_path: Path) -> None:
    """Not even one that must not run twice."""
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        c = await cluster.start("c")
        # It never gets ready, so it forwards for as long as somebody else is.
        b = await cluster.start("b", runtime={"target": "pulley64", "compile_timeout_s": 0.001})
        await cluster.agree()
        await a.deploy("f", says("kept"))
        await c.get("/f")
        await ready(b, "f", "a", "c")
        nodes: Counter[str] = Counter()
        stopped = trio.Event()

        async def calls() -> None:
            while not stopped.is_set():
                answer = await b.request("POST", "/f", content=b"once")
                assert (answer.status_code, answer.content) == (200, b"kept"), answer.text
                nodes[answer.headers["x-edged-node"]] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(calls)
            while sum(nodes.values()) < 10:
                await trio.sleep(0.02)
            first = max(nodes, key=nodes.__getitem__)
            await cluster.stop(first)
            seen = sum(nodes.values())
            while sum(nodes.values()) < seen + 10:
                await trio.sleep(0.02)
            stopped.set()
        assert len(nodes) == 2
