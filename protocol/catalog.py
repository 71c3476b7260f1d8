"""The map of signed records that every node holds whole: functions, their versions. SPEC §6.

Per key the greatest (hlc, signer, digest of value) wins, so merging commutes, associates and is
idempotent. Nothing enters unverified. A tombstone is a record with an empty value; it has room of
its own, so that a removal is never refused, and no age: whoever returns, however late, is shown it.
What a name means is a function of the records here, whatever order they came in: equal digests,
equal meaning. Only the owner (Gossip) merges; everyone else reads or prepares.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .authoring import Author, FunctionState
from .buckets import BucketDigests, bucket_of, buckets_of
from .clock import SKEW_MS_MAX, HybridClock, hlc_of, hlc_wall_ms
from .entries import ITEM, Entry, key_hash
from .errors import LocalProtocolError, RemoteProtocolError
from .function import FunctionSpec, decode_spec
from .identity import Credential, TrustAnchor
from .ids import FunctionName, VersionId, parse_function_name
from .modules import Modules
from .records import Record, Verified, decode_record, encode_record, record_key, verify_record
from .snapshots import SnapshotStatement, StatedSnapshots, check_statement, prove_statement

__all__ = ["ITEM", "Catalog", "Current", "Loaded", "VersionRow", "key_hash"]

RECORDS_MAX: Final = 65_536
"""10,000 functions with their aliases and five versions each."""
NAMES_MAX: Final = 16_384
BYTES_MAX: Final = 64 * 1024 * 1024
"""All three of live records: 1 KiB each on average; the smallest function has 1.1 KiB in two."""
TOMBSTONES_MAX: Final = 65_536
"""A full catalog can be removed whole; each takes 0.3 KB on disk and 0.9 KB in memory. Above it
those with the least (hlc, key) are given up: the same ones everywhere, so that nodes do not teach
each other in circles."""
CURABLE: Final = frozenset({"catalog-full", "signature", "spec"})
"""Why a record on disk may be refused today and hold tomorrow: there was no room, the trust
directory was another cluster's, a later edged wrote it."""


class Current(NamedTuple):
    """What a name means now."""

    version: VersionId
    spec: FunctionSpec
    alias: Entry
    snapshot: SnapshotStatement | None = None

    @property
    def deployed_ms(self) -> int:
        """When the name was last made to mean it."""
        return hlc_wall_ms(self.alias.hlc)

    @property
    def signer_name(self) -> str:
        return self.alias.record().credential.name


class VersionRow(NamedTuple):
    version: VersionId
    spec: FunctionSpec
    record: Record
    current: bool
    deployed: int
    """Timestamp; a rollback keeps it."""
    snapshot: SnapshotStatement | None = None

    @property
    def deployed_ms(self) -> int:
        return hlc_wall_ms(self.deployed)

    @property
    def signer_name(self) -> str:
        """Who deployed it, or rolled back to it, last."""
        return self.record.credential.name


class SavedRecord(NamedTuple):
    """A row of this node's disk."""

    key: str
    encoded: bytes
    proven: bool = False
    """Its signatures were verified before it was saved, and it is what was saved then."""


class Loaded(NamedTuple):
    """What a catalog made of the records on disk."""

    refused: tuple[tuple[str, RemoteProtocolError], ...]
    drop: tuple[str, ...]
    """Keys to drop from disk: tombstones given up, and what can never be valid."""


class Catalog:
    def __init__(
        self, anchor: TrustAnchor, private_key: Ed25519PrivateKey, credential: Credential
    ) -> None:
        self.anchor: Final = anchor
        self._clock = HybridClock()
        self._author = Author(anchor, private_key, credential, self._clock)
        self._entries: dict[str, Entry] = {}
        self._buckets: dict[int, dict[int, Entry]] = {}
        self.digests: Final = BucketDigests()
        self.modules: Final = Modules()
        self.snapshots: Final = StatedSnapshots()
        self._names: dict[FunctionName, FunctionState] = {}
        self._current: dict[str, Current] = {}
        self._tombstones = 0
        """How many there are."""
        self._oldest: list[tuple[int, str]] = []
        """Heap over tombstones and former ones."""
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

    def function_count(self) -> int:
        return len(self._current)

    def version_count(self, name: str) -> int:
        """Live versions of a function that is deployed."""
        function = self._names.get(FunctionName(name))
        return len(function.versions) if function is not None and function.alias is not None else 0

    def versions(self, name: str) -> tuple[VersionRow, ...]:
        """Live versions, latest deployed first; () for an unknown or removed function."""
        function = self._names.get(FunctionName(name))
        if function is None or function.alias is None:
            return ()
        current = self._current.get(name)
        now = current.version if current is not None else None
        return tuple(
            VersionRow(
                version,
                entry.spec(),
                entry.record(),
                version == now,
                entry.deployed,
                self.snapshots.at(entry.key),
            )
            for version, entry in ((one, function.versions[one]) for one in function.history())
        )

    def spec(self, name: str, version: str) -> FunctionSpec | None:
        """Of any live version."""
        function = self._names.get(FunctionName(name))
        entry = function.versions.get(VersionId(version)) if function else None
        return entry.spec() if entry else None

    def state_digest(self) -> int:
        """64 bits, equal on nodes that hold the same records."""
        return self._digest

    def encoded(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        return entry.encoded if entry else None

    def hlc(self, key: str) -> int:
        """Of the record at `key`; -1 without one."""
        entry = self._entries.get(key)
        return entry.hlc if entry else -1

    # ------------------------------------------------------------ preparing: moves only the clock
    def prepare_deploy(
        self,
        name: str,
        spec_bytes: bytes,
        *,
        wall_ms: int,
        snapshot: SnapshotStatement | None = None,
    ) -> list[Record]:
        """Makes a spec the current version of `name` and the latest deployed, known before or not.
        [] if it is current already, with a statement of the same snapshot.

        Raises RemoteProtocolError: "function-name", "spec", "snapshot" (does not serve the spec),
        "credential-role" (this node may not deploy, or the snapshot's maker not make it),
        "credential-expired", "record-future" (its clock was too far ahead once; its own records
        say so), "catalog-full"."""
        parsed, state = self._state(name)
        spec = decode_spec(spec_bytes)
        if snapshot is not None:
            check_statement(snapshot, spec)
            prove_statement(snapshot, self.anchor, wall_s=wall_ms / 1000)
        records = self._author.deploy(parsed, state, spec_bytes, snapshot, wall_ms=wall_ms)
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
    def check(self, encoded: bytes, *, wall_ms: int, proven: bool = False) -> Verified | None:
        """A record from a peer, verified; None if it is no news (then unverified: a known record
        costs no signature check). Changes nothing. `proven`: as for verify_record.

        Raises RemoteProtocolError: as decode_record and verify_record, "catalog-full"."""
        record = decode_record(encoded)
        if not self._is_news(record):
            return None
        verified = verify_record(record, self.anchor, wall_ms=wall_ms, proven=proven)
        self._check_room(verified.name, [record])
        return verified

    def unproven(self, encoded: Iterable[bytes]) -> list[tuple[bytes, Record]]:
        """Those that `check` would prove; what is malformed is left to it."""
        records: list[tuple[bytes, Record]] = []
        for one in encoded:
            try:
                record = decode_record(one)
            except RemoteProtocolError:
                continue
            if self._is_news(record):
                records.append((one, record))
        return records

    def _is_news(self, record: Record) -> bool:
        key = record_key(record)
        known = self._entries.get(key)
        if known is not None:
            return not known.outranks(record)
        if not record.tombstone or self._tombstones < TOMBSTONES_MAX:
            return True
        return (record.hlc, key) > self._oldest_tombstone()

    def merge(self, verified: Verified) -> bool:
        """Whether it was news."""
        known = self._entries.get(verified.key)
        if known is not None and known.outranks(verified.record):
            return False
        entry = Entry(verified)
        self._clock.observe(entry.hlc)
        if known is not None:
            self._take_out(known, replaced=entry.live)
        self._put_in(entry)
        if verified.spec is not None:
            self.modules.put(entry.key, verified.spec)
            self.snapshots.put(entry.key, verified.snapshot)
        self._index(verified.name, entry)
        while self._tombstones > TOMBSTONES_MAX:
            oldest = self._oldest_tombstone()[1]
            self._remove(self._entries[oldest])
            self._given_up.append(oldest)
        return True

    def apply(self, records: Iterable[Record]) -> list[Verified]:
        """Own records, just prepared; those that were news."""
        verified = [verify_record(record, self.anchor, wall_ms=None) for record in records]
        return [row for row in verified if self.merge(row)]

    def _put_in(self, entry: Entry) -> None:
        self._entries[entry.key] = entry
        self._buckets.setdefault(entry.bucket, {})[entry.hashed] = entry
        self.digests.toggle(entry.bucket, entry.digest)
        self._digest ^= entry.digest
        if entry.live:
            self._bytes += len(entry.encoded)
        else:
            self._tombstones += 1
            heapq.heappush(self._oldest, (entry.hlc, entry.key))

    def _take_out(self, entry: Entry, *, replaced: bool = False) -> None:
        """The name's state is the caller's. `replaced`: by a live record of that key."""
        del self._entries[entry.key]
        bucket = self._buckets[entry.bucket]
        bucket.pop(entry.hashed, None)
        if not bucket:
            del self._buckets[entry.bucket]
        self.digests.toggle(entry.bucket, entry.digest)
        self._digest ^= entry.digest
        if entry.live:
            self._bytes -= len(entry.encoded)
            if not replaced:
                self.modules.drop(entry.key)
                self.snapshots.drop(entry.key)
        else:
            self._tombstones -= 1

    def _remove(self, entry: Entry) -> None:
        """Without a trace."""
        self._take_out(entry)
        function = self._names.get(entry.name)
        if function is None:
            return
        if entry.kind == "version":
            function.versions.pop(_version_of(entry), None)
        elif entry.live:
            function.alias = None
        self._refresh(entry.name, function)

    def _oldest_tombstone(self) -> tuple[int, str]:
        """There is one."""
        while True:
            hlc, key = self._oldest[0]
            entry = self._entries.get(key)
            if entry is not None and not entry.live and entry.hlc == hlc:
                return hlc, key
            heapq.heappop(self._oldest)

    # ------------------------------------------------------------ loading, forgetting
    def load(self, rows: Iterable[SavedRecord]) -> Loaded:
        """Records from this node's disk, verified again where they are not proven. One bad record
        stops nothing."""
        refused: list[tuple[str, RemoteProtocolError]] = []
        drop: list[str] = []
        for row in rows:
            try:
                self.merge(self._reverify(row))
            except RemoteProtocolError as error:
                refused.append((row.key, error))
                if error.code not in CURABLE:
                    drop.append(row.key)
        drop += self.take_given_up()
        return Loaded(tuple(refused), tuple(drop))

    def _reverify(self, row: SavedRecord) -> Verified:
        record = decode_record(row.encoded)
        if record_key(record) != row.key:
            raise RemoteProtocolError("record", f"stored under {row.key!r}")
        verified = verify_record(record, self.anchor, wall_ms=None, proven=row.proven)
        self._check_room(verified.name, [record])
        return verified

    def forget(self, keys: Iterable[str]) -> list[str]:
        """Drops records without a trace; those that were here."""
        gone: list[str] = []
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None:
                self._remove(entry)
                gone.append(key)
        return gone

    def future(self, wall_ms: int) -> list[Entry]:
        """Those that no peer with a right clock takes: a clock was ahead when they were
        signed. While they are here this node cannot sign either."""
        limit = hlc_of(wall_ms + SKEW_MS_MAX + 1)
        return [entry for entry in self._entries.values() if entry.hlc >= limit]

    def rewind(self) -> None:
        """The clock goes back to the latest record that is here."""
        self._clock.rewind(max((entry.hlc for entry in self._entries.values()), default=0))

    def take_given_up(self) -> list[str]:
        """Keys of the tombstones for which there was no room any more, since the last call; one may
        be back by now."""
        given_up, self._given_up = self._given_up, []
        return given_up

    def _check_room(self, name: FunctionName, records: Iterable[Record]) -> None:
        """That live ones among `records`, all of one name, fit once all have been merged."""
        count, size_bytes, coming = len(self._entries) - self._tombstones, self._bytes, False
        for record in records:
            known = self._entries.get(record_key(record))
            if known is not None and known.live:
                count -= 1
                size_bytes -= len(known.encoded)
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

    # ------------------------------------------------------------ what names mean
    def _index(self, name: FunctionName, entry: Entry) -> None:
        function = self._names.setdefault(name, FunctionState())
        if entry.kind == "alias":
            function.alias = entry if entry.live else None
        elif entry.live:
            function.versions[_version_of(entry)] = entry
        else:
            function.versions.pop(_version_of(entry), None)
        self._refresh(name, function)

    def _refresh(self, name: FunctionName, function: FunctionState) -> None:
        """Resolves the name anew."""
        if function.alias is None and not function.versions:
            del self._names[name]
        version = self._meaning(name, function)
        if version is None or function.alias is None:
            self._current.pop(name, None)
            return
        entry = function.versions[version]
        former = self._current.get(name)
        same = former is not None and former.version == version
        spec = former.spec if former is not None and same else entry.spec()
        snapshot = self.snapshots.at(entry.key)
        self._current[name] = Current(version, spec, function.alias, snapshot)

    def _meaning(self, name: FunctionName, function: FunctionState) -> VersionId | None:
        """What the alias names. While that has not arrived: what it named before, which was signed
        last before it; a deploy must not make a function vanish for a moment."""
        target = function.target
        if target is None or target in function.versions:
            return target
        if f"v/{name}/{target}" in self._entries or function.alias is None:
            return None  # it was removed
        before = [
            (entry.hlc, version)
            for version, entry in function.versions.items()
            if entry.hlc < function.alias.hlc
        ]
        return max(before)[1] if before else None

    # ------------------------------------------------------------ digest and delta
    def at(self, place: int) -> Iterator[Entry]:
        """Entries of a bucket or a group, tombstones included."""
        for bucket in buckets_of(place):
            yield from self._buckets.get(bucket, {}).values()

    def count_at(self, place: int) -> int:
        return sum(len(self._buckets.get(bucket, ())) for bucket in buckets_of(place))

    def by_hash(self, hashed: int) -> Entry | None:
        return self._buckets.get(bucket_of(hashed), {}).get(hashed)

    def entries(self) -> Iterator[Entry]:
        yield from self._entries.values()


def _version_of(entry: Entry) -> VersionId:
    return VersionId(entry.key.rsplit("/", 1)[1])
