"""Stories as text files: what is done and what must come of it. `--rewrite` writes the outcomes
anew; read the diff before you believe it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "sim"))

from simulator.script import Player, ScriptError, parse_script, rewrite, run_script  # noqa: E402

FILES = sorted(HERE.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--rewrite"):
        rewrite(path)
    text = path.read_text(encoding="utf-8")
    assert run_script(text) == text


def test_the_important_stories_are_told() -> None:
    assert len(FILES) >= 15
    assert all(path.read_text(encoding="utf-8").startswith("# ") for path in FILES)


def test_a_script_is_parsed_by_blocks() -> None:
    first, second = parse_script(
        "# why\nrun 1  # a while\nrun 2\n----\nok\n\nrun 3\n----\nyes\nno\n"
    )
    assert first.commands == ("run 1", "run 2")
    assert first.text.startswith("# why")
    assert second.expected == "yes\nno"
    with pytest.raises(ScriptError, match="without ----"):
        parse_script("run 1\n")


def test_a_script_that_is_wrong() -> None:
    for text in ("run 1", "cluster nodes=3\nrow 1", "cluster nodes=3\nkill n9"):
        with pytest.raises(ScriptError):
            run_script(text + "\n----\n")
    player = Player()
    player.run("cluster nodes=3")
    with pytest.raises(ScriptError, match="unknown condition"):
        player.run("until rain within 3")


def test_what_does_not_hold_is_said() -> None:
    said = run_script("cluster nodes=3 silent\nkill n1\nuntil down n1 within 0.5\n----\nyes\n")
    assert "not within 0.5 s" in said
    assert "n0 sees n1" in said
