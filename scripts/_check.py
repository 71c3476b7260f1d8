"""The steps of scripts/check: each runs even when one before it failed.

Ends with pytest's own closing line, which is what a CI reads. `--quick` leaves out simulations,
sockets, processes, whatever is marked slow, and building guests. Arguments after `--` go to pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from _env import ROOT

PYTEST_TIMEOUT_S = 900.0
COVERAGE_PERCENT_MIN = 95
QUICK = ["tests/tidy", "tests/unit", "tests/property", "tests/conformance"]
QUICK += ["--ignore", "tests/conformance/test_guests.py"]  # compiles them
CLOSING = re.compile(r"^=* ?.*\b(passed|failed|error|errors|no tests ran)\b.* in [\d.]+s.*$")


@dataclass
class Step:
    name: str
    ok: bool
    elapsed_s: float


def scripts() -> list[str]:
    """Python scripts without a suffix, which no tool finds by itself."""
    found = (ROOT / "scripts").rglob("*")
    return sorted(
        str(path.relative_to(ROOT))
        for path in found
        if path.is_file() and not path.suffix and path.read_bytes().startswith(b"#!/usr/bin/env py")
    )


def run_tool(command: list[str]) -> bool:
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        print(done.stdout.rstrip())
    return done.returncode == 0


def run_pytest(arguments: list[str], env: dict[str, str]) -> tuple[bool, str]:
    """Streams pytest's output but for its closing line, which is returned to be printed last."""
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    closing = ""

    def give_up(_signal: int, _frame: object) -> None:
        print(f"pytest: not done after {PYTEST_TIMEOUT_S:.0f} s, killed", flush=True)
        os.killpg(process.pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PYTEST_TIMEOUT_S)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if CLOSING.match(line.rstrip()):
                closing = line.rstrip()
            else:
                print(line, end="", flush=True)
        status = process.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return status == 0, closing


def static_steps() -> dict[str, list[str]]:
    python = [sys.executable, "-m"]
    files = [".", *scripts()]
    return {
        "ruff check": [*python, "ruff", "check", "--quiet", *files],
        "ruff format": [*python, "ruff", "format", "--quiet", "--diff", *files],
        "mypy": [*python, "mypy"],
        "import contracts": [str(Path(sys.executable).parent / "lint-imports"), "--no-logo"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/check", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in under a minute")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    steps: list[Step] = []

    def record(name: str, ok: bool, since_s: float) -> None:
        steps.append(Step(name, ok, time.monotonic() - since_s))
        print(f"{'ok    ' if ok else 'FAILED'} {name} ({steps[-1].elapsed_s:.1f} s)", flush=True)

    for name, command in static_steps().items():
        started_s = time.monotonic()
        record(name, run_tool(command), started_s)
    env = dict(os.environ)
    if not options.quick:
        started_s = time.monotonic()
        ok = run_tool([sys.executable, str(ROOT / "scripts" / "guests")])
        record("guests", ok, started_s)
        env["EDGED_REQUIRE_GUESTS"] = "1"
    started_s = time.monotonic()
    chosen = ["-m", "not slow", *QUICK] if options.quick else ["--durations=8"]
    ok, closing = run_pytest([*chosen, *options.pytest], env)
    record("tests", ok, started_s)
    started_s = time.monotonic()
    report = [sys.executable, "-m", "coverage", "report", "--skip-covered", "--show-missing"]
    covered = run_tool([*report, f"--fail-under={COVERAGE_PERCENT_MIN}"])
    record(f"branch coverage of protocol ≥ {COVERAGE_PERCENT_MIN} %", covered, started_s)

    failed = [step.name for step in steps if not step.ok]
    total_s = sum(step.elapsed_s for step in steps)
    print(f"\n{len(steps) - len(failed)} of {len(steps)} steps passed in {total_s:.0f} s")
    if failed:
        print(f"failed steps: {', '.join(failed)}")
    print(closing or "==== no closing line from pytest ====", flush=True)
    return 1 if failed else 0
