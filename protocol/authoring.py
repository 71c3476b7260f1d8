"""Signing what this node says of functions: deploy, point the alias, remove. SPEC §6.6.

Nobody else need know of a change for it to last: whoever points an alias says anew, just before,
what it points at, and the alias comes last in every batch. So of two batches made apart, the one
whose alias wins has its version in force as well: a removal or a trimming made elsewhere at about
the same time takes all of an acknowledged change or nothing of it.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .clock import HybridClock, check_skew
from .entries import Entry
from .function import version_of
from .identity import Credential, TrustAnchor
from .ids import FunctionName, VersionId
from .records import Record, RecordKind, encode_alias, encode_version, sign_record
from .snapshots import SnapshotStatement

VERSIONS_KEPT: Final = 64
"""Live versions per function; a deploy above it removes the one deployed longest ago."""


class FunctionState:
    """The live records of one name: alias and versions."""

    __slots__ = ("alias", "versions")

    def __init__(self) -> None:
        self.alias: Entry | None = None
        self.versions: dict[VersionId, Entry] = {}

    @property
    def target(self) -> VersionId | None:
        return self.alias.target if self.alias is not None else None

    def means(self, version: VersionId) -> bool:
        """The alias names this version, and it is here."""
        return self.target == version and version in self.versions

    def history(self) -> list[VersionId]:
        """Latest deployed first."""
        return sorted(
            self.versions, key=lambda row: (self.versions[row].deployed, row), reverse=True
        )


class Author:
    """Moves nothing but the clock."""

    def __init__(
        self,
        anchor: TrustAnchor,
        private_key: Ed25519PrivateKey,
        credential: Credential,
        clock: HybridClock,
    ) -> None:
        self._anchor = anchor
        self._private_key = private_key
        self._credential = credential
        self._clock = clock

    def deploy(
        self,
        name: FunctionName,
        state: FunctionState,
        spec_bytes: bytes,
        snapshot: SnapshotStatement | None,
        *,
        wall_ms: int,
    ) -> list[Record]:
        """`spec_bytes` becomes current, and the latest deployed; [] if it is current already, with
        a statement of the same snapshot."""
        version = version_of(spec_bytes)
        if state.means(version) and _same(state.versions[version].version().snapshot, snapshot):
            return []
        return [
            *self.trim(name, state, version, wall_ms=wall_ms),
            self.version(name, spec_bytes, snapshot, wall_ms=wall_ms),
            self.alias(name, version, wall_ms=wall_ms),
        ]

    def point(
        self, name: FunctionName, state: FunctionState, version: VersionId, *, wall_ms: int
    ) -> list[Record]:
        """A version that is here becomes current and keeps its place in history; [] if it is."""
        if state.means(version):
            return []
        known = state.versions[version].version()
        return [
            self.version(
                name, known.spec, known.snapshot, wall_ms=wall_ms, deployed=known.deployed
            ),
            self.alias(name, version, wall_ms=wall_ms),
        ]

    def remove(self, name: FunctionName, state: FunctionState, *, wall_ms: int) -> list[Record]:
        """[] if nothing is known."""
        gone = [self._drop(name, version, wall_ms) for version in sorted(state.versions)]
        if gone or state.alias is not None:
            # Of a dead alias too: it must outdo the alias of a deploy whose version it outdoes.
            gone.append(self._sign("alias", name, "", wall_ms, b""))
        return gone

    def trim(
        self, name: FunctionName, state: FunctionState, coming: VersionId, *, wall_ms: int
    ) -> list[Record]:
        """Tombstones of those deployed longest ago, to make room for `coming`."""
        others = [version for version in state.history() if version != coming]
        spare = [version for version in reversed(others) if version != state.target]
        return [
            self._drop(name, version, wall_ms)
            for version in spare[: max(0, len(others) + 1 - VERSIONS_KEPT)]
        ]

    def version(
        self,
        name: FunctionName,
        spec_bytes: bytes,
        snapshot: SnapshotStatement | None,
        *,
        wall_ms: int,
        deployed: int | None = None,
    ) -> Record:
        """`deployed` None: now."""
        hlc = self._tick(wall_ms)
        value = encode_version(spec_bytes, hlc if deployed is None else deployed, snapshot)
        return self._sign_at(hlc, "version", name, version_of(spec_bytes), value)

    def alias(self, name: FunctionName, version: VersionId, *, wall_ms: int) -> Record:
        return self._sign("alias", name, "", wall_ms, encode_alias(version))

    def _drop(self, name: FunctionName, version: VersionId, wall_ms: int) -> Record:
        return self._sign("version", name, version, wall_ms, b"")

    def _sign(
        self, kind: RecordKind, name: FunctionName, version: str, wall_ms: int, value: bytes
    ) -> Record:
        return self._sign_at(self._tick(wall_ms), kind, name, version, value)

    def _tick(self, wall_ms: int) -> int:
        """Raises RemoteProtocolError: "credential-role", "credential-expired"; "record-future" if
        the clock of this node was far ahead once: peers would refuse what it signs now."""
        self._anchor.check(self._credential, role="control", wall_s=wall_ms / 1000)
        hlc = self._clock.tick(wall_ms)
        check_skew(hlc, wall_ms)
        return hlc

    def _sign_at(
        self, hlc: int, kind: RecordKind, name: FunctionName, version: str, value: bytes
    ) -> Record:
        return sign_record(
            self._private_key,
            self._credential,
            kind=kind,
            name=name,
            version=version,
            hlc=hlc,
            value=value,
        )


def _same(one: SnapshotStatement | None, two: SnapshotStatement | None) -> bool:
    """What was measured, and by whom, is no reason to sign anew."""
    if one is None or two is None:
        return one is two
    return (one.snapshot, one.format) == (two.snapshot, two.format)
