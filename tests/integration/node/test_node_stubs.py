"""Functions that import what no node has, with an init that names it. SPEC §14.1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from .cluster import lab

ALONE = {"gateway": {"forward": False}}
GUEST = (Path(__file__).parents[2] / "fixtures" / "wat" / "counter_init.wat").read_bytes()
GUEST = GUEST.replace(b"(module", b'(module (import "browser" "alert" (func $alert))', 1)
GUEST = GUEST.rstrip()[:-1] + b'(func (export "alerts") (call $alert)))'


async def test_it_means_the_same_in_every_form(tmp_path: Path) -> None:
    """A snapshot that came, one that was made again, and the module with its init run per call."""
    stubs = {"init": {"stubs": ["browser"]}, "snapshot": "always", "replicas": 1}
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        # Where the module is placed it would serve at first, if it were compiled unasked.
        lazy = {"artifacts": {"eager": False}}
        b = await cluster.start("b", **ALONE, **lazy, planner={"form": "snapshot"})
        none: dict[str, Any] = {"artifacts": {"accept": "none", "eager": False}}
        none["planner"] = {"form": "snapshot-here"}
        c = await cluster.start("c", **ALONE, **none)
        d = await cluster.start("d", **ALONE, planner={"form": "module"})
        await cluster.agree()
        deployed = await a.deploy("f", GUEST, **stubs)
        await a.deploy("alerts", GUEST, entrypoint="alerts", **stubs)
        await cluster.agree()
        for node in (a, b, c, d):
            assert (await node.get("/f")).text == "7\n"
            answer = await node.get("/alerts")
            problem = answer.json()
            assert (answer.status_code, problem["import"]) == (500, "browser.alert")
            assert problem["type"].endswith("import-called")
        made = [await node.metric("edged_snapshots_total") for node in (b, c, d)]
        assert made == [0, 1, 0]
        for node, wanted in ((b, True), (c, True), (d, False)):
            blobs = (await node.ask("GET", "/v1/blobs"))["blobs"]
            found = deployed["init"]["snapshot"] in {blob["digest"] for blob in blobs}
            assert found == wanted


async def test_what_is_not_named_or_called_at_init_is_refused(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        stored = await a.ask("PUT", "/v1/modules", content=GUEST)
        assert "browser.alert" in stored["imports"]
        calls = [{"export": "alerts"}]
        for request, code, reason in (
            ({}, "module-rejected", "missing-import"),
            ({"init": {}}, "module-rejected", "missing-import"),
            ({"init": {"stubs": ["env"]}}, "module-rejected", "missing-import"),
            ({"init": {"stubs": ["z", "browser"]}}, "bad-request", None),
            ({"init": {"stubs": ["browser"], "calls": calls}}, "cannot-snapshot", "import-called"),
        ):
            body = msgspec.json.encode({"module": stored["module"], **request})
            problem = (await a.control("PUT", "/v1/functions/f", content=body)).json()
            assert (problem["type"].rsplit(":", 1)[1], problem.get("reason")) == (code, reason)
            assert code == "bad-request" or "browser.alert" in problem["detail"]
            assert problem.get("modules") == (["browser"] if reason == "missing-import" else None)
        assert (await a.ask("GET", "/v1/functions"))["functions"] == []
