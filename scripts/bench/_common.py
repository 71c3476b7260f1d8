"""What the benchmarks share: their Python, alternating measurement, the table and the JSON line.

A benchmark is a plain executable: it calls `use_venv` before it imports anything of edged, so that
it runs with the repository's environment when the caller's Python lacks it. Timings of the things
compared alternate in one run; CPU time is steadier than wall time on a shared machine, so both are
reported and bars are judged on CPU time where a thing runs in this process.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def use_venv(module: str = "wasmtime") -> None:
    """Makes the repository importable; makes and enters its .venv if `module` is missing here.

    Exits with 3 (skipped) where no environment can be made."""
    if importlib.util.find_spec(module) is None:
        sys.path.insert(0, str(REPOSITORY / "scripts"))
        import _env

        try:
            _env.ensure(_env.VENV, "run", editable=True)
        except _env.EnvError as error:
            print(f"skipped: {error}", file=sys.stderr)
            raise SystemExit(3) from error
        _env.enter("run")
    sys.path.insert(0, str(REPOSITORY))


def commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def bar(
    what: str, value: float, bound: float, unit: str, *, at_least: bool = False
) -> dict[str, Any]:
    """One bar of the JSON line; `ok` when value <= bound, or >= with `at_least`."""
    ok = value >= bound if at_least else value <= bound
    return {"what": what, "value": round(value, 3), "bar": bound, "unit": unit, "ok": ok}


def report(bench: str, bars: list[dict[str, Any]], samples: Any) -> None:
    """The last line of every benchmark."""
    for item in bars:
        mark = "ok  " if item["ok"] else "MISS"
        print(f"{mark} {item['what']}: {item['value']:g} {item['unit']} (bar {item['bar']:g})")
    print(json.dumps({"bench": bench, "commit": commit(), "bars": bars, "samples": samples}))


class Sample:
    """Wall and CPU seconds per call of one thing, one entry per round."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    @property
    def wall_us(self) -> float:
        return statistics.median(self.wall_s) * 1e6

    @property
    def cpu_us(self) -> float:
        return statistics.median(self.cpu_s) * 1e6

    def summary(self) -> dict[str, Any]:
        return {
            "wall_us": round(self.wall_us, 2),
            "cpu_us": round(self.cpu_us, 2),
            "wall_us_best": round(min(self.wall_s) * 1e6, 2),
            "cpu_us_best": round(min(self.cpu_s) * 1e6, 2),
            "rounds": len(self.wall_s),
        }


def alternate(
    things: dict[str, Callable[[], object]], *, rounds: int, calls: int
) -> dict[str, Sample]:
    """Times `calls` calls of each thing in turn, `rounds` times over."""
    samples = {name: Sample() for name in things}
    for thing in things.values():
        for _ in range(max(calls // 10, 1)):
            thing()
    for _ in range(rounds):
        for name, thing in things.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                thing()
            samples[name].cpu_s.append((time.process_time() - cpu) / calls)
            samples[name].wall_s.append((time.perf_counter() - wall) / calls)
    return samples


def table(samples: dict[str, Sample], *, against: str) -> None:
    """Prints medians, and how many times as fast as `against` each is by CPU time."""
    print(f"{'':34} {'wall µs':>9} {'CPU µs':>9} {'best CPU':>9} {'faster':>8}")
    for name, sample in samples.items():
        factor = samples[against].cpu_us / sample.cpu_us
        print(
            f"{name:34} {sample.wall_us:9.1f} {sample.cpu_us:9.1f}"
            f" {min(sample.cpu_s) * 1e6:9.1f} {factor:7.2f}x"
        )
