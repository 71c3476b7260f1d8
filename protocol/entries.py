"""A record as the catalog keeps it: its bytes, and what is needed at every comparison. SPEC §6.3.

Everything else is decoded again when somebody asks: at 50,000 records a decoded copy beside the
bytes would double what the catalog weighs, and it is read for current versions only.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from blake3 import blake3

from .buckets import bucket_of
from .function import FunctionSpec, decode_spec
from .ids import FunctionName, NodeId, VersionId, digest_of
from .records import Record, Verified, Version, decode_record, decode_version

ITEM: Final = Struct(">QQI")
"""One record in a listing: key hash, hlc, low bits of the entry digest (for equal hlc)."""

RecordOrder = tuple[int, NodeId, str]


def key_hash(key: str) -> int:
    return int.from_bytes(blake3(key.encode()).digest(8))


def order_of(record: Record) -> RecordOrder:
    return record.hlc, record.signer, digest_of(record.value)


class Entry:
    """Of a verified record. Immutable."""

    __slots__ = ("deployed", "digest", "encoded", "hashed", "hlc", "key", "kind", "live", "target")

    def __init__(self, verified: Verified) -> None:
        record = verified.record
        hlc, signer, value = order_of(record)
        text = f"{verified.key}\x00{hlc}\x00{signer}\x00{value}"
        self.key = verified.key
        self.encoded = verified.encoded
        self.hashed = key_hash(verified.key)
        self.hlc = hlc
        self.digest = int.from_bytes(blake3(text.encode()).digest(8))
        """64 bits over key and order."""
        self.kind = record.kind
        self.live = not record.tombstone
        self.deployed = verified.deployed
        """Of a live version."""
        self.target: VersionId | None = verified.target
        """Of a live alias."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self.encoded == other.encoded

    def __hash__(self) -> int:
        return self.digest

    @property
    def bucket(self) -> int:
        return bucket_of(self.hashed)

    @property
    def low(self) -> int:
        return self.digest & 0xFFFFFFFF

    @property
    def name(self) -> FunctionName:
        return FunctionName(self.key.split("/", 2)[1])

    def item(self) -> bytes:
        return ITEM.pack(self.hashed, self.hlc, self.low)

    def record(self) -> Record:
        return decode_record(self.encoded)

    def version(self) -> Version:
        """Content of a live version."""
        return decode_version(self.record())

    def spec(self) -> FunctionSpec:
        return decode_spec(self.version().spec)

    def outranks(self, record: Record) -> bool:
        """Whether this one stays when `record` comes: it is greater, or the very same."""
        if self.hlc != record.hlc:
            return self.hlc > record.hlc
        return order_of(self.record()) >= order_of(record)
