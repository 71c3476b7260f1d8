"""Rules for all tests: a hang ends the run with every stack, and Hypothesis times nothing. Coverage
counts what a test set out to show: not lines that a simulation or a real node happens to pass.

A run that leaves child processes it never waited for fails at its end.

Also the guests: `guest("hello-c")` is the wasm that scripts/guests built from guests/. Where it
was not built the test is skipped, except under scripts/check, which builds them.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Imported by a test in the middle of a run, where pytest rewrites it, Python 3.11's parser fails
# now and then ("AST constructor recursion depth mismatch").
import hypothesis.internal.conjecture.optimiser  # noqa: F401
import pytest
from children import zombies
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
GUESTS = ROOT / ".cache" / "guests"
TEST_TIMEOUT_S = 120.0
SLOW_TEST_TIMEOUT_S = 420.0
LONG_TEST_TIMEOUT_S = 3600.0
# Tracing doubles a simulation's time, and these directories' tests are the long ones.
UNMEASURED = {
    "sim",
    "sim_exchange",
    "sim_replicas",
    "scenarios",
    "integration",
    "chaos",
    "packaging",
}

# A shared machine makes any deadline a coin toss; examples are reproducible from the printed blob.
settings.register_profile(
    "edged", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("edged")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write the outcomes in tests/scenarios anew"
    )
    parser.addoption("--long", action="store_true", help="also tests that take minutes each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long") is not None]
    items[:] = [item for item in items if item.get_closest_marker("long") is None]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests bound their own waits; this is for the one that does not."""
    slow = item.get_closest_marker("slow") is not None
    limit_s = SLOW_TEST_TIMEOUT_S if slow else TEST_TIMEOUT_S
    if item.get_closest_marker("long") is not None:
        limit_s = LONG_TEST_TIMEOUT_S
    faulthandler.dump_traceback_later(limit_s, exit=True)
    tracer = sys.gettrace()
    if UNMEASURED & set(item.path.relative_to(ROOT).parts):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        sys.settrace(tracer)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if left := zombies():
        print(f"\nchild processes that no test waited for: {left}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def guest() -> Callable[[str], Path]:
    """The built module of a function in guests/, by its folder's name."""

    def find(name: str) -> Path:
        path = GUESTS / f"{name}.wasm"
        if not path.is_file():
            if os.environ.get("EDGED_REQUIRE_GUESTS"):
                pytest.fail(f"{name}: scripts/guests did not build it")
            pytest.skip(f"guest {name} is not built: run scripts/guests")
        return path

    return find
