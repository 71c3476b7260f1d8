"""Wire forms kept beside blobs, and fetches in progress. Synchronous, thread-safe.

A blob has at most one wire form: the first that was made or received, byte for byte. Segments are
verified on each read. A partial's segments are verified when written and again when resumed, so
they are not synced one by one: what a power cut takes is fetched again, and `finish` syncs the
whole before anything is acknowledged. `finish` links the wire form rather than moving it: until
the blob's index row is durable the partial is still there to resume from.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

import msgspec

from edged.errors import BlobCorrupt, BlobNotFound, Conflict, DigestMismatch, DiskFull, StoreError
from edged.interfaces import BlobInfo
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest
from protocol.manifest import (
    Manifest,
    check_manifest,
    decode_manifest,
    encode_manifest,
    manifest_digest,
)

from .core import Core, Held, move_to_quarantine, row_of
from .disk import translated
from .index import BlobRow
from .layout import kind_of
from .locks import KeyedLocks
from .wire import compress, decompress, present_segments, read_exactly

MANIFESTS_REMEMBERED: Final = 64
"""Decoded ones; at most 0.5 MiB each, 17 KB at 40 MB of blob."""

FETCHES_MAX: Final = 256
"""At once; beyond, the oldest is over (Conflict), its bytes stay on disk to resume from."""


class _Opened(msgspec.Struct, frozen=True):
    manifest: Manifest
    offsets: tuple[int, ...]


class WireForms:
    def __init__(self, core: Core, *, zstd_level: int) -> None:
        self._core = core
        self._level = zstd_level
        self._opened: OrderedDict[Digest, _Opened] = OrderedDict()
        self._guard = threading.Lock()
        self._fetching: dict[Digest, Fetch] = {}
        self._rebuilding = KeyedLocks()

    # ------------------------------------------------------------ serving
    def manifest(self, digest: Digest) -> Manifest:
        return self._open(self._core.require(digest)).manifest

    def _open(self, held: Held) -> _Opened:
        name = held.row.manifest
        if name is None:
            raise BlobNotFound(f"blob {held.row.digest} has no wire form on this node")
        with self._guard:
            if name in self._opened:
                self._opened.move_to_end(name)
                return self._opened[name]
        manifest = decode_stored(self._core.read(name))
        offsets = tuple(itertools.accumulate(manifest.wire_lengths, initial=0))
        opened = _Opened(manifest, offsets)
        with self._guard:
            self._opened[name] = opened
            while len(self._opened) > MANIFESTS_REMEMBERED:
                self._opened.popitem(last=False)
        return opened

    def segment(self, digest: Digest, index: int) -> bytes:
        core = self._core
        held = core.require(digest)
        opened = self._open(held)
        manifest = opened.manifest
        if not 0 <= index < manifest.segments:
            raise BlobNotFound(f"blob {digest} has {manifest.segments} segments, not {index}")
        path = core.layout.wire_form(digest, held.row.manifest or Digest(""))
        with translated("reading a segment"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError as error:
                self._drop_wire(held, path, damaged=False)
                raise BlobNotFound(f"the wire form of blob {digest} is gone") from error
            try:
                wire = read_exactly(fd, manifest.wire_lengths[index], opened.offsets[index])
            finally:
                os.close(fd)
        try:
            manifest.check_segment(index, wire)
        except RemoteProtocolError as error:
            self._drop_wire(held, path, damaged=True)
            raise BlobNotFound(f"the wire form of blob {digest} was damaged on disk") from error
        return wire

    def _drop_wire(self, held: Held, path: Path, *, damaged: bool) -> None:
        core = self._core
        digest = held.row.digest
        with core.locks.holding(digest):
            if core.get(digest) is not held:
                return
            core.log.error("wire form lost", digest=digest, damaged=damaged)
            row = msgspec.structs.replace(held.row, manifest=None, wire_bytes=None)
            core.relabel(row)
            if damaged:
                with translated("quarantining a wire form"):
                    move_to_quarantine(core.disk, core.layout, path)
            core.on_lost(digest)

    # ------------------------------------------------------------ making
    def make(self, digest: Digest) -> Manifest:
        core = self._core
        with core.locks.holding(digest):
            held = core.require(digest)
            if held.row.manifest is not None and core.get(held.row.manifest) is not None:
                return self._open(held).manifest
            if not held.path.exists():
                core.forget(held, "missing")
                raise BlobNotFound(f"blob {digest} is not on this node any more", digest=digest)
            try:
                return self._make(held)
            except BlobCorrupt:
                core.quarantine(held)
                raise

    def _make(self, held: Held) -> Manifest:
        core = self._core
        row = held.row
        if row.size_bytes == 0:
            raise StoreError("an empty blob has no wire form")
        # A wire form is never much larger than the blob: SPEC §8 bounds each frame.
        core.disk.require_free(row.size_bytes)
        temp = core.temp_path()
        with translated("making a wire form"):
            try:
                source = os.open(held.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    target = core.disk.create(temp)
                    try:
                        manifest = compress(
                            core.disk,
                            source,
                            target,
                            blob=row.digest,
                            size=row.size_bytes,
                            level=self._level,
                        )
                        core.disk.seal(target)
                    finally:
                        os.close(target)
                finally:
                    os.close(source)
                stored = core.put(encode_manifest(manifest), "manifest", None)
                path = core.layout.wire_form(row.digest, stored.digest)
                core.disk.make_dir(path.parent)
                core.disk.rename(temp, path)
                core.relabel(with_wire(held, manifest))
            except BaseException:
                core.disk.discard(temp)
                raise
        return manifest

    # ------------------------------------------------------------ fetching
    def begin(self, manifest: Manifest) -> Fetch:
        """Takes over from an earlier user of the same blob's partial, who gets Conflict.

        Raises RemoteProtocolError if the manifest breaks its bounds, DiskFull, StoreError."""
        check_manifest(manifest)
        core = self._core
        name = manifest_digest(manifest)
        path = core.layout.partial_form(manifest.blob, name)
        with core.locks.holding(manifest.blob), translated("starting a fetch"):
            core.disk.require_free(0)
            if core.get(manifest.blob) is None:
                core.keep_wire(manifest.blob, name)
            for other in core.layout.partial.glob(f"{manifest.blob}.*"):
                if other != path:
                    core.disk.unlink(other)
            fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.fchmod(fd, 0o600)  # an interrupted finish may have sealed it
                present = present_segments(fd, manifest)
            finally:
                os.close(fd)
            missing = sum(
                length for i, length in enumerate(manifest.wire_lengths) if i not in present
            )
            try:
                core.disk.require_free(missing + manifest.raw_bytes)
            except DiskFull:
                if not present:
                    core.disk.discard(path)
                raise
            fetch = Fetch(self, core, manifest, name, path, present)
            with self._guard:
                self._fetching.pop(manifest.blob, None)
                self._fetching[manifest.blob] = fetch
                if len(self._fetching) > FETCHES_MAX:
                    del self._fetching[next(iter(self._fetching))]
        return fetch

    def rebuild(self, digest: Digest, name: Digest) -> BlobInfo | None:
        """Makes a lost blob again from its partial, if that is whole. A fetch of it is then over.

        None: not enough is there, or a fetch took over. Raises DiskFull, StoreError."""
        core = self._core
        with self._rebuilding.holding(digest):
            with core.locks.holding(digest):
                held = core.intact(digest)
                if held is None:
                    core.keep_wire(digest, name)  # where that failed when the blob was lost
            if held is not None:
                return held.info
            try:
                manifest = decode_stored(core.read(name))
            except (BlobNotFound, BlobCorrupt):
                return None
            if manifest.blob != digest or not self._whole(manifest, name):
                return None
            try:
                return self.begin(manifest).finish()
            except (Conflict, DigestMismatch):
                return None

    def _whole(self, manifest: Manifest, name: Digest) -> bool:
        """Looked at first, so that a fetch in progress is left alone while it lacks something."""
        path = self._core.layout.partial_form(manifest.blob, name)
        with translated("reading what is left of a blob"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return False
            try:
                return len(present_segments(fd, manifest)) == manifest.segments
            finally:
                os.close(fd)

    def is_current(self, fetch: Fetch) -> bool:
        return self._fetching.get(fetch.manifest.blob) is fetch

    def check_current(self, fetch: Fetch) -> None:
        if not self.is_current(fetch):
            raise Conflict(f"this fetch of blob {fetch.manifest.blob} is over")

    def forget(self, fetch: Fetch) -> None:
        with self._guard:
            if self._fetching.get(fetch.manifest.blob) is fetch:
                del self._fetching[fetch.manifest.blob]


class Fetch:
    """One partial. Thread-safe; opens its file per call, so an abandoned one leaks nothing."""

    def __init__(
        self,
        owner: WireForms,
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
        self.manifest = manifest
        self.present = frozenset(present)

    def write(self, index: int, wire: bytes) -> None:
        try:
            self.manifest.check_segment(index, wire)
        except RemoteProtocolError as error:
            raise DigestMismatch(f"blob {self.manifest.blob}: {error}") from error
        with translated("storing a segment"):
            self._owner.check_current(self)
            self._core.disk.require_free(len(wire))
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._core.disk.write(fd, wire, self.manifest.wire_offset(index))
            finally:
                os.close(fd)
        self._have.add(index)

    def finish(self) -> BlobInfo:
        manifest = self.manifest
        core = self._core
        self._owner.check_current(self)
        if len(self._have) < manifest.segments:
            raise StoreError(f"{manifest.segments - len(self._have)} segments are still missing")
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
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if len(present_segments(fd, self.manifest)) < self.manifest.segments:
                raise self._refused(DigestMismatch("a segment on disk does not verify any more"))
            self._core.disk.seal(fd)
        finally:
            os.close(fd)

    def _make_blob(self) -> BlobInfo:
        core = self._core
        manifest = self.manifest
        core.disk.require_free(manifest.raw_bytes)
        temp = core.temp_path()
        try:
            source = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                target = core.disk.create(temp)
                try:
                    head = decompress(core.disk, source, target, manifest)
                    core.disk.seal(target)
                    row = row_of(manifest.blob, kind_of(head), os.fstat(target))
                finally:
                    os.close(target)
                core.disk.seal(source)
            finally:
                os.close(source)
            row = msgspec.structs.replace(row, manifest=self._name, wire_bytes=manifest.wire_bytes)
            self._link_wire()
            try:
                return core.publish(temp, row)
            except (StoreError, OSError):
                core.keep_wire(manifest.blob, self._name)
                raise
        except DigestMismatch as error:
            raise self._refused(error) from error
        finally:
            core.disk.discard(temp)

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


def with_wire(held: Held, manifest: Manifest) -> BlobRow:
    return msgspec.structs.replace(
        held.row, manifest=manifest_digest(manifest), wire_bytes=manifest.wire_bytes
    )


def decode_stored(data: bytes) -> Manifest:
    """A manifest from this disk. Raises StoreError: what is stored under its digest is not one."""
    try:
        return decode_manifest(data)
    except RemoteProtocolError as error:
        raise StoreError("a stored manifest does not decode", private=str(error)) from error
