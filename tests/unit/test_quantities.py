"""What people write is read, what is shown can be read, and nothing else gets through."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest
from edged.quantities import EXAMPLES, VALUE_MAX, parse_quantity, show_quantity

READ = [
    ("1mbit", "bytes/s", 125e3),
    ("20 mbit/s", "bytes/s", 2.5e6),
    ("1.5 Gbit/s", "bytes/s", 187.5e6),
    ("5 MB", "bytes/s", 5e6),
    ("5 MB/s", "bytes/s", 5e6),
    ("1KiB/s", "bytes/s", 1024.0),
    ("3 s", "s", 3.0),
    ("250 ms", "s", 0.25),
    ("7µs", "s", 7e-6),
    ("5min", "s", 300.0),
    ("0.5", "s", 0.5),
    ("10/s", "1/s", 10.0),
    ("3/min", "1/s", 0.05),
    ("1e3", "1/s", 1000.0),
    ("4", "", 4.0),
    (" .5 s/GiB ", "s/GiB", 0.5),
]
REFUSED = [
    ("1", "bytes/s"),
    ("1mb", "bytes/s"),
    ("1 mbit/h", "bytes/s"),
    ("mbit", "bytes/s"),
    ("-1mbit", "bytes/s"),
    ("nan", "s"),
    ("inf", "s"),
    ("1e99 s", "s"),
    ("1_000", "s"),
    ("٣ s", "s"),
    ("", "s"),
    ("3 parsecs", "s"),
    ("10/", "1/s"),
    ("10 s", "1/s"),
    ("1.5", ""),
    ("4 of them", ""),
    ("9" * 33, "s"),
    ("9" * 32, "s"),
]


@pytest.mark.parametrize(("text", "unit", "value"), READ)
def test_what_people_write(text: str, unit: str, value: float) -> None:
    assert parse_quantity(text, unit) == pytest.approx(value)


@pytest.mark.parametrize(("text", "unit"), REFUSED)
def test_what_could_mean_anything_is_refused(text: str, unit: str) -> None:
    with pytest.raises(BadRequest, match=r"write|large") as refused:
        parse_quantity(text, unit)
    assert len(str(refused.value)) < 100


@given(st.text(max_size=40), st.sampled_from(list(EXAMPLES)))
def test_whatever_comes_is_a_number_or_refused(text: str, unit: str) -> None:
    with contextlib.suppress(BadRequest):
        assert 0 <= parse_quantity(text, unit) <= VALUE_MAX


@given(st.floats(1e-6, 1e9), st.sampled_from(["s", "bytes/s", "1/s", "s/GiB"]), st.booleans())
def test_what_is_shown_can_be_written(value: float, unit: str, bits: bool) -> None:
    shown = show_quantity(value, unit, bits=bits)
    read = parse_quantity(shown, unit)
    assert read == pytest.approx(value, rel=0.01, abs=1e-6 if unit != "1/s" else 1e-5)


@pytest.mark.parametrize(
    ("value", "unit", "bits", "shown"),
    [
        (125e3, "bytes/s", True, "1 mbit/s"),
        (187.5e6, "bytes/s", True, "1.5 gbit/s"),
        (1.234e6, "bytes/s", False, "1.23 MB/s"),
        (0.25, "s", False, "250 ms"),
        (0.9999, "s", False, "1 s"),
        (0.0, "s", False, "0 s"),
        (900.0, "s", False, "15 min"),
        (0.05, "1/s", False, "3/min"),
        (12345.0, "1/s", False, "12345/s"),
        (math.inf, "bytes/s", True, "unbounded"),
        (3.0, "", False, "3"),
        (0.5, "s/GiB", False, "0.5 s/GiB"),
    ],
)
def test_three_digits_that_count(value: float, unit: str, bits: bool, shown: str) -> None:
    assert show_quantity(value, unit, bits=bits) == shown
