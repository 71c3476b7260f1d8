"""A node in a thread, and the command line pointed at it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edged.cli.main import edged
from tests.unit.cli.node_thread import TOKEN, NodeThread

Edged = Callable[..., Result]


@pytest.fixture
def node() -> Iterator[NodeThread]:
    with NodeThread() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path) -> Edged:
    """Runs `edged ARGS…` with no local cluster and no node named."""
    unset = ("EDGED_CONTROL", "EDGED_TOKEN", "EDGED_TOKEN_FILE")
    base = {"EDGED_STATE": str(tmp_path / "state"), **dict.fromkeys(unset, "")}

    def call(*args: str, env: dict[str, str] | None = None, **kwargs: Any) -> Result:
        return CliRunner().invoke(
            edged, [str(arg) for arg in args], env=base | (env or {}), prog_name="edged", **kwargs
        )

    return call


@pytest.fixture
def cli(run: Edged, node: NodeThread) -> Edged:
    """Runs `edged ARGS…` against the node."""

    def call(*args: str, **kwargs: Any) -> Result:
        return run(*args, env={"EDGED_CONTROL": node.url, "EDGED_TOKEN": TOKEN}, **kwargs)

    return call


@pytest.fixture
def as_json(cli: Edged) -> Callable[..., Any]:
    """Runs with --json, expects success, returns the document."""

    def call(*args: str) -> Any:
        result = cli(*args, "--json")
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return json.loads(result.stdout)

    return call


@pytest.fixture
def module_file(tmp_path: Path) -> Path:
    path = tmp_path / "hello.wasm"
    path.write_bytes(b"\x00asm\x01\x00\x00\x00" + bytes(100))
    return path
