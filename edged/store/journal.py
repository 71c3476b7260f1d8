"""The append-only, checksummed journal of what no blob file could restore.

Records, meta values and artifact rows are acknowledged only when they stand here *and* in SQLite,
so either may be lost whole. File: MAGIC, 16 random bytes (salt), then frames

    MARKER (4) | payload length (u32 LE) | seq (u64 LE) | BLAKE3-128 | payload

The sum covers salt, length, seq and payload, so no record can carry bytes that pass for a frame.
A frame is one transaction (a msgpack list of ops); its seq is the one before plus 1. What does not
verify at the end is a torn append that nobody was told of; in the middle it is damage, and later
frames that verify are still taken. A failed append is overwritten by the next. The journal is
rewritten from the state when it is mostly superseded.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3

from edged.errors import StoreError
from edged.interfaces import ArtifactRow
from protocol.ids import ArtifactKey, Digest

from .disk import Disk, translated

MAGIC: Final = b"edgedjr1"
MARKER: Final = b"\xedJ\x01\x9b"
SALT_BYTES: Final = 16
HEADER_BYTES: Final = len(MAGIC) + SALT_BYTES
_HEAD: Final = struct.Struct("<4sIQ16s")
PAYLOAD_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of one transaction; larger is our bug on writing, damage on reading."""
OPS_PER_FRAME: Final = 256
_OP_BYTES: Final = 10
"""MessagePack's own bytes of an op with a key and a value."""
_ROW_BYTES: Final = 240
"""Three digests in hex and the numbers of an artifact row."""
SLACK_BYTES: Final = 1024 * 1024
"""Rewritten when larger than twice the live state and this: an append stays O(1) amortised."""


class SaveRecord(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    key: str
    value: bytes


class DropRecord(msgspec.Struct, frozen=True, array_like=True, tag="x"):
    key: str


class SetMeta(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    key: str
    value: bytes


class PutArtifact(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    row: ArtifactRow


class DropArtifact(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    module: Digest
    key: ArtifactKey


Op = SaveRecord | DropRecord | SetMeta | PutArtifact | DropArtifact

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Op])


class State(msgspec.Struct):
    """The sum of all ops; owned by the core, changed under its write lock."""

    records: dict[str, bytes] = {}
    meta: dict[str, bytes] = {}
    artifacts: dict[tuple[Digest, ArtifactKey], ArtifactRow] = {}

    def apply(self, ops: Iterable[Op]) -> None:
        for op in ops:
            match op:
                case SaveRecord(key, value):
                    self.records[key] = value
                case DropRecord(key):
                    self.records.pop(key, None)
                case SetMeta(key, value):
                    self.meta[key] = value
                case PutArtifact(row):
                    self.artifacts[row.module, row.key] = row
                case DropArtifact(module, artifact_key):
                    self.artifacts.pop((module, artifact_key), None)

    def ops(self) -> Iterator[Op]:
        """The shortest list of ops that makes this state."""
        yield from (SaveRecord(key, value) for key, value in self.records.items())
        yield from (SetMeta(key, value) for key, value in self.meta.items())
        yield from (PutArtifact(row) for row in self.artifacts.values())

    def live_bytes(self) -> int:
        """About what the shortest journal of this state has: a sum, without encoding it."""
        pairs = itertools.chain(self.records.items(), self.meta.items())
        return sum(len(key) + len(value) + _OP_BYTES for key, value in pairs) + sum(
            len(row.attestations) + _ROW_BYTES for row in self.artifacts.values()
        )


class Frame(msgspec.Struct, frozen=True):
    seq: int
    ops: list[Op]
    end: int
    """Offset behind it."""


class Scan(msgspec.Struct, frozen=True):
    """What a journal file holds."""

    usable: bool
    """The header is there and no frame is damaged: it can be appended to."""
    salt: bytes
    frames: list[Frame]
    end: int
    """Where the next frame goes; what stands behind is a torn append."""

    @property
    def seq(self) -> int:
        return self.frames[-1].seq if self.frames else 0


def _sum(salt: bytes, payload: bytes | memoryview, seq: int) -> bytes:
    return blake3(salt + struct.pack("<IQ", len(payload), seq)).update(payload).digest(16)


def encode_frame(ops: Sequence[Op], seq: int, salt: bytes) -> bytes:
    payload = _encoder.encode(ops)
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise StoreError(f"a transaction of {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX}")
    return _HEAD.pack(MARKER, len(payload), seq, _sum(salt, payload, seq)) + payload


def _frame_at(data: bytes, offset: int, salt: bytes) -> Frame | None:
    if offset + _HEAD.size > len(data):
        return None
    marker, length, seq, checksum = _HEAD.unpack_from(data, offset)
    end = offset + _HEAD.size + length
    if marker != MARKER or length > PAYLOAD_BYTES_MAX or end > len(data):
        return None
    payload = memoryview(data)[offset + _HEAD.size : end]
    if _sum(salt, payload, seq) != checksum:
        return None
    try:
        return Frame(seq, _decoder.decode(payload), end)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def scan_bytes(data: bytes) -> Scan:
    """Total: any bytes give a Scan."""
    salt = data[len(MAGIC) : HEADER_BYTES]
    if len(data) < HEADER_BYTES or not data.startswith(MAGIC):
        return Scan(False, salt, [], HEADER_BYTES)
    frames: list[Frame] = []
    usable = True
    offset = end = HEADER_BYTES
    while 0 <= offset < len(data):
        frame = _frame_at(data, offset, salt)
        if frame is not None and (not frames or frame.seq > frames[-1].seq):
            usable &= offset == end and (not frames or frame.seq == frames[-1].seq + 1)
            frames.append(frame)
            offset = end = frame.end
        else:  # a torn tail, or damage: only a good frame behind it tells
            offset = data.find(MARKER, offset + 1)
    return Scan(usable, salt, frames, end)


def scan_file(path: Path) -> Scan:
    with translated("reading the journal"):
        try:
            return scan_bytes(path.read_bytes())
        except FileNotFoundError:
            return scan_bytes(b"")


class Journal:
    """Owned by the core, used under its write lock."""

    def __init__(self, path: Path, disk: Disk, scan: Scan, *, live_bytes: int) -> None:
        """`scan` is of this file and usable; `live_bytes` of it are not superseded."""
        self._path = path
        self._disk = disk
        self._end = scan.end
        self.live_bytes = live_bytes
        self._salt = scan.salt
        self.seq = scan.seq
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.ftruncate(self._fd, self._end)

    @property
    def size_bytes(self) -> int:
        return self._end

    @property
    def wants_rewrite(self) -> bool:
        return self._end > max(2 * self.live_bytes, SLACK_BYTES)

    def append(self, ops: Sequence[Op]) -> None:
        """Durable when it returns; as before if it raises."""
        frame = encode_frame(ops, self.seq + 1, self._salt)
        with translated("writing the journal"):
            try:
                self._disk.step("journal-write")
                self._disk.write(self._fd, frame, self._end)
                self._disk.step("journal-fsync")
                os.fdatasync(self._fd)
            except OSError:
                os.ftruncate(self._fd, self._end)
                raise
        self._end += len(frame)
        self.seq += 1

    def mark(self) -> tuple[int, int]:
        return self._end, self.seq

    def roll_back(self, mark: tuple[int, int]) -> None:
        """Takes back the frames after `mark`: the index could not store them."""
        if mark != self.mark():
            self._end, self.seq = mark
            with translated("taking back a journal entry"):
                os.ftruncate(self._fd, self._end)
                os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def write_journal(path: Path, temp: Path, disk: Disk, state: State, *, seq: int) -> Scan:
    """Replaces the journal by the shortest one of `state`; its last seq is above `seq`."""
    ops = list(state.ops())
    batches = [ops[i : i + OPS_PER_FRAME] for i in range(0, len(ops), OPS_PER_FRAME)] or [[]]
    salt = os.urandom(SALT_BYTES)
    data = bytearray(MAGIC + salt)
    for batch in batches:
        seq += 1
        data += encode_frame(batch, seq, salt)
    with translated("rewriting the journal"):
        try:
            fd = disk.create(temp)
            try:
                disk.write(fd, data, 0)
                disk.sync(fd)
            finally:
                os.close(fd)
            disk.rename(temp, path)
        except OSError:
            disk.discard(temp)
            raise
    return scan_bytes(bytes(data))
