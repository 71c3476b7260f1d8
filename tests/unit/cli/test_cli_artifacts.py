"""`edged artifacts` against one node."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.cli.node_thread import TOKEN, NodeThread


@pytest.fixture
def artifacts(run: Any, node: NodeThread) -> Any:
    def call(*args: object) -> Any:
        return run("artifacts", *args, "--control", node.url, env={"EDGED_TOKEN": TOKEN})

    return call


def test_a_builder_that_was_mended_is_trusted_again(artifacts: Any, node: NodeThread) -> None:
    assert "n1 distrusts no builder" in artifacts("distrusted").output
    (builder,) = node.wait(node.builders.distrust, "b1")
    shown = artifacts("distrusted").output
    assert "b1" in shown
    assert builder in shown
    done = artifacts("trust", "b1")
    assert (done.exit_code, done.output) == (0, f"builder b1 ({builder}) is trusted again\n")
    assert json.loads(artifacts("distrusted", "--json").stdout)["distrusted"] == []
    again = artifacts("trust", "b1")
    assert again.exit_code == 4
    assert "distrusts no builder" in again.output
