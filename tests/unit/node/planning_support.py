"""A node's surroundings as decisions see them, set by hand."""

from __future__ import annotations

import io
from typing import Any

import trio

from edged.inputs import Gatherer, Seen
from edged.interfaces import BlobInfo, FunctionView, Peer, PlanChange
from edged.measuring import LinkPrior, Measures
from edged.planning import Planning
from edged.rates import Rates
from edged.telemetry import Metrics, make_log
from protocol.costs import PlanForm, Room
from protocol.function import FunctionSpec, InitSpec, init_digest
from protocol.identity import Credential
from protocol.ids import Digest, FunctionName, NodeId, VersionId, digest_of
from protocol.snapshots import SnapshotFacts, SnapshotStatement

MIBIBYTE = 1 << 20
MODULE, SNAPSHOT = digest_of(b"module"), digest_of(b"snapshot")
NOTHING = Seen(None, False, None, (), (), None)


def peer(number: int, *, rtt_s: float = 0.02) -> Peer:
    at = ("127.0.0.1", 1)
    return Peer(NodeId(f"{number:032x}"), f"n{number}", "local", at, at, "http://x", rtt_s)


def info(digest: Digest, size_bytes: int, wire_bytes: int) -> BlobInfo:
    return BlobInfo(digest, "module", size_bytes, wire_bytes, digest, 0.0)


def function(
    *, init_s: float | None = 1.0, snapshot_wire: int = 8 * MIBIBYTE, delta_wire: int = 0
) -> FunctionView:
    """`init_s`: as its maker states it; None: there is no init."""
    init = None if init_s is None else InitSpec()
    spec = FunctionSpec(
        abi="raw", module=MODULE, module_bytes=3 * MIBIBYTE, manifest=MODULE, init=init
    )
    stated = None
    if init is not None and init_s is not None:
        maker: Any = Credential
        stated = SnapshotStatement(
            MODULE,
            init_digest(init),
            1,
            SNAPSHOT,
            36 * MIBIBYTE,
            SNAPSHOT,
            SnapshotFacts(snapshot_wire, delta_wire, 2 * MIBIBYTE, init_s),
            maker,
            b"",
        )
    return FunctionView(FunctionName("f"), VersionId("a" * 64), spec, stated)


class World:
    """Implements inputs.Scene and planning.Uses."""

    def __init__(self, view: FunctionView, *, preferred: PlanForm | None = None) -> None:
        self.view = view
        self.seen: dict[Digest, Seen] = {}
        self.peers_ready: list[tuple[Peer, bool]] = []
        self.waits = 0
        self.proven = True
        self.free: tuple[Room, ...] | None = None
        self.calls = 0
        self.changed: list[tuple[PlanForm, ...]] = []
        self.events: list[tuple[FunctionName, PlanChange]] = []
        self.link_bytes_s = 12.5e6
        self.measures = Measures(link=lambda _: LinkPrior(self.link_bytes_s, 0.0))
        self.rates = Rates()
        gatherer = Gatherer(
            self, self.measures, self.rates, tier="fast", horizon_s=3600.0, wire_s_per_byte=0.0
        )
        self.planning = Planning(
            gatherer,
            self.measures,
            node="n",
            preferred=preferred,
            lookup=lambda _: self.view,
            uses=self,
            serving=lambda _: None,
            note=lambda name, change: self.events.append((name, change)),
            wall_s=trio.current_time,
            metrics=Metrics(),
            log=make_log("n", stream=io.StringIO()),
        )

    def held_by(self, *peers: Peer) -> None:
        """Module and snapshot, without native code."""
        self.seen[MODULE] = NOTHING._replace(holders=peers)
        self.seen[SNAPSHOT] = NOTHING._replace(holders=peers)

    def measure(self, bytes_s: float, *peers: Peer) -> None:
        """Twice what moves an estimate."""
        for turn in range(6):
            for one in peers:
                self.measures.fetched({one.node_id: (MIBIBYTE + turn, bytes_s)})

    # ------------------------------------------------------------ as the planner sees it
    def code(self, digest: Digest) -> Seen:
        return self.seen.get(digest, NOTHING)

    def answering(self, function: FunctionView) -> list[tuple[Peer, bool]]:
        return self.peers_ready

    def unproven(self, stated: SnapshotStatement) -> bool:
        return not self.proven

    def waiting(self, function: FunctionView) -> int:
        return self.waits

    def room(self) -> tuple[Room, ...] | None:
        return self.free

    def served(self) -> dict[FunctionName, int]:
        return {self.view.name: self.calls}

    def sample(self, function: FunctionView) -> None:
        pass

    def settle(self) -> None:
        pass

    def change(self, function: FunctionView, forms: tuple[PlanForm, ...]) -> None:
        self.changed.append(forms)
