"""Random operations, restarts, crash images and damage against a model that is two dicts.

A crash image is a copy of the directory while the store is open: what kill -9 leaves. Damage hits
one file per life (any blob, wire form, the journal or the index); whatever it hits, everything
else that was acknowledged is there, and a damaged blob is absent and reported, never served.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import DigestMismatch
from edged.interfaces import ArtifactRow, RepairReport
from edged.store.core import Core
from edged.store.journal import (
    MAGIC,
    SALT_BYTES,
    DropArtifact,
    DropRecord,
    PutArtifact,
    SaveRecord,
    SetMeta,
    State,
    encode_frame,
    scan_bytes,
)
from edged.store.opening import Opened, open_core
from edged.store.wire import open_segment
from edged.store.wireforms import WireForms
from edged.telemetry import make_log
from protocol.ids import ArtifactKey, Digest, digest_of
from protocol.manifest import build_manifest, segment_bytes_for

KEY = ArtifactKey("k" * 64)

blob_numbers = st.integers(0, 7)
fractions = st.floats(0, 1, exclude_max=True)
operations = st.one_of(
    st.tuples(st.sampled_from(["put", "put", "file", "delete", "wire", "artifact"]), blob_numbers),
    st.tuples(st.just("record"), st.integers(0, 3), st.binary(max_size=40)),
    st.tuples(st.just("drop"), st.lists(st.integers(0, 3), max_size=3)),
    st.tuples(st.just("meta"), st.integers(0, 1), st.binary(max_size=40)),
    st.tuples(st.sampled_from(["restart", "crash"])),
    st.tuples(
        st.just("damage"),
        st.sampled_from(["blob", "wire", "journal", "index.sqlite"]),
        st.sampled_from(["flip", "truncate", "remove", "random"]),
        fractions,
    ),
)


def content(number: int) -> bytes:
    return (b"\x00asm" + bytes([number])) * (1 + 4000 * number)


class Life:
    """The store under test and what it must hold."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.number = 0
        self.data_dir = root / "0"
        self.blobs: set[Digest] = set()
        self.wires: set[Digest] = set()
        self.artifacts: set[Digest] = set()
        self.records: dict[str, bytes] = {}
        self.meta: dict[str, bytes] = {}
        self.opened = self.open()

    def open(self) -> Opened:
        log = make_log("x", stream=io.StringIO())
        return open_core(self.data_dir, min_free_bytes=0, log=log)

    @property
    def core(self) -> Core:
        return self.opened.core

    def close(self) -> None:
        self.core.close()
        self.opened.lock.release(clean=True)

    def forget(self, digest: Digest) -> None:
        for names in (self.blobs, self.wires, self.artifacts):
            names.discard(digest)

    def do(self, op: tuple[object, ...]) -> None:
        match op:
            case ["put", int(number)]:
                self.blobs.add(self.core.put(content(number), "module", None).digest)
            case ["file", int(number)]:
                temp = self.core.temp_path()
                temp.write_bytes(content(number))
                self.blobs.add(self.core.put_file(temp, "module", None).digest)
            case ["delete", int(number)]:
                self.core.delete(digest_of(content(number)))
                self.forget(digest_of(content(number)))
            case ["wire", int(number)]:
                if (digest := digest_of(content(number))) in self.blobs:
                    WireForms(self.core, zstd_level=1).make(digest)
                    self.wires.add(digest)
            case ["artifact", int(number)]:
                if (digest := digest_of(content(number))) in self.blobs:
                    self.core.put_artifact(ArtifactRow(digest, KEY, digest, 1, 0.5, b"word"))
                    self.artifacts.add(digest)
            case ["record", int(number), bytes(value)]:
                self.core.commit([SaveRecord(str(number), value)])
                self.records[str(number)] = value
            case ["drop", list(numbers)]:
                self.core.drop_records(str(number) for number in numbers)
                for number in numbers:
                    self.records.pop(str(number), None)
            case ["meta", int(number), bytes(value)]:
                self.core.commit([SetMeta(str(number), value)])
                self.meta[str(number)] = value
            case ["restart"]:
                self.close()
                self.opened = self.open()
                clean = RepairReport(0, (), (), (), index_rebuilt=False)
                assert self.opened.repair == clean
            case ["crash"]:
                self.crash()
                assert self.opened.repair.missing == self.opened.repair.corrupt == ()
                assert not self.opened.repair.index_rebuilt
            case ["damage", str(what), str(how), float(where)]:
                self.damage(what, how, where)
            case _:
                raise AssertionError(op)

    def crash(self) -> None:
        self.number += 1
        image = self.root / str(self.number)
        shutil.copytree(self.data_dir, image, copy_function=shutil.copy2)
        self.close()
        shutil.rmtree(self.data_dir)
        self.data_dir = image
        self.opened = self.open()

    def damage(self, what: str, how: str, where: float) -> None:
        self.close()
        path = self.victim(what, where)
        if path is not None:
            harm(path, how, where)
        self.opened = self.open()
        repair = self.opened.repair
        if path is not None and what == "blob":
            digest = Digest(path.name.split(".")[0])
            lost = (*repair.missing, *repair.corrupt)
            assert lost == (() if self.core.get(digest) else (digest,))
            if how != "truncate":
                assert lost == (digest,)
            self.forget(digest)
            for name in list(self.wires):  # a manifest may have been the victim
                if (held := self.core.get(name)) is None or held.row.manifest is None:
                    self.wires.discard(name)
        else:
            assert repair.missing == repair.corrupt == ()
        if path is not None and what == "wire":
            self.wires.discard(Digest(path.name.split(".")[0]))

    def victim(self, what: str, where: float) -> Path | None:
        if what in {"journal", "index.sqlite"}:
            return self.data_dir / what
        tree = self.data_dir / {"blob": "blobs", "wire": "wire"}[what]
        files = sorted(path for path in tree.rglob("*.*") if path.is_file())
        return files[int(where * len(files))] if files else None

    def check(self) -> None:
        wire = WireForms(self.core, zstd_level=1)
        held = {blob.row.digest: blob for blob in self.core.all_held()}
        assert {d for d, blob in held.items() if blob.row.kind == "module"} == self.blobs
        for digest in held:
            assert digest_of(self.core.read(digest)) == digest
        for digest in self.wires:
            manifest = wire.manifest(digest)
            raws = [
                open_segment(
                    zstandard.ZstdDecompressor(), manifest, i, wire.segments(digest, [i])[0]
                )
                for i in range(manifest.segments)
            ]
            assert digest_of(b"".join(raws)) == digest
        assert {row.digest for row in self.core.artifacts()} == self.artifacts
        assert dict(self.core.records()) == self.records
        for key, value in self.meta.items():
            assert self.core.meta(key) == value
        assert list((self.data_dir / "tmp").iterdir()) == []


def harm(path: Path, how: str, where: float) -> None:
    data = path.read_bytes()
    at = int(where * len(data))
    path.chmod(0o600)
    match how:
        case "flip":
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        case "truncate":
            path.write_bytes(data[:at])
        case "random":
            path.write_bytes(data[:at] + b"\xa5" * 300 + data[at + 300 :])
        case _:
            path.unlink()


@settings(max_examples=60)
@given(st.lists(operations, max_size=25))
def test_the_store_is_its_model(ops: list[tuple[object, ...]]) -> None:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as name:
        life = Life(Path(name))
        try:
            for op in ops:
                life.do(op)
            life.check()
            life.do(("restart",))
            life.check()
        finally:
            life.close()


# ------------------------------------------------------------ journal
texts = st.text(max_size=8)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: Digest(raw.hex()))
rows = st.builds(
    ArtifactRow,
    module=digests,
    key=st.just(KEY),
    digest=digests,
    size_bytes=st.integers(0, 2**40),
    compile_s=st.floats(0, 1e6),
    attestations=st.binary(max_size=50),
)
ops_lists = st.lists(
    st.one_of(
        st.builds(SaveRecord, texts, st.binary(max_size=50)),
        st.builds(DropRecord, texts),
        st.builds(SetMeta, texts, st.binary(max_size=50)),
        st.builds(PutArtifact, rows),
        st.builds(DropArtifact, digests, st.just(KEY)),
    ),
    max_size=4,
)
SALT = bytes(range(SALT_BYTES))


@given(st.lists(ops_lists, max_size=5), fractions)
def test_a_journal_cut_anywhere_keeps_all_whole_frames(
    transactions: list[list[SaveRecord]], where: float
) -> None:
    frames = [encode_frame(ops, seq, SALT) for seq, ops in enumerate(transactions, 1)]
    data = MAGIC + SALT + b"".join(frames)
    whole = scan_bytes(data)
    assert whole.usable
    assert [frame.ops for frame in whole.frames] == transactions
    cut = scan_bytes(data[: int(where * len(data))])
    kept = len(cut.frames)
    assert [frame.ops for frame in cut.frames] == transactions[:kept]
    if cut.usable:
        assert cut.end == len(MAGIC + SALT) + sum(map(len, frames[:kept]))


@given(st.lists(ops_lists, min_size=1, max_size=5), fractions, st.integers(1, 255))
def test_one_damaged_byte_costs_one_frame_and_never_passes(
    transactions: list[list[SaveRecord]], where: float, mask: int
) -> None:
    frames = [encode_frame(ops, seq, SALT) for seq, ops in enumerate(transactions, 1)]
    body = bytearray(b"".join(frames))
    body[int(where * len(body))] ^= mask
    scan = scan_bytes(MAGIC + SALT + bytes(body))
    assert len(scan.frames) == len(transactions) - 1
    for frame in scan.frames:
        assert frame.ops == transactions[frame.seq - 1]
    assert scan.usable == (len(transactions) - 1 == scan.seq)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_scan(data: bytes) -> None:
    scan_bytes(data)
    scan_bytes(MAGIC + SALT + data)


@given(ops_lists)
def test_a_state_is_the_sum_of_its_own_ops(ops: list[SaveRecord]) -> None:
    state = State()
    state.apply(ops)
    again = State()
    again.apply(state.ops())
    assert again == state


# ------------------------------------------------------------ wire
@given(st.binary(max_size=200), st.binary(min_size=1, max_size=200))
def test_any_frame_is_the_segment_or_refused(frame: bytes, raw: bytes) -> None:
    good = zstandard.ZstdCompressor().compress(raw)
    manifest = build_manifest(digest_of(raw), len(raw), [good])
    assert manifest.segment_bytes == segment_bytes_for(len(raw))
    assert open_segment(zstandard.ZstdDecompressor(), manifest, 0, good) == raw
    if frame != good:
        with pytest.raises(DigestMismatch):
            open_segment(zstandard.ZstdDecompressor(), manifest, 0, frame)
