"""A log file that its writer keeps short."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.logfile import CappedFile, own_log_file, previous
from edged.telemetry import make_log

LINE = "x" * 99 + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.log"


@pytest.fixture
def fds(path: Path) -> Iterator[tuple[int, int]]:
    """Two descriptors of the file, as a process's stderr and stdout."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    other = os.dup(fd)
    yield fd, other
    os.close(fd)
    os.close(other)


def test_it_is_bounded_and_loses_nothing_of_the_newest(path: Path, fds: tuple[int, int]) -> None:
    file = CappedFile(path, fds=fds, limit_bytes=1000)
    for number in range(35):
        file.write(f"{number:099d}\n")
    assert path.stat().st_size == 500
    assert previous(path).stat().st_size == 1000
    kept = previous(path).read_text() + path.read_text()
    assert [int(line) for line in kept.splitlines()] == list(range(20, 35))
    os.write(fds[1], b"a traceback")
    assert path.read_text().endswith("a traceback")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["node.log", "node.log.1"]


def test_what_others_write_counts_and_a_truncation_is_noticed(
    path: Path, fds: tuple[int, int]
) -> None:
    os.write(fds[1], b"y" * 950)
    file = CappedFile(path, fds=fds, limit_bytes=1000)
    os.truncate(path, 0)
    file.write(LINE)
    assert not previous(path).exists()
    os.write(fds[1], b"y" * 880)
    for _ in range(10):
        file.write(LINE)
    assert previous(path).exists()


def test_where_it_cannot_be_renamed_it_grows(path: Path, fds: tuple[int, int]) -> None:
    previous(path).mkdir()
    (previous(path) / "in the way").touch()
    file = CappedFile(path, fds=fds, limit_bytes=200)
    for _ in range(9):
        file.write(LINE)
    assert path.read_text() == LINE * 9


def test_characters_that_no_file_can_hold(path: Path, fds: tuple[int, int]) -> None:
    make_log("n1", stream=CappedFile(path, fds=fds)).info("a\ud800b")
    CappedFile(path, fds=fds).write("\ud800\n")
    assert "\\ud800" in path.read_text()


@pytest.mark.parametrize("named", [True, False])
def test_only_the_file_that_stderr_is(path: Path, named: bool) -> None:
    code = (
        "import os, edged.logfile as l\nfile = l.own_log_file(os.environ)\nprint(file is not None)"
    )
    other = path.with_name("another")
    other.touch()
    env = dict(os.environ, EDGED_LOG_FILE=str(path if named else other))
    with path.open("a") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, stderr=stderr, stdout=subprocess.PIPE, check=True
        )
    assert done.stdout.strip() == str(named).encode()
    assert own_log_file({}) is None
    assert own_log_file({"EDGED_LOG_FILE": str(path.parent / "none")}) is None
