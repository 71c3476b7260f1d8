"""Limits and roles that keep one function, guest or setting from harming the rest of a node."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from edged.artifacts import Artifacts
from edged.errors import ConfigError, DiskFull
from edged.trust import issue_node

from .cluster import LOOP, lab, says


async def test_cold_functions_do_not_turn_away_a_ready_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a", gateway={"invocations_max": 1, "queue_max": 1})
        await a.deploy("ready", says("ready"))
        assert (await a.get("/ready")).status_code == 200
        compiled = Artifacts.make
        release = trio.Event()

        async def slow(self: Artifacts, module: object, *, shown: bool) -> object:
            await release.wait()
            return await compiled(self, module, shown=shown)  # type: ignore[arg-type]

        monkeypatch.setattr(Artifacts, "make", slow)
        await a.deploy("cold", says("cold"))
        codes: list[int] = []

        async def call() -> None:
            codes.append((await a.get("/cold")).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(call)
            for _ in range(5):
                assert (await a.get("/ready")).content == b"ready"
                await trio.sleep(0.02)
            release.set()
        assert set(codes) <= {200, 503}
        assert 200 in codes


async def test_waiting_for_a_thread_counts_as_time(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a", gateway={"invocations_max": 1, "queue_max": 8})
        await a.deploy("quick", says("quick"), policy={"timeout_ms": 200})
        assert (await a.get("/quick")).status_code == 200
        await a.deploy("slow", LOOP.encode(), policy={"timeout_ms": 2000})
        while (await a.ask("GET", "/v1/functions/slow"))["summary"]["state"] != "mapped":
            await trio.sleep(0.02)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.get, "/slow")
            while not (await a.ask("GET", "/v1/status"))["running"]:
                await trio.sleep(0.01)
            late = await a.get("/quick")
            assert late.status_code == 504


async def test_failure_after_the_compile_is_not_repeated_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")

        async def full(*_: object) -> None:
            raise DiskFull("no room for the artifact")

        monkeypatch.setattr("edged.store.BlobStore.put_artifact", full)
        await a.deploy("f", says("f"))
        answers = [await a.get("/f") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [507] * 4
        assert await a.metric('edged_compiles_total{result="ok"}') == 1


async def test_node_without_the_build_role_keeps_what_it_compiled(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        (tmp_path / "a").mkdir()
        issue_node(tmp_path / "ca", tmp_path / "a/trust", name="a", roles=("serve", "control"))
        a = await cluster.start("a")
        await a.deploy("f", says("own"))
        assert (await a.get("/f")).content == b"own"
        await cluster.stop("a")
        a = await cluster.start("a")
        assert (await a.get("/f")).headers["x-edged-start"] == "loaded"


async def test_node_without_the_control_role_may_not_deploy(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        (tmp_path / "a").mkdir()
        issue_node(tmp_path / "ca", tmp_path / "a/trust", name="a", roles=("serve", "build"))
        a = await cluster.start("a")
        stored = await a.ask("PUT", "/v1/modules", content=says("x"))
        answer = await a.control("PUT", "/v1/functions/f", json={"module": stored["module"]})
        assert answer.status_code == 409
        assert "control" in answer.json()["detail"]


async def test_node_without_the_serve_role_has_no_gateway_but_serves_its_peers(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as cluster:
        (tmp_path / "a").mkdir()
        issue_node(tmp_path / "ca", tmp_path / "a/trust", name="a", roles=("build", "control"))
        a = await cluster.start("a")
        b = await cluster.start("b")
        await cluster.agree()
        assert a.addresses.gateway_url == ""
        await a.deploy("f", says("from a"))
        assert (await cluster.knows(b, "/f")).content == b"from a"


async def test_pool_smaller_than_the_threads_is_refused(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        with pytest.raises(ConfigError, match="pool_instances"):
            cluster.prepare("a", runtime={"pool_instances": 4}, gateway={"invocations_max": 8})


async def test_one_function_cannot_hold_every_thread(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a", gateway={"invocations_max": 4, "queue_max": 100})
        await a.deploy("good", says("good"))
        assert (await a.get("/good")).content == b"good"
        await a.deploy("hog", LOOP.encode(), policy={"timeout_ms": 1500, "concurrency": 50})
        while (await a.ask("GET", "/v1/functions/hog"))["summary"]["state"] != "mapped":
            await trio.sleep(0.02)
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(a.get, "/hog")
            while (await a.ask("GET", "/v1/status"))["running"] < 3:
                await trio.sleep(0.01)
            answer = await a.get("/good")
            assert answer.content == b"good"
            assert (await a.ask("GET", "/v1/status"))["running"] >= 3, "the hogs still run"
