"""What an operator sees of this node's disk and transfers, and may do about them: implements
interfaces.Upkeep over the store, the collector, the scrubber and the pins. Owns nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from contextlib import AbstractContextManager
from typing import Final

import msgspec
import trio

from protocol.catalog import Catalog
from protocol.errors import RemoteProtocolError
from protocol.ids import ArtifactKey, Digest, FunctionName, NodeId, parse_function_name

from .activation import Activation
from .clock import Clock
from .collector import Collector
from .errors import BadRequest, BlobNotFound, Draining
from .interfaces import (
    ArtifactRow,
    BlobContent,
    BlobInfo,
    BlobKind,
    BlobsView,
    BlobView,
    GcView,
    HolderView,
    NodeState,
    PinChange,
    PinsView,
    TransfersView,
    TransferView,
    VerifyView,
)
from .lookup import code_of, functions_of
from .network import ExchangeService, StreamServer
from .pins import Kind, Pins
from .scrubber import Scrubber
from .store import BlobStore

NAMES_SHOWN_MAX: Final = 8
DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")
PREFIX: Final = re.compile(r"[0-9a-f]{8,64}\Z")


class UpkeepService:
    """Implements interfaces.Upkeep."""

    def __init__(
        self,
        *,
        node: str,
        store: BlobStore,
        catalog: Catalog,
        activation: Activation,
        collector: Collector,
        scrubber: Scrubber,
        pins: Pins,
        exchange: ExchangeService,
        streams: StreamServer,
        holders: Callable[[Digest], tuple[HolderView, ...]],
        holder_count: Callable[[Digest, ArtifactKey | None], int | None],
        member_name: Callable[[NodeId], str],
        state: Callable[[], NodeState],
        clock: Clock,
    ) -> None:
        self._node = node
        self._clock = clock
        self._store = store
        self._catalog = catalog
        self._activation = activation
        self._collector = collector
        self._scrubber = scrubber
        self._pins = pins
        self._exchange = exchange
        self._streams = streams
        self._holders = holders
        self._holder_count = holder_count
        self._member_name = member_name
        self._state = state

    # ------------------------------------------------------------ blobs
    def blobs(self, *, after: str, limit: int) -> BlobsView:
        held = sorted(self._store.blobs(), key=lambda blob: blob.digest)
        chosen = [blob for blob in held if blob.digest > after]
        functions = self._functions(None)
        rows: dict[Digest, list[ArtifactRow]] = {}
        for row in self._store.artifacts():
            rows.setdefault(row.digest, []).append(row)
        described = {blob.manifest: blob.digest for blob in held if blob.manifest is not None}
        covered = self._pins.covered()
        return BlobsView(
            node=self._node,
            blobs=tuple(
                self._blob(
                    blob,
                    rows.get(blob.digest, []),
                    described.get(blob.digest),
                    functions=functions,
                    covered=covered,
                )
                for blob in chosen[:limit]
            ),
            next_after=chosen[limit - 1].digest if len(chosen) > limit else None,
        )

    def _blob(
        self,
        blob: BlobInfo,
        rows: list[ArtifactRow],
        described: Digest | None,
        *,
        functions: dict[Digest, list[str]],
        covered: frozenset[Digest],
    ) -> BlobView:
        module = rows[0].module if rows else described
        subjects = [row.module for row in rows] or [blob.digest if module is None else module]
        stated = self._catalog.snapshots.get(blob.digest)
        named = {name for subject in subjects for name in functions.get(subject, [])}
        names = sorted(named)
        return BlobView(
            digest=blob.digest,
            kind="snapshot" if stated else blob.kind,
            size_bytes=blob.size_bytes,
            wire_bytes=blob.wire_bytes,
            created_at_s=blob.created_at_s,
            functions=tuple(names[:NAMES_SHOWN_MAX]),
            functions_more=max(0, len(names) - NAMES_SHOWN_MAX),
            module=stated[0].module if stated else module,
            made_by=tuple(sorted({one.maker.name for one in stated})),
            artifact_key=rows[0].key if rows else None,
            holders=self._known_holders(blob, rows),
            pinned=not covered.isdisjoint((blob.digest, *subjects)),
            mapped=blob.kind != "manifest" and any(map(self._activation.is_mapped, subjects)),
        )

    def _known_holders(self, blob: BlobInfo, rows: list[ArtifactRow]) -> int | None:
        if blob.kind == "module":
            return self._holder_count(blob.digest, None)
        counts = (self._holder_count(row.module, row.key) for row in rows)
        return max((count for count in counts if count is not None), default=None)

    def _functions(self, only: Container[Digest] | None) -> dict[Digest, list[str]]:
        """Names with versions, by module and snapshot; of all of them, or of some."""
        found: dict[Digest, list[str]] = {}
        named = (*self._catalog.modules.named(), *self._catalog.snapshots.named())
        for key, module in named:
            if only is None or module in only:
                _, name, version = key.split("/")
                found.setdefault(module, []).append(f"{name}@{version[:12]}")
        return {module: sorted(names) for module, names in found.items()}

    async def open_blob(
        self, digest: Digest
    ) -> tuple[BlobKind, AbstractContextManager[BlobContent]]:
        info = self._store.info(digest)
        if info is None:
            raise self._elsewhere(digest)
        return info.kind, await self._store.open_verified(digest)

    def _elsewhere(self, digest: Digest) -> BlobNotFound:
        """Who says to hold it is known of modules only."""
        names = [h.node for h in self._holders(digest) if h.form != "artifact" and not h.is_self]
        shown = ", ".join(names[:NAMES_SHOWN_MAX]) + (", …" if names[NAMES_SHOWN_MAX:] else "")
        known = f"; held by {shown}" if names else ""
        return BlobNotFound(f"blob {digest} is not on this node{known}", digest=digest)

    def transfers(self) -> TransfersView:
        moving = [*self._exchange.moving(), *self._streams.moving()]
        rows = {row.digest: row.module for row in self._store.artifacts()} if moving else {}
        modules = [
            self._activation.module_of(one.digest) or rows.get(one.digest, one.digest)
            for one in moving
        ]
        functions = self._functions(frozenset(modules))
        return TransfersView(
            self._node,
            tuple(
                TransferView(
                    direction=one.direction,
                    digest=one.digest,
                    functions=tuple(functions.get(module, [])[:NAMES_SHOWN_MAX]),
                    state=one.state,
                    urgent=one.urgent,
                    done_bytes=one.done_bytes,
                    total_bytes=one.total_bytes,
                    rate_bytes_s=round(one.rate_bytes_s, 1),
                    eta_s=one.eta_s,
                    peers=tuple(sorted(self._member_name(peer) for peer in one.peers)),
                    started_at_s=round(self._clock.now_s() - one.age_s, 3),
                )
                for one, module in zip(moving, modules, strict=True)
            ),
        )

    # ------------------------------------------------------------ doing
    async def collect(self, *, dry_run: bool, grace_s: float | None) -> GcView:
        self._check_state()
        return await self._collector.collect(dry_run=dry_run, grace_s=grace_s)

    def verification(self) -> VerifyView:
        return self._scrubber.view()

    def verify(self) -> VerifyView:
        self._check_state()
        return self._scrubber.start()

    def _check_state(self) -> None:
        if self._state() == "draining":
            raise Draining("this node is shutting down")

    def pins(self) -> PinsView:
        return PinsView(self._node, self._pins.functions(), self._pins.digests())

    async def pin(self, target: str) -> PinChange:
        kind, found = self._target(target)
        if kind == "digest" and self._store.info(Digest(found)) is None:
            raise BlobNotFound(f"blob {found} is not on this node", digest=found)
        return await self._pins.pin(kind, found)

    async def unpin(self, target: str) -> PinChange:
        await trio.lowlevel.checkpoint()
        done = await self._pins.unpin(*self._pinned(target))
        if done.kind == "digest":
            modules = {Digest(done.target)}
        else:
            modules = set(code_of(self._catalog, FunctionName(done.target)))
        return msgspec.structs.replace(done, needed_by=functions_of(modules, self._catalog))

    def _pinned(self, target: str) -> tuple[Kind, str]:
        """Raises as `_target`."""
        if target in self._pins.functions():
            return "function", target
        fits = [digest for digest in self._pins.digests() if digest.startswith(target)]
        if PREFIX.match(target) and fits:
            return "digest", _only(fits, target)
        return self._target(target)

    def _target(self, target: str) -> tuple[Kind, str]:
        """A function that there is goes before a digest that begins like its name.

        Raises BlobNotFound, BadRequest."""
        if _is_function_name(target) and self._catalog.lookup(FunctionName(target)) is not None:
            return "function", target
        if DIGEST.match(target):
            return "digest", target
        fits = [blob.digest for blob in self._store.blobs() if blob.digest.startswith(target)]
        if not PREFIX.match(target) or not fits:
            raise BlobNotFound(
                f"{target[:80]!r} is neither a function nor a blob on this node; of a digest write"
                " 8 digits or more"
            )
        return "digest", _only(fits, target)


def _is_function_name(text: str) -> bool:
    try:
        parse_function_name(text)
    except RemoteProtocolError:
        return False
    return True


def _only(fits: list[Digest], prefix: str) -> Digest:
    if len(fits) > 1:
        raise BadRequest(f"{prefix} is the start of {len(fits)} digests; write more digits")
    return fits[0]
