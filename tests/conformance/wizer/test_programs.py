"""Programs by compilers: what a C library and its program leave in memory, and go on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edged.interfaces import InitPlan

from . import real
from .binary import decode
from .ours import Forge
from .running import observe
from .state import differences, differing_places

INITIALISE = "wizer.initialize"
RESUMED = ("_start=wizer.resume",)
CLOCK_BYTES_MAX = 16
"""A time on the stack, and what became of it."""
PRINTED = b"initialised 36 words, constructed 994, errno 42, next "


def test_a_c_program_goes_on_where_it_was(
    wizer: Path, forge: Forge, guest: Callable[[str], Path]
) -> None:
    wasm = guest("wizer-state").read_bytes()
    theirs = real.snapshot(wizer, wasm, initialiser=INITIALISE, renamed=RESUMED)
    ours, report = forge.make(wasm, InitPlan(files=False))
    assert report.called == (INITIALISE,)
    assert {each.name for each in decode(ours).exports} == {"memory", "_start"}
    assert differences(theirs, ours) == []
    truth = observe(wasm, [("wizer.resume", ())], before=[(INITIALISE, ())])
    assert truth.stdout.startswith(PRINTED)
    assert truth.calls == ("wizer.resume: exit 37",)
    for made in (theirs, ours):
        seen = observe(made, [("_start", ())])
        assert seen.calls == ("_start: exit 37",)
        assert (seen.stdout, seen.state) == (truth.stdout, truth.state)
    assert observe(wasm, [("_start", ())]).stdout == truth.stdout, "as without any snapshot"


@pytest.mark.parametrize("kind", ["native", "pulley64"])
def test_a_c_program_on_every_kind_of_code(
    kind: str, forge: Forge, guest: Callable[[str], Path]
) -> None:
    wasm, plan = guest("wizer-state").read_bytes(), InitPlan(files=False)
    assert forge.make(wasm, plan, target=kind, fast=False)[0] == forge.make(wasm, plan)[0]


@pytest.mark.long
def test_an_interpreter_with_a_program_that_ran(
    wizer: Path, forge: Forge, guest: Callable[[str], Path]
) -> None:
    """Its whole run is the initialiser. It seeds Math.random with the time, which Wizer's is the
    machine's: nothing else differs."""
    wasm = guest("quickjs").read_bytes()
    theirs = real.snapshot(wizer, wasm, initialiser="_start")
    ours, report = forge.make(wasm, InitPlan(init="_start", files=False))
    assert report.clock_reads == 1
    places = differing_places(theirs, ours)
    assert 1 <= len(places) <= CLOCK_BYTES_MAX
    (told,) = differences(theirs, ours)
    assert told.startswith("memory 0")
