from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest
from edged.runtime.values import pack_params, unpack_results


def through(kind: str, text: str) -> int | float:
    return unpack_results((kind,), bytes(pack_params((kind,), (text,), 1)))[0]


@given(st.integers(-(2**31), 2**32 - 1))
def test_i32_takes_both_ranges(value):
    assert through("i32", str(value)) % 2**32 == value % 2**32


@given(st.integers(-(2**63), 2**64 - 1))
def test_i64_takes_both_ranges(value):
    assert through("i64", str(value)) % 2**64 == value % 2**64


@given(st.floats(allow_nan=False))
def test_f64_round_trip(value):
    assert through("f64", repr(value)) == value


@given(st.floats(width=32, allow_nan=False))
def test_f32_round_trip(value):
    assert through("f32", repr(value)) == value


@pytest.mark.parametrize("text", ["nan", "NaN", "+nan"])
def test_nan(text):
    assert math.isnan(through("f32", text))
    assert math.isnan(through("f64", text))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("i32", ""), ("i32", " 1"), ("i32", "1_0"), ("i32", "0x10"), ("i32", "1.0"), ("i32", "١"),
        ("i32", "4294967296"), ("i32", "-2147483649"), ("i32", "9" * 5000), ("i32", "1\n"),
        ("i64", "18446744073709551616"), ("i64", "-9223372036854775809"),
        ("f64", ""), ("f64", "1e"), ("f64", "."), ("f64", "infinit"), ("f64", "1_0"),
        ("f64", "1\n"),
        ("f64", "9" * 5000), ("f32", "1e39"), ("f32", "-3.5e38"), ("other", "1"),
    ],
)  # fmt: skip
def test_refused_with_the_parameter_named(kind, text):
    with pytest.raises(BadRequest, match="parameter 2"):
        pack_params(("i32", kind), ("1", text), 1)


@given(st.text(max_size=30))
def test_any_text_is_a_number_or_a_bad_request(text):
    for kind in ("i32", "i64", "f32", "f64"):
        try:
            through(kind, text)
        except BadRequest as error:
            if "parameter 1" not in str(error):
                raise


def test_the_count_must_fit():
    with pytest.raises(BadRequest, match=r"takes 2 parameters \(i32, f64\), got 1"):
        pack_params(("i32", "f64"), ("1",), 0)


def test_there_is_room_for_the_results():
    assert len(pack_params((), (), 3)) == 48
    assert len(pack_params(("i32",) * 4, ("1",) * 4, 1)) == 64
    assert len(pack_params((), (), 0)) == 16


def test_results_in_order():
    raw = struct.pack("<i12xq8xf12xd8x", -1, -2, 0.5, 0.25)
    assert unpack_results(("i32", "i64", "f32", "f64"), raw) == (-1, -2, 0.5, 0.25)
