"""Shares of the time that a request waited while its function's code was made ready."""

from __future__ import annotations

import pytest

from edged.functions import waited_for
from edged.interfaces import Phases

WHOLE = Phases(fetch_s=1.0, compile_s=2.0, load_s=0.5)


@pytest.mark.parametrize(
    ("waited_s", "expected"),
    [
        (10.0, WHOLE),
        (3.0, Phases(fetch_s=0.5, compile_s=2.0, load_s=0.5)),
        (1.0, Phases(compile_s=0.5, load_s=0.5)),
        (0.25, Phases(load_s=0.25)),
        (0.0, Phases()),
    ],
)
def test_a_late_request_waited_for_the_end_only(waited_s: float, expected: Phases) -> None:
    assert waited_for(WHOLE, waited_s) == expected


def test_phases_that_did_not_happen_stay_out() -> None:
    assert waited_for(Phases(load_s=0.5), 3.0) == Phases(load_s=0.5)
