"""The map of signed records that every node holds whole: functions, their versions. SPEC §6.

Per key the greatest (hlc, signer, digest of value) wins, so merging commutes, associates and is
idempotent. Nothing enters unverified. A tombstone is a record with an empty value; it is kept
TOMBSTONE_MS and stands outside the state digest, so nodes that purged it and nodes that did not
still agree, and outside the bounds of live records: a removal always has room. Only the owner
(Gossip) merges; everyone else reads or prepares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .authoring import Author, FunctionState
from .clock import HybridClock, hlc_wall_ms
from .errors import LocalProtocolError, RemoteProtocolError
from .function import FunctionSpec, decode_spec
from .identity import Credential, TrustAnchor
from .ids import FunctionName, NodeId, VersionId, digest_of, parse_function_name
from .records import (
    Record,
    Verified,
    decode_record,
    encode_record,
    record_key,
    verify_record,
)

RECORDS_MAX: Final = 16_384
NAMES_MAX: Final = 4_096
BYTES_MAX: Final = 64 * 1024 * 1024
"""All three of live records."""
TOMBSTONES_MAX: Final = 8_192
"""Above it the one known longest is given up. With RECORDS_MAX live ones and all members a sync
request stays below SYNC_BYTES_MAX."""
TOMBSTONE_MS: Final = 48 * 3600 * 1000
"""A node that stays away longer than this may bring a removed function back."""
CURABLE: Final = frozenset({"catalog-full", "signature", "spec"})
"""Why a record on disk may be refused today and hold tomorrow: there was no room, the trust
directory was another cluster's, a later edged wrote it."""

ITEM: Final = Struct(">QQI")
"""One record in a sync summary: key hash, hlc, low bits of the entry hash (for equal hlc)."""


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
    deployed: int
    """Timestamp; a rollback keeps it."""

    @property
    def deployed_ms(self) -> int:
        return hlc_wall_ms(self.deployed)

    @property
    def signer_name(self) -> str:
        """Who deployed it, or rolled back to it, last."""
        return self.record.credential.name


class Entry(NamedTuple):
    verified: Verified
    order: tuple[int, NodeId, str]
    digest: int
    """64 bits over key and order."""


class Loaded(NamedTuple):
    """What a catalog made of the records on disk."""

    refused: tuple[tuple[str, RemoteProtocolError], ...]
    drop: tuple[str, ...]
    """Keys to drop from disk: expired tombstones, and what can never be valid."""


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
        self._clock = HybridClock()
        self._author = Author(anchor, private_key, credential, self._clock)
        self._entries: dict[str, Entry] = {}
        self._keys: dict[int, str] = {}
        self._names: dict[FunctionName, FunctionState] = {}
        self._current: dict[str, Current] = {}
        self._tombstones: dict[str, None] = {}
        self._given_up: list[str] = []
        self._digest = 0
        self._bytes = 0
        """Of live records."""

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
        """Live versions, latest deployed first; () for an unknown or removed function."""
        function = self._names.get(FunctionName(name))
        if function is None or function.alias is None:
            return ()
        current = self._current.get(name)
        now = current.version if current is not None else None
        rows = ((version, function.versions[version]) for version in function.history())
        return tuple(
            VersionRow(version, row.spec, row.record, version == now, row.deployed)
            for version, row in rows
            if row.spec is not None
        )

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
    def prepare_deploy(self, name: str, spec_bytes: bytes, *, wall_ms: int) -> list[Record]:
        """Makes a spec the current version of `name` and the latest deployed, known before or not.
        [] if it is current already.

        Raises RemoteProtocolError: "function-name", "spec", "credential-role" (this node may not
        deploy), "credential-expired", "record-future" (its clock was too far ahead once; its own
        records say so), "catalog-full"."""
        parsed, state = self._state(name)
        decode_spec(spec_bytes)
        records = self._author.deploy(parsed, state, spec_bytes, wall_ms=wall_ms)
        return self._with_room(parsed, records)

    def prepare_alias(self, name: str, version: VersionId, *, wall_ms: int) -> list[Record]:
        """Makes `version`, deployed before, the current one; it keeps its place in history. [] if
        it is current already. Raises as prepare_deploy."""
        parsed, state = self._state(name)
        if version not in state.versions:
            raise LocalProtocolError(f"{version} is no version of {parsed}")
        records = self._author.point(parsed, state, version, wall_ms=wall_ms)
        return self._with_room(parsed, records)

    def prepare_remove(self, name: str, *, wall_ms: int) -> list[Record]:
        """Tombstones of every live record of `name`; [] only if there is none. What `lookup` says
        does not matter: an alias whose version is not here is removed as well.

        Raises RemoteProtocolError: "function-name", "credential-role", "credential-expired",
        "record-future"."""
        parsed, state = self._state(name)
        return self._author.remove(parsed, state, wall_ms=wall_ms)

    def _state(self, name: str) -> tuple[FunctionName, FunctionState]:
        parsed = parse_function_name(name)
        return parsed, self._names.get(parsed) or FunctionState()

    def _with_room(self, name: FunctionName, records: list[Record]) -> list[Record]:
        self._check_room(name, records)
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
        self._check_room(verified.name, [record])
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
        if verified.record.tombstone:
            self._tombstones[verified.key] = None
        else:
            self._bytes += len(verified.encoded)
            self._digest ^= entry.digest
        self._index(verified)
        if len(self._tombstones) > TOMBSTONES_MAX:
            oldest = next(iter(self._tombstones))
            self._drop(oldest)
            self._given_up.append(oldest)
        return True

    def apply(self, records: Iterable[Record]) -> list[Verified]:
        """Own records, just prepared; those that were news."""
        verified = [verify_record(record, self._anchor, wall_ms=None) for record in records]
        return [row for row in verified if self.merge(row)]

    def load(self, encoded_records: Iterable[tuple[str, bytes]], *, wall_ms: int) -> Loaded:
        """Records from this node's disk, verified again. One bad record stops nothing; expired
        tombstones are left out before they can take room."""
        refused: list[tuple[str, RemoteProtocolError]] = []
        drop: list[str] = []
        for key, encoded in encoded_records:
            try:
                record = decode_record(encoded)
                if record.tombstone and self._obsolete(record, wall_ms):
                    drop.append(key)
                    continue
                self.merge(self._reverify(key, record))
            except RemoteProtocolError as error:
                refused.append((key, error))
                if error.code not in CURABLE:
                    drop.append(key)
        drop += self._take_given_up()
        return Loaded(tuple(refused), tuple(drop))

    def _reverify(self, key: str, record: Record) -> Verified:
        if record_key(record) != key:
            raise RemoteProtocolError("record", f"stored under {key!r}")
        verified = verify_record(record, self._anchor, wall_ms=None)
        self._check_room(verified.name, [record])
        return verified

    def purge(self, wall_ms: int) -> list[str]:
        """Drops tombstones older than TOMBSTONE_MS. Their keys, with those given up since the last
        time; a key may have come back by now."""
        old = [
            key
            for key in self._tombstones
            if self._obsolete(self._entries[key].verified.record, wall_ms)
        ]
        for key in old:
            self._drop(key)
        return self._take_given_up() + old

    def _take_given_up(self) -> list[str]:
        given_up, self._given_up = self._given_up, []
        return given_up

    def _drop(self, key: str) -> None:
        """Of a tombstone."""
        del self._tombstones[key]
        del self._entries[key]
        self._keys.pop(key_hash(key), None)

    @staticmethod
    def _obsolete(record: Record, wall_ms: int) -> bool:
        return wall_ms - hlc_wall_ms(record.hlc) > TOMBSTONE_MS

    def _check_room(self, name: FunctionName, records: Iterable[Record]) -> None:
        """That live ones among `records`, all of one name, fit once all have been merged."""
        count, size_bytes, coming = len(self._entries) - len(self._tombstones), self._bytes, False
        for record in records:
            known = self._entries.get(record_key(record))
            if known is not None and not known.verified.record.tombstone:
                count -= 1
                size_bytes -= len(known.verified.encoded)
            if not record.tombstone:
                count += 1
                size_bytes += len(encode_record(record))
                coming = True
        if not coming:
            return
        if size_bytes > BYTES_MAX:
            raise RemoteProtocolError("catalog-full", f"{BYTES_MAX} bytes of records")
        if count > RECORDS_MAX:
            raise RemoteProtocolError("catalog-full", f"{RECORDS_MAX} records")
        if name not in self._names and len(self._names) >= NAMES_MAX:
            raise RemoteProtocolError("catalog-full", f"{NAMES_MAX} function names")

    def _forget(self, entry: Entry) -> None:
        if entry.verified.record.tombstone:
            self._tombstones.pop(entry.verified.key, None)
        else:
            self._bytes -= len(entry.verified.encoded)
            self._digest ^= entry.digest

    def _index(self, verified: Verified) -> None:
        function = self._names.setdefault(verified.name, FunctionState())
        live = not verified.record.tombstone
        if verified.record.kind == "alias":
            function.alias = verified if live else None
        elif live:
            function.versions[VersionId(verified.record.version)] = verified
        else:
            function.versions.pop(VersionId(verified.record.version), None)
        self._refresh(verified.name, function)
        self._drop_if_empty(verified.name)

    def _refresh(self, name: FunctionName, function: FunctionState) -> None:
        """Resolves the name anew. While the version an alias names is still on its way, the name
        keeps its former meaning: a deploy must not make a function vanish for a moment."""
        target = function.target
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
