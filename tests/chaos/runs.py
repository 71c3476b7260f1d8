"""Scenarios run as an operator runs them: the command, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from edged.lab.history import Verdict

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "configs" / "chaos"
RUN_TIMEOUT_S = 240
EXITS = {"valid": 0, "invalid": 1, "unknown": 2}


def run_scenario(scenario: Path, directory: Path, *, source: Path = ROOT) -> Verdict:
    """On a cluster of its own below `directory`, by the edged in `source`; pytest shows its output
    where a test fails."""
    out = directory / "run"
    environ = {
        **os.environ,
        "EDGED_STATE": str(directory / "state"),
        "PYTHONPATH": str(source),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edged", "chaos", "run", str(scenario), "--out", str(out)],
        env=environ,
        cwd=directory,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    verdict = msgspec.json.decode((out / "verdict.json").read_bytes(), type=Verdict)
    assert done.returncode == EXITS[verdict.verdict]
    return verdict


def found(verdict: Verdict) -> list[str]:
    """Names of invariants that did not hold."""
    return [row.invariant for row in verdict.judged if row.findings]


def told(verdict: Verdict) -> str:
    """For a failing test."""
    lines = [f"{row.t_s:.2f} s {row.invariant} {row.detail}" for row in verdict.findings]
    return "\n".join([verdict.why, *lines, *verdict.unproven])
