"""Each reason for which there is no snapshot, with its text and the thing it names."""

from __future__ import annotations

import pytest
from snapshot_support import look, take, wat

from edged.errors import CannotSnapshot, InitExited, InitTimeout, InitTrapped
from edged.interfaces import UNCAPTURED, InitCall, InitPlan, SnapshotLimits
from edged.snapshot.api import make_snapshot
from edged.snapshot.errors import REASONS
from edged.snapshot.examine import examine
from edged.snapshot.parse import DATA_COUNT, parse
from protocol.function import Policy

INIT = '(func (export "wizer.initialize")'
STATIC = {
    "imported-memory": ('(import "env" "m" (memory 1))', "import env.m"),
    "imported-table": ('(import "env" "t" (table 1 funcref))', "import env.t"),
    "imported-global": ('(import "env" "g" (global i32))', "import env.g"),
    "imported-tag": ('(import "env" "e" (tag))', "import env.e"),
    "shared-memory": ("(memory 1 1 shared)", "memory 0"),
    "gc": ("(type (struct (field i32)))", "type 0"),
}
DYNAMIC = {
    "table-mutated": (
        f"""(table 3 funcref) (func $f) (elem declare func $f)
        {INIT} (table.set (i32.const 2) (ref.func $f)))""",
        "table 0",
        "element 2",
    ),
    "table-grown": (
        f"(table 3 funcref) {INIT} (drop (table.grow (ref.null func) (i32.const 2))))",
        "table 0",
        "from 3 to 5",
    ),
    "reference-global": (
        f"""(global i32 (i32.const 1)) (global $g (mut funcref) (ref.null func)) (func $f)
        (elem declare func $f) {INIT} (global.set $g (ref.func $f)))""",
        "global 1",
        "another thing",
    ),
    "import-called": (
        f'(import "env" "log" (func $log (param i32))) {INIT} (call $log (i32.const 1)))',
        "import env.log",
        "called it",
    ),
    "import-type": (
        f'(import "wasi_snapshot_preview1" "fd_close" (func (param i64))) {INIT})',
        "module",
        "incompatible import type",
    ),
    "passive-elements": (
        f"(table 1 externref) (func $f) (elem func $f) {INIT})",
        "element segment 0",
        "fits no table",
    ),
    "needs-more": (f"(memory 3000) {INIT})", "module", "more memory"),
    "no-initializer": ('(func (export "main"))', "", "wizer.initialize"),
    "invalid": (f"{INIT} (drop (i32.const 1)))", "module", "but nothing on stack"),
}


@pytest.mark.parametrize("reason", STATIC)
def test_what_can_be_told_without_running(reason: str) -> None:
    text, thing = STATIC[reason]
    module = wat(f"(module {text} {INIT}))")
    refusal = examine(module).refusal
    assert refusal is not None
    assert (refusal.reason, refusal.thing) == (reason, thing)
    with pytest.raises(CannotSnapshot) as caught:
        take(module)
    assert (caught.value.reason, caught.value.thing) == (reason, thing)
    assert str(caught.value).startswith(thing)


@pytest.mark.parametrize("reason", DYNAMIC)
def test_what_comes_out_later(reason: str) -> None:
    text, thing, told = DYNAMIC[reason]
    module = wat(f"(module {text})")
    if reason == "invalid":
        module = module.replace(b"\x41\x01\x1a", b"\x01\x01\x1a")  # drops what is not there
    assert examine(module).refusal is None
    with pytest.raises(CannotSnapshot) as caught:
        take(module)
    assert (caught.value.reason, caught.value.thing) == (reason, thing)
    assert told in str(caught.value)
    assert caught.value.extra == {"reason": reason, "thing": thing}


def test_bounds() -> None:
    store = "(i32.store (i32.const 0) (i32.const 1))"
    with pytest.raises(CannotSnapshot, match="at most 20") as caught:
        take(f"(module (memory 1) {INIT} {store}))", limits=SnapshotLimits(snapshot_bytes=20))
    assert caught.value.reason == "too-large"
    segments = '(data "x")' * 10_001
    with pytest.raises(CannotSnapshot, match="passive segments") as caught:
        take(f"(module (memory 1) {INIT} (data.drop 0)) {segments})")
    assert caught.value.reason == "limits"


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (InitPlan(init="none"), "missing-export"),
        (InitPlan(init="memory"), "missing-export"),
        (InitPlan(init="add"), "initializer-type"),
        (InitPlan(calls=(InitCall("none"),)), "missing-export"),
        (InitPlan(calls=(InitCall("add", (1,)),)), "bad-arguments"),
        (InitPlan(calls=(InitCall("add", (1, 1 << 64)),)), "bad-arguments"),
        (InitPlan(calls=(InitCall("add", (1 << 32, 1)),)), "bad-arguments"),
        (InitPlan(calls=(InitCall("add", (0.5, 1)),)), "bad-arguments"),
        (InitPlan(calls=(InitCall("add", ("text",)),)), "bad-arguments"),
        (InitPlan(calls=(InitCall("small", (1e300,)),)), "bad-arguments"),
        (InitPlan(calls=(InitCall("two", ("no cabi_realloc",)),)), "bad-arguments"),
        (InitPlan(calls=(InitCall("vector", (1,)),)), "bad-arguments"),
        (InitPlan(rename=(("a", "none"),)), "missing-export"),
        (InitPlan(rename=(("a", "add"), ("a", "two"))), "bad-arguments"),
        (InitPlan(rename=(("a", "add"), ("b", "add"))), "bad-arguments"),
    ],
)
def test_plans_that_do_not_fit(plan: InitPlan, reason: str) -> None:
    with pytest.raises(CannotSnapshot) as caught:
        take(
            '(module (memory (export "memory") 1) (func (export "wizer.initialize"))'
            ' (func (export "add") (param i32 i64)) (func (export "small") (param f32))'
            ' (func (export "two") (param i32 i32)) (func (export "vector") (param v128)))',
            plan,
        )
    assert caught.value.reason == reason


def test_initialisers_that_fail() -> None:
    module = """(module
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1) (data (i32.const 16) "said")
      (data (i32.const 0) "\\10\\00\\00\\00\\04\\00\\00\\00")
      (func $say (param i32) (drop (call $write (local.get 0) (i32.const 0) (i32.const 1)
        (i32.const 8))))
      (func (export "trap") (call $say (i32.const 2)) unreachable)
      (func (export "exit") (call $say (i32.const 2)) (call $exit (i32.const 3)))
      (func (export "done") (call $exit (i32.const 0)))
      (func (export "loop") (loop (br 0)))
      (func (export "flood") (loop (call $say (i32.const 1)) (br 0))))"""
    with pytest.raises(InitTrapped, match="trap: trapped: unreachable") as trapped:
        take(module, InitPlan(init="trap"))
    assert trapped.value.stderr == b"said"
    assert "wasm backtrace" in trapped.value.private
    with pytest.raises(InitExited, match="exit: exited with status 3") as exited:
        take(module, InitPlan(init="exit"))
    assert exited.value.extra["exit_status"] == 3
    assert exited.value.stderr == b"said"
    with pytest.raises(InitExited, match="status 0"):
        take(module, InitPlan(init="done"))
    with pytest.raises(InitTimeout, match="loop: ran out of its time"):
        take(module, InitPlan(init="loop"), Policy(timeout_ms=50))
    with pytest.raises(InitTrapped, match="more output than it may"):
        take(module, InitPlan(init="flood"), Policy(stdout_bytes=100))


def test_what_is_added_makes_nothing_valid() -> None:
    good = wat("""(module (memory 1) (data $passive "x")
      (func (param i32) (result i64 i64 i64 i64) unreachable)
      (func $init (export "wizer.initialize") (data.drop $passive) (call $init)))""")
    calls_the_probe = good.replace(b"\x10\x01\x0b", b"\x10\x02\x0b")
    assert calls_the_probe != good
    with pytest.raises(CannotSnapshot, match="unknown function") as caught:
        take(calls_the_probe)
    assert caught.value.reason == "invalid"
    at = next(each.start for each in parse(memoryview(good)).sections if each.id == DATA_COUNT)
    # Called as it is not, it would overwrite what is not its own.
    starts_with_more = good[:at] + b"\x08\x01\x00" + good[at:]
    with pytest.raises(CannotSnapshot, match="start function") as caught:
        take(starts_with_more)
    assert caught.value.reason == "invalid"


def test_names_of_the_module_are_cut() -> None:
    long = "n" * 50_000
    for text in (
        f'(import "{long}" "m" (memory 1))',
        f'(import "wasi_snapshot_preview1" "fd_write" (func)) (import "{long}" "e" (func)) {INIT})',
        f'(import "{long}" "{long}" (func $f)) {INIT} (call $f))',
    ):
        with pytest.raises(CannotSnapshot) as caught:
            take(f"(module {text})")
        assert len(str(caught.value)) + len(caught.value.thing) < 2000


def test_foreign_imports_can_give_zeros() -> None:
    module = """(module
      (import "env" "a" (func $a (param i32) (result i32 i64)))
      (import "env" "b" (func $b (result i32))) (import "env" "v" (func $v (result funcref)))
      (global $sum (export "sum") (mut i64) (i64.const 0))
      (func (export "wizer.initialize") (call $a (i32.const 7)) (global.set $sum) (drop)
        (global.set $sum (i64.add (i64.const 3) (i64.extend_i32_u (call $b))))))"""
    with pytest.raises(CannotSnapshot, match=r"env\.a"):
        take(module)
    with pytest.raises(CannotSnapshot, match=r"env\.b"):
        take(module, InitPlan(zeros=("env.a",)))
    made, report = take(module, InitPlan(zeros=("env.a", "env.b")))
    assert report.zeros_called == ("env.a", "env.b")
    assert b"\x42\x03\x0b" in made  # i64.const 3
    with pytest.raises(CannotSnapshot, match=r"env\.v: gives something that is no number"):
        take(module, InitPlan(zeros=("env.*",)))


def test_the_environment_of_the_policy_stays_out() -> None:
    module = """(module
      (import "wasi_snapshot_preview1" "environ_sizes_get"
        (func $sizes (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "wizer.initialize")
        (drop (call $sizes (i32.const 0) (i32.const 4)))
        (drop (call $get (i32.const 8) (i32.const 32)))
        (i32.store (i32.const 20) (call $get (i32.const 8) (i32.const 65533)))
        (i32.store (i32.const 24) (call $sizes (i32.const 65533) (i32.const 4)))))"""
    policy = Policy(env={"SECRET": "x"})
    made, report = take(module, policy=policy)
    assert not any(look(made).state()["memory"][:20])
    assert report.environment_reads == 2
    planned = InitPlan(env={"A": "bé", "C": ""})
    memory = look(take(module, planned, policy)[0]).state()["memory"]
    assert memory[:16] == bytes([2, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0, 38, 0, 0, 0])
    assert memory[32:41] == b"A=b\xc3\xa9\0C=\0"
    assert memory[20] == memory[24] == 21  # EFAULT
    with pytest.raises(CannotSnapshot, match="NUL"):
        make_snapshot(wat(module), InitPlan(env={"A": "\0"}))


def test_an_initialiser_with_parameters_is_named_as_what_it_is() -> None:
    with pytest.raises(CannotSnapshot, match=r"wizer\.initialize.*takes parameters") as caught:
        take('(module (func (export "wizer.initialize") (param i32)))')
    assert caught.value.reason == "initializer-type"


def test_all_reasons_are_tested_here_or_in_the_binary_format() -> None:
    elsewhere = {"malformed", "component", "bad-arguments", "initializer-type", "missing-export",
                 "limits", "too-large"}  # fmt: skip
    assert STATIC.keys() | DYNAMIC.keys() | elsewhere == REASONS
    assert UNCAPTURED <= REASONS
