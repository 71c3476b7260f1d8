"""The process dies, or a system call fails, at each single step of everything the store does.

Each run forks a child that does one scenario on the synchronous core and reports what was
acknowledged; the step hook kills it (or raises) at step n, for every n there is. Afterwards
everything acknowledged is there and verifies, and nothing is left over.
"""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged.errors import BlobNotFound, DiskFull, StoreError
from edged.interfaces import ArtifactRow
from edged.store.journal import SaveRecord, SetMeta
from edged.store.opening import Opened, open_core
from edged.store.wireforms import WireForms
from edged.telemetry import make_log
from protocol.ids import ArtifactKey, Digest, digest_of
from protocol.manifest import Manifest, manifest_digest

Ack = Callable[[str], None]
Step = Callable[[str], None]

KEY = ArtifactKey("k" * 64)
A = b"\x00asm" + bytes(range(256)) * 300
B = b"\x7fELF second" * 100
C = b"third" * 20_000
DOOMED = b"doomed" * 50
NATIVE = b"\x7fELF of C" * 50


def opening(data_dir: Path, step: Step = lambda name: None) -> Opened:
    log = make_log("x", stream=io.StringIO())
    return open_core(data_dir, min_free_bytes=0, log=log, step=step)


def close(opened: Opened) -> None:
    opened.core.close()
    opened.lock.release(clean=True)


def scenario(data_dir: Path, step: Step, ack: Ack) -> None:
    """One of everything; `ack(what)` after each call that returned."""
    opened = opening(data_dir, step)
    core = opened.core
    wire = WireForms(core, zstd_level=1)
    core.put(A, "module", None)
    ack("put A")
    temp = core.temp_path()
    temp.write_bytes(B)
    core.put_file(temp, "artifact", None)
    ack("put B")
    core.put_artifact(ArtifactRow(digest_of(A), KEY, digest_of(B), len(B), 1.0, b"word"))
    ack("artifact")
    core.commit([SaveRecord("r", b"1"), SaveRecord("s", b"2")])
    ack("records")
    manifest = wire.make(digest_of(A))
    ack("wire A")
    core.put(C, "module", None)
    made = wire.make(digest_of(C))
    segments = [wire.segments(made.blob, [i])[0] for i in range(made.segments)]
    core.delete(digest_of(C))
    fetch = wire.begin(made)
    for index, segment in enumerate(segments):
        fetch.write([(index, segment)])
        ack(f"segment {index}")
    fetch.finish()
    ack("fetch C")
    core.commit([SaveRecord("gone", b"tombstone")])
    core.drop_records(["gone"])
    ack("dropped")
    native = core.put(NATIVE, "artifact", None)
    core.put_artifact(ArtifactRow(digest_of(C), KEY, native.digest, len(NATIVE), 1.0, b"word"))
    core.delete_artifact(digest_of(C), KEY)
    ack("artifact deleted")
    core.put(DOOMED, "module", None)
    core.delete(digest_of(DOOMED))
    ack("deleted")
    core.commit([SetMeta("generation", b"9")])
    ack("meta")
    core.commit([SaveRecord("r", b"3")])
    ack("record again")
    assert manifest.blob == digest_of(A)
    close(opened)
    ack("closed")


def check_resumable(wire: WireForms, acked: list[str], made: Manifest) -> None:
    """A fetch that was under way goes on where it was."""
    fetch = wire.begin(made)
    said = {int(what.split()[1]) for what in acked if what.startswith("segment")}
    assert said <= fetch.present
    fetch.discard()


def check(data_dir: Path, acked: list[str], made: Manifest | None = None) -> None:
    """Everything in `acked` is there; whatever else there is, is whole; nothing is left over."""
    opened = opening(data_dir)
    core = opened.core
    wire = WireForms(core, zstd_level=1)
    assert opened.repair.missing == opened.repair.corrupt == ()
    assert not opened.repair.index_rebuilt
    held = {blob.row.digest: blob for blob in core.all_held()}
    for digest, blob in held.items():
        assert core.verify(digest)
        if blob.row.manifest is not None:
            manifest = wire.manifest(digest)
            for index in range(manifest.segments):
                wire.segments(digest, [index])[0]
    for what, data in (("put A", A), ("put B", B), ("fetch C", C)):
        if what in acked:
            assert core.read(digest_of(data)) == data, what
    if "wire A" in acked:
        assert held[digest_of(A)].row.manifest is not None
    if "fetch C" in acked:
        assert held[digest_of(C)].row.manifest is not None
    if "artifact" in acked:
        row = core.artifact(digest_of(A), KEY)
        assert row is not None
        assert row.attestations == b"word"
    for row in core.artifacts():
        assert row.digest in held
    records = dict(core.records())
    assert records.pop("gone", b"") in ((b"",) if "dropped" in acked else (b"", b"tombstone"))
    if "records" in acked:
        assert records in ({"r": b"1", "s": b"2"}, {"r": b"3", "s": b"2"})
    else:
        assert records in ({}, {"r": b"1", "s": b"2"})
    if "record again" in acked:
        assert records["r"] == b"3"
    if "meta" in acked:
        assert core.meta("generation") == b"9"
    if "deleted" in acked:
        assert digest_of(DOOMED) not in held
    if "artifact deleted" in acked:
        assert digest_of(NATIVE) not in held
        assert core.artifact(digest_of(C), KEY) is None
    check_no_leftovers(data_dir, held)
    if made is not None and made.blob not in held:
        check_resumable(wire, acked, made)
    close(opened)
    again = opening(data_dir)
    assert again.repair.orphans_adopted == again.repair.missing == again.repair.corrupt == ()
    assert again.repair.temps_removed == 0
    close(again)


def check_no_leftovers(data_dir: Path, held: dict[Digest, object]) -> None:
    assert list((data_dir / "tmp").iterdir()) == []
    assert list((data_dir / "quarantine").iterdir()) == []
    blobs = [path for path in (data_dir / "blobs").rglob("*") if path.is_file()]
    assert {path.name.split(".")[0] for path in blobs} == set(held)
    for path in (data_dir / "wire").rglob("*.*"):
        assert path.name.split(".")[0] in held
    for path in (data_dir / "partial").iterdir():
        assert path.name.split(".")[0] not in held


def count_steps(data_dir: Path, run: Callable[[Path, Step, Ack], None]) -> list[str]:
    names: list[str] = []
    run(data_dir, names.append, lambda what: None)
    return names


def dies_at(data_dir: Path, number: int, run: Callable[[Path, Step, Ack], None]) -> list[str]:
    """What a forked child acknowledged before it died at step `number`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        taken = 0

        def step(name: str) -> None:
            nonlocal taken
            taken += 1
            if taken == number:
                os._exit(42)

        status = 1
        try:
            run(data_dir, step, lambda what: os.write(writer, f"{what}\n".encode()) and None)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as acks:
        acked = acks.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    return acked


def wire_of(raw: bytes, near: Path) -> tuple[Manifest, list[bytes]]:
    """As another store makes it."""
    with tempfile.TemporaryDirectory(dir=near) as name:
        opened = opening(Path(name))
        wire = WireForms(opened.core, zstd_level=1)
        manifest = wire.make(opened.core.put(raw, "module", None).digest)
        segments = [wire.segments(manifest.blob, [i])[0] for i in range(manifest.segments)]
        close(opened)
    return manifest, segments


@pytest.fixture
def fast_dir(tmp_path: Path) -> Iterator[Path]:
    """Memory-backed where there is such a thing: a dead process loses no page cache, so where the
    files lie changes nothing but the price of some thousand fsyncs."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shm) as name:
        yield Path(name)


pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.mark.slow
def test_death_at_each_step(fast_dir: Path) -> None:
    names = count_steps(fast_dir / "whole", scenario)
    assert {"rename", "fsync", "fsync-dir", "link", "sql-commit", "journal-fsync"} <= set(names)
    reached: set[str] = set()
    made, _ = wire_of(C, fast_dir)
    for number in range(1, len(names) + 1):
        data_dir = fast_dir / f"dies-{number}"
        acked = dies_at(data_dir, number, scenario)
        assert "closed" not in acked
        reached.update(acked)
        check(data_dir, acked, made)
    assert "meta" in reached, "the last that is followed by another step"


def test_death_at_each_step_of_a_repair(fast_dir: Path) -> None:
    """Repair itself may die anywhere, again, and the next start completes it."""

    def harmed(data_dir: Path) -> None:
        scenario(data_dir, lambda name: None, lambda what: None)
        (data_dir / "index.sqlite").write_bytes(b"junk" * 1000)
        (data_dir / "tmp" / "left").write_bytes(b"over")
        (data_dir / "wire" / "00").mkdir(exist_ok=True)
        (data_dir / "wire" / "00" / "stray").write_bytes(b"")

    def repair(data_dir: Path, step: Step, ack: Ack) -> None:
        close(opening(data_dir, step))

    harmed(fast_dir / "whole")
    names = count_steps(fast_dir / "whole", repair)
    everything = ["put A", "put B", "fetch C", "artifact", "records", "record again", "meta"]
    for number in range(1, len(names) + 1):
        data_dir = fast_dir / f"dies-{number}"
        harmed(data_dir)
        dies_at(data_dir, number, repair)
        close(opening(data_dir))
        for path in (data_dir / "quarantine").iterdir():
            assert path.name.split("-", 1)[1].startswith(("index.sqlite", "journal"))
            path.unlink()
        check(data_dir, everything)


def losing(data_dir: Path, step: Step, ack: Ack) -> None:
    """A blob's file vanishes; it is missed, then rebuilt from its wire form."""
    opened = opening(data_dir)
    wire = WireForms(opened.core, zstd_level=1)
    digest = opened.core.put(A, "module", None).digest
    wire.make(digest)
    name = opened.core.require(digest).row.manifest
    assert name is not None
    opened.core.disk.step = step
    opened.core.require(digest).path.unlink()
    with pytest.raises(BlobNotFound):
        opened.core.verify(digest)
    ack("missed")
    assert wire.rebuild(digest, name) is not None
    ack("rebuilt")
    close(opened)


def test_death_at_each_step_of_a_loss_and_rebuild(fast_dir: Path) -> None:
    """However far it came, the blob is there or can be made from what is."""
    names = count_steps(fast_dir / "whole", losing)
    made, _ = wire_of(A, fast_dir)
    reached: set[str] = set()
    for number in range(1, len(names) + 1):
        data_dir = fast_dir / f"dies-{number}"
        acked = dies_at(data_dir, number, losing)
        reached.update(acked)
        opened = opening(data_dir)
        assert opened.repair.corrupt == ()
        assert opened.core.get(made.blob) is not None or "rebuilt" not in acked
        assert WireForms(opened.core, zstd_level=1).rebuild(made.blob, manifest_digest(made))
        close(opened)
        check(data_dir, ["put A", "wire A"])
    assert "missed" in reached


def fails_at(number: int, code: int) -> tuple[Step, list[str]]:
    taken: list[str] = []

    def step(name: str) -> None:
        taken.append(name)
        if len(taken) == number:
            if name.startswith("sql"):
                raise sqlite3.OperationalError("injected")
            raise OSError(code, os.strerror(code))

    return step, taken


Operation = Callable[[Opened, WireForms], object]


def outcome(operation: Operation, opened: Opened, wire: WireForms) -> StoreError | None:
    try:
        operation(opened, wire)
    except StoreError as error:
        return error
    return None


OPERATIONS: list[tuple[str, Operation]] = [
    ("put", lambda o, w: o.core.put(C, "module", None)),
    ("put_file", lambda o, w: put_file(o)),
    ("make", lambda o, w: w.make(digest_of(A))),
    ("delete", lambda o, w: o.core.delete(digest_of(DOOMED))),
    ("fetch", lambda o, w: fetch_b(o, w)),
    ("drop", lambda o, w: o.core.drop_records(["s"])),
    ("record", lambda o, w: o.core.commit([SaveRecord("r", b"3")])),
    (
        "artifact",
        lambda o, w: o.core.put_artifact(ArtifactRow(digest_of(A), KEY, digest_of(A), 1, 1.0, b"")),
    ),
]


def put_file(opened: Opened) -> None:
    temp = opened.core.temp_path()
    temp.write_bytes(B)
    opened.core.put_file(temp, "artifact", None)


def fetch_b(opened: Opened, wire: WireForms) -> None:
    manifest, segments = wire_of(B, opened.core.layout.root.parent)
    fetch = wire.begin(manifest)
    for index, segment in enumerate(segments):
        fetch.write([(index, segment)])
    fetch.finish()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "io-error"])
@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_each_system_call_fails_once(
    fast_dir: Path, name: str, operation: Operation, code: int
) -> None:
    """A typed error, no temp, nothing lost, and the same call succeeds afterwards."""
    number = 0
    while True:
        number += 1
        data_dir = fast_dir / str(number)
        step, taken = fails_at(10**9, code)
        gate: list[Step] = [step]
        opened = opening(data_dir, lambda name, gate=gate: gate[0](name))
        wire = WireForms(opened.core, zstd_level=1)
        opened.core.put(A, "module", None)
        opened.core.put(DOOMED, "module", None)
        opened.core.commit([SaveRecord("r", b"1"), SaveRecord("s", b"2")])
        gate[0], taken = fails_at(number, code)
        error = outcome(operation, opened, wire)
        done = len(taken) < number
        if error is not None:
            failed_sql = taken[number - 1].startswith("sql")
            assert failed_sql or isinstance(error, DiskFull) == (code == errno.ENOSPC)
            assert str(fast_dir) not in str(error)
        gate[0] = lambda name: None
        for path in (data_dir / "tmp").iterdir():
            # Only when removing the temp is what failed.
            assert taken[number - 1] == "unlink", (taken, path)
            path.unlink()
        assert opened.core.read(digest_of(A)) == A
        operation(opened, WireForms(opened.core, zstd_level=1))
        if name == "drop":
            assert dict(opened.core.records()) == {"r": b"1"}
            opened.core.commit([SaveRecord("s", b"2")])
        close(opened)
        acked = ["put A", "records", *(["record again"] if name == "record" else [])]
        check(data_dir, acked)
        if done:
            break
    assert number > 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "io-error"])
def test_each_system_call_of_a_loss_and_rebuild_fails_once(fast_dir: Path, code: int) -> None:
    """Whatever failed, the blob can be rebuilt at once, without a restart."""
    number = 0
    done = False
    while not done:
        number += 1
        data_dir = fast_dir / str(number)
        gate: list[Step] = [lambda name: None]
        opened = opening(data_dir, lambda name, gate=gate: gate[0](name))
        wire = WireForms(opened.core, zstd_level=1)
        made = wire.make(opened.core.put(A, "module", None).digest)
        opened.core.require(made.blob).path.unlink()
        gate[0], taken = fails_at(number, code)
        attempts: tuple[Operation, ...] = (
            lambda o, w, blob=made.blob: o.core.verify(blob),
            lambda o, w, made=made: w.rebuild(made.blob, manifest_digest(made)),
        )
        for attempt in attempts:
            assert str(fast_dir) not in str(outcome(attempt, opened, wire))
        done = len(taken) < number
        gate[0] = lambda name: None
        assert wire.rebuild(made.blob, manifest_digest(made)) is not None
        for path in (data_dir / "tmp").iterdir():
            assert taken[number - 1] == "unlink", (taken, path)
            path.unlink()
        close(opened)
        check(data_dir, ["put A", "wire A"])
    assert number > 10


@pytest.mark.parametrize("failing", ["sql-commit", "journal-write", "journal-fsync"])
def test_what_was_refused_never_comes_back(fast_dir: Path, failing: str) -> None:
    """The caller was told no: neither a restart nor a rebuilt index may say yes."""
    gate: list[Step] = [lambda name: None]
    opened = opening(fast_dir / "data", lambda name: gate[0](name))
    opened.core.commit([SaveRecord("r", b"old")])

    def fail(name: str) -> None:
        if name == failing:
            raise (sqlite3.OperationalError if name.startswith("sql") else OSError)("injected")

    gate[0] = fail
    with pytest.raises(StoreError):
        opened.core.commit([SaveRecord("r", b"refused"), SetMeta("m", b"refused")])
    assert dict(opened.core.records()) == {"r": b"old"}
    gate[0] = lambda name: None
    opened.core.commit([SaveRecord("s", b"later")])
    close(opened)
    for rebuild in (False, True):
        if rebuild:
            (fast_dir / "data" / "index.sqlite").unlink()
        opened = opening(fast_dir / "data")
        assert dict(opened.core.records()) == {"r": b"old", "s": b"later"}
        assert opened.core.meta("m") is None
        close(opened)
