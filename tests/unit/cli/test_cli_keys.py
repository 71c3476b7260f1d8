"""`edged cluster keys` against one node: a whole rotation, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edged.cli import cluster_keys
from edged.keyring import read_keyring, write_keyring
from tests.unit.cli.node_thread import TOKEN, NodeThread
from tests.unit.control.memory_keys import NEW, NEW_ID, OLD, OLD_ID, member


@pytest.fixture
def keys(run: Any, node: NodeThread) -> Any:
    def call(*args: object) -> Any:
        return run("cluster", "keys", *args, "--control", node.url, env={"EDGED_TOKEN": TOKEN})

    return call


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_keys, "SPREAD_S", 0.05)


def test_a_rotation_keeps_the_ca_in_step(keys: Any, node: NodeThread, tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    ca.mkdir()
    write_keyring(ca / "keyring", [OLD])
    assert keys("add", "--ca", ca).exit_code == 0
    old, new = read_keyring(ca / "keyring")
    assert old == OLD
    assert read_keyring(node.keys.path) == (OLD, new)
    shown = json.loads(keys("list", "--json").stdout)
    assert [row["keys"] for row in shown["nodes"]] == [shown["keys"]]
    made = shown["keys"][1]
    assert keys("use", made, "--ca", ca).exit_code == 0
    assert read_keyring(ca / "keyring") == read_keyring(node.keys.path) == (new, OLD)
    assert keys("remove", OLD_ID, "--ca", ca).exit_code == 0
    assert read_keyring(ca / "keyring") == read_keyring(node.keys.path) == (new,)
    for result in (keys("list"), keys("add", "--ca", ca)):
        assert new.hex() not in result.output
        assert "seals" in result.stdout


def test_key_files(keys: Any, node: NodeThread, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert keys("add", "--key-file", made).exit_code == 0
    assert made.stat().st_mode & 0o777 == 0o600
    assert read_keyring(node.keys.path) == (OLD, *read_keyring(made))
    given = tmp_path / "given"
    write_keyring(given, [OLD, NEW])
    for _ in range(2):
        assert keys("add", "--key-file", given).exit_code == 0
    assert read_keyring(node.keys.path) == (OLD, *read_keyring(made), NEW)
    given.write_text("nonsense")
    refused = keys("add", "--key-file", given)
    assert refused.exit_code == 2
    assert "line 1 is not hex" in refused.stderr


def test_a_full_keyring_of_the_ca_stays_readable(
    keys: Any, node: NodeThread, tmp_path: Path
) -> None:
    full = [bytes([number]) * 32 for number in range(1, 9)]
    write_keyring(tmp_path / "keyring", full)
    refused = keys("add", "--ca", tmp_path)
    assert refused.exit_code == 2
    assert "1 to 8 keys, not 9" in refused.stderr
    assert read_keyring(tmp_path / "keyring") == tuple(full)
    assert read_keyring(node.keys.path) == (OLD,)


def test_members_that_lack_a_key(keys: Any, node: NodeThread, tmp_path: Path) -> None:
    node.keys.others = [member("n2", OLD, state="down")]
    write_keyring(tmp_path / "k", [NEW])
    added = keys("add", "--key-file", tmp_path / "k")
    assert added.exit_code == 0
    assert "not on n2: when back, they need" in added.stderr
    assert "others (down)" in added.stdout
    refused = keys("use", NEW_ID)
    assert refused.exit_code == 1
    assert "n2 (down) has not got key" in refused.stderr
    assert "--force" in refused.stderr
    assert keys("use", NEW_ID, "--force").exit_code == 0
    assert keys("remove", OLD_ID).exit_code == 1
    assert keys("remove", OLD_ID, "--force").exit_code == 0
    assert read_keyring(node.keys.path) == (NEW,)


def test_a_member_that_has_not_heard_yet_is_waited_for(
    keys: Any, node: NodeThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_keys, "SPREAD_S", 10.0)
    node.keys.others = [member("n2", OLD)]
    write_keyring(tmp_path / "k", [NEW])

    def hears(_seconds: float) -> None:
        node.keys.others = [member("n2", OLD, NEW)]

    monkeypatch.setattr(cluster_keys.time, "sleep", hears)
    added = keys("add", "--key-file", tmp_path / "k")
    assert (added.exit_code, added.stderr) == (0, "")
    assert keys("use", NEW_ID).exit_code == 0


def test_what_is_so_already_is_said(keys: Any, node: NodeThread, tmp_path: Path) -> None:
    write_keyring(tmp_path / "k", [NEW])
    expected = (
        (("add", "--key-file", tmp_path / "k"), "added", "had it already"),
        (("use", NEW_ID), "used", "sealed with it already"),
        (("remove", OLD_ID), "removed", "had no such key"),
    )
    for args, done, already in expected:
        assert f"{done} {args[1] if args[0] != 'add' else NEW_ID} on 1 node" in keys(*args).stdout
        again = keys(*args)
        assert (again.exit_code, again.stderr) == (0, "")
        assert f"nothing changed: 1 node {already}" in again.stdout
        assert json.loads(keys(*args, "--json").stdout)["changed"] == []


def test_a_node_that_was_asked_is_not_named_as_missed(
    run: Any, node: NodeThread, tmp_path: Path
) -> None:
    """Another node has not heard of it yet: that is no lack of the key."""
    write_keyring(tmp_path / "k", [NEW])
    with NodeThread() as second:
        second.keys.others = [member("n1", OLD)]
        node.keys.others = [member("n3", OLD)]
        added = run(
            *("cluster", "keys", "add", "--key-file", tmp_path / "k"),
            *("--control", node.url, "--control", second.url),
            env={"EDGED_TOKEN": TOKEN},
        )
    assert added.exit_code == 0
    assert "on 2 nodes" in added.stdout
    assert "not on n3: when back" in added.stderr


def test_mistakes(run: Any, keys: Any, node: NodeThread, tmp_path: Path) -> None:
    assert "where shall the new key be kept" in keys("add").stderr
    assert keys("use", "00000000").exit_code == 4
    assert keys("list", "--name", "local").exit_code == 2
    assert keys("list", "--token-file", "a", "--token-file", "b").exit_code == 2
    assert run("cluster", "keys", "list", "--token-file", "a").exit_code == 2
    assert run("cluster", "keys", "list").exit_code == 4
    assert read_keyring(node.keys.path) == (OLD,)
