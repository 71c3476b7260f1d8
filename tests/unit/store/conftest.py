"""A store on a fresh directory, and the same directory opened again."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from edged.store import BlobStore, open_store
from edged.telemetry import make_log

Reopen = Callable[[], Awaitable[BlobStore]]


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a thing: these tests wait for some hundred fsyncs."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield tmp_path / "data"
        return
    with tempfile.TemporaryDirectory(dir=shm) as name:
        yield Path(name) / "data"


@pytest.fixture
async def reopen(data_dir: Path) -> AsyncIterator[Reopen]:
    """Closes the store opened last, if any, and opens the directory again."""
    stores: list[BlobStore] = []

    async def opening() -> BlobStore:
        for store in stores:
            await store.close()
        log = make_log("test", stream=io.StringIO())
        store = await open_store(data_dir, zstd_level=3, min_free_bytes=0, log=log)
        stores.append(store)
        return store

    yield opening
    for store in stores:
        await store.close()


@pytest.fixture
async def store(reopen: Reopen) -> BlobStore:
    return await reopen()
