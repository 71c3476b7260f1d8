"""A maker's signed word that a snapshot is a module after init, and what it measured. SPEC §14.

A snapshot is a pure function of (module, init, format): whoever has the module can make it again
and compare. The statement travels in the record of the version that it serves, so that every node
knows, from its catalog alone, what a snapshot would cost and give; it adds nothing to what the
version means.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from .errors import RemoteProtocolError
from .function import MODULE_BYTES_MAX, FunctionSpec, init_digest
from .identity import Credential, TrustAnchor, sign, verify
from .ids import Digest
from .manifest import BLOB_BYTES_MAX

SECONDS_MAX: Final = 86_400.0
FORMAT_MAX: Final = 65_535

_Digest = Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Bytes = Annotated[int, Meta(ge=1, le=BLOB_BYTES_MAX)]
_Seconds = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]  # which no NaN passes


class SnapshotFacts(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the maker measured: costs are its own, another node's may differ by any factor."""

    wire_bytes: _Bytes
    """Of the wire form that `manifest` describes."""
    delta_wire_bytes: Annotated[int, Meta(ge=0, le=BLOB_BYTES_MAX)]
    """Of a delta against the module; 0: none that is worth sending."""
    code_bytes: Annotated[int, Meta(ge=0, le=MODULE_BYTES_MAX)]
    """Of its code section: what compiling is priced by."""
    init_s: _Seconds
    """CPU seconds that init takes in compiled code."""
    instantiate_before_s: _Seconds | None = None
    """Of the module, init not counted; None: not measured."""
    instantiate_after_s: _Seconds | None = None
    """Of the snapshot."""


class SnapshotStatement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    module: _Digest
    init: _Digest
    """function.init_digest of the spec's."""
    format: Annotated[int, Meta(ge=1, le=FORMAT_MAX)]
    """Of the rules by which a snapshot is written: another one gives other bytes."""
    snapshot: _Digest
    size_bytes: Annotated[int, Meta(ge=8, le=MODULE_BYTES_MAX)]
    manifest: _Digest
    """Of the wire form that the maker made of it."""
    facts: SnapshotFacts
    maker: Credential
    signature: bytes


def _payload(statement: SnapshotStatement) -> bytes:
    fields = (
        statement.module, statement.init, statement.format, statement.snapshot,
        statement.size_bytes, statement.manifest, statement.facts,
    )  # fmt: skip
    return msgspec.msgpack.encode(fields)


def state_snapshot(
    private_key: Ed25519PrivateKey,
    maker: Credential,
    *,
    module: Digest,
    init: Digest,
    snapshot_format: int,
    snapshot: Digest,
    size_bytes: int,
    manifest: Digest,
    facts: SnapshotFacts,
) -> SnapshotStatement:
    unsigned = SnapshotStatement(
        module, init, snapshot_format, snapshot, size_bytes, manifest, facts, maker, b""
    )
    signature = sign(private_key, "snapshot", _payload(unsigned))
    return msgspec.structs.replace(unsigned, signature=signature)


def check_statement(statement: SnapshotStatement, spec: FunctionSpec) -> None:
    """What it must say to serve `spec`. Raises RemoteProtocolError("snapshot")."""
    if spec.init is None:
        raise RemoteProtocolError("snapshot", "of a function without init")
    if statement.module != spec.module or statement.init != init_digest(spec.init):
        raise RemoteProtocolError("snapshot", "is of another module or init")
    if statement.snapshot == statement.module:
        raise RemoteProtocolError("snapshot", "is said to be its module")


def prove_statement(statement: SnapshotStatement, anchor: TrustAnchor, *, wall_s: float) -> None:
    """`wall_s`: when the version was deployed; the credential may have ended since.

    Raises RemoteProtocolError: "signature", "node-name", "credential-expired",
    "credential-role"."""
    anchor.check(statement.maker, role="build", wall_s=wall_s)
    verify(statement.maker.public_key, "snapshot", _payload(statement), statement.signature)


class StatedSnapshots:
    """Those that statements of live versions name. Kept by Catalog; everyone else reads."""

    def __init__(self) -> None:
        self._stated: dict[str, SnapshotStatement] = {}
        """By key of a live version record."""
        self._named: dict[Digest, dict[str, SnapshotStatement]] = {}

    def __len__(self) -> int:
        return len(self._named)

    def __iter__(self) -> Iterator[Digest]:
        yield from self._named

    def __contains__(self, snapshot: object) -> bool:
        return snapshot in self._named

    def get(self, snapshot: Digest) -> tuple[SnapshotStatement, ...]:
        """All statements that name it, whose modules may differ where a maker lies."""
        return tuple(dict.fromkeys(self._named.get(snapshot, {}).values()))

    def named(self) -> Iterator[tuple[str, Digest]]:
        """Key of each live version record with a statement, with the snapshot it names."""
        for key, statement in self._stated.items():
            yield key, statement.snapshot

    def at(self, key: str) -> SnapshotStatement | None:
        """What the version record of this key says."""
        return self._stated.get(key)

    def keys(self, snapshot: Digest) -> tuple[str, ...]:
        """Of the version records that name it."""
        return tuple(self._named.get(snapshot, ()))

    def functions(self, snapshot: Digest) -> list[str]:
        """Names of the functions with a live version whose statement names it, in order."""
        return sorted({key.split("/")[1] for key in self._named.get(snapshot, ())})

    def of(self, module: Digest, init: Digest) -> tuple[SnapshotStatement, ...]:
        """What is stated of this module and init, in whatever format. Looks at all."""
        stated = self._stated.values()
        found = (one for one in stated if (one.module, one.init) == (module, init))
        return tuple(dict.fromkeys(found))

    # ------------------------------------------------------------ the catalog's part
    def put(self, key: str, statement: SnapshotStatement | None) -> None:
        self.drop(key)
        if statement is not None:
            self._stated[key] = statement
            self._named.setdefault(statement.snapshot, {})[key] = statement

    def drop(self, key: str) -> None:
        statement = self._stated.pop(key, None)
        if statement is not None:
            keys = self._named[statement.snapshot]
            del keys[key]
            if not keys:
                del self._named[statement.snapshot]
