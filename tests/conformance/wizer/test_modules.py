"""The same modules through Wizer and through a plain run, one feature each.

`same/` must give equal state and behaviour; `refused/` are those Wizer has no snapshot for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from . import real
from .cases import Case, cases
from .running import observe

LONG = {"far_growth"}
"""Wizer looks at all of 4 GiB."""


def marked(directory: str) -> list[object]:
    return [
        pytest.param(case, id=name, marks=[pytest.mark.long] * (name in LONG))
        for name, case in cases(directory).items()
    ]


@pytest.mark.parametrize("case", marked("same"))
def test_a_snapshot_goes_on_where_the_initialiser_ended(case: Case, wizer: Path) -> None:
    theirs = real.snapshot(wizer, case.wasm, initialiser=case.initialiser)
    truth = observe(case.wasm, list(case.calls), before=case.before, whole=case.whole)
    assert observe(theirs, list(case.calls), whole=case.whole) == truth


@pytest.mark.parametrize("case", marked("refused"))
def test_what_wizer_refuses(case: Case, wizer: Path) -> None:
    with pytest.raises(real.Refused) as refused:
        real.snapshot(wizer, case.wasm, initialiser=case.initialiser)
    assert case.wizer in str(refused.value)
