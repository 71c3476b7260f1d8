"""A node's disk in a cluster: what is collected and what never, repair from peers, downloads."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from edged import collector

from .cluster import Running, lab, says


@pytest.fixture(autouse=True)
def _nothing_is_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "RECENT_S", 0.0)


async def kinds(node: Running) -> dict[str, str]:
    rows = (await node.ask("GET", "/v1/blobs"))["blobs"]
    return {row["digest"]: row["kind"] for row in rows}


async def collect(node: Running) -> dict[str, Any]:
    return await node.ask("POST", "/v1/gc?grace_s=0")


async def verified(node: Running) -> dict[str, Any]:
    await node.ask("POST", "/v1/verify")
    while (view := await node.ask("GET", "/v1/verify"))["state"] == "running":
        await trio.sleep(0.02)
    return view


def flip(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


async def test_collection_keeps_what_a_rollback_needs(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a", runtime={"tiers": "optimised"})
        first = await a.deploy("hello", says("one"))
        await cluster.knows(a, "/hello")
        second = await a.deploy("hello", says("two"))
        await cluster.knows(a, "/hello")
        await a.deploy("other", says("three"))
        await a.deploy("twin", says("two"))
        await cluster.knows(a, "/other")
        before = await kinds(a)
        assert (await collect(a))["collected"] == []
        back = await a.ask("POST", "/v1/functions/hello/rollback")
        assert back["version"] == first["version"]
        assert (await a.get("/hello")).text == "one"
        assert await kinds(a) == before

        await a.ask("PUT", f"/v1/pins/{second['module'][:12]}")
        assert (await a.ask("DELETE", "/v1/functions/hello"))["sharing"] == ["twin"]
        assert (await a.ask("DELETE", "/v1/functions/twin"))["sharing"] == []
        collected = await collect(a)
        left = await kinds(a)
        assert first["module"] not in left
        assert second["module"] in left  # pinned, and its code with it
        assert collected["kept"]["pinned"] == 2
        for kind in ("module", "artifact"):
            assert list(left.values()).count(kind) == 2
        assert (await a.get("/other")).text == "three"
        await a.deploy("twin", says("two"))
        for needed_by in (["twin"], []):
            done = await a.ask("DELETE", f"/v1/pins/{second['module']}")
            assert done["needed_by"] == needed_by
            await a.ask("PUT", f"/v1/pins/{second['module']}")
            await a.control("DELETE", "/v1/functions/twin")
        await a.ask("DELETE", f"/v1/pins/{second['module']}")
        await collect(a)
        assert second["module"] not in await kinds(a)
        await a.deploy("hello", says("one"))
        assert (await cluster.knows(a, "/hello")).text == "one"
        rows = (await a.ask("GET", "/v1/events?after=0"))["events"]
        assert [row["name"] for row in rows if row["kind"] == "blobs-collected"] == ["a", "a"]


async def test_what_is_collected_is_announced_and_fetched_again(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        # Before there is `b`: what a peer was asked to keep, it keeps for a while (SPEC §11.5).
        deployed = await a.deploy("hello", says("one"), replicas=1)
        # Of another target than `a`, whose native code is of no use to it: it needs the module.
        b = await cluster.start("b", gateway={"forward": False}, runtime={"target": "pulley64"})
        await cluster.agree()
        await cluster.knows(b, "/hello")
        module = deployed["module"]
        await a.ask("DELETE", "/v1/functions/hello")
        await cluster.agree()
        await collect(b)
        assert module not in await kinds(b)
        while "; held by a" not in (await b.control("GET", f"/v1/blobs/{module}")).json()["detail"]:
            await trio.sleep(0.05)

        async def holders() -> list[str]:
            rows = (await a.ask("GET", "/v1/blobs"))["blobs"]
            return [row["holders"] for row in rows if row["digest"] == module]

        while await holders() != [1]:
            await trio.sleep(0.05)
        body = msgspec.json.encode({"module": module, "replicas": 1})  # without another upload
        await a.ask("PUT", "/v1/functions/again", content=body)
        assert (await cluster.knows(b, "/again")).text == "one"
        flip(next((tmp_path / "b/data/blobs").glob("*/*.module")))
        flip(next((tmp_path / "b/data/wire").glob(f"*/{module}.*")))
        view = await verified(b)
        outcomes = {row["digest"]: row["outcome"] for row in view["findings"]}
        assert outcomes == {module: "fetched from peers"}
        assert (await b.get("/again")).text == "one"
        assert (await verified(b))["findings"] == []
        assert (await b.ask("GET", "/v1/transfers"))["transfers"] == []


async def test_ordinary_tools_fetch_and_resume(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        text = says("x" * 50_000).decode()
        module = (await a.ask("PUT", "/v1/modules", content=text.encode()))["module"]
        file = next((tmp_path / "a/data/blobs").glob("*/*.module"))
        data = file.read_bytes()
        url = f"{a.addresses.control_url}/v1/blobs/{module}"
        out = tmp_path / "out.wasm"
        out.write_bytes(data[:20_000])
        argv = [
            *("curl", "--silent", "--show-error", "--fail", "--continue-at", "-"),
            *("--header", f"Authorization: Bearer {a.token}", "--output", str(out), url),
        ]
        done = await trio.run_process(argv, check=False, capture_stderr=True)
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == data
        part = await a.control("GET", f"/v1/blobs/{module}", headers={"range": "bytes=-10"})
        assert (part.status_code, part.content) == (206, data[-10:])
        head = await a.control("HEAD", f"/v1/blobs/{module}")
        assert head.headers["content-length"] == str(len(data))
        flip(file)
        refused = await a.control("GET", f"/v1/blobs/{module}")
        assert refused.status_code == 500
        assert refused.json()["type"] == "urn:edged:error:blob-corrupt"
        told = [(row["kind"], row["name"]) for row in (await a.ask("GET", "/v1/events"))["events"]]
        assert told.count(("blob-damaged", module)) == 1
        out.unlink()
        done = await trio.run_process(argv, check=False, stderr=subprocess.DEVNULL)
        assert done.returncode != 0
        assert not out.exists() or not out.read_bytes()


@pytest.mark.slow
async def test_deploys_and_collections_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With next to no grace: what a deploy acknowledged is never collected under it."""
    monkeypatch.setattr(collector, "RECENT_S", 0.5)
    rng = random.Random(11)
    texts = [f"text {number}" for number in range(6)]
    now: dict[str, str] = {}
    acknowledged = collected = 0

    async def change(node: Running, name: str) -> None:
        nonlocal acknowledged
        for _ in range(8):
            text = rng.choice(texts)
            stored = await node.ask("PUT", "/v1/modules", content=says(text))
            body = msgspec.json.encode({"module": stored["module"]})
            answer = await node.control("PUT", f"/v1/functions/{name}", content=body)
            if answer.status_code == 404:
                continue  # collected before the deploy named it; nothing was acknowledged
            assert answer.is_success, answer.text
            acknowledged += 1
            now[name] = text
            assert (await node.get(f"/{name}")).text == text
            if rng.random() < 0.5:
                await node.ask("DELETE", f"/v1/functions/{name}")
                del now[name]

    async with lab(tmp_path, timeout_s=120) as cluster:
        a = await cluster.start("a")
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def collecting() -> None:
                nonlocal collected
                while not done.is_set():
                    collected += len((await collect(a))["collected"])
                    await trio.sleep(0.002)

            nursery.start_soon(collecting)
            async with trio.open_nursery() as changers:
                for number in range(3):
                    changers.start_soon(change, a, f"f{number}")
            done.set()
        assert acknowledged > 10
        assert collected > 3
        for name, text in now.items():
            assert (await a.get(f"/{name}")).text == text
        assert (await verified(a))["findings"] == []
