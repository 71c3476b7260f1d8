from __future__ import annotations

from contextlib import suppress

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from edged.runtime.sections import Import, Malformed, summarize

EVERYTHING = wasmtime.wat2wasm("""(module
  (type $t (func (param i32 i64 f32 f64 v128 externref) (result i64 funcref)))
  (import "a" "f" (func (type $t)))
  (import "a" "t" (table 1 2 externref))
  (import "a" "m" (memory 1))
  (import "a" "g" (global (mut f64)))
  (import "b" "tag" (tag (param i32)))
  (memory 2 9) (memory i64 3)
  (table 7 funcref)
  (table 9 20 externref)
  (func (export "one")) (global (export "snö") i32 (i32.const 1))
  (data "abc"))""")


def test_everything():
    summary = summarize(bytes(EVERYTHING))
    assert summary.imports == [
        Import("a", "f", "func", 0),
        Import("a", "t", "table", 0),
        Import("a", "m", "memory", 0),
        Import("a", "g", "global", 0),
        Import("b", "tag", "tag", 0),
    ]
    assert summary.types[0] == (
        ("i32", "i64", "f32", "f64", "v128", "ref"),
        ("i64", "ref"),
    )
    assert [export.name for export in summary.exports] == ["one", "snö"]
    assert (summary.memories, summary.memory_bytes_min) == (2, 5 * 65536)
    assert (summary.tables, summary.table_elements_min) == (2, 16)


def test_an_empty_module():
    assert summarize(bytes(wasmtime.wat2wasm("(module)"))).imports == []


@given(st.integers(0, len(EVERYTHING)))
def test_truncation(length):
    with suppress(Malformed):
        summarize(bytes(EVERYTHING[:length]))


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data):
    with suppress(Malformed):
        summarize(b"\0asm\1\0\0\0" + data)


def test_a_count_of_four_billion_costs_nothing():
    bomb = b"\0asm\1\0\0\0" + bytes([2, 5]) + b"\xff\xff\xff\xff\x0f"
    with pytest.raises(Malformed):
        summarize(bomb)
