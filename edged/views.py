"""The cluster as this node sees it, in the shapes that other packages want. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from protocol.gossip import Gossip
from protocol.ids import Digest
from protocol.member import Member

from . import __version__
from .functions import FunctionService
from .interfaces import (
    HolderView,
    MemberView,
    NodeState,
    Peer,
    Runtime,
    StatusView,
)
from .store import BlobStore
from .telemetry import Metrics

MEMBER_STATES = ("alive", "suspect", "down", "left")
FAR_S = 3600.0
"""Stands for an unknown round trip when holders are put in order: after all known ones."""


def address_text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _rtt_ms(member: Member) -> float | None:
    return None if member.rtt_s is None else round(member.rtt_s * 1000, 3)


class Views:
    def __init__(
        self,
        *,
        gossip: Gossip,
        store: BlobStore,
        runtime: Runtime,
        functions: FunctionService,
        state: Callable[[], NodeState],
        uptime_s: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self._gossip = gossip
        self._store = store
        self._runtime = runtime
        self._functions = functions
        self._state = state
        self._uptime_s = uptime_s
        self._metrics = metrics

    def _self(self) -> Member:
        return next(member for member in self._gossip.members() if member.is_self)

    def members(self) -> tuple[MemberView, ...]:
        """By name; this node among them."""
        return tuple(
            MemberView(
                name=member.name,
                node_id=member.node_id,
                region=member.metadata.region,
                state=member.state,
                gossip_address=address_text(member.metadata.gossip_address),
                gateway_url=member.metadata.gateway_url,
                target=member.metadata.target,
                generation=member.generation,
                incarnation=member.incarnation,
                rtt_ms=_rtt_ms(member),
                is_self=member.is_self,
            )
            for member in sorted(self._gossip.members(), key=lambda m: (m.name, m.node_id))
        )

    def _holding(self, digest: Digest) -> Iterable[Member]:
        holders = frozenset(self._gossip.holdings.holders(digest))
        found = [member for member in self._gossip.members() if member.node_id in holders]
        # Nearest first; the id breaks ties, so that equal views give equal orders.
        return sorted(found, key=lambda m: (FAR_S if m.rtt_s is None else m.rtt_s, m.node_id))

    def peers_holding(self, digest: Digest) -> list[Peer]:
        """Reachable peers that say they hold `digest`, nearest first."""
        return [
            Peer(
                node_id=member.node_id,
                name=member.name,
                region=member.metadata.region,
                gossip_address=member.metadata.gossip_address,
                stream_address=member.metadata.stream_address,
                gateway_url=member.metadata.gateway_url,
                rtt_s=member.rtt_s,
            )
            for member in self._holding(digest)
            if member.reachable and not member.is_self
        ]

    def holders(self, digest: Digest) -> tuple[HolderView, ...]:
        return tuple(
            HolderView(
                node=member.name,
                node_id=member.node_id,
                region=member.metadata.region,
                state=member.state,
                rtt_ms=_rtt_ms(member),
                is_self=member.is_self,
            )
            for member in self._holding(digest)
        )

    def member_counts(self) -> dict[str, int]:
        counts = dict.fromkeys(MEMBER_STATES, 0)
        for member in self._gossip.members():
            counts[member.state] += 1
        return counts

    def status(self) -> StatusView:
        me = self._self()
        blobs = self._store.blobs()
        return StatusView(
            node=me.name,
            node_id=me.node_id,
            edged=__version__,
            region=me.metadata.region,
            state=self._state(),
            uptime_s=round(self._uptime_s(), 3),
            gateway_url=me.metadata.gateway_url,
            gossip_address=address_text(me.metadata.gossip_address),
            target=self._runtime.target,
            artifact_key=self._runtime.artifact_key,
            members=self.member_counts(),
            functions=self._gossip.catalog.function_count(),
            catalog=f"{self._gossip.catalog.state_digest():016x}",
            blobs=len(blobs),
            blob_bytes=sum(blob.size_bytes for blob in blobs),
            running=self._functions.running,
            repair=self._store.repair,
        )

    def render_metrics(self) -> bytes:
        """Sets the gauges that nobody keeps up to date in between, then renders all metrics."""
        self._metrics.running.set(self._functions.running)
        for state, count in self.member_counts().items():
            self._metrics.members.labels(state).set(count)
        for kind in ("module", "artifact", "manifest"):
            sizes = [blob.size_bytes for blob in self._store.blobs() if blob.kind == kind]
            self._metrics.blobs.labels(kind).set(len(sizes))
            self._metrics.blob_bytes.labels(kind).set(sum(sizes))
        return self._metrics.render()
