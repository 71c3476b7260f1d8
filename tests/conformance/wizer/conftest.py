"""The real Wizer, and edged's, for the tests of this directory.

The real one is missing only where it cannot be fetched: what is fetched and wrong is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from npm_package import Unavailable

from . import real
from .ours import Forge
from .ours import forge as opened


@pytest.fixture(scope="session")
def wizer() -> Path:
    try:
        return real.find()
    except Unavailable as error:
        pytest.skip(f"no real Wizer: {error}")


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    with opened() as found:
        yield found
