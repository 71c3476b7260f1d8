"""A cluster CA, node identities, and blobs held in memory, for the network tests."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from network_support import MakeTrust

from edged.telemetry import Log, make_log
from edged.trust import Trust, create_ca, issue_node, load_trust


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trust") / "ca"
    create_ca(directory)
    return directory


@pytest.fixture
def make_trust(ca: Path, tmp_path: Path) -> MakeTrust:
    def make(name: str, *, ca_directory: Path = ca) -> Trust:
        issue_node(ca_directory, tmp_path / name, name=name)
        return load_trust(tmp_path / name)

    return make


@pytest.fixture
def log_text() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(log_text: io.StringIO) -> Log:
    return make_log("test", level="debug", stream=log_text)
