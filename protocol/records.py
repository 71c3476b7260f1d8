"""Signed catalog records: what one says, how it is made, encoded and verified. SPEC §6.

A record is the word of a `control` identity. It carries its signer's credential, so it can be
verified by anyone with the CA's key and outlives its signer. Whether the credential is still
valid is judged at the record's own time, else a fleet would forget its functions on the day an
operator's credential expires.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from .clock import HLC_MAX, check_skew, hlc_wall_ms
from .errors import RemoteProtocolError
from .function import FunctionSpec, decode_spec, version_of
from .identity import Credential, TrustAnchor, sign, verify
from .ids import FunctionName, NodeId, VersionId, parse_function_name, parse_version
from .snapshots import SnapshotStatement, check_statement, prove_statement

RECORD_BYTES_MAX: Final = 20 * 1024
"""A spec is at most 16 KiB; a snapshot statement needs under 1 KiB, as do credential, signature and
names."""


BUNDLE_BYTES_MAX: Final = 256 * 1024
BUNDLE_RECORDS_MAX: Final = 256
"""One change is a version of 20 KiB at most, an alias, and tombstones of 300 bytes: some 64, and a
few more where nodes deployed one function at once."""

RecordKind = Literal["version", "alias"]
Hlc = Annotated[int, Meta(ge=0, le=HLC_MAX)]


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """kind "version": `value` is the encoded Version, whose spec `version` is the digest of.
    kind "alias": `version` is "" and `value` the encoded Alias. An empty value is a tombstone."""

    kind: RecordKind
    name: str
    version: str
    hlc: Hlc
    value: bytes
    credential: Credential
    signature: bytes

    @property
    def signer(self) -> NodeId:
        return self.credential.node_id

    @property
    def tombstone(self) -> bool:
        return not self.value

    @property
    def wall_ms(self) -> int:
        return hlc_wall_ms(self.hlc)


class Version(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A version of a function."""

    deployed: Hlc
    """When it was deployed last; signing it anew, as a rollback does, keeps it. Orders history."""
    spec: bytes
    """The encoded FunctionSpec."""
    snapshot: SnapshotStatement | None
    """Outside the spec: the version's id does not depend on whether somebody made one."""


class Alias(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which version a name means now."""

    version: str


class Verified(msgspec.Struct, frozen=True):
    """A record whose signature, credential and content hold, with its decoded content."""

    record: Record
    key: str
    encoded: bytes
    """Canonical; what is persisted and sent on."""
    name: FunctionName
    spec: FunctionSpec | None
    """Of a live version, with the next three."""
    spec_bytes: bytes
    deployed: int
    snapshot: SnapshotStatement | None
    target: VersionId | None
    """Of a live alias."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)
_version_decoder = msgspec.msgpack.Decoder(Version)
_alias_decoder = msgspec.msgpack.Decoder(Alias)
_Bundled = Annotated[bytes, Meta(min_length=1, max_length=RECORD_BYTES_MAX)]
_bundle_decoder: msgspec.msgpack.Decoder[tuple[bytes, ...]] = msgspec.msgpack.Decoder(
    Annotated[tuple[_Bundled, ...], Meta(min_length=1, max_length=BUNDLE_RECORDS_MAX)]
)


def record_key(record: Record) -> str:
    """ "v/name/version" or "a/name"."""
    if record.kind == "version":
        return f"v/{record.name}/{record.version}"
    return f"a/{record.name}"


def _payload(kind: str, name: str, version: str, hlc: int, value: bytes) -> bytes:
    return _encoder.encode((kind, name, version, hlc, value))


def sign_record(
    private_key: Ed25519PrivateKey,
    credential: Credential,
    *,
    kind: RecordKind,
    name: FunctionName,
    version: str,
    hlc: int,
    value: bytes,
) -> Record:
    signature = sign(private_key, "record", _payload(kind, name, version, hlc, value))
    return Record(kind, name, version, hlc, value, credential, signature)


def encode_record(record: Record) -> bytes:
    return _encoder.encode(record)


def encode_version(
    spec_bytes: bytes, deployed: int, snapshot: SnapshotStatement | None = None
) -> bytes:
    return _encoder.encode(Version(deployed, spec_bytes, snapshot))


def encode_alias(version: VersionId) -> bytes:
    return _encoder.encode(Alias(version))


def encoded_records(records: Iterable[Record]) -> list[tuple[str, bytes]]:
    """(key, encoded record), as the store persists them."""
    return [(record_key(record), encode_record(record)) for record in records]


def decode_record(data: bytes) -> Record:
    """Raises RemoteProtocolError("record"): too large or malformed. Nothing is verified yet."""
    if len(data) > RECORD_BYTES_MAX:
        raise RemoteProtocolError("record", f"{len(data)} bytes; at most {RECORD_BYTES_MAX}")
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("record", str(error)) from error


def encode_bundles(encoded: Iterable[bytes]) -> list[bytes]:
    """Encoded records of one change, in its order: one bundle, but for the largest changes. SPEC
    §11.3."""
    rows = iter(encoded)
    bundles: list[bytes] = []
    while part := tuple(islice(rows, BUNDLE_RECORDS_MAX)):
        bundles.append(_encoder.encode(part))
    return bundles


def decode_bundle(data: bytes) -> tuple[bytes, ...]:
    """Raises RemoteProtocolError("record"): malformed, none, too many or too large."""
    try:
        return _bundle_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("record", f"bundle: {error}") from error


def _read_version(value: bytes) -> Version:
    try:
        return _version_decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("record", f"version: {error}") from error


def decode_version(record: Record) -> Version:
    """Content of a live version. Raises RemoteProtocolError("record")."""
    version = _read_version(record.value)
    if version_of(version.spec) != record.version:
        raise RemoteProtocolError("record", "version is not the digest of the spec")
    if version.deployed > record.hlc:
        raise RemoteProtocolError("record", "signed before it was deployed")
    return version


def _decode_alias(value: bytes) -> VersionId:
    try:
        return parse_version(_alias_decoder.decode(value).version)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("record", f"alias: {error}") from error


def prove_record(record: Record, anchor: TrustAnchor) -> None:
    """The part of verify_record that costs: the signatures. A function of its arguments and, but
    for a memory of credentials, of nothing else: a worker thread may run it.

    Raises RemoteProtocolError: "signature", "node-name", "credential-expired",
    "credential-role"; "record" (content)."""
    anchor.check(record.credential, role="control", wall_s=record.wall_ms / 1000)
    payload = _payload(record.kind, record.name, record.version, record.hlc, record.value)
    verify(record.credential.public_key, "record", payload, record.signature)
    if record.kind == "version" and not record.tombstone:
        version = _read_version(record.value)
        if version.snapshot is not None:
            deployed_s = hlc_wall_ms(version.deployed) / 1000
            prove_statement(version.snapshot, anchor, wall_s=deployed_s)


class Proofs(NamedTuple):
    """Which encoded records hold, and why others do not; nothing is known of the rest."""

    held: frozenset[bytes] = frozenset()
    refused: Mapping[bytes, RemoteProtocolError] = MappingProxyType({})


NO_PROOFS: Final = Proofs()


def prove_records(ca_public_key: bytes, rows: Iterable[tuple[bytes, Record]]) -> Proofs:
    """Of (encoded, record). Pure: for a worker thread."""
    anchor = TrustAnchor(ca_public_key)
    held: list[bytes] = []
    refused: dict[bytes, RemoteProtocolError] = {}
    for encoded, record in rows:
        try:
            prove_record(record, anchor)
        except RemoteProtocolError as error:
            refused[encoded] = RemoteProtocolError(error.code, error.detail)
        else:
            held.append(encoded)
    return Proofs(frozenset(held), refused)


def verify_record(
    record: Record, anchor: TrustAnchor, *, wall_ms: int | None, proven: bool = False
) -> Verified:
    """Everything that must hold before a record may change anything (SPEC §6.2).

    `wall_ms` None skips the clock check: for records from this node's own disk, whose clock may
    have been wrong at any time. `proven`: prove_record is known to hold.

    Raises RemoteProtocolError: "function-name", "version", "record" (content), "spec", "snapshot",
    "record-future", "signature", "node-name", "credential-expired", "credential-role"."""
    name = parse_function_name(record.name)
    spec: FunctionSpec | None = None
    spec_bytes, deployed = b"", 0
    snapshot: SnapshotStatement | None = None
    target: VersionId | None = None
    if record.kind == "version":
        parse_version(record.version)
        if not record.tombstone:
            content = decode_version(record)
            spec_bytes, deployed, snapshot = content.spec, content.deployed, content.snapshot
            spec = decode_spec(spec_bytes)
            if snapshot is not None:
                check_statement(snapshot, spec)
    else:
        if record.version:
            raise RemoteProtocolError("record", "an alias' key has no version")
        if not record.tombstone:
            target = _decode_alias(record.value)
    if wall_ms is not None:
        check_skew(record.hlc, wall_ms)
    if not proven:
        prove_record(record, anchor)
    key, encoded = record_key(record), encode_record(record)
    return Verified(record, key, encoded, name, spec, spec_bytes, deployed, snapshot, target)
