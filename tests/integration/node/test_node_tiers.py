"""A node answers with quickly compiled code first, and with optimised code once there is some."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from edged import optimiser
from edged.errors import CompileFailed
from edged.interfaces import CompileReport
from edged.runtime.runtime import WasmtimeRuntime
from edged.runtime.settings import has_fast_tier

from .cluster import Lab, Running, artifacts, damage, lab

pytestmark = pytest.mark.skipif(not has_fast_tier("native"), reason="this machine has one tier")
SUM = "(local.set 0 (i32.mul (i32.add (local.get 0) (i32.const 77777)) (i32.const 99999)))"
SLEEP_S = 1.5
LARGE = f"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\05\\00\\00\\00")
  (data (i32.const 16) "hello")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "late")
    (i32.store (i32.const 80) (i32.const 1))
    (i64.store (i32.const 88) (i64.const {int(SLEEP_S * 1e9)}))
    (drop (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 192)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  {f"(func (param i32) (result i32) {SUM * 20} (local.get 0))" * 150})""".encode()
"""Enough code for two tiers. `late` says its word after a while."""


class Gate:
    """Holds every background compile until it is opened; then does it, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = trio.Event()
        self.begun = 0
        self.error: Exception | None = None
        real: Callable[..., Awaitable[CompileReport]] = WasmtimeRuntime.optimise

        async def optimise(runtime: WasmtimeRuntime, *files: Any) -> CompileReport:
            self.begun += 1
            await self.opened.wait()
            if self.error is not None:
                raise self.error
            return await real(runtime, *files)

        monkeypatch.setattr(WasmtimeRuntime, "optimise", optimise)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def tier(node: Running, name: str = "f") -> str | None:
    summary = (await node.ask("GET", f"/v1/functions/{name}"))["summary"]
    found: str | None = summary["tier"]
    return found


async def until(node: Running, wanted: str) -> None:
    while await tier(node) != wanted:
        await trio.sleep(0.02)


async def optimising(node: Running) -> str:
    return (await node.ask("GET", "/v1/functions/f/explain"))["optimising"] or ""


async def forms(node: Running) -> list[tuple[str, str | None, bool]]:
    explained = await node.ask("GET", "/v1/functions/f/explain")
    return [(form["form"], form["tier"], form["held"]) for form in explained["forms"]]


async def test_first_answers_come_from_fast_code_and_no_request_notices_the_switch(
    tmp_path: Path, gate: Gate
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        stored = await a.deploy("f", LARGE)
        await a.ask(
            "PUT", "/v1/functions/late", json={"module": stored["module"], "entrypoint": "late"}
        )
        first = await a.get("/f")
        assert (first.content, first.headers["x-edged-start"]) == (b"hello", "compiled")
        assert "tier;desc=fast" in first.headers["server-timing"]
        assert ("artifact", "fast", True) in await forms(a)
        assert ("mapped", "fast", True) in await forms(a)
        answers: list[tuple[int, bytes]] = []
        switched = trio.Event()

        across = 0

        async def late() -> None:
            nonlocal across
            answer = await a.get("/late")
            across += switched.is_set() and "tier;desc=fast" in answer.headers["server-timing"]
            answers.append((answer.status_code, answer.content))

        async def load() -> None:
            while not switched.is_set():
                answer = await a.get("/f")
                answers.append((answer.status_code, answer.content))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(load)
            while gate.begun == 0:
                await trio.sleep(0.01)
            gate.opened.set()
            while await tier(a) == "fast":
                nursery.start_soon(late)
                await trio.sleep(SLEEP_S / 3)
            switched.set()
        assert across, "one began in fast code and ended after the switch"
        assert set(answers) == {(200, b"hello")}
        after = await a.get("/f")
        assert (after.content, after.headers["x-edged-start"]) == (b"hello", "warm")
        assert "tier" not in after.headers["server-timing"]
        assert ("artifact", "fast", True) not in await forms(a)
        assert len(artifacts(a)) == 1
        assert await a.metric("edged_compiles_total") == 1
        assert await a.metric('edged_optimisations_total{result="ok"}') == 1


async def test_failed_optimising_leaves_the_fast_code_and_is_tried_again(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.backoff.RETRY_AFTER_FAILURE_S", (1.0,))
    gate.error = CompileFailed("memory", "too much")
    gate.opened.set()
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("f", LARGE)
        assert (await a.get("/f")).content == b"hello"
        while not await a.metric('edged_optimisations_total{result="memory"}'):
            assert (await a.get("/f")).content == b"hello"
        assert await tier(a) == "fast"
        while not (await optimising(a)).endswith(": too much"):
            await trio.sleep(0.05)  # it is being tried again just now
        gate.error = None
        await until(a, "optimised")
        assert (await a.get("/f")).content == b"hello"
        assert await optimising(a) == ""


async def restart(cluster: Lab, name: str) -> Running:
    await cluster.stop(name)
    return await cluster.start(name)


async def test_a_restart_in_between_compiles_nothing_twice(tmp_path: Path, gate: Gate) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("f", LARGE)
        assert (await a.get("/f")).content == b"hello"
        a = await restart(cluster, "a")
        answer = await a.get("/f")
        assert (answer.content, answer.headers["x-edged-start"]) == (b"hello", "loaded")
        assert "tier;desc=fast" in answer.headers["server-timing"]
        gate.opened.set()
        await until(a, "optimised")
        assert await a.metric("edged_compiles_total") == 0
        a = await restart(cluster, "a")
        answer = await a.get("/f")
        assert (answer.content, answer.headers["x-edged-start"]) == (b"hello", "loaded")
        assert await tier(a) == "optimised"


async def test_draining_ends_the_background_at_once(tmp_path: Path, gate: Gate) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("f", LARGE)
        assert (await a.get("/f")).content == b"hello"
        while gate.begun == 0:
            await trio.sleep(0.01)
        await cluster.stop("a")
        assert len(artifacts(a)) == 1
        assert not list(a.config.data_dir.rglob("*.part"))


async def test_altered_fast_code_is_refused(tmp_path: Path, gate: Gate) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("f", LARGE)
        assert (await a.get("/f")).content == b"hello"
        await cluster.stop("a")
        (artifact,) = artifacts(a)
        damage(artifact)
        a = await cluster.start("a")
        answer = await a.get("/f")
        assert (answer.content, answer.headers["x-edged-start"]) == (b"hello", "compiled")
        assert "artifact refused" in a.log.getvalue()


async def test_a_damaged_module_is_not_optimised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is attested must be the compiled form of the module, not of what a disk made of it."""
    wait = trio.Event()
    real = optimiser.Optimiser.run

    async def run(self: optimiser.Optimiser) -> None:
        await wait.wait()
        await real(self)

    monkeypatch.setattr(optimiser.Optimiser, "run", run)
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        deployed = await a.deploy("f", LARGE)
        assert (await a.get("/f")).content == b"hello"
        (module,) = (a.config.data_dir / "blobs").rglob(f"{deployed['module']}.module")
        data = bytearray(module.read_bytes())
        data[len(data) // 2] ^= 1
        module.chmod(0o644)
        module.write_bytes(data)
        wait.set()
        while not await a.metric("edged_optimisations_total"):
            await trio.sleep(0.02)
        assert await a.metric('edged_optimisations_total{result="ok"}') == 0
        assert ("artifact", "optimised", False) in await forms(a)
        assert (await a.get("/f")).content == b"hello"


async def test_one_tier_if_the_operator_wants(tmp_path: Path, gate: Gate) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a", runtime={"tiers": "optimised"})
        await a.deploy("f", LARGE)
        answer = await a.get("/f")
        assert (answer.content, await tier(a), gate.begun) == (b"hello", "optimised", 0)
        assert "tier" not in answer.headers["server-timing"]
