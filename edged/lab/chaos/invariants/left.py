"""When all is torn down, nothing of the run is left: no process, no file, no descriptor."""

from __future__ import annotations

from typing import Final

from edged.lab.history import Finding, History, Left

from .base import Invariant, named

NAME: Final = "nothing-left"


def check(history: History) -> list[Finding]:
    findings: list[Finding] = []
    for row in history.of(Left):
        told = {
            "processes": named(row.processes),
            "files": named(row.files),
            "descriptors of the runner": (
                f"{row.fds_after}, before it were {row.fds_before}"
                if row.fds_after > row.fds_before
                else ""
            ),
        }
        findings += [
            Finding(t_s=row.t_s, invariant=NAME, subject=subject, detail=f"left behind: {what}")
            for subject, what in told.items()
            if what
        ]
    return findings


LEFT: Final = Invariant(NAME, "nothing is left of a run", check)
