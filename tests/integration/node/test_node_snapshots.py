"""Functions with an init on whole nodes: made at deploy, stated, kept, shown, refused. SPEC §14."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from edged import audit, making
from protocol.function import InitCall, InitSpec

from .cluster import Running, lab

COUNTER = (Path(__file__).parents[2] / "fixtures" / "wat" / "counter_init.wat").read_bytes()
ALWAYS = {"init": {}, "snapshot": "always"}


async def refused(node: Running, **request: Any) -> dict[str, Any]:
    stored = await node.ask("PUT", "/v1/modules", content=COUNTER)
    body = msgspec.json.encode({"module": stored["module"], **request})
    answer: httpx.Response = await node.control("PUT", "/v1/functions/refused", content=body)
    assert answer.is_error
    problem: dict[str, Any] = answer.json()
    return problem | {"status": answer.status_code, "code": problem["type"].rsplit(":", 1)[1]}


async def kinds(node: Running) -> dict[str, str]:
    blobs = (await node.ask("GET", "/v1/blobs"))["blobs"]
    return {blob["digest"]: blob["kind"] for blob in blobs if blob["kind"] != "manifest"}


async def test_a_deploy_with_init_makes_a_snapshot_that_every_node_knows(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a, b = await cluster.start("a"), await cluster.start("b")
        await cluster.agree()
        deployed = await a.deploy("f", COUNTER, replicas=1, **ALWAYS)
        init, module = deployed["init"], deployed["module"]
        snapshot = init["snapshot"]
        assert (init["made"], init["why"], init["warnings"]) == (True, "as asked for", [])
        assert init["init_s"] > 0
        again = await a.deploy("f", COUNTER, replicas=1, **ALWAYS)
        assert (again["created"], again["init"]["made"]) == (False, False)
        await cluster.agree()
        for node in (a, b):
            detail = await node.ask("GET", "/v1/functions/f")
            stated = detail["snapshot"]
            assert (stated["digest"], stated["made_by"], stated["refused"]) == (snapshot, "a", "")
            assert stated["size_bytes"] == init["size_bytes"]
            init_now = {"calls": [], "env": {}, "timeout_ms": 30_000, "stubs": []}
            assert detail["spec"]["init"] == init_now
            (row,) = (await node.ask("GET", "/v1/functions/f/versions"))["versions"]
            assert (row["snapshot"], row["init"]) == (stated, detail["spec"]["init"])
            holders = [one["node"] for one in detail["snapshot_holders"]]
            assert holders == ["a"]
        (blob,) = [
            one for one in (await a.ask("GET", "/v1/blobs"))["blobs"] if one["kind"] == "snapshot"
        ]
        assert (blob["digest"], blob["module"], blob["made_by"]) == (snapshot, module, ["a"])
        assert [name.partition("@")[0] for name in blob["functions"]] == ["f"]
        collected = await a.ask("POST", "/v1/gc?grace_s=0")
        assert collected["collected"] == []
        events = (await a.ask("GET", "/v1/events"))["events"]
        assert [one["name"] for one in events if one["kind"] == "snapshot-made"] == ["f"]


@pytest.mark.slow
async def test_two_nodes_and_two_machines_make_the_same_bytes(tmp_path: Path) -> None:
    """Each makes its own; pulley64 is the other architecture that there is everywhere."""
    async with lab(tmp_path) as cluster:
        found = {}
        for name, target in (("a", "native"), ("b", "native"), ("c", "pulley64")):
            node = await cluster.start(name, runtime={"target": target})
            deployed = await node.deploy("f", COUNTER, replicas=1, **ALWAYS)
            found[name] = deployed["init"]["snapshot"]
            assert deployed["init"]["made"]
            await cluster.stop(name)
        assert len(set(found.values())) == 1, found


async def test_a_rollback_keeps_it_and_a_removal_lets_it_go(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        first = await a.deploy("f", COUNTER, **ALWAYS)
        call = {"calls": [{"export": "load", "args": [3]}]}
        second = await a.deploy("f", COUNTER, init=call, snapshot="always")
        snapshots = {one["init"]["snapshot"] for one in (first, second)}
        assert len(snapshots) == 2
        await a.ask("POST", "/v1/functions/f/rollback")
        detail = await a.ask("GET", "/v1/functions/f")
        assert detail["snapshot"]["digest"] == first["init"]["snapshot"]
        assert snapshots < set(await kinds(a))
        await a.ask("PUT", "/v1/pins/f")
        pinned = [
            one["digest"] for one in (await a.ask("GET", "/v1/blobs"))["blobs"] if one["pinned"]
        ]
        assert snapshots < set(pinned)
        await a.ask("DELETE", "/v1/pins/f")
        without = await a.deploy("f", COUNTER, init={}, snapshot="never")
        assert without["init"]["snapshot"] is None
        assert first["init"]["snapshot"] not in await kinds(a)
        await a.ask("DELETE", "/v1/functions/f")
        assert (await kinds(a))[second["init"]["snapshot"]] == "module", "nothing names it now"


async def test_what_cannot_be_initialised_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        trap = await refused(a, init={"calls": [{"export": "trap"}]})
        assert (trap["status"], trap["code"]) == (422, "init-trapped")
        assert "unreachable" in trap["trace"]
        missing = await refused(a, init={"calls": [{"export": "nosuch"}]})
        assert (missing["code"], missing["reason"]) == ("cannot-snapshot", "missing-export")
        arguments = await refused(a, init={"calls": [{"export": "load", "args": ["x"]}]})
        assert arguments["code"] == "cannot-snapshot"
        plain = await refused(a, snapshot="always")
        assert (plain["status"], "init" in plain["detail"]) == (400, True)
        dropped = await refused(a, init={}, abi="export", entrypoint="wizer.initialize")
        assert (dropped["code"], dropped["reason"]) == ("module-rejected", "missing-export")
        assert "after its init" in dropped["detail"]
        bad = await refused(a, init={"calls": [{"export": "load", "args": [1e400]}]})
        assert bad["status"] == 400
        functions = await a.ask("GET", "/v1/functions")
        assert functions["functions"] == []
        assert set((await kinds(a)).values()) == {"module"}


@pytest.mark.parametrize("wish", ["always", "never"])
async def test_every_invocation_begins_in_the_state_after_init(tmp_path: Path, wish: str) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        b = await cluster.start("b", gateway={"forward": False})
        await cluster.agree()
        await a.deploy("f", COUNTER, init={}, snapshot=wish, replicas=1)
        await cluster.agree()
        for node in (a, b):
            for _ in range(2):
                assert (await node.get("/f")).text == "7\n"


async def test_it_comes_as_a_delta_or_is_made_where_no_one_is_believed(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(150_000)
    text = "".join(f"\\{byte:02x}" for byte in noise)
    large = COUNTER.rstrip()[:-1] + f'(data (i32.const 100000) "{text}"))'.encode()
    large = large.replace(b'(memory (export "memory") 2)', b'(memory (export "memory") 4)')
    alone = {"gateway": {"forward": False}}
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        # Where the module is placed it would serve at first, if it were compiled unasked.
        lazy = {"artifacts": {"eager": False}}
        b = await cluster.start("b", **alone, **lazy, planner={"form": "snapshot-delta"})
        none: dict[str, Any] = {"artifacts": {"accept": "none", "eager": False}}
        none["planner"] = {"form": "snapshot-here"}
        c = await cluster.start("c", **alone, **none)
        await cluster.agree()
        deployed = await a.deploy("f", large, replicas=1, **ALWAYS)
        init, snapshot = deployed["init"], deployed["init"]["snapshot"]
        assert 0 < init["delta_wire_bytes"] < 10_000 < 140_000 < init["wire_bytes"]
        await cluster.agree()
        for node, made in ((b, 0), (c, 1)):
            assert (await node.get("/f")).text == "7\n"
            assert (await kinds(node))[snapshot] == "snapshot"
            assert await node.metric("edged_snapshots_total") == made
            got = await node.metric("edged_fetched_wire_bytes_total")
            assert got < 1.3 * init["wire_bytes"], "the module, and what makes the other of it"


@pytest.mark.slow
async def test_a_maker_that_lies_is_caught_by_an_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = making.plan_of
    lie = InitSpec((InitCall("load", (2,)),))
    monkeypatch.setattr(audit, "PAUSE_S", 0.2)
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        b = await cluster.start(
            "b", gateway={"forward": False}, planner={"form": "snapshot"}, artifacts={"audit": True}
        )  # fmt: skip
        await cluster.agree()
        monkeypatch.setattr(making, "plan_of", lambda _init: honest(lie))
        deployed = await a.deploy("f", COUNTER, replicas=2, **ALWAYS)
        monkeypatch.setattr(making, "plan_of", honest)
        await cluster.agree()
        assert (await b.get("/f")).text == "2\n", "a's word is believed"
        while not await b.metric("edged_snapshots_total"):
            await trio.sleep(0.05)
        detail = await b.ask("GET", "/v1/functions/f")
        while not detail["snapshot"]["refused"]:
            await trio.sleep(0.05)
            detail = await b.ask("GET", "/v1/functions/f")
        assert (await b.get("/f")).text == "7\n"
        (event,) = [
            one
            for one in (await b.ask("GET", "/v1/events"))["events"]
            if one["kind"] == "snapshot-mismatch"
        ]
        assert event["name"] == "a"
        assert deployed["init"]["snapshot"][:12] in event["detail"]
        (caught,) = (await b.ask("GET", "/v1/builders/distrusted"))["distrusted"]
        assert caught["name"] == "a"
