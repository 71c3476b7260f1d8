"""The map of signed records that every node holds whole: functions, their versions. SPEC §6.

Per key the greatest (hlc, signer, digest of value) wins, so merging commutes, associates and is
idempotent. Nothing enters unverified. A tombstone is a record with an empty value; it is kept
TOMBSTONE_MS and stands outside the state digest, so nodes that purged it and nodes that did not
still agree. Only the owner (Gossip) merges; everyone else reads or prepares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .clock import HybridClock, hlc_wall_ms
from .errors import RemoteProtocolError
from .function import FunctionSpec, decode_spec, version_of
from .identity import Credential, TrustAnchor
from .ids import FunctionName, NodeId, VersionId, digest_of, parse_function_name
from .records import (
    Record,
    Verified,
    decode_record,
    encode_alias,
    record_key,
    sign_record,
    verify_record,
)

RECORDS_MAX: Final = 16_384
NAMES_MAX: Final = 4_096
BYTES_MAX: Final = 64 * 1024 * 1024
VERSIONS_KEPT: Final = 64
"""Live versions per function; a deploy above it removes the oldest that is not current."""
TOMBSTONE_MS: Final = 48 * 3600 * 1000
"""A node that stays away longer than this may bring a removed function back."""

ITEM: Final = Struct(">QQI")
"""One record in a sync summary: key hash, hlc, low bits of the entry hash (for equal hlc)."""
_U64: Final = Struct(">Q")


class Current(NamedTuple):
    """What a name means now."""

    version: VersionId
    spec: FunctionSpec
    alias: Record


class VersionRow(NamedTuple):
    version: VersionId
    spec: FunctionSpec
    record: Record
    current: bool

    @property
    def signer_name(self) -> str:
        return self.record.credential.name


class Entry(NamedTuple):
    verified: Verified
    order: tuple[int, NodeId, str]
    digest: int
    """64 bits over key and order."""


class _Function:
    """Alias and live versions of one name."""

    __slots__ = ("alias", "versions")

    def __init__(self) -> None:
        self.alias: Verified | None = None
        self.versions: dict[VersionId, Verified] = {}


def key_hash(key: str) -> int:
    return int.from_bytes(blake3(key.encode()).digest(8))


def _order_of(record: Record) -> tuple[int, NodeId, str]:
    return record.hlc, record.signer, digest_of(record.value)


def _entry_of(verified: Verified) -> Entry:
    order = _order_of(verified.record)
    text = f"{verified.key}\x00{order[0]}\x00{order[1]}\x00{order[2]}"
    return Entry(verified, order, int.from_bytes(blake3(text.encode()).digest(8)))


class Catalog:
    def __init__(
        self, anchor: TrustAnchor, private_key: Ed25519PrivateKey, credential: Credential
    ) -> None:
        self._anchor = anchor
        self._private_key = private_key
        self._credential = credential
        self._clock = HybridClock()
        self._entries: dict[str, Entry] = {}
        self._keys: dict[int, str] = {}
        self._names: dict[FunctionName, _Function] = {}
        self._current: dict[str, Current] = {}
        self._tombstones: dict[str, None] = {}
        self._digest = 0
        self._bytes = 0

    # ------------------------------------------------------------ reading
    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, name: str) -> Current | None:
        """One dict look-up: this is on the path of each request."""
        return self._current.get(name)

    def functions(self) -> tuple[tuple[FunctionName, Current], ...]:
        """All that are deployed, by name."""
        return tuple((FunctionName(name), self._current[name]) for name in sorted(self._current))

    def versions(self, name: str) -> tuple[VersionRow, ...]:
        """Live versions, newest first; () for an unknown or removed function."""
        function = self._names.get(FunctionName(name))
        if function is None or function.alias is None or function.alias.record.tombstone:
            return ()
        current = self._current.get(name)
        now = current.version if current is not None else None
        rows = [
            VersionRow(version, verified.spec, verified.record, version == now)
            for version, verified in function.versions.items()
            if verified.spec is not None
        ]
        return tuple(sorted(rows, key=lambda row: _order_of(row.record), reverse=True))

    def spec(self, name: str, version: str) -> FunctionSpec | None:
        """Of any live version."""
        function = self._names.get(FunctionName(name))
        verified = function.versions.get(VersionId(version)) if function else None
        return verified.spec if verified else None

    def state_digest(self) -> int:
        """64 bits, equal on nodes that hold the same live records."""
        return self._digest

    def encoded(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        return entry.verified.encoded if entry else None

    def hlc(self, key: str) -> int:
        """Of the record at `key`; -1 without one."""
        entry = self._entries.get(key)
        return entry.order[0] if entry else -1

    # ------------------------------------------------------------ preparing: moves only the clock
    def _sign(
        self, kind: str, name: FunctionName, version: str, wall_ms: int, value: bytes
    ) -> Record:
        self._anchor.check(self._credential, role="control", wall_s=wall_ms / 1000)
        return sign_record(
            self._private_key,
            self._credential,
            kind="version" if kind == "version" else "alias",
            name=name,
            version=version,
            hlc=self._clock.tick(wall_ms),
            value=value,
        )

    def prepare_version(self, name: str, spec_bytes: bytes, *, wall_ms: int) -> list[Record]:
        """The record of a version, and tombstones of the oldest above VERSIONS_KEPT; [] if the
        version is there already.

        Raises RemoteProtocolError: "function-name", "spec", "credential-role" (this node may not
        deploy), "catalog-full"."""
        parsed = parse_function_name(name)
        decode_spec(spec_bytes)
        version = version_of(spec_bytes)
        function = self._names.get(parsed, _Function())
        if version in function.versions:
            return []
        record = self._sign("version", parsed, version, wall_ms, spec_bytes)
        self._check_room(record_key(record), parsed, len(spec_bytes))
        current = self._current.get(name)
        spare = [row for row in function.versions if not current or row != current.version]
        spare.sort(key=lambda row: _order_of(function.versions[row].record))
        excess = max(0, len(function.versions) + 1 - VERSIONS_KEPT)
        dropped = [self._sign("version", parsed, old, wall_ms, b"") for old in spare[:excess]]
        return [record, *dropped]

    def prepare_alias(self, name: str, version: VersionId, *, wall_ms: int) -> list[Record]:
        """Makes `version`, here already or prepared just before, the current one; [] if it is.

        Raises as prepare_version."""
        parsed = parse_function_name(name)
        current = self._current.get(parsed)
        if current is not None and current.version == version:
            return []
        record = self._sign("alias", parsed, "", wall_ms, encode_alias(version))
        self._check_room(record_key(record), parsed, len(record.value))
        return [record]

    def prepare_remove(self, name: str, *, wall_ms: int) -> list[Record]:
        """Tombstones of the alias and of every known version; [] for an unknown function.

        Raises RemoteProtocolError: "function-name", "credential-role"."""
        parsed = parse_function_name(name)
        function = self._names.get(parsed)
        if function is None:
            return []
        records = []
        if function.alias is not None and not function.alias.record.tombstone:
            records.append(self._sign("alias", parsed, "", wall_ms, b""))
        ordered = sorted(function.versions)
        records += [self._sign("version", parsed, version, wall_ms, b"") for version in ordered]
        return records

    # ------------------------------------------------------------ merging
    def check(self, encoded: bytes, *, wall_ms: int) -> Verified | None:
        """A record from a peer, verified; None if it is no news (then unverified: a known record
        costs no signature check). Changes nothing.

        Raises RemoteProtocolError: as decode_record and verify_record, "catalog-full"."""
        record = decode_record(encoded)
        known = self._entries.get(record_key(record))
        if known is not None and known.order >= _order_of(record):
            return None
        if known is None and record.tombstone and self._obsolete(record, wall_ms):
            return None
        verified = verify_record(record, self._anchor, wall_ms=wall_ms)
        self._check_room(verified.key, verified.name, len(verified.encoded))
        return verified

    def merge(self, verified: Verified) -> bool:
        """Whether it was news."""
        entry = _entry_of(verified)
        known = self._entries.get(verified.key)
        if known is not None and known.order >= entry.order:
            return False
        self._clock.observe(entry.order[0])
        if known is not None:
            self._forget(known)
        self._entries[verified.key] = entry
        self._keys[key_hash(verified.key)] = verified.key
        self._bytes += len(verified.encoded)
        if verified.record.tombstone:
            self._tombstones[verified.key] = None
        else:
            self._digest ^= entry.digest
        self._index(verified)
        return True

    def apply(self, records: Iterable[Record]) -> list[Verified]:
        """Own records, just prepared; those that were news."""
        verified = [verify_record(record, self._anchor, wall_ms=None) for record in records]
        return [row for row in verified if self.merge(row)]

    def load(
        self, encoded_records: Iterable[tuple[str, bytes]], *, wall_ms: int
    ) -> tuple[tuple[str, RemoteProtocolError], ...]:
        """Records from this node's disk, verified again; those refused, with the reason. One bad
        record stops nothing. Expired tombstones are dropped."""
        refused: list[tuple[str, RemoteProtocolError]] = []
        for key, encoded in encoded_records:
            try:
                verified = self._reverify(key, encoded)
            except RemoteProtocolError as error:
                refused.append((key, error))
            else:
                self.merge(verified)
        self.purge(wall_ms)
        return tuple(refused)

    def _reverify(self, key: str, encoded: bytes) -> Verified:
        verified = verify_record(decode_record(encoded), self._anchor, wall_ms=None)
        if verified.key != key:
            raise RemoteProtocolError("record", f"stored under {key!r}")
        self._check_room(verified.key, verified.name, len(encoded))
        return verified

    def purge(self, wall_ms: int) -> list[str]:
        """Drops tombstones older than TOMBSTONE_MS; their keys."""
        old = [
            key
            for key in self._tombstones
            if self._obsolete(self._entries[key].verified.record, wall_ms)
        ]
        for key in old:
            entry = self._entries.pop(key)
            self._forget(entry)
            self._keys.pop(key_hash(key), None)
            function = self._names.get(entry.verified.name)
            if function is not None and function.alias is entry.verified:
                function.alias = None
            self._drop_if_empty(entry.verified.name)
        return old

    @staticmethod
    def _obsolete(record: Record, wall_ms: int) -> bool:
        return wall_ms - hlc_wall_ms(record.hlc) > TOMBSTONE_MS

    def _check_room(self, key: str, name: FunctionName, size_bytes: int) -> None:
        if self._bytes + size_bytes > BYTES_MAX:
            raise RemoteProtocolError("catalog-full", f"{BYTES_MAX} bytes of records")
        if key not in self._entries and len(self._entries) >= RECORDS_MAX:
            raise RemoteProtocolError("catalog-full", f"{RECORDS_MAX} records")
        if name not in self._names and len(self._names) >= NAMES_MAX:
            raise RemoteProtocolError("catalog-full", f"{NAMES_MAX} function names")

    def _forget(self, entry: Entry) -> None:
        self._bytes -= len(entry.verified.encoded)
        if entry.verified.record.tombstone:
            self._tombstones.pop(entry.verified.key, None)
        else:
            self._digest ^= entry.digest

    def _index(self, verified: Verified) -> None:
        function = self._names.setdefault(verified.name, _Function())
        if verified.record.kind == "alias":
            function.alias = verified
        elif verified.record.tombstone:
            function.versions.pop(VersionId(verified.record.version), None)
        else:
            function.versions[VersionId(verified.record.version)] = verified
        self._refresh(verified.name, function)
        self._drop_if_empty(verified.name)

    def _refresh(self, name: FunctionName, function: _Function) -> None:
        """Resolves the name anew. While the version an alias names is still on its way, the name
        keeps its former meaning: a deploy must not make a function vanish for a moment."""
        target = function.alias.target if function.alias is not None else None
        if target is None:
            self._current.pop(name, None)
            return
        verified = function.versions.get(target)
        if verified is not None and verified.spec is not None and function.alias is not None:
            self._current[name] = Current(target, verified.spec, function.alias.record)
            return
        former = self._current.get(name)
        removed = f"v/{name}/{target}" in self._tombstones
        if former is not None and (removed or former.version not in function.versions):
            del self._current[name]

    def _drop_if_empty(self, name: FunctionName) -> None:
        function = self._names.get(name)
        if function is not None and function.alias is None and not function.versions:
            del self._names[name]

    # ------------------------------------------------------------ digest and delta
    def summary(self) -> bytes:
        """ITEM per record, tombstones included."""
        return b"".join(
            ITEM.pack(hashed, self._entries[key].order[0], self._entries[key].digest & 0xFFFFFFFF)
            for hashed, key in self._keys.items()
        )

    def compare(self, summary: bytes) -> tuple[list[bytes], list[int]]:
        """(encoded records the summary's owner lacks, key hashes of those it has newer).

        Live records come last and aliases after versions, so that a cut delta still makes sense."""
        theirs = {hashed: (hlc, low) for hashed, hlc, low in ITEM.iter_unpack(summary)}
        newer: list[Entry] = []
        wanted: list[int] = []
        for hashed, key in self._keys.items():
            entry = self._entries[key]
            mine = (entry.order[0], entry.digest & 0xFFFFFFFF)
            other = theirs.pop(hashed, None)
            if other == mine:
                continue
            if other is None or mine[0] >= other[0]:
                newer.append(entry)
            if other is not None and other[0] >= mine[0]:
                wanted.append(hashed)
        wanted.extend(theirs)
        newer.sort(key=lambda entry: (entry.verified.record.kind != "version", entry.order))
        return [entry.verified.encoded for entry in newer], wanted

    def select(self, hashes: Iterable[int]) -> Iterator[bytes]:
        """Encoded records of the key hashes that are known here."""
        for hashed in hashes:
            key = self._keys.get(hashed)
            if key is not None:
                yield self._entries[key].verified.encoded


def pack_hashes(hashes: Iterable[int]) -> bytes:
    return b"".join(_U64.pack(hashed) for hashed in hashes)


def unpack_hashes(data: bytes) -> list[int]:
    return [hashed for (hashed,) in _U64.iter_unpack(data)]
