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
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from edged.errors import BlobCorrupt, BlobNotFound, Conflict, DigestMismatch, DiskFull, StoreError
from edged.interfaces import BlobInfo, PartialInfo
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest
from protocol.manifest import (
    Manifest,
    check_manifest,
    decode_manifest,
    encode_manifest,
    manifest_digest,
)

from .core import Core, Held
from .disk import is_damage, open_file, translated
from .layout import parse_pair_name
from .locks import KeyedLocks
from .partial import Fetch, with_wire
from .quarantine import move_to_quarantine
from .wire import compress, level_for, present_segments, read_segments

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

    def segments(self, digest: Digest, indices: Sequence[int]) -> list[bytes]:
        """All or none of them."""
        core = self._core
        held = core.require(digest)
        opened = self._open(held)
        manifest = opened.manifest
        for index in indices:
            if not 0 <= index < manifest.segments:
                raise BlobNotFound(f"blob {digest} has {manifest.segments} segments, not {index}")
        path = core.layout.wire_form(digest, held.row.manifest or Digest(""))
        with translated("reading a segment"):
            try:
                fd = open_file(path)
                try:
                    return read_segments(fd, manifest, opened.offsets, indices)
                finally:
                    os.close(fd)
            except FileNotFoundError as error:
                self._drop_wire(held, path, damaged=False)
                raise BlobNotFound(f"the wire form of blob {digest} is gone") from error
            except (RemoteProtocolError, OSError) as error:
                if isinstance(error, OSError) and not is_damage(error):
                    raise
                self._drop_wire(held, path, damaged=True)
                raise BlobNotFound(f"the wire form of blob {digest} was damaged on disk") from error

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
            core.on_lost(digest, f"wire form {'corrupt' if damaged else 'missing'}")

    # ------------------------------------------------------------ making
    def make(self, digest: Digest, expected: Digest | None = None) -> Manifest:
        core = self._core
        with core.locks.holding(digest):
            held = core.require(digest)
            if held.row.manifest is not None and core.get(held.row.manifest) is not None:
                return self._open(held).manifest
            if not os.path.lexists(held.path):
                core.forget(held, "missing")
                raise BlobNotFound(f"blob {digest} is not on this node any more", digest=digest)
            try:
                return self._make(held, expected)
            except BlobCorrupt:
                core.quarantine(held)
                raise

    def _make(self, held: Held, expected: Digest | None) -> Manifest:
        core = self._core
        row = held.row
        if row.size_bytes == 0:
            raise StoreError("an empty blob has no wire form")
        # A wire form is never much larger than the blob: SPEC §8 bounds each frame.
        core.disk.require_free(row.size_bytes)
        temp = core.temp_path()
        with translated("making a wire form"):
            try:
                source = _open_source(held)
                try:
                    target = core.disk.create(temp)
                    try:
                        manifest = compress(
                            core.disk,
                            source,
                            target,
                            blob=row.digest,
                            size=row.size_bytes,
                            level=self._level or level_for(row.size_bytes),
                        )
                        core.disk.seal(target)
                    finally:
                        os.close(target)
                finally:
                    os.close(source)
                stored = core.put(encode_manifest(manifest), "manifest", expected)
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
            try:
                present = _resume(path, manifest)
            except OSError as error:
                if not is_damage(error):
                    raise
                move_to_quarantine(core.disk, core.layout, path)
                present = _resume(path, manifest)
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
                over = [self._fetching.pop(manifest.blob, None)]
                self._fetching[manifest.blob] = fetch
                if len(self._fetching) > FETCHES_MAX:
                    over.append(self._fetching.pop(next(iter(self._fetching))))
            for old in over:
                if old is not None:
                    old.let_go()
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
                fd = open_file(path)
                try:
                    return len(present_segments(fd, manifest)) == manifest.segments
                finally:
                    os.close(fd)
            except FileNotFoundError:
                return False
            except OSError as error:
                if not is_damage(error):
                    raise
                return False  # the next fetch puts it aside

    def partials(self) -> list[PartialInfo]:
        """All there are, in use or not."""
        found = []
        with translated("listing partials"), os.scandir(self._core.layout.partial) as entries:
            for entry in entries:
                names = parse_pair_name(entry.name)
                with contextlib.suppress(FileNotFoundError):
                    state = entry.stat(follow_symlinks=False)
                    if names is not None:
                        size_bytes = state.st_blocks * 512  # they are sparse
                        found.append(PartialInfo(*names, size_bytes, state.st_mtime))
        return sorted(found, key=lambda partial: partial.blob)

    def drop_partial(self, partial: PartialInfo) -> bool:
        """Whoever was about to resume it gets Conflict. False: it was touched meanwhile."""
        core = self._core
        path = core.layout.partial_form(partial.blob, partial.manifest)
        with core.locks.holding(partial.blob), translated("removing a partial"):
            try:
                if path.lstat().st_mtime != partial.touched_at_s:
                    return False
            except FileNotFoundError:
                return False
            with self._guard:
                over = self._fetching.pop(partial.blob, None)
            core.disk.unlink(path)
        if over is not None:
            over.let_go()
        return True

    def is_current(self, fetch: Fetch) -> bool:
        return self._fetching.get(fetch.manifest.blob) is fetch

    def check_current(self, fetch: Fetch) -> None:
        if not self.is_current(fetch):
            raise Conflict(f"this fetch of blob {fetch.manifest.blob} is over")

    def forget(self, fetch: Fetch) -> None:
        with self._guard:
            if self._fetching.get(fetch.manifest.blob) is fetch:
                del self._fetching[fetch.manifest.blob]


def _open_source(held: Held) -> int:
    """Raises BlobCorrupt, OSError."""
    try:
        return open_file(held.path)
    except OSError as error:
        if not is_damage(error):
            raise
        raise BlobCorrupt(f"blob {held.row.digest} cannot be read") from error


def _resume(path: Path, manifest: Manifest) -> set[int]:
    """What of a partial is there; makes it if it is not. Raises OSError."""
    fd = open_file(path, os.O_RDONLY | os.O_CREAT)
    try:
        os.fchmod(fd, 0o600)  # an interrupted finish may have sealed it
        return present_segments(fd, manifest)
    finally:
        os.close(fd)


def decode_stored(data: bytes) -> Manifest:
    """A manifest from this disk. Raises StoreError: what is stored under its digest is not one."""
    try:
        return decode_manifest(data)
    except RemoteProtocolError as error:
        raise StoreError("a stored manifest does not decode", private=str(error)) from error
