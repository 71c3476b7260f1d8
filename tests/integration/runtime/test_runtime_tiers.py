"""Two tiers of code: which one a module gets, and the processes that make them."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from slow_module import slow_module

from edged.config import RuntimeSection
from edged.errors import ArtifactRefused, CompileFailed
from edged.interfaces import CancelFlag, Invocation, LoadedModule
from edged.runtime import compile as compile_module
from edged.runtime.compile import Workers
from edged.runtime.compile_worker import BACKGROUND_NICE, FAST_CODE_BYTES_MIN, code_bytes
from edged.runtime.ffi import library_path
from edged.runtime.runtime import WasmtimeRuntime, open_runtime
from edged.runtime.settings import has_fast_tier
from edged.telemetry import make_log
from protocol.function import Policy
from protocol.ids import digest_of

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(not has_fast_tier("native"), reason="this machine has one tier")
SUM = "(local.set 0 (i32.mul (i32.add (local.get 0) (i32.const 77777)) (i32.const 99999)))"


def sized(functions: int, *, more: str = "") -> bytes:
    """A guest whose `_start` writes "hello", beside `functions` of some 300 bytes each."""
    body = f"(func (param i32) (result i32) {SUM * 20} (local.get 0))"
    return f"""(module
      (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\\10\\00\\00\\00\\05\\00\\00\\00")
      (data (i32.const 16) "hello")
      (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
      {body * functions} {more})""".encode()


LARGE = 150


class Bench:
    def __init__(self, runtime: WasmtimeRuntime, directory: Path) -> None:
        self.runtime = runtime
        self.module, self.output = directory / "m.wasm", directory / "m.cwasm"

    async def write(self, text: bytes) -> bytes:
        wasm = await self.runtime.parse(text)
        self.module.write_bytes(wasm)
        return wasm


def run(loaded: LoadedModule) -> bytes:
    return loaded.invoke(Invocation(policy=Policy()), CancelFlag()).stdout


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    runtime = open_runtime(
        RuntimeSection(pool_instances=2), mounts={}, scratch_dir=tmp_path / "scratch",
        log=make_log("tiers"),
    )  # fmt: skip
    directory = tmp_path / "files"
    directory.mkdir()
    yield Bench(runtime, directory)
    runtime.close()


async def test_large_modules_are_compiled_fast_then_optimised(bench):
    wasm = await bench.write(sized(LARGE))
    assert code_bytes(wasm) > FAST_CODE_BYTES_MIN
    report = await bench.runtime.compile(bench.module, bench.output)
    assert report.tier == "fast"
    fast = bench.output.read_bytes()
    loaded = await bench.runtime.load(digest_of(wasm), bench.output, "fast")
    assert (loaded.tier, run(loaded)) == ("fast", b"hello")
    await bench.runtime.compile(bench.module, bench.output)
    assert bench.output.read_bytes() == fast, "deterministic"
    report = await bench.runtime.optimise(bench.module, bench.output)
    assert report.tier == "optimised"
    better = await bench.runtime.load(digest_of(wasm), bench.output, "optimised")
    assert (better.tier, run(better), run(loaded)) == ("optimised", b"hello", b"hello")


async def test_small_modules_skip_the_fast_tier(bench):
    wasm = await bench.write(sized(1))
    assert 0 < code_bytes(wasm) < FAST_CODE_BYTES_MIN
    assert (await bench.runtime.compile(bench.module, bench.output)).tier == "optimised"


async def test_the_tiers_never_mix(bench):
    assert bench.runtime.keys["fast"] != bench.runtime.keys["optimised"]
    assert bench.runtime.artifact_key == bench.runtime.keys["optimised"]
    wasm = await bench.write(sized(LARGE))
    await bench.runtime.compile(bench.module, bench.output)
    with pytest.raises(ArtifactRefused):
        await bench.runtime.load(digest_of(wasm), bench.output, "optimised")
    await bench.runtime.optimise(bench.module, bench.output)
    with pytest.raises(ArtifactRefused):
        await bench.runtime.load(digest_of(wasm), bench.output, "fast")


@pytest.mark.parametrize(
    "beyond",
    [
        "(func (param v128) (result v128) (i8x16.popcnt (local.get 0)))",
        "(func $t (result i32) (return_call $t))",
        "(tag) (func (throw 0))",
    ],
)
async def test_what_the_fast_compiler_refuses_is_optimised_at_once(bench, beyond):
    await bench.write(sized(LARGE, more=beyond))
    assert (await bench.runtime.compile(bench.module, bench.output)).tier == "optimised"


async def test_a_module_that_is_no_module_is_an_error_of_both(bench):
    wasm = await bench.write(sized(LARGE))
    bench.module.write_bytes(wasm[:-3])
    with pytest.raises(CompileFailed) as caught:
        await bench.runtime.compile(bench.module, bench.output)
    assert caught.value.reason == "error"


async def test_a_crash_of_the_fast_compiler_is_not_the_modules_end(bench, monkeypatch):
    await bench.write(sized(LARGE))
    jobs: list[str] = []
    real = Workers.run

    async def run(self, job, *fields, **options):
        jobs.append(job)
        if job == "fastest":
            raise CompileFailed("crash", "SIGABRT")
        return await real(self, job, *fields, **options)

    monkeypatch.setattr(Workers, "run", run)
    assert (await bench.runtime.compile(bench.module, bench.output)).tier == "optimised"
    assert jobs == ["fastest", "optimise"]


@pytest.mark.parametrize("section", [{"tiers": "optimised"}, {"target": "pulley64"}])
async def test_nodes_of_one_tier(tmp_path, section):
    runtime = open_runtime(
        RuntimeSection(pool_instances=0, **section), mounts={}, scratch_dir=tmp_path / "scratch",
        log=make_log("one"),
    )  # fmt: skip
    bench = Bench(runtime, tmp_path)
    assert list(runtime.keys) == ["optimised"]
    await bench.write(sized(LARGE))
    assert (await runtime.compile(bench.module, bench.output)).tier == "optimised"
    runtime.close()


# ---------------------------------------------------------------- the background
def nice_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])


async def a_child(children: Callable[[], set[int]]) -> int:
    while not (found := children()):
        await trio.sleep(0.01)
    return found.pop()


async def test_the_background_is_behind_and_ends_when_cancelled(bench, children):
    bench.module.write_bytes(slow_module())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.runtime.optimise, bench.module, bench.output)
            child = await a_child(children)
            while nice_of(child) != nice_of(os.getpid()) + BACKGROUND_NICE:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert children() == set()
    assert not list(bench.module.parent.glob("m.cwasm*"))


async def test_the_background_waits_for_the_foreground(bench, monkeypatch):
    jobs: list[str] = []
    release = trio.Event()

    async def compile_(self, module, output, job):
        jobs.append(job)
        if job == "fastest":
            await release.wait()
        raise CompileFailed("error", job)

    async def ends(function):
        with pytest.raises(CompileFailed):
            await function(bench.module, bench.output)

    monkeypatch.setattr(Workers, "compile", compile_)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends, bench.runtime.compile)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ends, bench.runtime.optimise)
            await trio.testing.wait_all_tasks_blocked()
            assert jobs == ["fastest"]
            release.set()
    assert jobs == ["fastest", "background"]


def workers(**bounds: float) -> Workers:
    settings = {"timeout_s": 60.0, "memory_bytes": 2048 * MIB, "jobs_max": 1} | bounds
    return Workers(library_path(), "native", **settings)


async def test_the_background_has_a_bound_of_cpu_time(bench):
    bench.module.write_bytes(slow_module())
    with trio.fail_after(60), pytest.raises(CompileFailed) as caught:
        await workers(timeout_s=0.5).compile(bench.module, bench.output, "background")
    assert (caught.value.reason, "CPU s" in str(caught.value)) == ("timeout", True)


# ---------------------------------------------------------------- the one that stands by
async def standing_by(nursery: trio.Nursery, made: Workers) -> int:
    nursery.start_soon(made.stand_by)
    while made._standby is None:
        await trio.sleep(0.01)
    return made._standby.pid


async def test_a_standby_does_the_next_job_and_has_a_successor(bench, monkeypatch, children):
    monkeypatch.setattr(compile_module, "STANDBY_DELAY_S", 0.01)
    await bench.write(sized(LARGE))
    made = workers()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            first = await standing_by(nursery, made)
            started = len(children())
            report, _ = await made.compile(bench.module, bench.output, "fastest")
            assert (report.tier, started) == ("fast", 1)
            assert first not in children()
            while made._standby is None:
                await trio.sleep(0.01)
            assert children() == {made._standby.pid} != {first}
            nursery.cancel_scope.cancel()
    assert children() == set()


async def test_a_standby_that_was_killed_costs_nothing_but_time(bench, monkeypatch, children):
    monkeypatch.setattr(compile_module, "STANDBY_DELAY_S", 0.01)
    await bench.write(sized(LARGE))
    made = workers()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            first = await standing_by(nursery, made)
            os.kill(first, signal.SIGKILL)
            while made._standby is not None and made._standby.poll() is None:
                await trio.sleep(0.01)
            report, _ = await made.compile(bench.module, bench.output, "fastest")
            assert report.tier == "fast"
            nursery.cancel_scope.cancel()
    assert children() == set()


async def test_a_standby_ends_with_its_parent(bench):
    """It waits for its job, or for the end of the pipe, and for nothing else."""
    made = workers()
    process = await made._start("standby")
    assert process.stdin is not None
    with trio.fail_after(30):
        await process.stdin.aclose()
        assert await process.wait() != 0
    await compile_module.end(process)
