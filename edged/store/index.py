"""The SQLite index: WAL, synchronous=FULL, STRICT tables, a checksum in every row.

Opened exclusively (the data directory is locked anyway), which also keeps the WAL index in private
memory instead of a mapped file that a full disk would turn into SIGBUS. Anything that does not
verify raises IndexDamaged: the caller quarantines the file and rebuilds it from files and journal.
Only a version above ours that the file states twice is refused instead.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from blake3 import blake3

from edged.errors import DiskFull, StoreError
from edged.interfaces import ArtifactRow, BlobKind
from protocol.ids import Digest

from .disk import Step, translated
from .journal import DropArtifact, DropRecord, Op, PutArtifact, SaveRecord, SetMeta, State
from .layout import KINDS

VERSION: Final = 1
_APPLICATION_ID: Final = 0x65646765  # "edge"

_FULL: Final = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE"})
"""SQLite says FULL only for ENOSPC; quotas and file-size limits arrive as IOERR_WRITE, whose errno
Python cannot see. A dying disk reads the same: it takes no more bytes either."""

_SCHEMA: Final = (
    """CREATE TABLE about (
  version INTEGER NOT NULL, seq INTEGER NOT NULL, sum BLOB NOT NULL
) STRICT""",
    """CREATE TABLE blobs (
  digest TEXT PRIMARY KEY, kind TEXT NOT NULL, size_bytes INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, manifest TEXT, wire_bytes INTEGER,
  doomed INTEGER NOT NULL, sum BLOB NOT NULL
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE artifacts (
  module TEXT, key TEXT, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL,
  compile_s REAL NOT NULL, attestations BLOB NOT NULL, sum BLOB NOT NULL,
  PRIMARY KEY (module, key)
) STRICT, WITHOUT ROWID""",
    "CREATE TABLE records (key TEXT PRIMARY KEY, value BLOB NOT NULL, sum BLOB NOT NULL) STRICT",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL, sum BLOB NOT NULL) STRICT",
)


class IndexDamaged(Exception):
    """The file is not an index this program can believe."""


class BlobRow(msgspec.Struct, frozen=True):
    """What the index knows of a blob file; mtime and inode tell cheaply whether it was touched."""

    digest: Digest
    kind: BlobKind
    size_bytes: int
    mtime_ns: int
    inode: int
    manifest: Digest | None = None
    wire_bytes: int | None = None
    doomed: bool = False
    """Being deleted: the file may be gone already."""


class Loaded(msgspec.Struct, frozen=True):
    seq: int
    """Last journal frame that is in here."""
    state: State
    blobs: dict[Digest, BlobRow]


def inode_of(stat: os.stat_result) -> int:
    """SQLite integers are signed 64 bits, inodes are not."""
    return stat.st_ino & (2**63 - 1)


def _sum(*values: object) -> bytes:
    return blake3(msgspec.msgpack.encode(values)).digest(8)


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if name in _FULL:
            raise DiskFull(
                f"no space left while {doing} ({name}); nothing was kept of it", private=str(error)
            ) from error
        raise StoreError(f"{doing} failed: {name}", private=str(error)) from error


class Index:
    """Owned by the core, used under its write lock."""

    def __init__(self, path: Path, step: Step) -> None:
        """Creates the file if it is missing or empty. Raises IndexDamaged, StoreError, DiskFull."""
        self._step = step
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._open()
        except sqlite3.OperationalError as error:
            self._connection.close()
            if getattr(error, "sqlite_errorname", "") in _FULL | {"SQLITE_CANTOPEN"}:
                raise DiskFull(
                    "no space left while opening the index", private=str(error)
                ) from error
            raise IndexDamaged(str(error)) from error
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise IndexDamaged(str(error)) from error
        except (IndexDamaged, StoreError):
            self._connection.close()
            raise

    def _open(self) -> None:
        self._one("PRAGMA locking_mode = EXCLUSIVE")
        if self._one("PRAGMA journal_mode = WAL") != "wal":
            raise IndexDamaged("refuses WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA trusted_schema = OFF")
        if self._one("PRAGMA schema_version") == 0:
            self._create()
        version = self._one("PRAGMA user_version")
        if self._one("PRAGMA application_id") != _APPLICATION_ID:
            raise IndexDamaged("not an index of edged")
        about = self._connection.execute("SELECT version FROM about").fetchall()
        if version != VERSION:
            if about == [(version,)] and version > VERSION:
                raise StoreError(
                    f"the data directory was written by a newer edged (index version {version}, "
                    f"this program knows {VERSION}); start that one, or use another node.data_dir"
                )
            raise IndexDamaged(f"version {version} in the header, {about} inside")
        found = {sql for (sql,) in self._connection.execute("SELECT sql FROM sqlite_schema") if sql}
        if found != set(_SCHEMA):
            raise IndexDamaged("another schema")
        if (verdict := self._one("PRAGMA quick_check(1)")) != "ok":
            raise IndexDamaged(str(verdict))

    def _one(self, sql: str) -> Any:
        row = self._connection.execute(sql).fetchone()
        return None if row is None else row[0]

    def _create(self) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            execute(statement)
        execute("INSERT INTO about VALUES (?, 0, ?)", (VERSION, _sum(VERSION, 0)))
        execute(f"PRAGMA user_version = {VERSION}")
        execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        self._step("sql-create")
        execute("COMMIT")

    def load(self) -> Loaded:
        """Everything, each row verified. Raises IndexDamaged."""
        try:
            return self._load()
        except (sqlite3.DatabaseError, msgspec.MsgspecError, UnicodeError) as error:
            raise IndexDamaged(str(error)) from error

    def _rows(self, table: str) -> Iterator[tuple[Any, ...]]:
        order = "" if table == "about" else " ORDER BY 1, 2"
        for *values, checksum in self._connection.execute(f"SELECT * FROM {table}{order}"):  # noqa: S608
            if _sum(*values) != checksum:
                raise IndexDamaged(f"a row of {table} does not verify")
            yield tuple(values)

    def _load(self) -> Loaded:
        about = list(self._rows("about"))
        if len(about) != 1:
            raise IndexDamaged(f"{len(about)} rows in about")
        state = State(dict(self._rows("records")), dict(self._rows("meta")))
        for values in self._rows("artifacts"):
            row = ArtifactRow(*values)
            state.artifacts[row.module, row.key] = row
        blobs: dict[Digest, BlobRow] = {}
        for digest, kind, size, mtime_ns, inode, manifest, wire_bytes, doomed in self._rows(
            "blobs"
        ):
            blob = BlobRow(
                digest, kind, size, mtime_ns, inode, manifest, wire_bytes, doomed=bool(doomed)
            )
            if blob.kind not in KINDS:
                raise IndexDamaged(f"blob kind {blob.kind!r}")
            blobs[blob.digest] = blob
        return Loaded(about[0][1], state, blobs)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits durably at the end of the block, or leaves everything as it was."""
        doing = "writing the index"
        with _translated(doing), translated(doing):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._step("sql-commit")
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def save_blob(self, row: BlobRow) -> None:
        values = (
            row.digest,
            row.kind,
            row.size_bytes,
            row.mtime_ns,
            row.inode,
            row.manifest,
            row.wire_bytes,
            int(row.doomed),
        )
        self._connection.execute(
            "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, _sum(*values)),
        )

    def drop_blob(self, digest: Digest) -> None:
        self._connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))

    def apply(self, ops: Iterable[Op], *, seq: int) -> None:
        """`seq`: of the journal frame that holds `ops`."""
        execute = self._connection.execute
        for op in ops:
            match op:
                case SaveRecord(key, value):
                    checksum = _sum(key, value)
                    execute(
                        "INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (key, value, checksum)
                    )
                case DropRecord(key):
                    execute("DELETE FROM records WHERE key = ?", (key,))
                case SetMeta(key, value):
                    checksum = _sum(key, value)
                    execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, checksum))
                case PutArtifact(row):
                    values = msgspec.structs.astuple(row)
                    execute(
                        "INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (*values, _sum(*values)),
                    )
                case DropArtifact(module, artifact_key):
                    execute(
                        "DELETE FROM artifacts WHERE module = ? AND key = ?", (module, artifact_key)
                    )
        execute("UPDATE about SET seq = ?, sum = ?", (seq, _sum(VERSION, seq)))

    def replace_state(self, state: State, *, seq: int) -> None:
        for table in ("records", "meta", "artifacts"):
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
        self.apply(state.ops(), seq=seq)

    def close(self, *, checkpoint: bool) -> None:
        """`checkpoint`: fold the WAL into the file, so that the next start reads one file."""
        try:
            if checkpoint:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._connection.close()
