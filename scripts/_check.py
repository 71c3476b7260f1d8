"""The steps of scripts/check: each runs even when one before it failed.

The tests run as four processes side by side. Ends with "N passed, N failed", which a CI reads.
`--quick` leaves out simulations, sockets, processes, whatever is marked slow, and building guests;
`--slow` adds what is marked long: minutes of stopped and starved processes.
Arguments after `--` go to pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from _env import ROOT

PYTEST_TIMEOUT_S = 900.0
SLOW_TIMEOUT_S = 2700.0
COVERAGE_PERCENT_MIN = 95
QUICK = ["tests/tidy", "tests/unit", "tests/property", "tests/conformance"]
QUICK += ["--ignore", "tests/conformance/test_guests.py"]  # compiles them
COMPUTING = [f"tests/{name}" for name in (
    "unit/protocol", "property", "sim", "fuzz", "conformance", "tidy", "packaging",
)]  # fmt: skip
WAITING = ["tests/chaos", "tests/integration/cluster"]
NODES = ["tests/integration/node"]
SEEDS = ["--seeds", "200", "--fresh", "50", "--jobs", "2"]
COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)")
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


class Suite:
    """One pytest process. Its output goes to a file, so that several can run at once."""

    def __init__(
        self, name: str, arguments: list[str], env: dict[str, str], *, trace: bool
    ) -> None:
        self.name = name
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - kept open
        tracing = ["-m", "coverage", "run"] if trace else []
        temp = ROOT / ".cache" / f"pytest-{name}"
        self._process = subprocess.Popen(
            [sys.executable, *tracing, "-m", "pytest", f"--basetemp={temp}", *arguments],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, deadline_s: float) -> bool:
        """Prints the output when it has ended; whether all passed."""
        try:
            status = self._process.wait(max(deadline_s - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            print(f"{self.name}: not done in time, killed", flush=True)
            status = -1
        self.kill()
        self._output.seek(0)
        print(f"\n----- {self.name}")
        print(self._output.read(), flush=True)
        return status == 0

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def counts(self) -> Counter[str]:
        """Of pytest's closing line."""
        self._output.seek(0)
        closing = [line for line in self._output if CLOSING.match(line.rstrip())]
        found = COUNT.findall(closing[-1]) if closing else [("1", "error")]
        return Counter({kind.rstrip("s"): int(number) for number, kind in found})


def run_suites(suites: list[Suite], timeout_s: float) -> tuple[bool, Counter[str]]:
    """Waits for all; (whether all passed, tests by outcome)."""
    deadline_s = time.monotonic() + timeout_s
    try:
        passed = [suite.wait(deadline_s) for suite in suites]
    finally:
        for suite in suites:
            suite.kill()
    return all(passed), sum((suite.counts() for suite in suites), Counter[str]())


def suites_of(options: argparse.Namespace, env: dict[str, str]) -> list[Suite]:
    """Four at once, one busy with computing, two mostly waiting, and the rest: a machine has two
    cores."""
    if options.quick or options.pytest:
        chosen = ["-m", "not slow", *QUICK] if options.quick else []
        return [Suite("tests", [*chosen, *options.pytest], env, trace=True)]
    more = ["--durations=5", *(["--long"] if options.slow else [])]
    rest = [f"--ignore={path}" for path in (*COMPUTING, *WAITING, *NODES)]
    return [
        Suite("protocol", [*more, *COMPUTING], env, trace=True),
        Suite("processes", [*more, *WAITING], env, trace=False),
        Suite("nodes", [*more, *NODES], env, trace=False),
        Suite("rest", [*more, "tests", *rest], env, trace=False),
    ]


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
    parser.add_argument("--slow", action="store_true", help="with what takes minutes")
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
    timeout_s = SLOW_TIMEOUT_S if options.slow else PYTEST_TIMEOUT_S
    ok, counts = run_suites(suites_of(options, env), timeout_s)
    record("tests", ok, started_s)
    if not options.quick and not options.pytest:
        started_s = time.monotonic()
        ok = run_tool([sys.executable, str(ROOT / "scripts" / "sim"), *SEEDS])
        record("200 fixed and 50 fresh simulations", ok, started_s)
    started_s = time.monotonic()
    report = [sys.executable, "-m", "coverage", "report", "--skip-covered", "--show-missing"]
    covered = run_tool([*report, f"--fail-under={COVERAGE_PERCENT_MIN}"])
    record(f"branch coverage of protocol ≥ {COVERAGE_PERCENT_MIN} %", covered, started_s)

    failed = [step.name for step in steps if not step.ok]
    total_s = sum(step.elapsed_s for step in steps)
    print(f"\n{len(steps) - len(failed)} of {len(steps)} steps passed in {total_s:.0f} s")
    if failed:
        print(f"failed steps: {', '.join(failed)}")
    bad = counts["failed"] + counts["error"]
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"{counts['passed']} passed, {bad} failed{skipped}", flush=True)
    return 1 if failed else 0
