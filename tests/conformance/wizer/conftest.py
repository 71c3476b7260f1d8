"""The real Wizer for the tests of this directory.

Skipped only where it cannot be fetched, with the reason; what is fetched and wrong is a failure.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from npm_package import Unavailable

from . import real


@pytest.fixture(scope="session")
def wizer() -> Path:
    try:
        return real.find()
    except Unavailable as error:
        pytest.skip(f"no real Wizer: {error}")
