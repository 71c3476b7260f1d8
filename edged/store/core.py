"""Blobs, artifact rows, records and meta: the synchronous, thread-safe heart of the store.

Invariants: a blob is in `_held` iff its file is complete under its final name; files are never
modified, only replaced by rename or unlinked; `_held` and `state` change after the disk did, under
`_writing`. Reads that answer requests take no lock: one dict look-up.
Lock order: blob lock → manifest lock → `_writing`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from edged.errors import BlobCorrupt, BlobNotFound, DigestMismatch, StoreError
from edged.interfaces import ArtifactRow, BlobInfo, BlobKind
from edged.telemetry import Log
from protocol.errors import RemoteProtocolError
from protocol.ids import ArtifactKey, Digest, digest_of
from protocol.manifest import Manifest, decode_manifest

from .disk import Disk, hash_fd, hashes_to, is_damage, open_file, translated
from .index import BlobRow, Index, inode_of
from .journal import DropArtifact, DropRecord, Journal, Op, PutArtifact, State, write_journal
from .layout import Layout
from .locks import KeyedLocks
from .quarantine import move_to_quarantine
from .salvage import keep_wire
from .wire import read_exactly


class Held(msgspec.Struct, frozen=True):
    """A complete blob. Identity matters: a changed blob gets a new Held."""

    row: BlobRow
    info: BlobInfo
    file: str

    @property
    def path(self) -> Path:
        return Path(self.file)


def held_of(row: BlobRow, layout: Layout) -> Held:
    info = BlobInfo(
        digest=row.digest,
        kind=row.kind,
        size_bytes=row.size_bytes,
        wire_bytes=row.wire_bytes,
        manifest=row.manifest,
        created_at_s=row.mtime_ns / 1e9,
    )
    return Held(row, info, layout.blob(row.digest, row.kind))


def row_of(digest: Digest, kind: BlobKind, found: os.stat_result) -> BlobRow:
    return BlobRow(digest, kind, found.st_size, found.st_mtime_ns, inode_of(found))


def untouched(row: BlobRow, found: os.stat_result) -> bool:
    """Cheap: nobody replaced or wrote the file since its row was made."""
    return (row.size_bytes, row.mtime_ns, row.inode) == (
        found.st_size,
        found.st_mtime_ns,
        inode_of(found),
    )


class Core:
    def __init__(
        self,
        *,
        layout: Layout,
        disk: Disk,
        index: Index,
        journal: Journal,
        state: State,
        held: dict[Digest, Held],
        log: Log,
    ) -> None:
        self.layout = layout
        self.disk = disk
        self.log = log
        self.locks = KeyedLocks()
        self._index = index
        self._journal = journal
        self._state = state
        self._held = held
        self._writing = threading.RLock()
        self._temp_numbers = itertools.count()
        self._temp_prefix = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._closed = False
        self.on_lost: Callable[[Digest, str], None] = lambda _digest, _what: None
        """Called in the thread that noticed, after the fact, under the blob's lock."""

    # ------------------------------------------------------------ the one way to change the index
    def commit(
        self, ops: Sequence[Op] = (), *, rows: Iterable[BlobRow] = (), gone: Iterable[Digest] = ()
    ) -> None:
        """Journal and index together, durable when it returns; nothing changed if it raises."""
        with self._writing:
            self._check_open()
            mark = self._journal.mark()
            try:
                with self._index.transaction():
                    for row in rows:
                        self._index.save_blob(row)
                    for digest in gone:
                        self._index.drop_blob(digest)
                    if ops:
                        self._journal.append(ops)
                        self._index.apply(ops, seq=self._journal.seq)
            except BaseException:
                self._journal.roll_back(mark)
                raise
            self._state.apply(ops)
            if any(isinstance(op, DropRecord | DropArtifact) for op in ops):
                self._journal.live_bytes = self._state.live_bytes()
            if self._journal.wants_rewrite:
                self._rewrite_journal()

    def _rewrite_journal(self) -> None:
        """Failing is harmless: the long journal stays in use."""
        try:
            scan = write_journal(
                self.layout.journal,
                self.temp_path(),
                self.disk,
                self._state,
                seq=self._journal.seq,
            )
            fresh = Journal(self.layout.journal, self.disk, scan, live_bytes=scan.end)
            self._journal.close()
            self._journal = fresh
            with self._index.transaction():
                self._index.apply((), seq=fresh.seq)
        except (StoreError, OSError) as error:
            self.log.warning("journal not rewritten", error=str(error))

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    # ------------------------------------------------------------ blobs
    def temp_path(self) -> Path:
        return self.layout.tmp / f"{self._temp_prefix}-{next(self._temp_numbers)}"

    def get(self, digest: Digest) -> Held | None:
        return self._held.get(digest)

    def require(self, digest: Digest) -> Held:
        held = self._held.get(digest)
        if held is None:
            raise BlobNotFound(f"blob {digest} is not on this node", digest=digest)
        return held

    def all_held(self) -> list[Held]:
        return list(self._held.values())

    def put(self, data: bytes, kind: BlobKind, expected: Digest | None) -> BlobInfo:
        self._check_open()
        digest = digest_of(data)
        _check_expected(digest, expected)
        with self.locks.holding(digest):
            held = self.intact(digest)
            if held is not None:
                return held.info
            self.disk.require_free(len(data))
            temp = self.temp_path()
            with translated("storing a blob"):
                try:
                    fd = self.disk.create(temp)
                    try:
                        self.disk.write(fd, data, 0)
                        self.disk.seal(fd)
                        row = row_of(digest, kind, os.fstat(fd))
                    finally:
                        os.close(fd)
                    return self.publish(temp, row)
                except BaseException:
                    self.disk.discard(temp)
                    raise

    def put_file(self, source: Path, kind: BlobKind, expected: Digest | None) -> BlobInfo:
        """Consumes `source` whatever happens."""
        self._check_open()
        if source.parent != self.layout.tmp:
            raise StoreError("put_file takes a path that temp_path named", private=str(source))
        with translated("storing a file"):
            try:
                fd = open_file(source)
                try:
                    digest, size = hash_fd(fd)
                    _check_expected(digest, expected)
                    with self.locks.holding(digest):
                        held = self.intact(digest)
                        if held is not None:
                            return held.info
                        self.disk.require_free(0)
                        self.disk.seal(fd)
                        row = row_of(digest, kind, os.fstat(fd))
                        if row.size_bytes != size:
                            raise StoreError("the file is still being written")
                        return self.publish(source, row)
                finally:
                    os.close(fd)
            finally:
                self.disk.discard(source)

    def publish(self, temp: Path, row: BlobRow) -> BlobInfo:
        """Makes a sealed temp the blob of `row`. The caller holds the blob's lock."""
        held = held_of(row, self.layout)
        self.disk.make_dir(held.path.parent)
        self.disk.rename(temp, held.path)
        try:
            self.commit(rows=[row])
        except StoreError:
            self.disk.discard(held.path)
            raise
        self._held[row.digest] = held
        return held.info

    def relabel(self, row: BlobRow) -> BlobInfo:
        """Gives a blob a new row: its wire form came or went. The caller holds its lock."""
        self.commit(rows=[row])
        fresh = held_of(row, self.layout)
        self._held[row.digest] = fresh
        return fresh.info

    def intact(self, digest: Digest) -> Held | None:
        """The blob if its file is as it was left; else it is taken out of service, so that it can
        be written anew. The caller holds its lock."""
        held = self._held.get(digest)
        if held is None:
            return None
        try:
            if untouched(held.row, held.path.stat()):
                return held
            with translated("reading a blob"):
                matches = hashes_to(held.path, digest)
        except FileNotFoundError:
            self.forget(held, "missing")
            return None
        if matches:
            return held
        self.quarantine(held)
        return None

    def read(self, digest: Digest) -> bytes:
        held = self.require(digest)
        with translated("reading a blob"):
            data = self._read_file(held)
        if data is None or digest_of(data) != digest:
            raise self._damaged(held)
        return data

    def _read_file(self, held: Held) -> bytes | None:
        """None: it is damaged so that it cannot be read. Raises BlobNotFound, OSError."""
        try:
            fd = open_file(held.path)
            try:
                return read_exactly(fd, os.fstat(fd).st_size, 0)
            finally:
                os.close(fd)
        except FileNotFoundError as error:
            raise self._gone(held) from error
        except OSError as error:
            if not is_damage(error):
                raise
            return None

    def verify(self, digest: Digest) -> bool:
        held = self.require(digest)
        with translated("verifying a blob"):
            try:
                matches = hashes_to(held.path, digest)
            except FileNotFoundError as error:
                raise self._gone(held) from error
        if not matches:
            self._take_out(held)
        return matches

    def open_verified(self, digest: Digest) -> tuple[int, int]:
        """(descriptor, size) of a blob whose bytes were right just now, through that descriptor.

        Raises BlobNotFound, BlobCorrupt (quarantined), StoreError."""
        held = self.require(digest)
        with translated("opening a blob"):
            try:
                fd = open_file(held.path)
            except FileNotFoundError as error:
                raise self._gone(held) from error
            except OSError as error:
                if is_damage(error):
                    raise self._damaged(held) from error
                raise
            try:
                found, size = hash_fd(fd)
            except OSError as error:
                os.close(fd)
                if is_damage(error):
                    raise self._damaged(held) from error
                raise
        if found != digest:
            os.close(fd)
            raise self._damaged(held)
        return fd, size

    def path(self, digest: Digest) -> Path:
        """A regular file, not verified now. For those who open it by name. Raises BlobNotFound."""
        path = self.require(digest).path
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise BlobNotFound(f"blob {digest} is not a file any more", digest=digest)
        return path

    def _gone(self, held: Held) -> BlobNotFound:
        """Somebody removed the file behind our back."""
        digest = held.row.digest
        with self.locks.holding(digest):
            if self._held.get(digest) is held:
                self.forget(held, "missing")
        return BlobNotFound(f"blob {digest} is not on this node any more", digest=digest)

    def _damaged(self, held: Held) -> BlobCorrupt:
        self._take_out(held)
        return BlobCorrupt(f"blob {held.row.digest} was damaged on disk; it is quarantined")

    def _take_out(self, held: Held) -> None:
        with self.locks.holding(held.row.digest):
            if self._held.get(held.row.digest) is held:
                self.quarantine(held)

    def quarantine(self, held: Held) -> None:
        """Takes a damaged blob out of service. The caller holds its lock."""
        with translated("quarantining a blob"):
            move_to_quarantine(self.disk, self.layout, held.path)
        self.forget(held, "corrupt")

    def forget(self, held: Held, why: str) -> None:
        """Drops a blob whose file is gone, and the artifact rows naming it; keeps its wire form as
        a partial to rebuild it from. The caller holds its lock."""
        digest = held.row.digest
        self.log.error("blob lost", digest=digest, why=why, kind=held.row.kind)
        try:
            with self._writing:
                self._held.pop(digest, None)
                self.commit(self.artifact_drops(digest), gone=[digest])
            if held.row.manifest is not None:
                self.keep_wire(digest, held.row.manifest)
        finally:
            self.on_lost(digest, f"{held.row.kind} {why}")

    def keep_wire(self, digest: Digest, name: Digest) -> None:
        """Best effort: where it fails, the next start does it. The caller holds the blob's lock."""

        def read_manifest() -> Manifest | None:
            try:
                return decode_manifest(self.read(name))
            except (StoreError, RemoteProtocolError):
                return None

        try:
            keep_wire(self.disk, self.layout, digest, name, read_manifest)
        except OSError as error:
            self.log.warning("wire form not kept yet", digest=digest, error=str(error))

    def artifact_drops(self, digest: Digest) -> list[Op]:
        return [
            DropArtifact(row.module, row.key)
            for row in list(self._state.artifacts.values())
            if row.digest == digest
        ]

    def delete(self, digest: Digest) -> None:
        """Row marked, files removed, row removed: a crash in between is finished at start."""
        self._check_open()
        with self.locks.holding(digest):
            held = self._held.get(digest)
            if held is None:
                return
            self._delete(held, self._doom(held))

    def _doom(self, held: Held) -> BlobRow:
        """From here on the blob is gone for everyone. The caller holds its lock."""
        row = msgspec.structs.replace(held.row, doomed=True)
        with self._writing:
            self.commit(self.artifact_drops(row.digest), rows=[row])
            self._held.pop(row.digest, None)
        return row

    def _delete(self, held: Held, row: BlobRow) -> None:
        """`row` is doomed. The caller holds the blob's lock."""
        with translated("deleting a blob"):
            if row.manifest is not None:
                wire = self.layout.wire_form(row.digest, row.manifest)
                self.disk.unlink(wire)
                self.disk.sync_dir(wire.parent)  # or it would come back as a partial
            self.disk.unlink(held.path)
            self.disk.sync_dir(held.path.parent)
        self.commit(gone=[row.digest])
        if row.manifest is not None:
            self.delete(row.manifest)

    # ------------------------------------------------------------ artifacts, records, meta
    def artifact(self, module: Digest, key: ArtifactKey) -> ArtifactRow | None:
        return self._state.artifacts.get((module, key))

    def artifacts(self) -> list[ArtifactRow]:
        return list(self._state.artifacts.values())

    def put_artifact(self, row: ArtifactRow) -> None:
        with self._writing:
            self.require(row.digest)
            self.commit([PutArtifact(row)])

    def delete_artifact(self, module: Digest, key: ArtifactKey) -> None:
        """With its blob, if that is native code that no other row names. Who has it mapped keeps
        it: an unlinked file lives on until it is closed."""
        while (row := self._state.artifacts.get((module, key))) is not None:
            with self.locks.holding(row.digest):
                held = self._held.get(row.digest)
                with self._writing:
                    if self._state.artifacts.get((module, key)) != row:
                        continue  # another row came meanwhile, so another blob
                    named = len(self.artifact_drops(row.digest))
                    if held is None or held.row.kind != "artifact" or named > 1:
                        self.commit([DropArtifact(module, key)])
                        return
                    doomed = self._doom(held)
                self._delete(held, doomed)

    def records(self) -> list[tuple[str, bytes]]:
        return list(self._state.records.items())

    def record(self, key: str) -> bytes | None:
        return self._state.records.get(key)

    def drop_records(self, keys: Iterable[str]) -> None:
        with self._writing:
            known = [key for key in dict.fromkeys(keys) if key in self._state.records]
            if known:
                self.commit([DropRecord(key) for key in known])

    def meta(self, key: str) -> bytes | None:
        return self._state.meta.get(key)

    def close(self) -> None:
        """Waits for a commit in progress; later calls raise StoreError."""
        with self._writing:
            if not self._closed:
                self._closed = True
                self._index.close(checkpoint=True)
                self._journal.close()


def _check_expected(digest: Digest, expected: Digest | None) -> None:
    if expected is not None and digest != expected:
        raise DigestMismatch(f"the bytes hash to {digest}, not to {expected}")
