"""Start-up: lock, sweep, make index, journal and files agree, report what was mended.

Which witness is believed. Blob files: their own hash. Journal state: the journal, unless a frame
of it is damaged or the index has seen later frames; then the index, plus later frames that verify.
Both unreadable at once: what verifies in the journal.

How much is hashed. A file whose size, mtime and inode are those of its row was not touched since
it was verified, and is believed until its first read. Anything else is hashed. After a crash of
the *machine* (the lock file names another boot) also what was written in the last 60 s of its
life: everything acknowledged was synced, so this only guards against disks that lie about it, and
twice the kernel's 30 s write-back age covers what they could have kept. A killed process needs no
such check: the kernel still has every byte that it wrote.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edged.errors import DataDirLocked, StoreError
from edged.interfaces import RepairReport
from edged.telemetry import Log
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest
from protocol.manifest import Manifest, decode_manifest

from .core import Core, Held, held_of, row_of, untouched
from .disk import Disk, Step, hashes_to, is_damage, no_step, open_file, translated
from .index import BlobRow, Index, IndexDamaged, Loaded
from .journal import DropArtifact, Journal, Scan, State, scan_file, write_journal
from .layout import Layout, parse_blob_name, parse_pair_name
from .quarantine import move_to_quarantine, prune
from .salvage import keep_wire
from .wire import present_segments

RECENT_S: Final = 60.0
RECENT_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Newest first; about 1 s of hashing with cold caches. The rest is verified when first read."""
PARTIAL_AGE_MAX_S: Final = 7 * 24 * 3600.0
"""A fetch that nobody resumed for a week is given up."""
_OWNER_BYTES: Final = 128
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Opened(msgspec.Struct, frozen=True):
    core: Core
    repair: RepairReport
    losses: tuple[tuple[Digest, str], ...]
    """Blobs and wire forms that were here, and are not whole: as BlobStore.on_lost has them."""
    lock: DirLock


class DirLock(msgspec.Struct):
    """flock on `lock`: freed by the kernel when the process dies, however it dies."""

    fd: int
    machine_crashed: bool
    """The last owner neither closed the store nor lived in this boot of the machine."""

    def release(self, *, clean: bool) -> None:
        if self.fd >= 0:
            if clean:
                _write_owner(self.fd, clean=True)
            os.close(self.fd)
            self.fd = -1


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return f"unknown-{time.time_ns()}"


def _write_owner(fd: int, *, clean: bool) -> None:
    text = f"pid {os.getpid()}\nboot {_boot_id()}\nstate {'clean' if clean else 'open'}\n"
    with translated("writing the lock file"):
        # One write of one length, no truncation: a crash leaves the old text or the new.
        os.pwrite(fd, text.encode().ljust(_OWNER_BYTES, b"\n"), 0)
        os.fsync(fd)


def take_lock(path: Path) -> DirLock:
    """Raises DataDirLocked naming the owner's pid."""
    with translated("locking the data directory"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        text = os.pread(fd, 4096, 0).decode("utf-8", "replace")
        owner = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataDirLocked(
                f"process {owner.get('pid', '?')} is using this data directory; stop it, or "
                "give this node another node.data_dir",
                private=str(path),
            ) from error
        crashed = bool(text) and owner.get("state") != "clean" and owner.get("boot") != _boot_id()
        _write_owner(fd, clean=False)
    except BaseException:
        os.close(fd)
        raise
    return DirLock(fd, crashed)


def open_core(root: Path, *, min_free_bytes: int, log: Log, step: Step = no_step) -> Opened:
    """Raises DataDirLocked, StoreError (also: written by a newer edged), DiskFull."""
    layout = Layout(root)
    disk = Disk(root, min_free_bytes=min_free_bytes, step=step)
    with translated("opening the data directory"):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = take_lock(layout.lock)
        try:
            for directory in layout.directories:
                disk.make_dir(directory)
            repair = _Repair(layout, disk, log, machine_crashed=lock.machine_crashed)
            core, report = repair.run()
            losses = tuple(repair.losses.items())
        except BaseException:
            lock.release(clean=False)
            raise
    return Opened(core, report, losses, lock)


class _Repair:
    """One start-up. Findings gather in the lists; `run` turns them into the report."""

    def __init__(self, layout: Layout, disk: Disk, log: Log, *, machine_crashed: bool) -> None:
        self._layout = layout
        self._disk = disk
        self._log = log
        self._machine_crashed = machine_crashed
        self.losses: dict[Digest, str] = {}
        self._missing: list[Digest] = []
        self._corrupt: list[Digest] = []
        self._adopted: list[Digest] = []
        self._rebuilt = False
        self._saves: list[BlobRow] = []
        self._drops: list[Digest] = []

    def run(self) -> tuple[Core, RepairReport]:
        temps = self._sweep_temps()
        scan = scan_file(self._layout.journal)
        index, loaded = self._open_index(scan)
        try:
            state, journal = self._agree(index, loaded, scan)
            held = self._check_blobs(loaded.blobs)
            self._check_wire(held, loaded.blobs)
            self._sweep_partials(held)
            prune(self._layout)
            core = Core(
                layout=self._layout,
                disk=self._disk,
                index=index,
                journal=journal,
                state=state,
                held=held,
                log=self._log,
            )
        except BaseException:
            index.close(checkpoint=False)
            raise
        drops = [
            DropArtifact(row.module, row.key)
            for row in state.artifacts.values()
            if row.digest not in held
        ]
        if drops or self._saves or self._drops:
            core.commit(drops, rows=self._saves, gone=self._drops)
        report = RepairReport(
            temps_removed=temps,
            missing=tuple(self._missing),
            corrupt=tuple(self._corrupt),
            orphans_adopted=tuple(self._adopted),
            index_rebuilt=self._rebuilt,
        )
        return core, report

    def _sweep_temps(self) -> int:
        temps = sorted(self._layout.tmp.iterdir())
        for temp in temps:
            self._disk.unlink(temp)
        return len(temps)

    # ------------------------------------------------------------ index and journal
    def _open_index(self, scan: Scan) -> tuple[Index, Loaded]:
        path = self._layout.index
        existed = path.exists() and path.stat().st_size > 0
        try:
            index = Index(path, self._disk.step)
            try:
                loaded = index.load()
            except BaseException:
                index.close(checkpoint=False)
                raise
        except IndexDamaged as error:
            self._log.error("index damaged; rebuilding it from the files", reason=str(error))
            self._rebuilt = True
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                if (damaged := path.with_name(name)).exists():
                    move_to_quarantine(self._disk, self._layout, damaged)
            try:
                index = Index(path, self._disk.step)
                loaded = index.load()
            except IndexDamaged as again:
                raise StoreError("a new index cannot be made", private=str(again)) from again
        if not existed:
            self._disk.sync_dir(path.parent)
            self._rebuilt = bool(scan.frames)
        return index, loaded

    def _agree(self, index: Index, loaded: Loaded, scan: Scan) -> tuple[State, Journal]:
        """The state both hold after this; see the module's docstring for who is believed."""
        if scan.usable and scan.seq >= loaded.seq:
            state = State()
            for frame in scan.frames:
                state.apply(frame.ops)
        else:
            state = loaded.state
            for frame in scan.frames:
                if frame.seq > loaded.seq:
                    state.apply(frame.ops)
            if scan.frames or loaded.seq:
                self._log.error("journal damaged; rewriting it from the index")
            if self._layout.journal.exists():
                move_to_quarantine(self._disk, self._layout, self._layout.journal)
            scan = write_journal(
                self._layout.journal,
                self._layout.tmp / "journal",
                self._disk,
                state,
                seq=max(scan.seq, loaded.seq),
            )
        if scan.seq != loaded.seq or state != loaded.state:
            with index.transaction():
                index.replace_state(state, seq=scan.seq)
        with translated("opening the journal"):
            live_bytes = state.live_bytes()
            return state, Journal(self._layout.journal, self._disk, scan, live_bytes=live_bytes)

    # ------------------------------------------------------------ blobs
    def _files(self, directory: Path) -> Iterator[os.DirEntry[str]]:
        with os.scandir(directory) as shards:
            for shard in sorted(shards, key=lambda entry: entry.name):
                if shard.is_dir(follow_symlinks=False):
                    with os.scandir(shard) as entries:
                        yield from sorted(entries, key=lambda entry: entry.name)

    def _check_blobs(self, rows: dict[Digest, BlobRow]) -> dict[Digest, Held]:
        held: dict[Digest, Held] = {}
        for entry in self._files(self._layout.blobs):
            name = parse_blob_name(entry.name)
            if name is None or not entry.is_file(follow_symlinks=False):
                self._log.warning("not a blob; quarantined", name=entry.name)
                move_to_quarantine(self._disk, self._layout, Path(entry.path))
                continue
            digest, kind = name
            row = rows.get(digest)
            if row is not None and row.doomed:
                self._disk.unlink(Path(entry.path))
                continue
            found = entry.stat(follow_symlinks=False)
            if row is None or row.kind != kind or not untouched(row, found):
                path = Path(entry.path)
                if digest in held or not hashes_to(path, digest):
                    self._quarantine(path, digest, known=row is not None and row.kind == kind)
                    continue
                fresh = row_of(digest, kind, found)
                if row is None:
                    self._adopted.append(digest)
                else:
                    fresh = msgspec.structs.replace(
                        fresh, manifest=row.manifest, wire_bytes=row.wire_bytes
                    )
                self._saves.append(fresh)
                row = fresh
            held[digest] = held_of(row, self._layout)
        if self._machine_crashed:
            self._check_recent(held)
        lost = [digest for digest in rows if digest not in held]
        self._drops.extend(lost)
        for digest in lost:
            if not rows[digest].doomed:
                how = "corrupt" if digest in self._corrupt else "missing"
                self.losses[digest] = f"{rows[digest].kind} {how}"
        self._missing.extend(
            digest for digest in lost if not rows[digest].doomed and digest not in self._corrupt
        )
        return held

    def _quarantine(self, path: Path, digest: Digest, *, known: bool) -> None:
        self._log.error("blob damaged; quarantined", digest=digest, indexed=known)
        move_to_quarantine(self._disk, self._layout, path)
        self._corrupt.append(digest)

    def _check_recent(self, held: dict[Digest, Held]) -> None:
        newest_first = sorted(held.values(), key=lambda blob: -blob.row.mtime_ns)
        last_life_ns = max(
            (blob.row.mtime_ns for blob in newest_first[:1]),
            default=0,
        )
        last_life_ns = max(last_life_ns, self._layout.journal.stat().st_mtime_ns)
        budget = RECENT_BYTES_MAX
        for blob in newest_first:
            budget -= blob.row.size_bytes
            if budget < 0 or blob.row.mtime_ns < last_life_ns - RECENT_S * 1e9:
                return
            if not hashes_to(blob.path, blob.row.digest):
                self._quarantine(blob.path, blob.row.digest, known=True)
                del held[blob.row.digest]
                self._drops.append(blob.row.digest)

    # ------------------------------------------------------------ wire forms and partials
    def _check_wire(self, held: dict[Digest, Held], rows: dict[Digest, BlobRow]) -> None:
        """Of a blob that was lost, not deleted, the wire form is kept to rebuild it from."""
        kept: set[Digest] = set()
        for entry in self._files(self._layout.wire):
            names = parse_pair_name(entry.name)
            path = Path(entry.path)
            blob = held.get(names[0]) if names else None
            if names is None or not entry.is_file(follow_symlinks=False):
                if entry.is_file(follow_symlinks=False):
                    self._disk.unlink(path)
                    continue
                self._log.warning("not a wire form; quarantined", name=entry.name)
                move_to_quarantine(self._disk, self._layout, path)
                continue
            if blob is None:
                row = rows.get(names[0])
                if row is not None and row.doomed:
                    self._disk.unlink(path)
                else:
                    self._keep_wire(*names, held)
                continue
            size = entry.stat(follow_symlinks=False).st_size
            if blob.row.manifest == names[1] and names[1] in held and blob.row.wire_bytes == size:
                kept.add(names[0])
            elif names[0] not in kept and self._adoptable(path, blob, names[1], held):
                self._relink(held, blob, manifest=names[1], wire_bytes=size)
                kept.add(names[0])
            else:
                self._disk.unlink(path)
        for blob in list(held.values()):
            if blob.row.manifest is not None and blob.row.digest not in kept:
                self.losses[blob.row.digest] = "wire form missing"
                self._relink(held, blob, manifest=None, wire_bytes=None)

    def _keep_wire(self, blob: Digest, name: Digest, held: dict[Digest, Held]) -> None:
        keep_wire(self._disk, self._layout, blob, name, lambda: self._read_manifest(held.get(name)))

    def _adoptable(self, path: Path, blob: Held, name: Digest, held: dict[Digest, Held]) -> bool:
        """Whether `path` is, whole, the wire form that manifest `name` describes."""
        manifest = self._read_manifest(held.get(name))
        if manifest is None or manifest.blob != blob.row.digest:
            return False
        try:
            fd = open_file(path)
            try:
                if os.fstat(fd).st_size != manifest.wire_bytes:
                    return False
                return len(present_segments(fd, manifest)) == manifest.segments
            finally:
                os.close(fd)
        except OSError as error:
            if not is_damage(error):
                raise
            return False

    def _read_manifest(self, blob: Held | None) -> Manifest | None:
        if blob is None:
            return None
        try:
            return decode_manifest(blob.path.read_bytes(), expected=blob.row.digest)
        except RemoteProtocolError:
            return None

    def _relink(
        self,
        held: dict[Digest, Held],
        blob: Held,
        *,
        manifest: Digest | None,
        wire_bytes: int | None,
    ) -> None:
        row = msgspec.structs.replace(blob.row, manifest=manifest, wire_bytes=wire_bytes)
        held[row.digest] = held_of(row, self._layout)
        self._saves.append(row)

    def _sweep_partials(self, held: dict[Digest, Held]) -> None:
        """Keeps what a fetch may resume from; a blob that is here needs no fetch."""
        oldest_s = time.time() - PARTIAL_AGE_MAX_S
        for path in sorted(self._layout.partial.iterdir()):
            names = parse_pair_name(path.name)
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                move_to_quarantine(self._disk, self._layout, path)
            elif names is None or names[0] in held or found.st_mtime < oldest_s:
                self._disk.unlink(path)
