"""Wires what decides about forms of code: measurements, inputs, decisions, and the code in force.
Starts nothing; only `assembly` uses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol.costs import PlanForm, Room
from protocol.holdings import ANSWERING_FORMS
from protocol.ids import Digest, FunctionName, NodeId
from protocol.messages import Form
from protocol.snapshots import SnapshotStatement

from .activation import Activation
from .artifacts import Artifacts
from .choices import Choices, codes_of
from .config import PlannerSection
from .evicting import Derived
from .inputs import MAKING_BYTES_S, Gatherer, Seen, init_key
from .interfaces import FunctionView, Peer, PlanChange, Store, Tier
from .measuring import ARTIFACT_WIRE, Measures
from .planning import Planning
from .rates import Rates
from .supply import Supply
from .telemetry import Log, Metrics
from .whatif import GIBIBYTE

MBIT_BYTES_S: Final = 125_000


@dataclass(frozen=True, kw_only=True)
class PlanSurroundings:
    """What the node has already."""

    node: str
    store: Store
    artifacts: Artifacts
    activation: Activation
    supply: Supply
    rates: Rates
    measures: Measures
    tiers: Mapping[Tier, object]
    stated: Callable[[Digest], Sequence[SnapshotStatement]]
    """Of a snapshot."""
    unproven: Callable[[SnapshotStatement], bool]
    forwards: bool
    """Whether requests may be passed on at all."""
    lookup: Callable[[str], FunctionView]
    holders: Callable[[Digest], Sequence[Peer]]
    ready: Callable[[FunctionView], Sequence[Peer]]
    form: Callable[[NodeId, Digest], Form | None]
    served: Callable[[], Mapping[FunctionName, int]]
    room: Callable[[], tuple[Room, ...] | None]
    measure_fetches: Callable[[], None]
    note: Callable[[FunctionName, PlanChange], None]
    wall_s: Callable[[], float]
    metrics: Metrics
    log: Log


class PlanParts:
    """Implements inputs.Scene and planning.Uses."""

    def __init__(self, section: PlannerSection, around: PlanSurroundings) -> None:
        self._around = around
        self.choices = Choices(around.activation, forwards=around.forwards, log=around.log)
        gatherer = Gatherer(
            self,
            around.measures,
            around.rates,
            tier="fast" if "fast" in around.tiers else "optimised",
            horizon_s=section.horizon_s,
            wire_s_per_byte=section.price_per_gib / GIBIBYTE,
        )
        self.planning = Planning(
            gatherer,
            around.measures,
            node=around.node,
            preferred=None if section.form == "auto" else section.form,
            lookup=around.lookup,
            uses=self,
            serving=self.choices.serving,
            note=around.note,
            wall_s=around.wall_s,
            metrics=around.metrics,
            log=around.log,
        )
        self.choices.follow(self.planning)

    # ------------------------------------------------------------ what decisions depend on
    def code(self, digest: Digest) -> Seen:
        around = self._around
        row = around.artifacts.row(digest, "optimised")
        return Seen(
            info=around.store.info(digest),
            near=around.activation.is_near(digest),
            native_bytes=None if row is None else row.size_bytes,
            holders=around.holders(digest),
            builders=around.supply.sources(digest),
            code_bytes=around.artifacts.code_size(digest),
        )

    def answering(self, function: FunctionView) -> list[tuple[Peer, bool]]:
        stated = function.snapshot
        if not self._around.forwards:
            return []
        return [
            (peer, stated is None or self._answers(peer, stated.snapshot))
            for peer in self._around.ready(function)
        ]

    def _answers(self, peer: Peer, digest: Digest) -> bool:
        return self._around.form(peer.node_id, digest) in ANSWERING_FORMS

    def unproven(self, stated: SnapshotStatement) -> bool:
        return self._around.unproven(stated)

    def waiting(self, function: FunctionView) -> int:
        return self.choices.waiting(function)

    def again_s(self, derived: Derived) -> float:
        """To have a blob again that has gone: made here, or fetched where somebody has it."""
        around, code = self._around, derived.code
        info = around.store.info(derived.digest)
        size_bytes = 0 if info is None else info.size_bytes
        fetch_s = make_s = math.inf
        if derived.kind == "artifact":
            code_bytes = around.artifacts.code_size(code) or size_bytes
            make_s = around.rates.compile_s(code_bytes, "optimised")
            if around.supply.sources(code):
                fetch_s = around.rates.fetch_s(int(size_bytes * ARTIFACT_WIRE))
        else:
            stated = around.stated(code)
            make_s = 2 * size_bytes / MAKING_BYTES_S
            if stated:
                make_s += stated[0].facts.init_s
                if around.holders(code):
                    fetch_s = around.rates.fetch_s(stated[0].facts.wire_bytes)
        return min(make_s, fetch_s)

    def room(self) -> tuple[Room, ...] | None:
        return self._around.room()

    def uses(self, code: Digest) -> int:
        """Invocations in it since it was mapped."""
        mapped = self._around.activation.table.get(code)
        return 0 if mapped is None else mapped.uses

    # ------------------------------------------------------------ what invocations tell
    def served(self) -> Mapping[FunctionName, int]:
        return self._around.served()

    def sample(self, function: FunctionView) -> None:
        table, measures, now = (
            self._around.activation.table, self._around.measures, trio.current_time(),
        )  # fmt: skip
        stated = function.snapshot
        for code in codes_of(function):
            mapped = table.get(code.digest)
            if mapped is None or mapped.last is None:
                continue
            ran = measures.code(code.digest)
            if mapped.phases.load_s is not None and not ran.load.samples:
                ran.load.observe(mapped.phases.load_s, now)
            if mapped.last is ran.last:
                continue
            ran.last = mapped.last
            instantiate_s, init_s, run_s = mapped.last
            ran.instantiate.observe(instantiate_s, now)
            # A snapshot runs what its module would.
            measures.code(function.spec.module).run.observe(run_s, now)
            if init_s:
                stated_s = None if stated is None else stated.facts.init_s
                measures.initialised(init_key(function), init_s, stated_s=stated_s)

    def settle(self) -> None:
        self._around.measure_fetches()
        self._around.activation.table.settle()

    def change(self, function: FunctionView, forms: tuple[PlanForm, ...]) -> None:
        self.choices.change(function, forms)
