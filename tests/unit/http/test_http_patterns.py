"""No input makes a pattern of the adapter take more than linear time.

Nothing is timed: at this size a pattern that backtracks quadratically would run for minutes.
"""

from __future__ import annotations

import re

import pytest

from edged.http import chunked, connection, head, response

SIZE = 128 * 1024

PATTERNS = [
    pytest.param(value, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module in (chunked, connection, head, response)
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
]

UNITS = [
    b"a", b"1", b" ", b":", b";a", b";a=", b';a="', b';a="b"', b"://", b"a:", b"a: b\r\n", b"a\r\n",
    b"\r", b"\r\n", b"[:", b".", b" HTTP/", b"\xff",
]  # fmt: skip
STARTS = [b"", b"1;", b'1;a="', b"a:", b"GET /", b"[", b"http://"]
ENDS = [b"", b"\x00", b" HTTP/2", b'"']


def test_all_patterns_are_here() -> None:
    assert len(PATTERNS) >= 10


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_linear_in_hostile_input(pattern: re.Pattern[bytes]) -> None:
    for unit in UNITS:
        repeated = unit * (SIZE // len(unit))
        for start in STARTS:
            for end in ENDS:
                pattern.match(start + repeated + end)


@pytest.mark.parametrize("unit", UNITS)
def test_explaining_a_bad_request_line_is_linear(unit: bytes) -> None:
    repeated = unit * (SIZE // len(unit))
    for end in ENDS:
        assert str(head._bad_request_line(b"GET / HTTP/" + repeated + end))
        assert str(head._bad_header(repeated + end))
