"""The cluster as this node sees it, in the shapes that other packages want. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, get_args

import msgspec
import trio

from protocol.gossip import Gossip
from protocol.holdings import ANSWERING_FORMS, MODULE_FORMS, READY_FORMS
from protocol.ids import ArtifactKey, Digest, NodeId
from protocol.member import Member
from protocol.messages import Form
from protocol.replicas import Site

from . import __version__
from .clock import Clock
from .functions import FunctionService
from .interfaces import (
    GossipView,
    HolderView,
    MemberView,
    NodeState,
    Peer,
    ReplicationView,
    Runtime,
    StatusView,
)
from .metrics import Family, Sample, family
from .store import BlobStore
from .supply import Rivals
from .telemetry import Metrics

MEMBER_STATES = ("alive", "suspect", "down", "left")
KEY_DIGITS: Final = 16
"""Of its artifact key, a member's metadata has so many."""
CALL_S: Final = 0.01
"""A usual call of a function: what a queue before it is made of."""
LOAD_MAX: Final = 0.99
"""Counts as full: one second's wait."""
BUILDERS_ASKED_MAX: Final = 2
"""Of those that build: there is one per artifact key, and not all have code meanwhile."""
FAR_S = 3600.0
"""Stands for an unknown round trip when holders are put in order: after all known ones."""


def address_text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wait_s(member: Member) -> float:
    """Round trip and, as of one server with a queue, the wait that its load makes probable."""
    load = min(member.load or 0.0, LOAD_MAX)
    return (FAR_S if member.rtt_s is None else member.rtt_s) + CALL_S * load / (1 - load)


def _first(waits: tuple[float, Member]) -> float:
    return waits[0]


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
        load: Callable[[], float],
        replication: Callable[[], ReplicationView],
        reason: Callable[[NodeId], str],
        trust_expires_s: float,
        clock: Clock,
    ) -> None:
        """`reason` tells why a member is suspect or down."""
        self._gossip = gossip
        self._store = store
        self._runtime = runtime
        self._functions = functions
        self._state = state
        self._uptime_s = uptime_s
        self._metrics = metrics
        self._load = load
        self._replication = replication
        self._reason = reason
        self._trust_expires_s = trust_expires_s
        self._clock = clock
        metrics.registry.collect(lambda: gossip_families(self.gossip()))

    def _self(self) -> Member:
        return next(member for member in self._gossip.members() if member.is_self)

    def members(self) -> tuple[MemberView, ...]:
        """By name; this node among them."""
        health = self._gossip.statistics().health
        now_s, wall_s = trio.current_time(), self._clock.now_s()
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
                load=round(self._load(), 3) if member.is_self else member.load,
                health=health if member.is_self else None,
                since_s=round(wall_s - (now_s - member.changed_at_s), 3),
                why=self._reason(member.node_id),
            )
            for member in sorted(self._gossip.members(), key=lambda m: (m.name, m.node_id))
        )

    def gossip(self) -> GossipView:
        found = self._gossip.statistics()
        return GossipView(
            health=found.health,
            load=round(self._load(), 3),
            generation=self._self().generation,
            probing=msgspec.structs.asdict(found.probing),
            queues={
                "updates": found.updates_queued,
                "transmits": found.transmits_queued,
                "probes": found.probes_running,
                "stream-probes": found.stream_probes_open,
                "suspects": found.suspects,
            },
            lost={"transmits": found.transmits_lost, "updates": found.updates_lost},
            refused=found.refused
            | {
                labels[0][1]: int(child.value)
                for labels, child in self._metrics.datagrams_dropped.children()
            },
            syncs={"wanted": found.syncs_wanted, "answered": found.syncs_answered},
            datagrams={"in": found.datagrams_received, "out": found.datagrams_sent},
            datagram_bytes={"in": found.bytes_received, "out": found.bytes_sent},
            messages={"in": found.messages_received, "out": found.messages_sent},
            message_bytes={
                "in": found.message_bytes_received,
                "out": found.message_bytes_sent,
            },
        )

    def _holding(self, digest: Digest, forms: Collection[Form] | None = None) -> Iterable[Member]:
        holders = frozenset(self._gossip.holdings.holders(digest, forms))
        found = [member for member in self._gossip.members() if member.node_id in holders]
        # Nearest first; the id breaks ties, so that equal views give equal orders.
        return sorted(found, key=lambda m: (FAR_S if m.rtt_s is None else m.rtt_s, m.node_id))

    def peers_holding(self, digest: Digest) -> list[Peer]:
        """Reachable peers that say they hold the module `digest`, nearest first."""
        return [
            _peer_of(member)
            for member in self._holding(digest, MODULE_FORMS)
            if member.reachable and not member.is_self
        ]

    def _of_our_key(self, digest: Digest, forms: Collection[Form]) -> list[Member]:
        key = self._runtime.artifact_key[:KEY_DIGITS]
        return [
            member
            for member in self._holding(digest, forms)
            if member.reachable and not member.is_self and member.metadata.artifact_key == key
        ]

    def peers_with_artifact(self, module: Digest) -> list[Peer]:
        """Reachable peers of this node's artifact key that show the artifact, nearest first."""
        return [_peer_of(member) for member in self._of_our_key(module, READY_FORMS)]

    def rivals(self, module: Digest) -> Rivals:
        """Who else of this node's artifact key has, or could make, the artifact."""
        shown: dict[Form, list[NodeId]] = {}
        for member in self._of_our_key(module, get_args(Form)):
            form = self._gossip.holdings.form(member.node_id, module)
            if form is not None:
                shown.setdefault(form, []).append(member.node_id)
        able = frozenset(node for form in MODULE_FORMS for node in shown.get(form, ()))
        ready = frozenset(node for form in READY_FORMS for node in shown.get(form, ()))
        return Rivals(ready=ready, building=frozenset(shown.get("building", ())), able=able)

    def peers_ready(self, codes: Mapping[Digest, float]) -> list[Peer]:
        """Reachable peers whose gateway could answer at once with any of `codes`: the one with the
        least round trip, load and seconds more that a call takes in its code first. Last, some that
        are building: they likely run code of the fast tier meanwhile, and refuse in a round trip if
        they do not."""
        holdings = self._gossip.holdings
        ready: dict[NodeId, tuple[float, Member]] = {}
        building: dict[NodeId, tuple[float, Member]] = {}
        for digest, more_s in codes.items():
            for member in self._holding(digest, ANSWERING_FORMS | {"building"}):
                # One that is suspect would keep a request waiting until it is down or back.
                if member.state == "alive" and not member.is_self and member.metadata.gateway_url:
                    form = holdings.form(member.node_id, digest)
                    found = ready if form in ANSWERING_FORMS else building
                    wait_s = _wait_s(member) + more_s
                    if member.node_id not in found or wait_s < found[member.node_id][0]:
                        found[member.node_id] = wait_s, member
        rest = [waits for node_id, waits in building.items() if node_id not in ready]
        rest = sorted(rest, key=_first)[:BUILDERS_ASKED_MAX]
        return [_peer_of(member) for _, member in (*sorted(ready.values(), key=_first), *rest)]

    def sites(self) -> list[Site]:
        """Where copies may be: every reachable member, this node among them."""
        return [
            Site(member.node_id, member.metadata.region)
            for member in self._gossip.members()
            if member.reachable
        ]

    def member_name(self, node_id: NodeId) -> str:
        """Or the begin of its id, if it is unknown by now."""
        member = self._gossip.member(node_id)
        return node_id[:12] if member is None else member.name

    def peer(self, node_id: NodeId) -> Peer | None:
        """A reachable peer; None for any other member, for this node, and for strangers."""
        for member in self._gossip.members():
            if member.node_id == node_id and member.reachable and not member.is_self:
                return _peer_of(member)
        return None

    def holders(self, digest: Digest) -> tuple[HolderView, ...]:
        return tuple(
            HolderView(
                node=member.name,
                node_id=member.node_id,
                region=member.metadata.region,
                state=member.state,
                rtt_ms=_rtt_ms(member),
                is_self=member.is_self,
                form=self._gossip.holdings.form(member.node_id, digest) or "module",
            )
            for member in self._holding(digest)
        )

    def holder_count(self, module: Digest, key: ArtifactKey | None) -> int | None:
        """How many members show `module`, this node among them; with a `key`, its artifact for that
        key: None of fast code, which nobody shares."""
        if key is None:
            return len(self.holders(module))
        if key == self._runtime.keys.get("fast"):
            return None
        holding = self._holding(module, READY_FORMS)
        return sum(member.metadata.artifact_key == key[:KEY_DIGITS] for member in holding)

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
            trust_expires_s=self._trust_expires_s,
            repair=self._store.repair,
            gossip=self.gossip(),
            replication=self._replication(),
        )

    def render_metrics(self) -> bytes:
        """Sets the gauges that nobody keeps up to date in between, then renders all metrics."""
        self._metrics.running.set(self._functions.running)
        self._metrics.under_replicated.set(self._replication().under_replicated)
        self._metrics.trust_expires.set(self._trust_expires_s)
        for state, count in self.member_counts().items():
            self._metrics.members.labels(state).set(count)
        for kind in ("module", "artifact", "manifest"):
            sizes = [blob.size_bytes for blob in self._store.blobs() if blob.kind == kind]
            self._metrics.blobs.labels(kind).set(len(sizes))
            self._metrics.blob_bytes.labels(kind).set(sum(sizes))
        return self._metrics.render()


PROBE_COUNTERS: Final = {
    "probes": "Probes of this node's own: rounds, verifications, last looks",
    "nacks": "Helpers that answered: no answer from the target",
    "probes_failed": "Probes without an answer on any path",
    "suspicions": "Suspicions of members, whoever raised them",
    "suspicions_raised": "Suspicions by this node's own evidence",
    "suspicions_refuted": "Suspicions that the suspect contradicted",
    "deaths": "Members declared down",
    "false_deaths": "Members declared down that came back in the same run of theirs",
    "refutations": "Times this node contradicted what was said of it",
    "stalls": "Times this node itself was stopped or starved",
    "stalls_spared": "Verdicts put off as the suspect was stopped, not dead",
}


def gossip_families(view: GossipView) -> Iterator[Family]:
    """What gossip counts, for Prometheus. edged/docs/API.md lists the names."""
    yield family("edged_gossip_health", "gauge", "Local health; 0 is well", values=view.health)
    yield family("edged_load", "gauge", "Busy share of this node's capacity", values=view.load)
    for name, text in PROBE_COUNTERS.items():
        yield family(f"edged_gossip_{name}_total", "counter", text, values=view.probing[name])
    paths = {path: view.probing[f"acks_{path}"] for path in ("direct", "indirect", "stream")}
    yield family("edged_gossip_acks_total", "counter", "Probes answered, by path", "path", paths)
    yield family("edged_gossip_queue", "gauge", "Length of a queue", "queue", view.queues)
    lost = "Dropped by overflow of a queue"
    yield family("edged_gossip_lost_total", "counter", lost, "queue", view.lost)
    refused = "Datagrams, and items in accepted ones, that were not used"
    yield family("edged_gossip_refused_total", "counter", refused, "code", view.refused)
    yield _by_type("edged_gossip_messages_total", "Messages in datagrams", view.messages)
    yield _by_type(
        "edged_gossip_message_bytes_total", "Bytes of datagrams by message", view.message_bytes
    )
    yield family("edged_gossip_syncs_total", "counter", "Stream syncs", "side", view.syncs)


def _by_type(name: str, text: str, counts: dict[str, dict[str, int]]) -> Family:
    samples = [
        Sample(name, (("direction", direction), ("type", kind)), value)
        for direction, kinds in counts.items()
        for kind, value in kinds.items()
    ]
    return Family(name, "counter", text, samples)


def _peer_of(member: Member) -> Peer:
    return Peer(
        node_id=member.node_id,
        name=member.name,
        region=member.metadata.region,
        gossip_address=member.metadata.gossip_address,
        stream_address=member.metadata.stream_address,
        gateway_url=member.metadata.gateway_url,
        rtt_s=member.rtt_s,
    )
