"""What a snapshot holds, is, and no longer exports."""

from __future__ import annotations

import time

import pytest
from snapshot_support import look, take, wat

from edged.errors import CannotSnapshot
from edged.interfaces import InitCall, InitPlan, SnapshotLimits
from edged.snapshot import pipeline
from edged.snapshot.guest import Guest
from edged.snapshot.initialize import State, observe
from edged.snapshot.parse import parse
from protocol.function import Policy

COUNTER = """(module
  (memory (export "memory") 1)
  (global $n (export "n") (mut i32) (i32.const 1))
  (data (i32.const 8) "before")
  (func (export "wizer.initialize")
    (global.set $n (i32.const -7))
    (i32.store (i32.const 70000) (i32.const 9)))
  (func $more (export "_initialize") (drop (memory.grow (i32.const 1))))
  (func (export "get") (result i32) (i32.add (global.get $n) (i32.load (i32.const 70000)))))"""


def test_memory_globals_and_size_are_the_initialised_ones() -> None:
    made, report = take(COUNTER)
    seen = look(made)
    assert seen.call("get") == 2
    assert len(seen.state()["memory"]) == 2 * 65536
    assert seen.state()["memory"][8:14] == b"before"
    assert report.called == ("_initialize", "wizer.initialize")
    assert report.globals_rewritten == 1
    assert report.memories[0].bytes_before == 65536
    assert report.memories[0].bytes_after == 2 * 65536
    assert report.data_segments == report.memories[0].data_segments == 2


def test_initialisers_are_no_longer_exported() -> None:
    made, report = take(COUNTER)
    assert set(parse(memoryview(made)).exports) == {"memory", "n", "get"}
    assert report.dropped_exports == ("wizer.initialize", "_initialize")
    kept, report = take(COUNTER, InitPlan(keep_init_export=True))
    assert report.dropped_exports == ()
    assert "wizer.initialize" in parse(memoryview(kept)).exports


def test_the_start_function_has_run() -> None:
    made, _ = take(
        """(module (memory (export "memory") 1) (global $n (export "n") (mut i64) (i64.const 0))
        (func $start (global.set $n (i64.add (global.get $n) (i64.const 1)))) (start $start)
        (func (export "wizer-initialize")))"""
    )
    assert parse(memoryview(made)).start is None
    assert look(made).state()["n"] == "1"


def test_every_kind_of_number() -> None:
    made, report = take(
        """(module
        (global $a (export "a") (mut f32) (f32.const 0)) (global $b (mut f64) (f64.const 0))
        (global $c (mut v128) (v128.const i64x2 0 0))
        (global $d (export "d") (mut i64) (i64.const 1))
        (global $same (export "same") (mut i32) (i32.const 5))
        (global $fix (export "fix") i32 (i32.const 6))
        (func (export "wizer.initialize")
          (global.set $a (f32.const nan:0x200001)) (global.set $b (f64.const nan:0x4000000000123))
          (global.set $c (v128.const i64x2 0 -2)) (global.set $d (i64.const 0x8000000000000000)))
        (func (export "bits") (result i64)
          (i64.xor (i64.extend_i32_u (i32.reinterpret_f32 (global.get $a)))
          (i64.xor (i64.reinterpret_f64 (global.get $b))
          (i64x2.extract_lane 1 (global.get $c))))))"""
    )
    assert report.globals_rewritten == 4
    seen = look(made)
    expected = 0x7FA00001 ^ 0x7FF4000000000123 ^ ((1 << 64) - 2)
    assert seen.call("bits") % (1 << 64) == expected
    assert seen.state()["d"] == str(-(1 << 63))
    assert seen.state()["same"] == "5"


def test_passive_segments_are_what_they_were_and_dropped_ones_are_gone() -> None:
    made, _ = take(
        """(module (memory (export "memory") 1) (memory $big (export "big") i64 1)
        (data $kept "kept") (data $gone "gone") (data (i32.const 0) "active")
        (func (export "wizer.initialize")
          (memory.init $gone (i32.const 100) (i32.const 0) (i32.const 4))
          (data.drop $gone) (i64.store $big (i64.const 65528) (i64.const -1)))
        (func (export "kept") (memory.init $kept (i32.const 200) (i32.const 0) (i32.const 4)))
        (func (export "gone") (memory.init $gone (i32.const 200) (i32.const 0) (i32.const 4)))
        (func (export "active") (memory.init 2 (i32.const 200) (i32.const 0) (i32.const 1))))"""
    )
    seen = look(made)
    memory = seen.state()["memory"]
    assert memory[:6] == b"active"
    assert memory[100:104] == b"gone"
    assert seen.state()["big"][-8:] == b"\xff" * 8
    assert seen.call("gone") == seen.call("active") == "trap"
    assert seen.call("kept") is None
    assert seen.state()["memory"][200:204] == b"kept"


def test_dropped_elements_stay_dropped() -> None:
    made, _ = take(
        """(module (table $t 4 funcref) (elem $kept func $f) (elem $gone funcref (ref.func $f))
        (func $f (export "f"))
        (func (export "wizer.initialize") (elem.drop $gone))
        (func (export "kept") (table.init $kept (i32.const 1) (i32.const 0) (i32.const 1)))
        (func (export "gone") (table.init $gone (i32.const 1) (i32.const 0) (i32.const 1))))"""
    )
    seen = look(made)
    assert seen.call("kept") is None
    assert seen.call("gone") == "trap"


def test_custom_sections_stay_unless_told() -> None:
    source = wat(COUNTER) + b"\x00\x06\x04mineX"
    made, _ = take(source)
    assert b"\x04mineX" in made
    assert b"more" in made  # a function's name
    stripped, _ = take(source, InitPlan(keep_custom_sections=False))
    assert b"mine" not in stripped
    assert b"more" not in stripped
    assert look(stripped).call("get") == 2


def test_host_driven_calls_with_arguments() -> None:
    source = """(module (memory (export "memory") 1) (global $at (mut i32) (i32.const 1024))
      (global $sum (export "sum") (mut f64) (f64.const 0))
      (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (global.set $at (i32.and (i32.add (global.get $at) (i32.const 7)) (i32.const -8)))
        (global.get $at) (global.set $at (i32.add (global.get $at) (local.get 3))))
      (func (export "add") (param i32 i64 f32 f64) (result i32 f64)
        (global.set $sum (f64.add (f64.convert_i64_s (local.get 1)) (local.get 3)))
        (local.get 0) (f64.promote_f32 (local.get 2)))
      (func (export "text") (param i32 i32) (result i32)
        (i32.store8 (i32.const 0) (i32.load8_u (local.get 0))) (local.get 1))
      (func (export "texts") (param i32 i32)
        (i32.store8 (i32.const 1) (i32.load8_u (i32.load (i32.add (local.get 0) (i32.const 8)))))
        (i32.store (i32.const 4) (local.get 1))))"""
    calls = (
        InitCall("add", (0xFFFFFFFF, -3, 0.5, 2)),
        InitCall("text", ("hé",), drop_export=True),
        InitCall("texts", (("one", "two"),)),
    )
    made, report = take(source, InitPlan(calls=calls))
    assert report.results == ((-1, 0.5), (3,), ())
    seen = look(made)
    assert seen.state()["memory"][:8] == b"ht\0\0\2\0\0\0"
    assert seen.state()["sum"] == "-1.0"
    exports = parse(memoryview(made)).exports
    assert "text" not in exports
    assert "add" in exports


def test_renaming() -> None:
    source = """(module (global $n (export "n") (mut i32) (i32.const 0))
      (func (export "wizer.initialize")) (func (export "_start") (global.set $n (i32.const 1)))
      (func (export "wizer.resume") (global.set $n (i32.const 2))))"""
    made, _ = take(source)
    seen = look(made)
    seen.call("_start")
    assert seen.state()["n"] == "2"
    assert set(parse(memoryview(made)).exports) == {"n", "_start"}
    plain, _ = take(source, InitPlan(rename=()))
    assert set(parse(memoryview(plain)).exports) == {"n", "_start", "wizer.resume"}
    other, _ = take(source, InitPlan(rename=(("go", "_start"),)))
    assert set(parse(memoryview(other)).exports) == {"n", "go", "wizer.resume"}


def test_what_the_fast_compiler_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.snapshot.initialize.FAST_CODE_BYTES_MIN", 0)
    throws = "(block $h (result i32) (try_table (catch $e $h) (throw $e (i32.const {})))"
    made, report = take(
        f"""(module (tag $e (param i32)) (table i64 3 funcref) (elem (i64.const 1) $again)
        (global $g (export "g") (mut i32) (i32.const 0))
        (func $again (param i32) (if (local.get 0)
          (then (return_call $again (i32.sub (local.get 0) (i32.const 1))))))
        (func (export "wizer.initialize") (call $again (i32.const 100000))
          {throws.format(42)} (i32.const 1)) (global.set $g))
        (func (export "f") (result i32) {throws.format(7)} (i32.const 1))))""",
        fast=True,
    )
    assert report.tier == "optimised"
    assert "exceptions" in report.fast_refused
    seen = look(made)
    assert (seen.state()["g"], seen.call("f")) == ("42", 7)
    _, report = take(COUNTER, fast=True)
    assert (report.tier, report.fast_refused) == ("fast", "")


def test_nothing_but_data_is_lost_where_there_was_none() -> None:
    made, report = take(
        """(module (memory (export "memory") 1 3) (func (export "wizer.initialize")
        (i32.store (i32.const 1000) (i32.const 1))) (func (export "f")))"""
    )
    assert report.data_segments == 1
    assert look(made).state()["memory"][1000] == 1


def test_the_same_module_gives_the_same_snapshot() -> None:
    source = """(module
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "clock_time_get"
        (func $clock (param i32 i64 i32) (result i32)))
      (import "wasi_snapshot_preview1" "poll_oneoff"
        (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "wizer.initialize")
        (drop (call $random (i32.const 0) (i32.const 100)))
        (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 104)))
        (i64.store (i32.const 256) (i64.const 1)) (i32.store8 (i32.const 264) (i32.const 0))
        (i32.store (i32.const 272) (i32.const 1))
        (i64.store (i32.const 280) (i64.const 3600000000000))
        (drop (call $poll (i32.const 256) (i32.const 512) (i32.const 1) (i32.const 600)))
        (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 112)))))"""
    made, report = take(source)
    assert made == take(source)[0]
    assert report.random_bytes == 100
    assert report.clock_reads == 2
    memory = look(made).state()["memory"]
    before, after = (int.from_bytes(memory[at : at + 8], "little") for at in (104, 112))
    assert after - before == 3_600_000_000_000 + 1000  # slept for an hour, in no time
    random, _ = take(source.replace("3600000000000", "0"), InitPlan(deterministic=False))
    assert look(random).state()["memory"][:100] != memory[:100]


def test_a_sparse_memory_is_padded_until_it_can_be_mapped() -> None:
    source = """(module (memory (export "memory") 512) (func (export "wizer.initialize")
      (memory.fill (i32.const 0) (i32.const 1) (i32.const 1000000))
      (memory.fill (i32.const 2000000) (i32.const 1) (i32.const 6000000))
      (i32.store8 (i32.const 20000000) (i32.const 2))))"""
    made, report = take(source)
    assert report.form == "padded"
    (memory,) = report.memories
    assert memory.mapped
    assert 2 * memory.captured_bytes > 20_000_001
    assert memory.padding_bytes == memory.captured_bytes - 7_000_001
    state = look(made).state()["memory"]
    assert state[20_000_000] == 2
    assert not any(state[1_000_000:2_000_000])
    for limits in (
        SnapshotLimits(padding_ratio=0),
        SnapshotLimits(snapshot_bytes=9_000_000),  # which the padded one would have
    ):
        _, report = take(source, InitPlan(), Policy(), limits=limits)
        assert report.form == "sparse"
        assert not report.memories[0].mapped


@pytest.mark.parametrize(("filled", "form"), [(1_000_000, "sparse"), (1_500_000, "padded")])
def test_what_is_padded_is_in_proportion_to_what_is_copied(filled: int, form: str) -> None:
    """The two, and zeros in between up to half of the 40 MB, or none."""
    source = f"""(module (memory (export "memory") 1024) (func (export "wizer.initialize")
      (memory.fill (i32.const 0) (i32.const 1) (i32.const {filled // 2}))
      (memory.fill (i32.const 20000000) (i32.const 1) (i32.const {filled // 2}))
      (i32.store8 (i32.const 40000000) (i32.const 2))))"""
    assert take(source)[1].form == form


def test_a_snapshot_of_a_snapshot_is_no_other() -> None:
    once, _ = take(COUNTER, InitPlan(keep_init_export=True))
    twice, _ = take(once, InitPlan(init="wizer.initialize", keep_init_export=True))
    assert len(look(twice).state()["memory"]) == 3 * 65536
    with pytest.raises(CannotSnapshot, match="exports none of"):
        take(take(COUNTER)[0])


OPEN_TO_CHOICE = """(module (memory (export "memory") 1) (global $zero (mut f64) (f64.const 0))
  (global $single (export "single") (mut f32) (f32.const 0))
  (func (export "wizer.initialize")
    (global.set $single (f32.div (f32.demote_f64 (global.get $zero)) (f32.const 0)))
    (f64.store (i32.const 0) (f64.div (global.get $zero) (global.get $zero)))
    (f64.store (i32.const 8) (f64.sqrt (f64.sub (global.get $zero) (f64.const 1))))
    (v128.store (i32.const 16) (f64x2.div (v128.load (i32.const 64)) (v128.load (i32.const 64))))
    (v128.store (i32.const 32) (f32x4.relaxed_madd (v128.const f32x4 1.1 1.3 1.7 0.1)
      (v128.const f32x4 1.1 1.3 1.7 0.3) (v128.const f32x4 -1.21 -1.69 -2.89 -0.03)))
    (v128.store (i32.const 48)
      (i32x4.relaxed_trunc_f32x4_s (v128.const f32x4 1e20 -1e20 nan 1)))))"""


def test_what_webassembly_leaves_open_is_the_same_on_every_architecture() -> None:
    native, _ = take(OPEN_TO_CHOICE)
    portable, _ = take(OPEN_TO_CHOICE, target="pulley64")
    assert native == portable
    memory = look(native).state()["memory"]
    assert memory[:32] == bytes.fromhex("000000000000f87f") * 4, "canonical and positive"


def test_what_is_looked_at_beforehand_takes_nothing_of_the_guests_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a million table elements that is seconds."""

    def slowly(guest: Guest) -> State:
        time.sleep(0.3)
        return observe(guest)

    monkeypatch.setattr(pipeline, "observe", slowly)
    _, report = take(COUNTER, policy=Policy(timeout_ms=250))
    assert report.phases.instantiate_s >= 0.3 > report.init_cpu_s
