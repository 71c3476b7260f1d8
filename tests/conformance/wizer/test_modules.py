"""The same modules through Wizer, through edged and through a plain run, one feature each.

`same/` must give equal state and behaviour; `refused/` are those Wizer has no snapshot for, of
which edged refuses most, with a reason, and gets the others right.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.errors import EdgedError
from edged.interfaces import InitPlan

from . import real
from .binary import with_much_code
from .cases import Case, cases
from .ours import Forge
from .running import observe
from .state import differences

LONG = {"far_growth", "stack_overflow"}
"""Wizer looks at all of 4 GiB, and finds a name for each of a hundred thousand frames."""


def marked(directory: str) -> list[object]:
    return [
        pytest.param(case, id=name, marks=[pytest.mark.long] * (name in LONG))
        for name, case in cases(directory).items()
    ]


@pytest.mark.parametrize("case", marked("same"))
def test_both_make_the_same_snapshot(case: Case, wizer: Path, forge: Forge) -> None:
    theirs = real.snapshot(wizer, case.wasm, initialiser=case.initialiser)
    plan = InitPlan(init=case.initialiser)
    ours, _report = forge.make(case.wasm, plan)
    assert differences(theirs, ours) == []
    fast, report = forge.make(with_much_code(case.wasm), plan)
    assert (report.tier == "fast") == (not report.fast_refused)
    assert differences(ours, fast, code=False) == []
    truth = observe(case.wasm, list(case.calls), before=case.before, whole=case.whole)
    assert observe(theirs, list(case.calls), whole=case.whole) == truth
    assert observe(ours, list(case.calls), whole=case.whole) == truth


@pytest.mark.parametrize("case", marked("refused"))
def test_what_wizer_refuses(case: Case, wizer: Path, forge: Forge) -> None:
    with pytest.raises(real.Refused) as refused:
        real.snapshot(wizer, case.wasm, initialiser=case.initialiser)
    assert case.wizer in str(refused.value)
    found = forge.outcome(case.wasm, InitPlan(init=case.initialiser))
    if case.edged == "ok":
        assert isinstance(found, bytes)
        truth = observe(case.wasm, list(case.calls), before=case.before)
        assert observe(found, list(case.calls)) == truth
    else:
        assert isinstance(found, EdgedError)
        assert case.edged in (getattr(found, "reason", ""), type(found).__name__)
        assert str(found)
