"""What compiling and fetching are expected to cost."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from edged.rates import COMPILE_FIXED_S, COMPILE_SAMPLE_BYTES, FETCH_SAMPLE_BYTES, Rates, code_bytes
from protocol.ids import digest_of

HEADER = b"\0asm\x01\0\0\0"


def section(number: int, body: bytes) -> bytes:
    size, out = len(body), bytearray([number])
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size]) + body


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (HEADER + section(1, bytes(300)) + section(10, bytes(70_000)) + section(11, b"d"), 70_000),
        (HEADER + section(0, b"\x04name") + section(10, b"\0"), 1),
        (HEADER + section(11, bytes(9)), 0),
        (HEADER, 0),
        (b"", 0),
        (HEADER + b"\x01\xff\xff\xff\xff\x7f", 0),
        (HEADER + section(0, b"") * 5_000 + section(10, bytes(5)), 0),
    ],
    ids=["after others", "at the end", "none", "empty", "no bytes", "cut", "too many sections"],
)
def test_code_is_what_a_compile_takes_time_for(
    module: bytes, expected: int, tmp_path: Path
) -> None:
    path = tmp_path / "m.wasm"
    path.write_bytes(module)
    assert code_bytes(path) == expected


def test_rates_follow_what_is_measured() -> None:
    rates = Rates(now=lambda: 0.0)
    before_s = rates.compile_s(1_000_000, "optimised")
    assert before_s > rates.compile_s(1_000_000, "fast") > COMPILE_FIXED_S
    rates.compiled(COMPILE_SAMPLE_BYTES - 1, "optimised", 100.0)
    rates.compiled(1_000_000, "optimised", 0.0)
    assert rates.compile_s(1_000_000, "optimised") == before_s
    for _ in range(50):
        rates.compiled(1_000_000, "optimised", 10.0)
    assert rates.compile_s(1_000_000, "optimised") == pytest.approx(10.0, rel=0.01)
    rates.fetched(FETCH_SAMPLE_BYTES - 1, 100.0)
    assert rates.fetch_s(12_500_000) == 1.0
    for _ in range(50):
        rates.fetched(1_000_000, 1.0)
    assert rates.fetch_s(1_000_000) == pytest.approx(1.0, rel=0.01)
    rates.too_slow(0, 5.0)
    assert rates.fetch_s(1_000) == 1_000.0


def test_a_compile_waits_for_what_came_before_it() -> None:
    now_s = 100.0
    first, second, third = digest_of(b"1"), digest_of(b"2"), digest_of(b"3")
    rates = Rates(now=lambda: now_s)
    assert rates.queue_s((first,)) == 0.0
    with ExitStack() as others, rates.job(first, 4.0):
        others.enter_context(rates.job(second, 3.0))
        assert rates.queue_s((third,)) == 7.0
        assert rates.queue_s((second, third)) == 4.0
        assert rates.queue_s((first, third)) == 0.0, "it runs"
        now_s = 103.0
        assert rates.queue_s((third,)) == 4.0
        now_s = 200.0
        assert rates.queue_s((third,)) == 0.0, "later than was expected"
        others.close()
        assert rates.queue_s((third,)) == 0.0, "what waited goes: the first is as late as before"
    assert rates.queue_s((third,)) == 0.0
    with ExitStack() as head:
        head.enter_context(rates.job(first, 4.0))
        with rates.job(second, 3.0):
            now_s = 206.0
            head.close()
            assert rates.queue_s((third,)) == 3.0, "it has just begun"


def test_compilers_that_are_idle_keep_nobody_waiting() -> None:
    rates = Rates(compiles_max=2, now=lambda: 0.0)
    with rates.job(digest_of(b"1"), 4.0):
        assert rates.queue_s(()) == 0.0
        with rates.job(digest_of(b"2"), 2.0):
            assert rates.queue_s(()) == 3.0
