"""Getting a module's artifact from peers: who vouches for it, then the swarm. SPEC §9.2.

Peers of the same artifact key that show the artifact are asked, nearest first, until this node's
policy is content; then the blob comes by its digest, bounded and verified by a manifest that a
counted builder signed. A peer whose answer does not hold is reported and not asked again for that
module. Nothing is mapped here: `Artifacts.trusted` judges anew what lies on disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from protocol.artifact import Attestation, Attested, decode_attested
from protocol.errors import RemoteProtocolError
from protocol.ids import ArtifactKey, Digest, NodeId

from .acceptance import OUTLIVED, Acceptance, Words
from .errors import PeerError
from .interfaces import EventKind, Fetcher, Peer
from .rates import Rates
from .telemetry import Log, Metrics

ASKED_MAX: Final = 8
"""Peers asked for one module at a time; a quorum asks for twice as many."""
HEDGE_S: Final = 0.15
"""The next peer is asked when those before have been silent so long."""
BANS_MAX: Final = 4096

Pair = TypeVar("Pair", tuple[Digest, NodeId], tuple[Digest, Digest])
Ask = Callable[[Peer, Digest, ArtifactKey], Awaitable[bytes]]
"""Raises PeerError."""


@dataclass(slots=True)
class Lot:
    """One artifact of a module, as peers offer it."""

    artifact: Digest
    size_bytes: int
    words: dict[NodeId, Attestation] = field(default_factory=dict)
    offers: dict[Digest, tuple[int, list[Peer]]] = field(default_factory=dict)
    """By manifest: wire bytes, who serves it."""

    @property
    def manifest(self) -> Digest:
        """The one that most serve; of equals the first heard of."""
        return max(self.offers, key=lambda manifest: len(self.offers[manifest][1]))

    @property
    def wire_bytes(self) -> int:
        return self.offers[self.manifest][0]


class Acquisition:
    """All state belongs to the node's event loop."""

    def __init__(
        self,
        *,
        acceptance: Acceptance,
        fetcher: Fetcher,
        key: ArtifactKey,
        ask: Ask,
        peers: Callable[[Digest], Sequence[Peer]],
        bases: Callable[[Digest], Sequence[Digest]],
        note: Callable[[EventKind, str, str], None],
        rates: Rates,
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`peers`: reachable ones that show the artifact of a module for `key`, nearest first;
        `bases`: artifacts here that may be like that of a module."""
        self._acceptance = acceptance
        self._fetcher = fetcher
        self._key = key
        self._ask = ask
        self._peers = peers
        self._bases = bases
        self._note = note
        self._rates = rates
        self._metrics = metrics
        self._log = log
        self._banned: OrderedDict[tuple[Digest, NodeId], None] = OrderedDict()
        self._unfit: OrderedDict[tuple[Digest, Digest], None] = OrderedDict()
        self._coming: dict[Digest, Digest] = {}
        """Whose code each artifact is that is fetched now."""

    # ------------------------------------------------------------ whom to believe
    def sources(self, module: Digest) -> list[Peer]:
        """Peers that show the artifact and have told nothing wrong about it."""
        return [peer for peer in self._peers(module) if (module, peer.node_id) not in self._banned]

    def refuse(self, module: Digest, peer: Peer | None, reason: str, detail: str = "") -> None:
        """Reports an artifact that was not opened, and asks `peer` no more for this module."""
        self._metrics.artifacts_refused.labels(reason).inc()
        source = peer.name if peer else "this node's disk"
        self._log.error("artifact refused", module=module, source=source, reason=reason, why=detail)
        self._note("artifact-refused", source, f"module {module[:12]}: {reason}")
        if peer is not None:
            _remember(self._banned, (module, peer.node_id))

    def unfit(self, module: Digest, artifact: Digest) -> None:
        """It was fetched and could not be used: not again."""
        _remember(self._unfit, (module, artifact))

    async def survey(self, module: Digest) -> Lot | None:
        """The first artifact that enough builders vouch for; None: peers offer none."""
        lots: dict[Digest, Lot] = {}
        found: list[Lot] = []
        at_once = max(self._acceptance.builders_needed, 1)
        async with trio.open_nursery() as nursery:

            async def ask(peer: Peer, delay_s: float) -> None:
                await trio.sleep(delay_s)
                lot = self._add(module, peer, await self._asked(module, peer), lots)
                if lot is not None and self._acceptance.enough(Words(lot.words, ())):
                    found.append(lot)
                    nursery.cancel_scope.cancel()

            for index, peer in enumerate(self.sources(module)[: max(ASKED_MAX, 2 * at_once)]):
                nursery.start_soon(ask, peer, HEDGE_S * max(0, index + 1 - at_once))
        return found[0] if found else None

    async def _asked(self, module: Digest, peer: Peer) -> Attested | None:
        try:
            return decode_attested(await self._ask(peer, module, self._key))
        except PeerError as error:
            self._log.info(
                "peer tells no attestations", peer=peer.name, why=str(error), private=error.private
            )
        except RemoteProtocolError as error:
            self.refuse(module, peer, error.code, error.detail)
        return None

    def _add(
        self, module: Digest, peer: Peer, told: Attested | None, lots: dict[Digest, Lot]
    ) -> Lot | None:
        """What holds of a peer's answer, put to what others said."""
        if told is None or (module, told.artifact) in self._unfit:
            return None
        words = self._acceptance.sort(
            told.attestations, module=module, key=self._key, artifact=told.artifact
        )
        wrong = [reason for reason in words.refused if reason not in OUTLIVED]
        if wrong or not told.attestations:
            self.refuse(module, peer, wrong[0] if wrong else "unsigned")
            return None
        if not words.by_builder:
            self._log.info("peer's attestations count no more", peer=peer.name, why=words.refused)
            return None
        if told.manifest not in {word.manifest for word in words.by_builder.values()}:
            self.refuse(module, peer, "manifest", "no builder signed what it serves")
            return None
        lot = lots.setdefault(told.artifact, Lot(told.artifact, told.size_bytes))
        lot.words = words.by_builder | lot.words
        lot.offers.setdefault(told.manifest, (told.wire_bytes, []))[1].append(peer)
        return lot

    # ------------------------------------------------------------ fetching
    def module_of(self, artifact: Digest) -> Digest | None:
        """Of one that is fetched now; of several with the same code, the last that wants it."""
        return self._coming.get(artifact)

    async def fetch(self, module: Digest, lot: Lot, *, urgent: bool, limit_s: float) -> bool:
        """Into the store; False if `limit_s` did not do.

        Raises NoHolder, DiskFull, PeerError, Overloaded, Draining, StoreError."""
        done = 0
        elsewhere = {
            peer.node_id
            for manifest, (_, peers) in lot.offers.items()
            if manifest != lot.manifest
            for peer in peers
        }

        def progress(wire_bytes: int, _of: int) -> None:
            nonlocal done
            done = wire_bytes

        def holders(_blob: Digest) -> list[Peer]:
            return [peer for peer in self.sources(module) if peer.node_id not in elsewhere]

        began_s = trio.current_time()
        self._coming[lot.artifact] = module
        try:
            with trio.move_on_after(limit_s) as scope:
                await self._fetcher.fetch(
                    lot.artifact,
                    lot.manifest,
                    progress=progress,
                    urgent=urgent,
                    holders=holders,
                    bases=self._bases(module),
                )
        finally:
            self._coming.pop(lot.artifact, None)
        took_s = trio.current_time() - began_s
        if scope.cancelled_caught:
            self._rates.too_slow(done, took_s)
            return False
        self._rates.fetched(done, took_s)
        return True


def _remember(table: OrderedDict[Pair, None], key: Pair) -> None:
    table[key] = None
    if len(table) > BANS_MAX:
        table.popitem(last=False)
