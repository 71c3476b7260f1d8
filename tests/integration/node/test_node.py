"""A deploy on one node is served by all; versions, errors, logs and limits as users meet them."""

from __future__ import annotations

import io
import shutil
import time
from pathlib import Path

import httpx
import pytest
import trio

from edged import obtaining
from edged.clock import ShiftedClock
from edged.errors import ConfigError, DataDirLocked, IdentityTaken
from edged.node import GENERATION, Node
from edged.store import open_store
from edged.telemetry import make_log
from protocol.ids import digest_of

from .cluster import ADD, LOOP, Running, lab, says


async def test_deploy_once_serve_everywhere(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        b = await cluster.start("b", runtime={"target": "pulley64"})
        c = await cluster.start("c")
        await cluster.agree()
        deployed = await a.deploy("hello", says("hi there"))
        for node in (a, b, c):
            answer = await cluster.knows(node, "/hello")
            while answer.headers["x-edged-start"] != "warm":
                assert answer.content == b"hi there"
                forwarded = answer.headers["x-edged-start"] == "forwarded"
                assert forwarded == (answer.headers["x-edged-node"] != node.name)
                assert "total;dur=" in answer.headers["server-timing"]
                await trio.sleep(0.02)
                answer = await node.get("/hello")
            assert answer.headers["x-edged-node"] == node.name
        for node in (a, b, c):
            explained = await node.ask("GET", "/v1/functions/hello/explain")
            assert explained["next_start"] == "warm"
            held = {form["form"]: form["held"] for form in explained["forms"]}
            assert held["artifact"]
            assert held["mapped"]
            assert held["module"] == held["wire"]
            if not held["module"]:  # its artifact did
                assert node is c
                continue
            module = deployed["module"]
            blob = node.config.data_dir / "blobs" / module[:2] / f"{module}.module"
            assert digest_of(blob.read_bytes()) == module
        keys = {(await node.ask("GET", "/v1/status"))["artifact_key"] for node in (a, b, c)}
        assert len(keys) == 2
        while len((await a.ask("GET", "/v1/functions/hello"))["holders"]) < 3:
            await trio.sleep(0.05)


async def test_cold_export_call_says_that_it_was_cold(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("add", ADD.encode(), abi="export")
        b = await cluster.start("b", gateway={"forward": False})
        await cluster.agree()
        answer = await cluster.knows(b, "/add/add_numbers?num1=5&num2=10")
        assert answer.text == "15\n"
        assert answer.headers["x-edged-start"] in ("compiled", "artifact")
        for phase in ("fetch", "load", "instantiate", "run"):
            assert f"{phase};dur=" in answer.headers["server-timing"]


async def test_restarted_node_compiles_nothing_and_remembers_everything(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("hello", says("one"))
        await a.deploy("hello", says("two"))
        assert (await a.get("/hello")).content == b"two"
        await cluster.stop("a")
        a = await cluster.start("a")
        answer = await a.get("/hello")
        assert (answer.content, answer.headers["x-edged-start"]) == (b"two", "loaded")
        assert await a.metric("edged_compiles_total") == 0
        assert len((await a.ask("GET", "/v1/functions/hello/versions"))["versions"]) == 2


async def test_a_node_whose_clock_was_ahead_finds_the_way_out(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a", lab={"enabled": True})
        await a.ask("PUT", "/v1/lab", json={"clock_skew_ms": 3_600_000})
        await a.deploy("early", says("from tomorrow"))
        await cluster.stop("a")
        a = await cluster.start("a")
        module = (await a.ask("GET", "/v1/functions/early"))["summary"]["module"]
        wanted = {"module": module}
        refused = await a.control("PUT", "/v1/functions/late", json=wanted)
        assert refused.status_code == 409
        assert "edged catalog discard-future" in refused.json()["detail"]
        listed = await a.ask("GET", "/v1/records/future")
        assert [row["kind"] for row in listed["records"]] == ["version", "alias"]
        assert await a.ask("DELETE", "/v1/records/future") == listed
        assert (await a.ask("GET", "/v1/functions"))["functions"] == []
        assert (await a.control("PUT", "/v1/functions/late", json=wanted)).status_code == 201
        await cluster.stop("a")
        a = await cluster.start("a")
        functions = (await a.ask("GET", "/v1/functions"))["functions"]
        assert [one["name"] for one in functions] == ["late"]


async def test_a_clock_that_was_set_back_is_named(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await cluster.stop("a")
        later = time.time_ns() // 1_000_000 + 3600_000
        log = make_log("a", stream=io.StringIO())
        store = await open_store(a.config.data_dir, zstd_level=3, min_free_bytes=0, log=log)
        await store.set_meta(GENERATION, later.to_bytes(8))
        await store.close()
        a = await cluster.start("a")
        assert "the clock was set back since the last start" in a.log.getvalue()
        (own,) = (await a.ask("GET", "/v1/members"))["members"]
        assert own["generation"] == later + 1, "no nonce is used twice"


async def test_a_former_self_of_a_node_is_told_so_and_ends(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        await cluster.start("a")
        b = await cluster.start("b")
        await cluster.agree()
        await cluster.stop("b")
        shutil.rmtree(b.config.data_dir)
        again = Running("b", cluster.prepare("b"), io.StringIO())
        again.node._clock = ShiftedClock()
        again.node._clock.shift_ms = -3_600_000
        with pytest.raises(IdentityTaken, match="its clock is behind") as caught:
            await again.node.run()
        assert 3_590 < caught.value.extra["ahead_s"] <= 3_600


async def test_rollback_and_remove_reach_every_node(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        b = await cluster.start("b")
        await cluster.agree()
        first = await a.deploy("f", says("one"))
        second = await a.deploy("f", says("two"))
        assert second["previous"] == first["version"]
        again = await a.deploy("f", says("two"))
        assert (again["created"], again["version"]) == (False, second["version"])
        await cluster.agree()
        assert (await b.get("/f")).content == b"two"
        back = await b.ask("POST", "/v1/functions/f/rollback", json={"version": None})
        assert back["version"] == first["version"]
        assert (await b.get("/f")).content == b"one"
        await cluster.agree()
        assert (await a.get("/f")).content == b"one"
        forward = await a.ask(
            "POST", "/v1/functions/f/rollback", json={"version": second["version"][:8]}
        )
        assert forward["version"] == second["version"]
        none = await a.control("POST", "/v1/functions/f/rollback", json={"version": "0000"})
        assert none.status_code == 404
        await a.ask("DELETE", "/v1/functions/f")
        assert (await a.get("/f")).status_code == 404
        await cluster.knows(b, "/f", 404)
        oldest = await a.control("POST", "/v1/functions/f/rollback", json={"version": None})
        assert oldest.status_code == 404
        # A removed name can be used again, and its old versions do not come back with it.
        await cluster.agree()
        await b.deploy("f", says("three"))
        assert (await cluster.knows(a, "/f")).content == b"three"
        assert len((await a.ask("GET", "/v1/functions/f/versions"))["versions"]) == 1


async def test_blob_comes_from_whoever_holds_it_and_503_names_what_nobody_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtaining, "HOLDERLESS_S", 0.0)
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("spread", says("spread"))
        lonely = await a.deploy("lonely", says("only on a"))
        b = await cluster.start("b")
        c = await cluster.start("c")
        await cluster.agree()
        assert (await b.get("/spread")).content == b"spread"
        await cluster.stop("a")
        # Its origin is gone; b has fetched it, so c gets it from b.
        answer = await c.get("/spread")
        assert (answer.content, answer.status_code) == (b"spread", 200)
        missing = await c.get("/lonely")
        assert missing.status_code == 503
        assert missing.headers["content-type"] == "application/problem+json"
        assert missing.json()["digest"] == lonely["module"]
        explained = await c.ask("GET", "/v1/functions/lonely/explain")
        assert explained["next_start"] == "no-holder"
        assert int(missing.headers["retry-after"]) > 0
        monkeypatch.setattr(obtaining, "HOLDERLESS_S", 30.0)
        async with trio.open_nursery() as nursery:

            async def ask_early() -> None:
                early = await c.get("/lonely")
                assert (early.status_code, early.content) == (200, b"only on a")

            nursery.start_soon(ask_early)
            await cluster.start("a", gossip={"seeds": cluster.seeds()})


async def test_peer_that_serves_wrong_bytes_is_left_for_another(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        b = await cluster.start("b")
        c = await cluster.start("c")
        await cluster.agree()
        deployed = await a.deploy("f", says("true bytes"))
        await cluster.agree()
        assert (await b.get("/f")).content == b"true bytes"
        for wire in (a.config.data_dir / "wire").rglob(f"{deployed['module']}*"):
            wire.chmod(0o644)
            data = bytearray(wire.read_bytes())
            data[len(data) // 2] ^= 0xFF
            wire.write_bytes(data)
        answer = await cluster.knows(c, "/f")
        assert answer.content == b"true bytes"


async def test_guest_failures_are_problems_and_their_reasons_stay_in_the_log(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("trap", says("secret detail", fd=2, then="unreachable"))
        answer = await a.get("/trap")
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text
        assert "backtrace" not in answer.text
        assert answer.headers["x-edged-start"] in ("compiled", "loaded", "warm")
        assert "run;dur=" in answer.headers["server-timing"]
        lines = (await a.control("GET", "/v1/functions/trap/logs?tail=50")).text
        assert "secret detail" in lines
        assert "unreachable" in lines
        await a.deploy("slow", LOOP.encode(), policy={"timeout_ms": 100})
        assert (await a.get("/slow")).status_code == 504
        await a.deploy("loud", says("123456"), policy={"stdout_bytes": 5})
        assert (await a.get("/loud")).status_code == 502


async def test_concurrency_of_a_function_is_bounded(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("slow", LOOP.encode(), policy={"timeout_ms": 1500, "concurrency": 1})
        while (await a.ask("GET", "/v1/functions/slow"))["summary"]["state"] != "mapped":
            await trio.sleep(0.02)
        codes: list[int] = []

        async def call() -> None:
            codes.append((await a.get("/slow")).status_code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            nursery.start_soon(call)
            nursery.start_soon(call)
        assert sorted(codes) == [429, 429, 504]


async def test_stop_answers_what_was_accepted(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("slow", LOOP.encode(), policy={"timeout_ms": 3000})
        while (await a.ask("GET", "/v1/functions/slow"))["summary"]["state"] != "mapped":
            await trio.sleep(0.02)
        codes: list[int] = []

        async def call() -> None:
            codes.append((await a.get("/slow")).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(call)
            while (await a.ask("GET", "/v1/status"))["running"] < 4:
                await trio.sleep(0.01)
            a.node.stop()
        assert codes == [504] * 4
        await a.ended.wait()
        del cluster.nodes["a"]
        with pytest.raises(httpx.ConnectError):
            await a.get("/slow")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (b"#!/bin/sh\necho hi", "bad-magic"),
        (b"\x00asm\x0d\x00\x01\x00", "component"),
        (b"\x00asm\x01\x00\x00\x00\xff\xff", "invalid"),
        (b'(module (import "env" "launch" (global i32)))', "missing-import"),
    ],
)
async def test_what_cannot_run_is_refused_at_the_door(
    tmp_path: Path, module: bytes, reason: str
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        answer = await a.control("PUT", "/v1/modules", content=module)
        assert answer.status_code == 422
        assert answer.json()["reason"] == reason
        if reason == "missing-import":
            assert "env" in answer.json()["detail"]
            assert "launch" in answer.json()["detail"]
        assert (await a.ask("GET", "/v1/status"))["blobs"] == 0


async def test_deploys_that_make_no_sense_change_nothing(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        stored = await a.ask("PUT", "/v1/modules", content=ADD.encode())
        tries = [
            ({"module": "0" * 64}, 404),
            ({"module": stored["module"], "abi": "raw"}, 422),
            ({"module": stored["module"], "abi": "export", "entrypoint": "nope"}, 422),
            (
                {
                    "module": stored["module"],
                    "abi": "export",
                    "policy": {"mounts": [{"source": "etc", "guest_path": "/etc"}]},
                },
                400,
            ),
        ]
        for body, status in tries:
            answer = await a.control("PUT", "/v1/functions/f", json=body)
            assert answer.status_code == status, answer.text
        hungry = '(module (memory 4000) (func (export "_start")) (func (export "f") (param i32)))'
        stored = await a.ask("PUT", "/v1/modules", content=hungry.encode())
        for body, word in (
            ({}, "policy.memory_bytes"),
            ({"entrypoint": "f"}, "without parameters"),
        ):
            request = {"module": stored["module"], **body}
            answer = await a.control("PUT", "/v1/functions/f", json=request)
            assert answer.status_code == 422
            assert word in answer.json()["detail"]
        assert await a.ask("GET", "/v1/functions") == {"functions": []}


async def test_same_module_twice_at_once_is_one_blob_and_one_version(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        made: list[dict[str, object]] = []

        async def deploy() -> None:
            made.append(await a.deploy("f", says("same")))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(deploy)
        assert len({row["version"] for row in made}) == 1
        assert [row["created"] for row in made].count(True) == 1
        assert len((await a.ask("GET", "/v1/functions/f/versions"))["versions"]) == 1


async def test_second_node_on_one_data_directory_is_refused(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        twin = Node(a.config, log=make_log("twin", stream=a.log))
        with pytest.raises(DataDirLocked):
            await twin.run()
        assert (await a.get("/_edged/health")).status_code == 200


async def test_node_refuses_a_name_that_is_not_its_own(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        config = cluster.prepare("a")
        (tmp_path / "b").mkdir()
        (tmp_path / "a" / "trust").rename(tmp_path / "b" / "trust")
        stranger = cluster.prepare("b")
        assert stranger.node.name != config.node.name
        with pytest.raises(ConfigError, match="issued to 'a'"):
            await Node(stranger, log=make_log("b")).run()
