"""Thousands of invocations of every outcome leave memory, descriptors and threads as they were."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from wasi_script import CREATE, SLOTS, Load, call, open_file, script, write

from edged.errors import (
    BadRequest,
    DeadlineExceeded,
    EdgedError,
    GuestExit,
    GuestTrap,
    InvocationCancelled,
    ModuleRejected,
    OutputLimitExceeded,
    PolicyDenied,
)
from edged.interfaces import CancelFlag, ExportCall, Invocation
from protocol.function import Mount, Policy

FIXTURES = Path(__file__).parents[2] / "fixtures" / "wat"
MIB = 1024 * 1024
RSS_GROWTH_BYTES_MAX = 12 * MIB
"""2,000 calls that leaked their instance, output or trap would be far above it."""


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def export(name: str, *params: str, **policy: int) -> Invocation:
    return Invocation(policy=Policy(**policy), export=ExportCall(name, params))  # type: ignore[arg-type]


FILES = script(
    open_file(SLOTS, "f", oflags=CREATE),
    write(Load(SLOTS), b"x" * 500),
    call("path_create_directory", 3, "d"),
)
TMP = Policy(tmp_bytes=64 * 1024)
MOUNTED = Policy(mounts=(Mount(source="shared", guest_path="/data"),))
POLL = """(module (import "wasi_snapshot_preview1" "fd_close" (func $c (param i32) (result i32)))
  (memory (export "memory") 1) (func (export "_start") (drop (call $c (i32.const 9)))))"""

OUTCOMES: dict[str, tuple[str, Invocation, type[EdgedError] | None, int]] = {
    "success": ("cgi_like", Invocation(policy=Policy(), args=(b"a",), stdin=b"x"), None, 2000),
    "relay": (POLL, Invocation(policy=Policy()), None, 2000),
    "on demand": ("hello", Invocation(policy=Policy(memory_bytes=1024 * MIB)), None, 500),
    "export": ("numbers", export("all", "1", "2", "3", "4"), None, 2000),
    "exit": ("exit", export("exit", "3"), GuestExit, 2000),
    "exit 0": ("exit", export("exit", "0"), None, 2000),
    "trap": ("exit", export("unreachable"), GuestTrap, 2000),
    "start trap": ("start_trap", Invocation(policy=Policy()), GuestTrap, 2000),
    "recursion": ("recursion", export("deep"), GuestTrap, 200),
    "output": ("stdout_flood", Invocation(policy=Policy(stdout_bytes=99_999)),
               OutputLimitExceeded, 2000),
    "deadline": ("loop", Invocation(policy=Policy(timeout_ms=1)), DeadlineExceeded, 200),
    "sleep": ("sleep_hour", Invocation(policy=Policy(timeout_ms=1)), DeadlineExceeded, 500),
    "limits": ("hello", Invocation(policy=Policy(memory_bytes=65536, table_elements=0)),
               None, 2000),
    "memory": ("cgi_like", Invocation(policy=Policy(memory_bytes=65536)), PolicyDenied, 2000),
    "no export": ("hello", export("absent"), ModuleRejected, 2000),
    "bad parameter": ("numbers", export("i64", "x"), BadRequest, 2000),
    "bad argument": ("cgi_like", Invocation(policy=Policy(), args=(b"\xff",)), BadRequest, 2000),
    "no mount": (
        "cgi_like",
        Invocation(policy=Policy(mounts=(Mount(source="no", guest_path="/d"),))),
        PolicyDenied,
        2000,
    ),
    "mount": ("cgi_like", Invocation(policy=MOUNTED), None, 500),
    "files": (FILES, Invocation(policy=TMP), None, 300),
}  # fmt: skip


def repeat(invoke: Callable[[], object], expected: type[EdgedError] | None, times: int) -> None:
    for _ in range(times):
        try:
            invoke()
        except EdgedError as error:
            if expected is None or not isinstance(error, expected):
                raise
        else:
            assert expected is None


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_no_outcome_leaks(lab, outcome):
    guest, invocation, expected, times = OUTCOMES[outcome]
    module = await lab.load(guest)
    cancel = CancelFlag()
    repeat(lambda: module.invoke(invocation, cancel), expected, max(times // 10, 20))
    threads, open_before, before = threading.active_count(), descriptors(), rss_bytes()
    repeat(lambda: module.invoke(invocation, cancel), expected, times)
    assert rss_bytes() - before < RSS_GROWTH_BYTES_MAX
    assert descriptors() == open_before
    assert threading.active_count() <= threads, "fewer is fine: earlier tests' idle threads end"
    assert list(lab.scratch.iterdir()) == []


async def test_cancellation_does_not_leak(lab):
    module = await lab.load("loop")
    call = Invocation(policy=Policy(timeout_ms=60_000))

    def cancelled() -> None:
        cancel = CancelFlag()
        timer = threading.Timer(0.001, cancel.set)
        timer.start()
        try:
            module.invoke(call, cancel)
        finally:
            timer.join()

    repeat(cancelled, InvocationCancelled, 10)
    open_before, before = descriptors(), rss_bytes()
    repeat(cancelled, InvocationCancelled, 100)
    assert rss_bytes() - before < RSS_GROWTH_BYTES_MAX
    assert descriptors() == open_before


async def test_loading_and_closing_does_not_leak(lab, tmp_path):
    artifact = lab.directory / "leaks.cwasm"
    artifact.write_bytes(lab.compile_here((FIXTURES / "cgi_like.wat").read_bytes(), lab.tier))
    invocation = Invocation(policy=Policy(memory_bytes=1024 * MIB))

    async def once() -> None:
        module = await lab.runtime.load("0" * 64, artifact, lab.tier)
        for name in ("_start", "answer", "exit"):
            if module.export_params(name) == ():
                module.invoke(invocation, CancelFlag())
                break
        module.close()

    for _ in range(20):
        await once()
    open_before, before = descriptors(), rss_bytes()
    maps_before = mappings()
    for _ in range(200):
        await once()
    assert rss_bytes() - before < RSS_GROWTH_BYTES_MAX
    assert descriptors() == open_before
    assert mappings() - maps_before < 50
