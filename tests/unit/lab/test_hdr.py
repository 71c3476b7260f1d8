"""The oracle of the formats is PyPI's hdrhistogram, which reads what ours wrote."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edged.lab.load.hdr import (
    DIGITS,
    HALF,
    VALUE_MAX,
    Histogram,
    Interval,
    highest_of,
    log,
    slot_of,
    zigzag,
)

Values = st.lists(st.integers(0, VALUE_MAX) | st.integers(0, 5000), max_size=40)


@given(st.integers(0, VALUE_MAX))
@example(0)
@example(2 * HALF - 1)
@example(2 * HALF)
def test_a_value_is_in_the_slot_that_is_told_to_hold_it(value: int) -> None:
    slot = slot_of(value)
    assert value <= highest_of(slot) <= value * (1 + 10**-DIGITS)
    assert slot_of(highest_of(slot)) == slot
    assert slot_of(highest_of(slot) + 1) == slot + 1


@given(Values, st.floats(0, 1))
def test_a_quantile_is_that_of_the_sorted_values_within_a_thousandth(
    values: list[int], share: float
) -> None:
    found = Histogram(values).quantile(share)
    if not values:
        assert found == 0
        return
    exact = next(
        value
        for at, value in enumerate(sorted(values), 1)
        if at / len(values) >= share - 1e-9 or at == len(values)
    )
    assert exact <= found <= exact * 1.001


@given(Values, Values)
def test_merged_is_as_counted_together(one: list[int], other: list[int]) -> None:
    merged = Histogram(one)
    merged.merge(Histogram(other))
    together = Histogram([*one, *other])
    assert list(merged.slots()) == list(together.slots())
    assert (merged.count, merged.max, merged.mean) == (
        together.count,
        together.max,
        together.mean,
    )


def test_what_is_out_of_range_counts_at_the_ends() -> None:
    histogram = Histogram([-5, 2**60])
    assert histogram.quantile(0.5) == 0
    assert histogram.max == VALUE_MAX


def test_counts_are_written_with_the_sign_last_and_at_most_nine_bytes() -> None:
    assert [zigzag(n) for n in (0, -1, 1, 63, 64)] == [b"\0", b"\1", b"\2", b"\x7e", b"\x80\x01"]
    assert len(zigzag(2**62)) == 9


@given(Values)
def test_the_library_decodes_what_we_encode(values: list[int]) -> None:
    hdrh = pytest.importorskip("hdrh.histogram")
    ours = Histogram(values)
    theirs = hdrh.HdrHistogram.decode(ours.encode())
    assert theirs.get_total_count() == len(values)
    for value in values:
        assert theirs.get_count_at_value(value) == sum(slot_of(v) == slot_of(value) for v in values)


def test_the_library_reads_our_log(tmp_path: Path) -> None:
    logs = pytest.importorskip("hdrh.log")
    hdrh = pytest.importorskip("hdrh.histogram")
    path = tmp_path / "latency.hlog"
    parts = [
        Interval("", 0.0, 1.0, Histogram([1000, 2000])),
        Interval("eu-west, 1", 1.0, 0.5, Histogram([3000])),
    ]
    path.write_text(log(parts, started_at_ms=1_700_000_000_250, about="two\nlines"))
    reference = hdrh.HdrHistogram(1, VALUE_MAX, 3)
    reader = logs.HistogramLogReader(str(path), reference)
    first = reader.get_next_interval_histogram()
    assert (first.get_total_count(), first.get_max_value()) == (2, 2000)
    assert first.get_start_time_stamp() == 1_700_000_000_250
    second = reader.get_next_interval_histogram()
    assert second.get_tag() == "eu-west__1"
    assert second.get_value_at_percentile(50) == pytest.approx(3000, rel=0.001)
    assert reader.get_next_interval_histogram() is None
