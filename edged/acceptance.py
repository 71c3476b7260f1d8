"""Whose word makes native code acceptable here: the policy `artifacts.accept` (SPEC §9.4).

What this node compiled itself it always accepts. Of others' words it counts each trusted builder
once; builders that an audit caught are trusted no more, also after a restart. Owns that list, which
is as long as the CA has such builders: to forget one is to trust it again (builders.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from protocol.artifact import ATTESTATIONS_MAX, Attestation, check_attestation
from protocol.errors import RemoteProtocolError
from protocol.identity import Credential, TrustAnchor
from protocol.ids import ArtifactKey, Digest, NodeId

from .clock import Clock
from .errors import ArtifactRefused, StoreError
from .interfaces import Store

DISTRUSTED: Final = "distrusted"
"""Key in the store's meta table."""
OUTLIVED: Final = frozenset({"credential-expired", "distrusted"})
"""Reasons for which whoever hands an attestation on is not to blame."""


class Words(msgspec.Struct, frozen=True):
    """Attestations of one artifact, sorted out."""

    by_builder: dict[NodeId, Attestation]
    """That hold; the first of each builder."""
    refused: tuple[str, ...]
    """Why others do not."""


def builders_needed(accept: str) -> int:
    if accept == "none":
        return 0
    return 1 if accept == "signed" else int(accept.removeprefix("quorum="))


class Acceptance:
    """All state belongs to the node's event loop."""

    def __init__(
        self,
        accept: str,
        *,
        anchor: TrustAnchor,
        credential: Credential,
        store: Store,
        clock: Clock,
    ) -> None:
        """`accept` as in the configuration: "none", "signed" or "quorum=k"."""
        self.accept: Final = accept
        self.builders_needed: Final = builders_needed(accept)
        """Of others' words; 0: no number of them is enough."""
        self._anchor = anchor
        self._credential = credential
        self._store = store
        self._clock = clock
        self.changes = 0
        """Of who is trusted."""
        self._distrusted: dict[NodeId, None] = {}
        saved = store.get_meta(DISTRUSTED)
        if saved:
            self._distrusted = dict.fromkeys(msgspec.msgpack.decode(saved, type=list[NodeId]))

    @property
    def distrusted(self) -> tuple[NodeId, ...]:
        return tuple(self._distrusted)

    def distrust(self, builders: Sequence[NodeId]) -> None:
        """At once; until an operator says otherwise once `save` has returned."""
        self._distrusted |= dict.fromkeys(builders)
        self.changes += 1

    async def trust(self, builder: NodeId) -> None:
        """Again, for good. Raises StoreError; then it is distrusted still."""
        del self._distrusted[builder]
        self.changes += 1
        try:
            await self.save()
        except StoreError:
            self.distrust([builder])
            raise

    async def save(self) -> None:
        """Raises StoreError."""
        await self._store.set_meta(DISTRUSTED, msgspec.msgpack.encode(list(self._distrusted)))

    def sort(
        self,
        attestations: Sequence[Attestation],
        *,
        module: Digest,
        key: ArtifactKey,
        artifact: Digest,
    ) -> Words:
        held: dict[NodeId, Attestation] = {}
        refused: list[str] = []
        for attestation in attestations[:ATTESTATIONS_MAX]:
            try:
                builder = check_attestation(
                    attestation,
                    self._anchor,
                    module=module,
                    key=key,
                    artifact=artifact,
                    wall_s=self._clock.now_s(),
                    own_public_key=self._credential.public_key,
                )
            except RemoteProtocolError as error:
                refused.append(error.code)
                continue
            if builder in self._distrusted:
                refused.append("distrusted")
            else:
                held.setdefault(builder, attestation)
        return Words(held, tuple(refused))

    def enough(self, words: Words) -> bool:
        """Whether code that these vouch for may run here."""
        if self._credential.node_id in words.by_builder:
            return True
        return 0 < self.builders_needed <= len(words.by_builder)

    def check(self, words: Words) -> None:
        """Raises ArtifactRefused unless `enough`."""
        if self.enough(words):
            return
        if words.by_builder or not words.refused:
            raise ArtifactRefused(
                f"{len(words.by_builder)} trusted builders vouch for it, and artifacts.accept is "
                f'"{self.accept}"',
                reason="policy",
            )
        raise ArtifactRefused("no attestation of it holds", reason=words.refused[0])
