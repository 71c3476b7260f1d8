"""The laboratory's switches in a whole node: what they break, and what they must not."""

from __future__ import annotations

import time
from pathlib import Path

from tests.integration.node.cluster import lab, says

DAY_MS = 86_400_000


async def test_a_full_disk_refuses_what_would_be_written_and_serves_on(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        node = await made.start("n1", lab={"enabled": True})
        await node.deploy("hello", says("hello"))
        assert (await node.get("/hello")).text == "hello"

        await node.ask("PUT", "/v1/lab", json={"disk_full": True})
        answer = await node.control("PUT", "/v1/modules", content=says("more"))
        assert answer.status_code == 507
        assert answer.json()["type"] == "urn:edged:error:disk-full"
        removed = await node.control("DELETE", "/v1/functions/hello")
        assert (removed.status_code, removed.json()["type"][-9:]) == (507, "disk-full")
        assert (await node.get("/hello")).text == "hello"
        assert (await node.ask("GET", "/v1/lab"))["writes_refused"] >= 2

        await node.ask("PUT", "/v1/lab", json={})
        await node.deploy("hello", says("again"))
        assert (await node.get("/hello")).text == "again"
        temps = [path.name for path in (node.config.data_dir / "tmp").iterdir()]
        assert temps == []


async def test_every_date_of_a_node_follows_its_clock(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        node = await made.start("n1", lab={"enabled": True})
        view = await node.ask("PUT", "/v1/lab", json={"clock_skew_ms": 2 * DAY_MS})
        assert abs(view["clock_ms"] - view["machine_ms"] - 2 * DAY_MS) < 10
        ahead_s = time.time() + DAY_MS / 1000
        await node.deploy("hello", says("hello"))
        (function,) = (await node.ask("GET", "/v1/functions"))["functions"]
        events = (await node.ask("GET", "/v1/events"))["events"]
        assert function["deployed_at_s"] > ahead_s
        assert events[-1]["at_ms"] / 1000 > ahead_s
        assert events[0]["at_ms"] / 1000 < ahead_s
        (member,) = (await node.ask("GET", "/v1/members"))["members"]
        assert member["since_s"] > ahead_s - DAY_MS / 1000

        await node.ask("PUT", "/v1/lab", json={})
        (record, *_) = (await node.ask("GET", "/v1/records/future"))["records"]
        assert record["name"] == "hello"
