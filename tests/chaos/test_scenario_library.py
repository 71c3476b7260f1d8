"""Scenarios of configs/chaos on real processes: short ones, as they run beside other tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import LIBRARY, run_scenario, told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["split-brain", "origin-dies"])
def test_a_scenario_is_valid(name: str, tmp_path: Path) -> None:
    verdict = run_scenario(LIBRARY / f"{name}.toml", tmp_path)
    assert verdict.verdict == "valid", told(verdict)
    assert verdict.requests > 100
