"""A module whose init runs before each invocation does what its snapshot does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from edged.errors import DeadlineExceeded, GuestTrap, InitExited, ModuleRejected
from edged.interfaces import InitCall as PlannedCall
from edged.interfaces import InitPlan, Invocation, InvocationResult
from edged.snapshot.api import Snapshotter
from protocol.function import InitCall, InitSpec, Policy

if TYPE_CHECKING:
    from conftest import Lab

WASI = "wasi_snapshot_preview1"
NOTES = f"""(module
  (import "{WASI}" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "{WASI}" "random_get" (func $random (param i32 i32) (result i32)))
  (import "{WASI}" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
  (import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $calls (mut i32) (i32.const 0))
  (func $note (param $at i32)
    (drop (call $clock (i32.const 0) (i64.const 1) (local.get $at)))
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.add (local.get $at) (i32.const 8))))
    (drop (call $random (i32.add (local.get $at) (i32.const 16)) (i32.const 16)))
    (drop (call $environ (i32.add (local.get $at) (i32.const 32))
                         (i32.add (local.get $at) (i32.const 36)))))
  (func $say (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_initialize") (global.set $calls (i32.add (global.get $calls) (i32.const 100))))
  (func (export "wizer.initialize")
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (call $note (i32.const 1024))
    (call $say (i32.const 1024) (i32.const 40)))
  (func (export "set") (param i32 i64 f32 f64)
    (global.set $calls (i32.add (global.get $calls) (local.get 0)))
    (i64.store (i32.const 1064) (local.get 1))
    (f32.store (i32.const 1072) (local.get 2))
    (f64.store (i32.const 1076) (local.get 3)))
  (func (export "edged.reseed") (i32.store8 (i32.const 1090) (i32.const 7)))
  (func (export "past")
    (i32.store (i32.const 1084) (global.get $calls))
    (call $say (i32.const 1024) (i32.const 72)))
  (func (export "now") (call $note (i32.const 2048)) (call $say (i32.const 2048) (i32.const 40)))
  (func (export "resumed") (call $say (i32.const 1090) (i32.const 1))))
"""
PAIRS = [
    InitSpec(),
    InitSpec(calls=(InitCall("wizer.initialize"), InitCall("set", (5, -7, 0.5, 1.25)))),
    InitSpec(env={"AT_INIT": "seen"}),
]
POLICY = Policy(env={"SECRET": "of the policy"})

Invoke = Callable[[str], Awaitable[InvocationResult]]


async def both(lab: Lab, init: InitSpec) -> tuple[Invoke, Invoke]:
    """Of NOTES: with its init per call, and its snapshot."""
    module, wasm = await lab.load(NOTES), await lab.runtime.parse(NOTES.encode())
    calls = tuple(PlannedCall(each.export, each.args) for each in init.calls)
    plan = InitPlan(calls=calls, env=init.env, files=False)
    written, _ = await Snapshotter().make(wasm, plan, Policy())
    snapshot = await lab.load_wasm(written)

    async def of_module(export: str) -> InvocationResult:
        return await lab.run(module, Invocation(POLICY, entrypoint=export, init=init))

    async def of_snapshot(export: str) -> InvocationResult:
        return await lab.run(snapshot, Invocation(POLICY, entrypoint=export))

    return of_module, of_snapshot


@pytest.mark.parametrize("init", PAIRS, ids=["found by name", "calls with arguments", "env"])
async def test_it_begins_in_the_state_of_its_snapshot(lab: Lab, init: InitSpec) -> None:
    of_module, of_snapshot = await both(lab, init)
    told = [(await invoke("past")).stdout for invoke in (of_module, of_snapshot, of_module)]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 72
    assert told[0][16:32] != bytes(16)
    calls = int.from_bytes(told[0][60:64], "little")
    assert calls == (106 if init.calls else 101)
    variables = int.from_bytes(told[0][32:36], "little")
    assert variables == len(init.env)


@pytest.mark.parametrize("init", PAIRS[:2], ids=["found by name", "calls"])
async def test_what_a_snapshot_exports_no_more_is_gone_from_the_module_too(
    lab: Lab, init: InitSpec
) -> None:
    text = NOTES.replace('"past"', '"_start"').replace('"resumed"', '"wizer.resume"')
    wasm = await lab.runtime.parse(text.encode())
    calls = tuple(PlannedCall(each.export, each.args) for each in init.calls)
    written, _ = await Snapshotter().make(wasm, InitPlan(calls=calls), Policy())
    module, snapshot = await lab.load_wasm(wasm), await lab.load_wasm(written)
    names = ("_initialize", "wizer.initialize", "set", "_start", "wizer.resume", "now", "absent")
    left = [name for name in names if module.export_params(name, init) is not None]
    assert left == [name for name in names if snapshot.export_params(name) is not None]
    assert left == (["wizer.initialize"] if init.calls else []) + ["set", "_start", "now"]
    assert module.export_params("_initialize") == ()


async def test_clock_random_and_secrets_are_real_after_init(lab: Lab) -> None:
    for invoke in await both(lab, InitSpec()):
        past = (await invoke("past")).stdout
        first, second = (await invoke("now")).stdout, (await invoke("now")).stdout
        clocks = [int.from_bytes(each[:8], "little") for each in (past, first, second)]
        assert clocks[0] < clocks[1] < clocks[2]
        assert len({each[16:32] for each in (past, first, second)}) == 3
        assert [each[32:36] for each in (first, past)] == [b"\1\0\0\0", b"\0\0\0\0"]
        assert (await invoke("resumed")).stdout == b"\7"


async def test_init_has_a_phase_and_a_deadline_of_its_own(lab: Lab) -> None:
    spins = """(module (memory (export "memory") 1) (global $n (mut i64) (i64.const 0))
      (func $spin (loop
        (global.set $n (i64.add (global.get $n) (i64.const 1)))
        (br_if 0 (i64.lt_u (global.get $n) (i64.const 20000000)))))
      (func (export "wizer.initialize") (call $spin))
      (func (export "_start"))
      (func (export "for_ever") (loop (br 0))))"""
    module = await lab.load(spins)
    quick = Policy(timeout_ms=5_000)
    result = await lab.run(module, Invocation(quick, init=InitSpec(timeout_ms=60_000)))
    assert result.init_s > 10 * result.run_s > 0
    assert (await lab.run(module, Invocation(quick))).init_s == 0
    with pytest.raises(DeadlineExceeded):
        await lab.run(module, Invocation(quick, init=InitSpec((InitCall("for_ever"),), {}, 50)))
    late = Invocation(Policy(timeout_ms=50), entrypoint="for_ever", init=InitSpec())
    with pytest.raises(DeadlineExceeded):
        await lab.run(module, late)


async def test_an_init_that_fails_is_told_as_what_it_is(lab: Lab) -> None:
    module = await lab.load(f"""(module
      (import "{WASI}" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1)
      (func (export "leave") (call $exit (i32.const 0)))
      (func (export "trap") unreachable)
      (func (export "_start")))""")
    for export, error in (("leave", InitExited), ("trap", GuestTrap), ("none", ModuleRejected)):
        with pytest.raises(error):
            await lab.run(module, Invocation(Policy(), init=InitSpec((InitCall(export),))))
    with pytest.raises(GuestTrap, match=r"unreachable.*, during its init$"):
        await lab.run(module, Invocation(Policy(), init=InitSpec((InitCall("trap"),))))
    with pytest.raises(ModuleRejected, match=r"wizer\.initialize"):
        await lab.run(module, Invocation(Policy(), init=InitSpec()))


async def test_texts_are_put_where_the_guest_makes_room(lab: Lab) -> None:
    module = await lab.load(f"""(module
      (import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (global $next (mut i32) (i32.const 4096))
      (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (global.get $next)
        (global.set $next (i32.add (global.get $next) (i32.const 256))))
      (func (export "learn") (param i32 i32)
        (i32.store (i32.const 0) (local.get 0)) (i32.store (i32.const 4) (local.get 1)))
      (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))""")
    init = InitSpec((InitCall("learn", ("grüße",)),))
    policy = Policy(tmp_bytes=65_536)
    result = await lab.run(module, Invocation(policy, init=init))
    assert result.stdout.decode() == "grüße"
