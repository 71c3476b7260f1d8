"""One fetch in progress: segments stored as they come, the blob made of them. Thread-safe.

Segments are verified before they are written and again when resumed, so they are not synced one by
one: what a power cut takes is fetched again, and `finish` syncs the whole before anything is
acknowledged. It links the wire form rather than moving it: until the blob's index row is durable
the partial is still there to resume from. Lock order: the blob's lock, then a fetch's own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from edged.errors import BlobNotFound, DigestMismatch, StoreError
from edged.interfaces import BlobInfo
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest
from protocol.manifest import Manifest, encode_manifest, manifest_digest

from .assembly import Assembly
from .core import Core, Held, row_of
from .disk import open_file, translated
from .index import BlobRow
from .layout import kind_of
from .wire import present_segments, read_segments


class Fetches(Protocol):
    """Knows which fetch of a blob is the current one."""

    def is_current(self, fetch: Fetch) -> bool: ...

    def check_current(self, fetch: Fetch) -> None:
        """Raises Conflict."""
        ...

    def forget(self, fetch: Fetch) -> None: ...


class Fetch:
    """One partial. Thread-safe; opens its files per call, so an abandoned one leaks nothing."""

    def __init__(
        self,
        owner: Fetches,
        core: Core,
        manifest: Manifest,
        name: Digest,
        path: Path,
        present: set[int],
    ) -> None:
        self._owner = owner
        self._core = core
        self._path = path
        self._name = name
        self._have = set(present)
        self._offsets = tuple(itertools.accumulate(manifest.wire_lengths, initial=0))
        self._assembly: Assembly | None = None
        self._using = threading.Lock()
        self.manifest = manifest
        self.present = frozenset(present)

    def write(self, segments: Sequence[tuple[int, bytes]], *, verified: bool = False) -> None:
        """Verifies, unless the caller just did, and stores; makes the blob's bytes of them as it
        goes."""
        disk = self._core.disk
        if not verified:
            self._check(segments)
        with self._using, translated("storing segments"):
            self._owner.check_current(self)
            try:
                disk.require_free(sum(len(wire) for _, wire in segments))
                fd = open_file(self._path, os.O_WRONLY)
                try:
                    for index, wire in segments:
                        disk.write(fd, wire, self._offsets[index])
                finally:
                    os.close(fd)
                self._have.update(index for index, _ in segments)
                self._assemble().add(segments)
            except (StoreError, OSError):
                self._let_go()
                raise

    def _check(self, segments: Sequence[tuple[int, bytes]]) -> None:
        try:
            for index, wire in segments:
                self.manifest.check_segment(index, wire)
        except RemoteProtocolError as error:
            raise DigestMismatch(f"blob {self.manifest.blob}: {error}") from error

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """What is stored already, for others that fetch the same blob. Raises BlobNotFound."""
        blob = self.manifest.blob
        if not self._have.issuperset(indices):
            raise BlobNotFound(f"not all of segments {indices} of blob {blob} are here yet")
        with translated("reading a segment"):
            try:
                fd = open_file(self._path)
            except FileNotFoundError as error:
                raise BlobNotFound(f"the fetch of blob {blob} is over", digest=blob) from error
            try:
                return read_segments(fd, self.manifest, self._offsets, indices)
            except RemoteProtocolError as error:
                raise BlobNotFound(f"blob {blob}: {error}", digest=blob) from error
            finally:
                os.close(fd)

    def let_go(self) -> None:
        """Frees what only this fetch needs; its segments stay."""
        with self._using:
            self._let_go()

    def _let_go(self) -> None:
        if self._assembly is not None:
            self._assembly.discard()
            self._assembly = None  # used again, it is made anew from the wire form

    def _assemble(self) -> Assembly:
        if self._assembly is None:
            self._assembly = Assembly(self._core.disk, self._core.temp_path(), self.manifest)
        return self._assembly

    def finish(self) -> BlobInfo:
        manifest = self.manifest
        core = self._core
        self._owner.check_current(self)
        if len(self._have) < manifest.segments:
            raise StoreError(f"{manifest.segments - len(self._have)} segments are still missing")
        try:
            core.put(encode_manifest(manifest), "manifest", self._name)
            with core.locks.holding(manifest.blob), translated("finishing a fetch"):
                self._owner.check_current(self)
                try:
                    info = self._finish()
                except (StoreError, OSError):
                    with contextlib.suppress(OSError):
                        self._path.chmod(0o600)  # unsealed: it may be completed or tried again
                    raise
                core.disk.discard(self._path)
                self._owner.forget(self)
        finally:
            self.let_go()
        return info

    def _finish(self) -> BlobInfo:
        held = self._core.intact(self.manifest.blob)
        if held is None:
            return self._make_blob()
        if held.row.manifest is None:
            return self._adopt_wire(held)  # the bytes came another way meanwhile
        return held.info

    def _adopt_wire(self, held: Held) -> BlobInfo:
        self._check_frames()
        self._link_wire()
        try:
            return self._core.relabel(with_wire(held, self.manifest))
        except StoreError:
            self._core.keep_wire(self.manifest.blob, self._name)
            raise

    def _check_frames(self) -> None:
        fd = open_file(self._path)
        try:
            if len(present_segments(fd, self.manifest)) < self.manifest.segments:
                raise self._refused(DigestMismatch("a segment on disk does not verify any more"))
            self._core.disk.seal(fd)
        finally:
            os.close(fd)

    def _make_blob(self) -> BlobInfo:
        core = self._core
        manifest = self.manifest
        with self._using:
            assembly = self._assemble()
            try:
                source = open_file(self._path)
                try:
                    head, target = assembly.complete(source, self._offsets)
                    try:
                        core.disk.seal(target)
                        row = row_of(manifest.blob, kind_of(head), os.fstat(target))
                    finally:
                        os.close(target)
                    core.disk.seal(source)
                finally:
                    os.close(source)
                row = msgspec.structs.replace(
                    row, manifest=self._name, wire_bytes=manifest.wire_bytes
                )
                self._link_wire()
                try:
                    return core.publish(assembly.path, row)
                except (StoreError, OSError):
                    core.keep_wire(manifest.blob, self._name)
                    raise
            except DigestMismatch as error:
                raise self._refused(error) from error
            finally:
                self._let_go()

    def _link_wire(self) -> None:
        wire_path = self._core.layout.wire_form(self.manifest.blob, self._name)
        self._core.disk.make_dir(wire_path.parent)
        self._core.disk.link(self._path, wire_path)

    def _refused(self, error: DigestMismatch) -> DigestMismatch:
        """The manifest itself lies (or the disk does): nothing of this partial can be used."""
        self._core.disk.discard(self._path)
        self._owner.forget(self)
        return error

    def discard(self) -> None:
        """Forgets what was fetched; harmless when the fetch is over."""
        core = self._core
        with core.locks.holding(self.manifest.blob), translated("discarding a fetch"):
            if self._owner.is_current(self):
                core.disk.unlink(self._path)
                self._owner.forget(self)
        self.let_go()


def with_wire(held: Held, manifest: Manifest) -> BlobRow:
    return msgspec.structs.replace(
        held.row, manifest=manifest_digest(manifest), wire_bytes=manifest.wire_bytes
    )
