"""The judge is judged: builds of edged with a bug planted on purpose are found invalid, each by the
invariant that is there for it. planted/*.patch are laid over a copy of the source."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from runs import LIBRARY, ROOT, found, run_scenario, told

from edged.lab.chaos.scenario import load_scenario

PLANTED = Path(__file__).parent / "planted"


class Bug(NamedTuple):
    patch: str
    scenario: str
    changes: tuple[tuple[str, str], ...]
    """Of the scenario's text."""
    invariant: str


SIGNED = ('accept = "quorum=2"', 'accept = "signed"')
UNSIGNED = (SIGNED, ('code_of = "1"', 'code_of = "1"\nsigned = false'), ("ap = 1.0", "us = 1.0"))
"""A word that does not hold, where one would be enough, and clients who ask whoever gave it."""
BUGS = [
    Bug("acknowledge-early", "origin-dies", (), "acknowledged-survive"),
    Bug("accept-unsigned", "poisoned-builder", UNSIGNED, "code-allowed"),
    Bug("serve-stale", "origin-dies", (), "no-older-version"),
]


def patched(patch: str, source: Path) -> None:
    """A copy of the program with the bug in it."""
    for package in ("edged", "protocol"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignore)
    done = subprocess.run(
        ["git", "apply", "--unsafe-paths", "-p1", str(PLANTED / f"{patch}.patch")],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}: make it anew for what the file says now"


def scenario_of(bug: Bug, directory: Path) -> Path:
    text = (LIBRARY / f"{bug.scenario}.toml").read_text()
    for old, new in bug.changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    text = text.replace('"../topologies/', f'"{LIBRARY.parent / "topologies"}/')
    path = directory / f"{bug.scenario}.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.patch)
def test_a_bug_can_be_planted(bug: Bug, tmp_path: Path) -> None:
    patched(bug.patch, tmp_path)
    changed = [
        path.relative_to(tmp_path)
        for path in tmp_path.rglob("*.py")
        if path.read_bytes() != (ROOT / path.relative_to(tmp_path)).read_bytes()
    ]
    assert len(changed) == 1
    compile((tmp_path / changed[0]).read_text(), str(changed[0]), "exec")
    load_scenario(scenario_of(bug, tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.patch)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    source = tmp_path / "source"
    patched(bug.patch, source)
    verdict = run_scenario(scenario_of(bug, tmp_path), tmp_path, source=source)
    assert verdict.verdict == "invalid", told(verdict)
    assert bug.invariant in found(verdict), told(verdict)


@pytest.mark.long
def test_without_the_bug_an_unsigned_word_is_worth_nothing(tmp_path: Path) -> None:
    bug = next(each for each in BUGS if each.patch == "accept-unsigned")
    verdict = run_scenario(scenario_of(bug, tmp_path), tmp_path)
    assert verdict.verdict == "valid", told(verdict)


@pytest.mark.long
def test_where_one_word_is_enough_a_poisoned_builder_is_found(tmp_path: Path) -> None:
    """No bug of edged's: what "signed" means, and what a quorum is for."""
    bug = Bug("", "poisoned-builder", (SIGNED,), "answers-right")
    verdict = run_scenario(scenario_of(bug, tmp_path), tmp_path)
    assert verdict.verdict == "invalid", told(verdict)
    assert bug.invariant in found(verdict), told(verdict)
