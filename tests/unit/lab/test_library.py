"""The scenarios of configs/chaos: whole, each with a lesson, a budget and something to prove."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.lab.chaos.invariants import INVARIANTS
from edged.lab.chaos.plan import plan
from edged.lab.chaos.scenario import load_scenario

ROOT = Path(__file__).resolve().parents[3]
LIBRARY = sorted((ROOT / "configs/chaos").glob("*.toml"))
TEACHES_MAX = 240


def test_there_are_enough() -> None:
    assert len(LIBRARY) >= 12
    assert len({load_scenario(path).about for path in LIBRARY}) == len(LIBRARY)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_a_scenario(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.about[0].isupper(), "a sentence"
    assert scenario.about.endswith(".")
    assert len(scenario.about) <= TEACHES_MAX, "that one reads"
    assert 10 <= scenario.for_s <= 40, "for a machine that has other things to do"
    assert scenario.load is not None
    assert scenario.load.duration_s <= scenario.for_s
    assert any(phase.errors_max is not None for phase in scenario.phases)
    assert set(scenario.bounds.skip) <= {each.name for each in INVARIANTS}
    for seed in (scenario.seed, 2, 3):
        timeline = plan(scenario, seed)
        faults = [row for row in timeline if row.action != "deploy"]
        assert faults, "something breaks"
        assert all(row.t_s + (row.duration_s or 0.0) <= scenario.for_s for row in faults)


def test_the_documentation_lists_them_and_the_invariants() -> None:
    text = (ROOT / "edged/docs/LABORATORY.md").read_text()
    for path in LIBRARY:
        assert f"| `{path.stem}` | {load_scenario(path).about} |" in text
    for invariant in INVARIANTS:
        assert f"| `{invariant.name}` |" in text
