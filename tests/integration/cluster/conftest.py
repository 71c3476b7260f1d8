"""A state directory of the test's own; nothing may be left running in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from children import reap, zombies

from edged.cluster import process
from edged.cluster.state import Home
from edged.cluster.supervisor import Supervisor


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    root = tmp_path / "state"
    before = set(zombies())
    yield Home(root)
    left = process.strays(root)
    process.kill_all(left, timeout_s=5)
    reap(set(zombies()) - before)  # their real parent is a command that ends before they do
    assert not left, "node processes were left behind"


@pytest.fixture
def boss(home: Home) -> Supervisor:
    return Supervisor(home)
