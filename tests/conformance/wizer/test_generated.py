"""Generated modules: what goes on from a snapshot goes on as from the initialiser itself.

Of each module: edged's snapshot and Wizer's hold the same state; both behave as the module does
after a plain run of its initialiser; a second run gives the same bytes, and so does another kind of
code (Pulley's); a snapshot of the snapshot has the same state. What Wizer refuses, edged refuses
with a reason that holds, or gets right.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from edged.errors import CannotSnapshot, EdgedError, InitTrapped
from edged.interfaces import InitCall, InitPlan

from . import real
from .ours import Forge
from .programs import Program, programs
from .running import Failed, Observation, observe
from .state import differences

EXAMPLES = 12
LONG_EXAMPLES = 1500


def plain_run(program: Program, wasm: bytes) -> Observation | None:
    """None: the initialiser traps."""
    try:
        return observe(wasm, list(program.calls), before=program.before)
    except Failed:
        return None


def made_by_wizer(program: Program, wasm: bytes, wizer: Path) -> bytes | None:
    try:
        return real.snapshot(wizer, wasm, initialiser=program.initialiser)
    except real.Refused:
        return None


def check(program: Program, wizer: Path, forge: Forge) -> None:
    wasm, plan = program.wasm, InitPlan(init=program.initialiser)
    truth, theirs = plain_run(program, wasm), made_by_wizer(program, wasm, wizer)
    ours = forge.outcome(wasm, plan)
    if isinstance(ours, EdgedError):
        assert theirs is None, ours
        assert isinstance(ours, InitTrapped) == (truth is None), ours
        assert not isinstance(ours, CannotSnapshot) or ours.reason in (
            "table-mutated", "table-grown", "reference-global",
        )  # fmt: skip
        return
    assert observe(ours, list(program.calls)) == truth
    if theirs is not None:
        assert differences(theirs, ours) == []
    assert forge.outcome(wasm, plan, target="pulley64") == ours
    again = forge.outcome(ours, InitPlan(calls=(InitCall("probe"),)))
    assert isinstance(again, bytes)
    assert differences(ours, again) == []


@settings(max_examples=EXAMPLES)
@given(program=programs())
def test_some(program: Program, wizer: Path, forge: Forge) -> None:
    check(program, wizer, forge)


@settings(max_examples=EXAMPLES)
@given(program=programs(references=True))
def test_some_that_change_tables_and_drop_segments(
    program: Program, wizer: Path, forge: Forge
) -> None:
    check(program, wizer, forge)


@pytest.mark.long
@settings(max_examples=LONG_EXAMPLES)
@given(program=programs())
def test_many(program: Program, wizer: Path, forge: Forge) -> None:
    check(program, wizer, forge)


@pytest.mark.long
@settings(max_examples=LONG_EXAMPLES)
@given(program=programs(references=True))
def test_many_that_change_tables_and_drop_segments(
    program: Program, wizer: Path, forge: Forge
) -> None:
    check(program, wizer, forge)
