"""A blob opened for reading in pieces. Thread-safe; the file outlives a delete while it is open."""

from __future__ import annotations

import os

import trio

from edged.errors import StoreError

from .disk import translated


class BlobReader:
    """Of a blob that was verified through the same descriptor. Use as a context manager."""

    def __init__(self, fd: int, size_bytes: int, limiter: trio.CapacityLimiter) -> None:
        self._fd = fd
        self._limiter = limiter
        self.size_bytes = size_bytes

    async def read(self, offset: int, length: int) -> bytes:
        """All of it. Raises StoreError: the file is shorter by now, or the disk fails."""

        def reading() -> bytes:
            with translated("reading a blob"):
                data = os.pread(self._fd, length, offset)
            if len(data) != length:
                raise StoreError("a blob's file was cut while it was read")
            return data

        return await trio.to_thread.run_sync(reading, limiter=self._limiter)

    def __enter__(self) -> BlobReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
