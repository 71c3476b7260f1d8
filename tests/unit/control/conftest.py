"""The control API of one test."""

from __future__ import annotations

import pytest

from tests.unit.control.harness import Node


@pytest.fixture
def node() -> Node:
    return Node()
