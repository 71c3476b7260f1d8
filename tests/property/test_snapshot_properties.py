"""Generated modules: what an instance of the snapshot is and does equals what an instance of the
module is and does after its initialisation. And bytes of any kind: only the typed error.

`pytest --long` runs thousands of modules."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import wasmtime
from hypothesis import example, given, settings
from hypothesis import strategies as st
from snapshot_support import engine, look, take, wat

from edged.errors import CannotSnapshot
from edged.snapshot.binary import Budget, Reader, Span, leb, signed, sleb
from edged.snapshot.errors import Malformed
from edged.snapshot.examine import examine
from edged.snapshot.instrument import Names, instrument
from edged.snapshot.parse import parse
from edged.snapshot.segments import GAP_BYTES_MIN, find_spans, is_mapped, lay_out

PAGE = 65536
NUMBERS = {"i32": 32, "i64": 64, "f32": 32, "f64": 64}


@dataclass(frozen=True)
class Memory:
    is_64: bool
    pages: int
    maximum: int | None

    @property
    def address(self) -> str:
        return "i64" if self.is_64 else "i32"


@st.composite
def modules(draw: st.DrawFn) -> str:
    """A module whose inner state is all exported, with an initialiser that changes it."""
    memories = draw(st.lists(st.builds(
        lambda wide, pages, more: Memory(wide, pages, None if more is None else pages + more),
        st.booleans(), st.integers(0, 2), st.none() | st.integers(0, 3)), max_size=3))  # fmt: skip
    kinds = draw(
        st.lists(st.tuples(st.sampled_from([*NUMBERS, "v128"]), st.booleans()), max_size=5)
    )
    segments = draw(st.lists(st.tuples(
        st.booleans(), st.integers(0, 2), st.integers(0, PAGE - 64), st.binary(max_size=40)),
        max_size=5)) if memories else []  # fmt: skip
    lines = []
    for index, memory in enumerate(memories):
        limits = f"{memory.pages} {'' if memory.maximum is None else memory.maximum}"
        wide = "i64" if memory.is_64 else ""
        lines.append(f'(memory (export "m{index}") {wide} {limits})')
    for index, (kind, mutable) in enumerate(kinds):
        value = "v128.const i64x2 7 9" if kind == "v128" else f"{kind}.const 3"
        typed = f"(mut {kind})" if mutable else kind
        shown = "" if kind == "v128" else f'(export "g{index}")'
        lines.append(f"(global {shown} {typed} ({value}))")
    for passive, number, offset, data in segments:
        index = number % len(memories)
        text = "".join(f"\\{byte:02x}" for byte in data)
        at = f"(memory {index}) ({memories[index].address}.const {offset})"
        fits = memories[index].pages or (not data and not offset)
        lines.append(f'(data {"" if passive or not fits else at} "{text}")')
    steps = functools.partial(_steps, draw, memories, kinds, segments)
    lines.append("(table 2 funcref) (elem (i32.const 1) $run)")
    for name in draw(st.sets(st.sampled_from(["_initialize", "start"]))):
        head = "(start $s) (func $s" if name == "start" else f'(func (export "{name}")'
        lines.append(f"{head} {steps(most=3)})")
    lines.append(f'(func (export "wizer.initialize") {steps(most=8)})')
    lines.append(f'(func $run (export "run") {steps(most=5)})')
    for index in range(len(segments)):
        size = len(segments[index][3])
        init = f"(memory.init {index} (i32.const 9) (i32.const 0) (i32.const {size}))"
        if memories and not memories[0].is_64:
            lines.append(f'(func (export "seg{index}") {init})')
    lines.append('(func (export "call") (call_indirect (i32.const 1)))')
    return "(module\n" + "\n".join(lines) + ")"


def _steps(
    draw: st.DrawFn, memories: list[Memory], kinds: list[tuple[str, bool]],
    segments: list[tuple[bool, int, int, bytes]], *, most: int,
) -> str:  # fmt: skip
    """Instructions that do not trap by themselves, each on something that is there."""
    steps = []
    mutable = [index for index, (_kind, can) in enumerate(kinds) if can]
    choices = (["store", "fill", "grow", "copy"] if memories else []) + (["set"] if mutable else [])
    choices += ["init", "drop"] if segments else []
    for choice in draw(st.lists(st.sampled_from(choices), max_size=most)) if choices else []:
        index = draw(st.integers(0, max(len(memories) - 1, 0)))
        at = memories[index].address if memories else ""
        guard = f"(if (i64.ne (i64.const 0) {_size(index, memories)})" if memories else ""
        if choice == "set":
            target = draw(st.sampled_from(mutable))
            steps.append(f"(global.set {target} {draw(_constants(kinds[target][0]))})")
        elif choice == "grow":
            steps.append(f"(drop (memory.grow {index} ({at}.const {draw(st.integers(0, 2))})))")
        elif choice == "store":
            where, what = draw(st.integers(0, PAGE - 8)), draw(_constants("i64"))
            steps.append(f"{guard} (then (i64.store {index} ({at}.const {where}) {what})))")
        elif choice == "fill":
            where, byte, count = (draw(st.integers(0, most)) for most in (PAGE // 2, 255, 5000))
            count_at = f"({at}.const {count})"
            steps.append(f"{guard} (then (memory.fill {index} ({at}.const {where})"
                         f" (i32.const {byte}) {count_at})))")  # fmt: skip
        elif choice == "copy":
            to, source, count = (draw(st.integers(0, PAGE // 2)) for _ in range(3))
            steps.append(f"{guard} (then (memory.copy {index} {index} ({at}.const {to})"
                         f" ({at}.const {source}) ({at}.const {count}))))")  # fmt: skip
        elif choice == "drop":
            steps.append(f"(data.drop {draw(st.integers(0, len(segments) - 1))})")
        else:
            segment = draw(st.integers(0, len(segments) - 1))
            steps.append(f"{guard} (then (memory.init {index} {segment} ({at}.const 99)"
                         " (i32.const 0) (i32.const 0))))")  # fmt: skip
    return "\n".join(steps)


def _size(index: int, memories: list[Memory]) -> str:
    size = f"(memory.size {index})"
    return size if memories[index].is_64 else f"(i64.extend_i32_u {size})"


def _constants(kind: str) -> st.SearchStrategy[str]:
    if kind == "v128":
        return st.integers(0, 2**64 - 1).map(lambda n: f"(v128.const i64x2 {n} {n ^ 0xFF})")
    bits = NUMBERS[kind]
    numbers = st.integers(0, 2**bits - 1) | st.sampled_from([0, 1, 2**bits - 1, 2 ** (bits - 1)])
    if kind.startswith("i"):
        return numbers.map(lambda n: f"({kind}.const {n})")
    return numbers.map(lambda n: f"({kind}.reinterpret_i{bits} (i{bits}.const {n}))")


def check(text: str, on: wasmtime.Engine, *, fast: bool) -> None:
    module = wat(text)
    made, report = take(module, fast=fast)
    assert made == take(module, fast=fast)[0]
    before, after = look(module, on), look(made, on)
    exports = set(parse(memoryview(module)).exports)
    if "_initialize" in exports:
        before.call("_initialize")
    before.call("wizer.initialize")
    assert set(parse(memoryview(made)).exports) == exports - {"_initialize", "wizer.initialize"}
    assert before.state() == after.state()
    assert sum(each.bytes_after for each in report.memories) == sum(
        len(value) for name, value in before.state().items() if name[0] == "m"
    )
    for name in sorted(exports - {"_initialize", "wizer.initialize"}):
        if name[0] not in "mg":
            assert before.call(name) == after.call(name), name
    assert before.state() == after.state()


@pytest.fixture(scope="module")
def on() -> Iterator[wasmtime.Engine]:
    """An engine to look with; meanwhile the fast compiler is worth it for the smallest modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edged.snapshot.initialize.FAST_CODE_BYTES_MIN", 0)
        yield engine()


@settings(max_examples=20)
@given(text=modules(), fast=st.booleans())
def test_snapshot_then_run_is_init_then_run(on: wasmtime.Engine, text: str, fast: bool) -> None:
    check(text, on, fast=fast)


@pytest.mark.long
@settings(max_examples=3000)
@given(text=modules(), fast=st.booleans())
def test_snapshot_then_run_is_init_then_run_for_thousands(
    on: wasmtime.Engine, text: str, fast: bool
) -> None:
    check(text, on, fast=fast)


# ---------------------------------------------------------------- hostile bytes
SEED = """(module
  (import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32)))
  (type (func (param i64 funcref) (result f32))) (tag)
  (memory (export "m") 1 2) (memory i64 0) (table 2 funcref) (table 1 externref)
  (global (mut i32) (i32.const 1)) (global f64 (f64.const 2)) (global funcref (ref.null func))
  (global v128 (v128.const i32x4 1 2 3 4)) (global i32 (i32.add (i32.const 1) (i32.const 2)))
  (func $s) (start $s) (elem (i32.const 0) $s) (elem func $s) (elem funcref (ref.func $s))
  (elem declare func $s) (elem (table 0) (i32.const 1) funcref (ref.null func))
  (data "passive") (data (i32.const 3) "active") (data (memory 1) (i64.const 0) "")
  (func (export "wizer.initialize") (data.drop 0)) (@custom "mine" "bytes"))"""


@functools.cache
def seed() -> bytes:
    return wat(SEED)


def survives(data: bytes) -> None:
    """The reader says what is wrong, or reads something that can be instrumented."""
    refusal = examine(data).refusal
    if refusal is not None and refusal.reason == "malformed":
        assert 0 <= int(refusal.thing.removeprefix("byte ")) <= len(data)
        return
    try:
        module = parse(memoryview(data))
        binary = b"".join(instrument(module, Names(module)))
    except CannotSnapshot as error:
        told = error.reason
    else:
        told = ""
        again = parse(memoryview(binary))
        assert again.function_types[: len(module.function_types)] == module.function_types
        assert again.exports.keys() > module.exports.keys() or not (
            module.memories or module.tables or module.globals or module.start is not None
        )
    assert told != "malformed"


def test_the_seed_is_sound() -> None:
    assert examine(seed()).refusal is None
    survives(seed())


@settings(max_examples=200)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\0asm")
@example(b"\0asm\x0d\0\x01\0")
def test_any_bytes(data: bytes) -> None:
    survives(data)
    survives(b"\0asm\x01\0\0\0" + data)


@settings(max_examples=150)
@given(st.data())
def test_damaged_modules(data: st.DataObject) -> None:
    damaged = bytearray(seed())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(8, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255) | st.sampled_from([0, 0x7F, 0x80, 0xFF]))
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    survives(bytes(damaged[:cut]))


# ---------------------------------------------------------------- numbers
def reader(data: bytes) -> Reader:
    return Reader(memoryview(data), 0, len(data), Budget())


@given(st.integers(0, 2**32 - 1), st.integers(-(2**63), 2**63 - 1))
def test_integers_round_trip(unsigned: int, number: int) -> None:
    assert reader(leb(unsigned)).u32() == unsigned
    assert reader(leb(unsigned << 32)).u64() == unsigned << 32
    assert reader(sleb(number)).signed(64) == number
    narrow = signed(number, 32)
    assert reader(sleb(narrow)).signed(32) == narrow
    assert (narrow - number) % 2**32 == 0


@pytest.mark.parametrize(
    "data", [b"\x80", b"\xff\xff\xff\xff\x1f", b"\x80\x80\x80\x80\x80\x00", b"\xff" * 10]
)
def test_unsigned_integers_that_are_none(data: bytes) -> None:
    with pytest.raises(Malformed):
        reader(data).u32()


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x40", b"\xff" * 5 + b"\x7f", b"\xff"]
)
def test_signed_integers_that_are_none(data: bytes) -> None:
    with pytest.raises(Malformed):
        reader(data).signed(32)


# ---------------------------------------------------------------- segments
@st.composite
def memories(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(st.tuples(st.integers(0, 200_000), st.binary(max_size=100)), max_size=12))
    return b"".join(bytes(gap) + data for gap, data in parts)


@given(memories(), st.sampled_from([0, 1, 200_000]))
def test_spans_hold_all_that_is_not_zero(memory: bytes, spans_max: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edged.snapshot.segments.SPANS_MAX", spans_max)
        spans = find_spans(memoryview(memory))
    rebuilt = bytearray(len(memory))
    for start, end in spans:
        assert memory[start]
        assert memory[end - 1]
        rebuilt[start:end] = memory[start:end]
    assert rebuilt == memory
    assert all(b.start - a.end >= GAP_BYTES_MIN for a, b in itertools.pairwise(spans))


@given(
    st.lists(st.tuples(st.integers(1, 2**24), st.integers(1, 2**24)), min_size=1, max_size=20),
    st.integers(1, 30),
)
def test_padding_maps_and_loses_nothing(steps: list[tuple[int, int]], segments_max: int) -> None:
    spans, at = [], 0
    for gap, size in steps:
        spans.append(Span(at + gap, at + gap + size))
        at += gap + size
    (layout,) = lay_out([spans], [16], segments_max=segments_max, padding_bytes_max=2**40)
    assert layout.mapped
    assert is_mapped(layout.spans)
    assert len(layout.spans) <= segments_max
    for span in spans:
        assert any(each.start <= span.start and span.end <= each.end for each in layout.spans)
    if len(spans) <= segments_max:
        assert layout.captured_bytes - layout.padding_bytes == sum(b - a for a, b in spans)
    (sparse,) = lay_out([spans], [8], segments_max=30, padding_bytes_max=2**40)
    assert (sparse.spans, sparse.padding_bytes, sparse.mapped) == (spans, 0, False)
