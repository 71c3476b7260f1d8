"""Generated modules: what goes on from a snapshot goes on as from the initialiser itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from . import real
from .programs import Program, programs
from .running import Failed, Observation, observe

EXAMPLES = 25
LONG_EXAMPLES = 2000


def plain_run(program: Program) -> Observation | None:
    """None: the initialiser traps."""
    try:
        return observe(program.wasm, list(program.calls), before=program.before)
    except Failed:
        return None


def snapshot(program: Program, wizer: Path) -> bytes | None:
    try:
        return real.snapshot(wizer, program.wasm, initialiser=program.initialiser)
    except real.Refused:
        return None


def check(program: Program, wizer: Path) -> None:
    truth, theirs = plain_run(program), snapshot(program, wizer)
    assert (truth is None) == (theirs is None)
    assert theirs is None or observe(theirs, list(program.calls)) == truth


@settings(max_examples=EXAMPLES)
@given(program=programs())
def test_some(program: Program, wizer: Path) -> None:
    check(program, wizer)


@pytest.mark.long
@settings(max_examples=LONG_EXAMPLES)
@given(program=programs())
def test_thousands(program: Program, wizer: Path) -> None:
    check(program, wizer)
