"""The raw bytes of a blob, made while its segments come, in whatever order.

Each segment is decompressed when it is stored; the hash over the whole follows as far as there is
no gap. So little is left to do when the last one is there. The file is temporary: after a restart
it is made anew from the wire form, which alone is resumed. Blocking; not thread-safe.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard
from blake3 import blake3

from edged.errors import DigestMismatch
from protocol.manifest import Manifest

from .disk import Disk, open_file
from .wire import open_segment, read_exactly


class Assembly:
    def __init__(self, disk: Disk, path: Path, manifest: Manifest) -> None:
        self._disk = disk
        self.path = path
        self._manifest = manifest
        self._made: set[int] = set()
        self._hash = blake3()
        self._hashed = 0
        self._failure: DigestMismatch | None = None

    def add(self, segments: Sequence[tuple[int, bytes]]) -> None:
        """Verified frames. What is wrong with the manifest shows in `complete`. Raises OSError."""
        if self._failure is not None:
            return
        decompressor = zstandard.ZstdDecompressor()
        with self._open() as fd:
            for index, frame in segments:
                if index not in self._made:
                    try:
                        self._add(fd, decompressor, index, frame)
                    except DigestMismatch as error:
                        self._failure = error
                        return
            self._follow(fd)

    def complete(self, source: int, offsets: tuple[int, ...]) -> tuple[bytes, int]:
        """Adds what is only in the wire form, the open file `source`, and verifies the whole. The
        blob's first 8 bytes, and its file, open.

        Raises DigestMismatch: frames do not verify, or do not make the blob; OSError."""
        if self._failure is not None:
            raise self._failure
        manifest = self._manifest
        decompressor = zstandard.ZstdDecompressor()
        with self._open() as fd:
            for index, length in enumerate(manifest.wire_lengths):
                if index in self._made:
                    continue
                frame = read_exactly(source, length, offsets[index])
                self._add(fd, decompressor, index, frame, verify=True)
            self._follow(fd)
            if self._hash.hexdigest() != manifest.blob:
                raise DigestMismatch(f"the segments do not make blob {manifest.blob}")
            return read_exactly(fd, 8, 0), os.dup(fd)

    def discard(self) -> None:
        self._disk.discard(self.path)

    def _add(
        self,
        fd: int,
        decompressor: zstandard.ZstdDecompressor,
        index: int,
        frame: bytes,
        *,
        verify: bool = False,
    ) -> None:
        raw = open_segment(decompressor, self._manifest, index, frame, verify=verify)
        self._disk.write(fd, raw, index * self._manifest.segment_bytes)
        self._made.add(index)
        if index == self._hashed:
            self._hash.update(raw)
            self._hashed += 1

    def _follow(self, fd: int) -> None:
        manifest = self._manifest
        while self._hashed in self._made:
            length = manifest.raw_length(self._hashed)
            self._hash.update(read_exactly(fd, length, self._hashed * manifest.segment_bytes))
            self._hashed += 1

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        """Per call, so that one that is abandoned leaks no descriptor."""
        fd = open_file(self.path, os.O_RDWR) if self._made else self._disk.create(self.path)
        try:
            yield fd
        finally:
            os.close(fd)
