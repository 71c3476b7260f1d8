"""Modules made to be a burden: initialisers that never end or take all they can get, state that is
awkward to write down, and what the processor decides. Each is bounded, and refused by name.
"""

from __future__ import annotations

import itertools

import pytest
from snapshot_support import look, take

from edged.errors import CannotSnapshot, EdgedError, InitTimeout, InitTrapped
from edged.interfaces import InitPlan, SnapshotLimits
from edged.snapshot import segments
from edged.snapshot.binary import ITEMS_MAX
from edged.snapshot.examine import examine
from protocol.function import Policy

MEBIBYTE = 1024 * 1024
POLICY = Policy(timeout_ms=300, memory_bytes=32 * MEBIBYTE, stdout_bytes=1000, stderr_bytes=1000)
IMPORTS = """
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
"""
SPAWN = '(import "wasi" "thread-spawn" (func $spawn (param i32) (result i32)))'


def initialising(body: str, *, imports: bool = False) -> str:
    imported = IMPORTS * imports + SPAWN * ("$spawn" in body)
    return f"""(module {imported} (memory (export "memory") 1)
      (global $n (export "n") (mut i32) (i32.const 0))
      (func (export "wizer.initialize") (local $at i32) {body}))"""


HOUR = (
    "(i64.store (i32.const 24) (i64.const 3600000000000)) (i32.store (i32.const 16) (i32.const 1))"
)
SLEEP = "(drop (call $poll (i32.const 0) (i32.const 1000) (i32.const 1) (i32.const 2000)))"


RANDOM = "(drop (call $random (i32.const 0) (i32.const 60000)))"
FLOOD = """(i32.store (i32.const 4) (i32.const 60000))
  (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"""


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ("(loop (drop (call $yield)) (br 0))", InitTimeout, "out of its time"),
        (f"{HOUR} (loop {SLEEP} (br 0))", InitTimeout, "out of its time"),
        (
            "(loop (drop (call $random (i32.const 0) (i32.const 60000))) (br 0))",
            InitTimeout,
            "of its",
        ),
        ("(drop (call $spawn (i32.const 0)))", CannotSnapshot, "wasi.thread-spawn"),
        (FLOOD, InitTrapped, "more output"),
        ("(i32.store (i32.const -4) (i32.const 0))", InitTrapped, "out of bounds"),
    ],
)
def test_initialisers_that_take_too_much(body: str, error: type[EdgedError], text: str) -> None:
    with pytest.raises(error, match=text):
        take(initialising(body, imports=True), InitPlan(), POLICY)


def test_who_is_late_is_told_by_a_name_of_the_modules() -> None:
    source = """(module (func $f (loop (br 0))) (start $f) (func (export "wizer.initialize")))"""
    with pytest.raises(InitTimeout, match=r"^the start function: ran out of its time"):
        take(source, InitPlan(), POLICY)


def test_an_hour_of_sleep_takes_no_time_and_stdin_is_empty() -> None:
    read = "(i32.store (i32.const 4) (i32.const 100)) (drop (call $read (i32.const 0)"
    read += " (i32.const 0) (i32.const 1) (i32.const 8)))"
    body = f"{HOUR} {SLEEP} {read} (global.set $n (i32.load (i32.const 8)))"
    made, _ = take(initialising(body, imports=True), InitPlan(), POLICY)
    assert look(made).state()["n"] == "0"


def test_memory_stops_growing_where_the_policy_says() -> None:
    body = "(loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))"
    made, report = take(initialising(body), InitPlan(), POLICY)
    assert report.memories[0].bytes_after == POLICY.memory_bytes
    assert len(made) < 200
    body += " (memory.fill (i32.const 0) (i32.const 7) (i32.const 33554432))"
    with pytest.raises(CannotSnapshot, match="snapshot: has 33554") as refused:
        take(initialising(body), InitPlan(), POLICY, limits=SnapshotLimits(snapshot_bytes=MEBIBYTE))
    assert refused.value.reason == "too-large"


def test_a_memory_of_more_islands_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SPANS_MAX", 1000)
    memory = bytearray(130 * 3000)
    memory[::130] = b"\1" * 3000
    assert len(segments.find_spans(memoryview(memory))) == 1, "gaps of 129 zeros are data now"
    memory[200_000:203_000] = bytes(3000)
    memory[300_000:305_000] = bytes(5000)
    found = segments.find_spans(memoryview(memory))
    assert len(found) == 3
    assert all(memory[each.start] and memory[each.end - 1] for each in found)
    assert sum(memory[each.start : each.end].count(1) for each in found) == memory.count(1)


def test_more_items_than_are_looked_at() -> None:
    size = (1 << 21) - 1  # the longest of three bytes
    assert size > ITEMS_MAX
    count = (size - 3 & 0x7F | 0x80, (size - 3) >> 7 & 0x7F | 0x80, (size - 3) >> 14)
    functions = bytes((3, 0xFF, 0xFF, 0x7F, *count)) + bytes(size - 3)
    found = examine(b"\0asm\1\0\0\0" + functions)
    assert found.refusal is not None
    assert found.refusal.reason == "limits"


NANS = ("nan", "-nan", "nan:0x200001", "-nan:0x612345", "inf", "-inf", "-0.0", "1")
WIDE_NANS = (
    "nan",
    "-nan",
    "nan:0x4000000001234",
    "-nan:0xc000000004321",
    "inf",
    "-inf",
    "-0.0",
    "1",
)


def float_operations() -> str:
    """Stores of what every operation makes of every pair of these numbers."""
    lines: list[str] = []
    at = itertools.count(1024, 8)
    for kind, numbers, first in (("f32", NANS, 0), ("f64", WIDE_NANS, 512)):
        loads = []
        for index, number in enumerate(numbers):
            place = f"(i32.const {first + 8 * index})"
            lines.append(f"({kind}.store {place} ({kind}.const {number}))")
            loads.append(f"({kind}.load {place})")
        results = [
            f"({kind}.{name} {left} {right})"
            for name in ("add", "sub", "mul", "div", "min", "max", "copysign")
            for left in loads
            for right in loads
        ]
        results += [
            f"({kind}.{name} {load})"
            for name in ("sqrt", "ceil", "floor", "trunc", "nearest", "abs", "neg")
            for load in loads
        ]
        lines += [f"({kind}.store (i32.const {next(at)}) {each})" for each in results]
        other, convert = ("f64", "promote_f32") if kind == "f32" else ("f32", "demote_f64")
        lines += [
            f"({other}.store (i32.const {next(at)}) ({other}.{convert} {load}))" for load in loads
        ]
    return " ".join(lines)


def test_every_compiler_gives_the_same_bits_of_nan() -> None:
    body = float_operations() + " nop" * 30_000
    fast, report = take(initialising(body), fast=True)
    assert report.tier in ("fast", "optimised" if report.fast_refused else "fast")
    assert take(initialising(body))[0] == fast
    assert take(initialising(body), target="pulley64")[0] == fast
