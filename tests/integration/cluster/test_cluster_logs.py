"""Logs of several nodes as one stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from edged.cli.main import edged
from edged.cluster.logs import LINE_BYTES_MAX, read_logs
from edged.cluster.spec import spec_of
from edged.cluster.state import Home
from edged.cluster.supervisor import Supervisor


def row(at: int, event: str, level: str = "info", **more: object) -> str:
    stamp = f"2026-01-01T00:00:{at:02}.000000Z"
    return json.dumps({"timestamp": stamp, "level": level, "event": event} | more) + "\n"


def times(count: int, between: Callable[[int], None]) -> Callable[[], bool]:
    """Goes on `count` times; `between` is called before each look."""
    looks = iter(range(count))

    def goes_on() -> bool:
        at = next(looks, None)
        if at is not None:
            between(at)
        return at is not None

    return goes_on


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.cluster.logs.POLL_S", 0)


def test_the_past_is_sorted_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(row(1, "a1") + row(3, "a3") + row(5, "a5"))
    (tmp_path / "b").write_text(row(2, "b2") + "Traceback\n  of two lines\n" + row(4, "b4"))
    logs = [("a", tmp_path / "a"), ("b", tmp_path / "b"), ("none", tmp_path / "none")]
    found = [line.row.event if line.row else line.text for line in read_logs(logs, tail=10)]
    assert found == ["a1", "b2", "Traceback", "  of two lines", "a3", "b4", "a5"]
    last = [(line.node, line.at[17:19]) for line in read_logs(logs, tail=1)]
    assert last == [("b", "04"), ("a", "05")]
    assert list(read_logs(logs, tail=0)) == []


def test_the_past_goes_on_before_the_file_that_was_renamed(tmp_path: Path) -> None:
    (tmp_path / "a.1").write_text(row(1, "old"))
    (tmp_path / "a").write_text(row(2, "new"))
    found = [line.row and line.row.event for line in read_logs([("a", tmp_path / "a")], tail=5)]
    assert found == ["old", "new"]


def test_following_growth_renames_and_newcomers(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text(row(1, "past"))

    def grow(at: int) -> None:
        if at == 0:
            with a.open("a") as file:
                file.write(row(2, "grown") + row(3, "half")[:20])
        elif at == 1:
            with a.open("a") as file:
                file.write(row(3, "half")[20:] + row(4, "last of the old"))
            a.rename(tmp_path / "a.1")
            a.write_text(row(5, "first of the new"))
        elif at == 2:
            b.write_text(row(6, "newcomer"))

    lines = read_logs([("a", a), ("b", b)], tail=0, follow=times(8, grow))
    found = [(line.node, line.row and line.row.event) for line in lines]
    assert found == [
        ("a", "grown"),
        ("a", "half"),
        ("a", "last of the old"),
        ("b", "newcomer"),
        ("a", "first of the new"),
    ]


def test_endless_lines_and_garbage_are_told_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()

    def grow(at: int) -> None:
        with path.open("ab") as file:
            file.write(b"\xff" * LINE_BYTES_MAX)

    lines = list(read_logs([("a", path)], tail=0, follow=times(4, grow)))
    assert lines
    assert all(line.row is None and len(line.text) <= 2 * LINE_BYTES_MAX for line in lines)


def test_the_command(home: Home) -> None:
    Supervisor(home)._create("c", spec_of(2))
    home.log_file("c", "n1").write_text(row(1, "begun", node="n1", port=80) + row(2, "ended"))
    home.log_file("c", "n2").write_text(
        row(3, "broken", "error", exception="Traceback\nValueError") + "\x1b[31mred\n"
    )

    def logs(*args: str) -> str:
        env = {"EDGED_STATE": str(home.root), "EDGED_CONTROL": ""}
        done = CliRunner().invoke(edged, ["cluster", "logs", *args], env=env, prog_name="edged")
        assert done.exit_code == (0 if "n9" not in args else 4)
        return done.stdout

    assert logs().splitlines() == [
        "n1 00:00:01.000 begun port=80",
        "n1 00:00:02.000 ended",
        "n2 00:00:03.000 error: broken",
        "Traceback",
        "ValueError",
        "n2 \\x1b[31mred",
    ]
    assert [json.loads(line).get("event") for line in logs("n1", "--json").splitlines()] == [
        "begun",
        "ended",
    ]
    assert json.loads(logs("n2", "--json").splitlines()[1])["text"] == "\x1b[31mred"
    assert "begun" not in logs("--level", "error")
    logs("n9")
