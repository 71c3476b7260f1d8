"""The worker's process: what it is given, how it ends, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from snapshot_support import look, take, wat

from edged.errors import (
    CannotSnapshot,
    CompileFailed,
    InitTimeout,
    InitTrapped,
    Overloaded,
    PolicyDenied,
)
from edged.interfaces import InitPlan, SnapshotLimits
from edged.snapshot import process
from edged.snapshot.api import Snapshotter, make_snapshot
from protocol.function import Mount, Policy

MODULE = wat(
    """(module (memory (export "memory") 1)
    (func (export "wizer.initialize") (i32.store (i32.const 9) (i32.const 42)))
    (func (export "trap") unreachable) (func (export "loop") (loop (br 0))))"""
)


def children() -> list[str]:
    pid = os.getpid()
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_the_process_makes_what_the_phases_make() -> None:
    made, report = make_snapshot(MODULE)
    assert made == take(MODULE)[0]
    assert look(made).state()["memory"][9] == 42
    assert report.cpu_s > report.compile_cpu_s + report.init_cpu_s >= 0
    assert report.peak_rss_bytes > 0


async def test_from_file_to_file(tmp_path: Path) -> None:
    source, output = tmp_path / "a.wasm", tmp_path / "b.wasm"
    source.write_bytes(MODULE)
    snapshotter = Snapshotter()
    report = await snapshotter.write(source, output, InitPlan(), Policy())
    assert output.read_bytes() == take(MODULE)[0]
    assert report.snapshot_bytes == output.stat().st_size
    output.unlink()
    with pytest.raises(InitTrapped, match="unreachable") as caught:
        await snapshotter.write(source, output, InitPlan(init="trap"), Policy())
    assert "wasm backtrace" in caught.value.private
    source.write_bytes(b"")
    with pytest.raises(CannotSnapshot, match="byte 0"):
        await snapshotter.write(source, output, InitPlan(), Policy())
    assert os.listdir(tmp_path) == [source.name]


async def test_cancelling_kills_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = children()
    policy = Policy(timeout_ms=300_000, tmp_bytes=1000)
    with trio.move_on_after(0.5) as scope:
        await Snapshotter().make(MODULE, InitPlan(init="loop"), policy)
    assert scope.cancelled_caught
    assert os.listdir(tmp_path) == []
    assert children() == before


@pytest.mark.parametrize(
    ("limits", "policy", "error"),
    [
        (SnapshotLimits(), Policy(timeout_ms=1), InitTimeout),
        (SnapshotLimits(compile_timeout_s=0.0), Policy(), CompileFailed),
    ],
)
async def test_each_phase_has_its_time(
    limits: SnapshotLimits, policy: Policy, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "INIT_SLACK_S", -1.0)
    with pytest.raises(error):
        await Snapshotter(limits=limits).make(MODULE, InitPlan(init="loop"), policy)


async def test_a_worker_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_BOOT", "import time; time.sleep(100)")
    monkeypatch.setattr(process, "STARTING_S", 0.05)
    before = children()
    with pytest.raises(CannotSnapshot, match="starting took over"):
        await Snapshotter().make(MODULE, InitPlan(), Policy())
    assert children() == before


async def test_a_worker_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_BOOT", f"import os; os.kill(os.getpid(), {signal.SIGSEGV})")
    with pytest.raises(CompileFailed, match="crashed at its start: SIGSEGV"):
        await Snapshotter().make(MODULE, InitPlan(), Policy())


@pytest.mark.parametrize("said", [b"\xff" * 9, b"\x02\0\0\0??", b"\x09\0\0\0cut"])
async def test_a_worker_that_talks_nonsense(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    boot = f"import sys; sys.stdin.buffer.read(); sys.stdout.buffer.write({said!r})"
    monkeypatch.setattr(process, "_BOOT", boot)
    with pytest.raises(CompileFailed, match="crashed at its start: exit status 0"):
        await Snapshotter().make(MODULE, InitPlan(), Policy())


async def test_a_worker_over_its_memory() -> None:
    limits = SnapshotLimits(memory_bytes=16 * 1024 * 1024)
    policy = Policy(memory_bytes=65_536)
    with pytest.raises(CompileFailed) as caught:
        await Snapshotter(limits=limits).make(MODULE, InitPlan(init="loop"), policy)
    assert caught.value.reason == "memory"


async def test_no_descriptor_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", fail)
    with pytest.raises(Overloaded):
        await Snapshotter().make(MODULE, InitPlan(), Policy())


READ = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get"
    (func $prestat (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 8) "rules")
  (func (export "wizer.initialize")
    (i32.store (i32.const 100) (call $prestat (i32.const 3) (i32.const 200)))
    (i32.store (i32.const 104) (call $prestat (i32.const 4) (i32.const 200)))
    (i32.store (i32.const 108) (call $open (i32.const 3) (i32.const 0) (i32.const 8) (i32.const 5)
      (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 300)))))"""


def test_directories_are_the_policys(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("x")
    policy = Policy(mounts=(Mount("data", "/data"),), tmp_bytes=1000)
    mounts = {"data": str(tmp_path)}
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def errnos(plan: InitPlan) -> tuple[int, int, int]:
        made, _ = take(READ, plan, policy, mounts=mounts, scratch=str(scratch))
        memory = look(made).state()["memory"]
        return memory[100], memory[104], memory[108]

    assert errnos(InitPlan()) == (0, 0, 0)
    assert errnos(InitPlan(files=False)) == (8, 8, 8)
    assert list(scratch.iterdir()) == []
    with pytest.raises(PolicyDenied, match="no mount named"):
        take(READ, InitPlan(), Policy(mounts=(Mount("none", "/data"),)))


FALL_BACK = """
import os, sys
sys.path.insert(0, sys.argv[1])
from edged.snapshot import messages, worker
def decode(data):
    job = messages.decode_job(data)
    if job.fast:
        worker.tell(messages.Entered("compile"))
        os._exit(3)
    return job
worker.decode_job = decode
worker.main()
"""


async def test_what_the_fast_compiler_dies_of_the_other_one_may_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "_BOOT", FALL_BACK)
    made, report = await Snapshotter().make(MODULE, InitPlan(), Policy())
    assert made == take(MODULE)[0]
    assert report.tier == "optimised"
