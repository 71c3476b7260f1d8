"""Gathers what a decision about a function's code depends on, as it stands now.

Reads only: the store, the cluster's holdings, what was measured. A value nobody has measured is
its prior, and counts as that: the least certain of those that matter gives the confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
import trio

from protocol.costs import Blob, Forward, Inputs, Prices, Rented, Room, Sources, sources_of
from protocol.costs import Peer as CostPeer
from protocol.estimates import Reading
from protocol.function import init_digest
from protocol.ids import Digest, digest_of
from protocol.snapshots import SnapshotFacts, SnapshotStatement

from .interfaces import BlobInfo, FunctionView, InputSource, Peer, PlanInput, Tier
from .measuring import INSTANTIATE_S, Measures
from .planwords import UNITS
from .rates import COMPILE_FIXED_S, Rates
from .whatif import values_of

PEERS_MAX: Final = 16
"""Nearest ones looked at for one blob: a fetch connects to fewer."""
UNKNOWN_RTT_S: Final = 0.1
NEAR_S: Final = 0.005
"""A peer nearer than this is on the same site: no slow access link is in between."""
MAKING_BYTES_S: Final = 16e6
"""Of a module that is parsed, instrumented and written again; besides it is compiled once."""
RUN_MIN_S: Final = 1e-5
NATIVE_FIXED_BYTES: Final = 16 * 1024
"""Of native code besides what functions compile to: the smallest modules give 14 to 18 KiB."""
DECIMALS: Final = 3
UNPROVEN: Final = "no maker's word is enough here"


class Seen(NamedTuple):
    """What this node and its peers have of one digest."""

    info: BlobInfo | None
    near: bool
    """In memory, or native code on disk that may be mapped."""
    native_bytes: int | None
    """Of that code, where it is known."""
    holders: Sequence[Peer]
    """Reachable peers with the bytes, nearest first."""
    builders: Sequence[Peer]
    """Those with native code that this node could fetch."""
    code_bytes: int | None
    """Of its code section."""


class Scene(Protocol):
    """The rest of the node."""

    def code(self, digest: Digest) -> Seen: ...

    def answering(self, function: FunctionView) -> Sequence[tuple[Peer, bool]]:
        """Peers that could answer at once, best first, and whether with a snapshot."""
        ...

    def unproven(self, stated: SnapshotStatement) -> bool:
        """Whether it runs here only once it was made here: nobody's word is enough."""
        ...

    def waiting(self, function: FunctionView) -> int: ...

    def room(self) -> tuple[Room, ...] | None:
        """On the disk, as Inputs has it."""
        ...


class Gathered(NamedTuple):
    inputs: Inputs
    readings: Readings


def init_key(function: FunctionView) -> Digest:
    """Names a module's init, whatever function has it."""
    assert function.spec.init is not None
    return digest_of(f"{function.spec.module} {init_digest(function.spec.init)}".encode())


class Gatherer:
    """All state belongs to the node's event loop."""

    def __init__(
        self,
        scene: Scene,
        measures: Measures,
        rates: Rates,
        *,
        tier: Tier,
        horizon_s: float,
        wire_s_per_byte: float,
    ) -> None:
        """`tier`: of the compiler that answers first."""
        self._scene = scene
        self._measures = measures
        self._rates = rates
        self._tier: Tier = tier
        self._horizon_s = horizon_s
        self._wire_s_per_byte = wire_s_per_byte

    def gather(self, function: FunctionView, rented: Rented, *, newcomers: int = 0) -> Gathered:
        """`newcomers`: requests that are about to wait."""
        now, spec, stated = trio.current_time(), function.spec, function.snapshot
        read = Readings()
        facts = None if stated is None else stated.facts
        module, artifact, code_bytes = self._module(function, facts, read)
        snapshot = delta = snapshot_artifact = None
        if stated is not None and spec.init is not None:
            snapshot, delta, snapshot_artifact = self._snapshot(stated, read)
        codes = (spec.module,) if stated is None else (spec.module, stated.snapshot)
        ran = self._measures.code(spec.module)
        init_s = make_s = instantiate_snapshot_s = 0.0
        before_s = facts.instantiate_before_s if facts else None
        if spec.init is not None:
            init_s, instantiate_snapshot_s = self._init(function, read)
            compile_s = self._rates.compile_s(code_bytes, self._tier)
            make_s = 2 * spec.module_bytes / MAKING_BYTES_S + compile_s
        forward = self._forward(function, read, init_s)
        run_s = read.take("run", ran.run.read(now))
        if forward is not None and not ran.run.samples:
            # What a peer needs for all of a call is more than running takes.
            run_s = min(run_s, max(forward.per_call_s - INSTANTIATE_S, RUN_MIN_S))
        demand = self._measures.demand(function.version)
        together = self._measures.together
        inputs = Inputs(
            module=module,
            artifact=artifact,
            snapshot=snapshot,
            delta=delta,
            snapshot_artifact=snapshot_artifact,
            code_bytes=code_bytes,
            link_bytes_s=together.value(now) if together.samples else math.inf,
            decompress_bytes_s=read.take("decompress", self._measures.decompress.read(now)),
            compile_bytes_s=read.take("compile", self._rates.compile_rate(self._tier)),
            compile_fixed_s=COMPILE_FIXED_S,
            load_s=read.take("load", ran.load.read(now)),
            init_s=init_s,
            make_snapshot_s=make_s,
            instantiate_s=read.stated("instantiate", ran.instantiate.read(now), before_s),
            instantiate_snapshot_s=instantiate_snapshot_s,
            run_s=run_s,
            compile_queue_s=self._rates.queue_s(codes),
            waiting=self._scene.waiting(function) + newcomers,
            rate_per_s=demand.rate_per_s(now, self._measures.mean_per_s()),
            rented=rented,
            horizon_s=demand.horizon_s(now, self._horizon_s),
            forward=forward,
            prices=Prices(wire_s_per_byte=self._wire_s_per_byte),
            room=self._scene.room(),
            confidence=read.least("bandwidth", "run", *(("init",) if init_s else ())),
        )
        return Gathered(inputs, read)

    def _init(self, function: FunctionView, read: Readings) -> tuple[float, float]:
        """Seconds of the init, and of instantiating the snapshot."""
        now, stated = trio.current_time(), function.snapshot
        stated_s = None if stated is None else stated.facts.init_s
        init = self._measures.init(init_key(function), stated_s=stated_s)
        init_s = read.take("init", init.read(now), stated is not None)
        if stated is None:
            return init_s, read.stated("instantiate-snapshot", None, None)
        own = self._measures.code(stated.snapshot).instantiate.read(now)
        after_s = stated.facts.instantiate_after_s
        return init_s, read.stated("instantiate-snapshot", own, after_s)

    # ------------------------------------------------------------ blobs
    def _module(
        self, function: FunctionView, facts: SnapshotFacts | None, read: Readings
    ) -> tuple[Blob, Blob, int]:
        """The module, its native code, and the size of its code section, which is the snapshot's
        too."""
        spec, now = function.spec, trio.current_time()
        seen = self._scene.code(spec.module)
        wire_bytes = seen.info.wire_bytes if seen.info is not None else None
        if wire_bytes is None:
            wire_bytes = int(spec.module_bytes * self._measures.module_wire.value(now))
        else:
            self._measures.module_wire.observe(wire_bytes / spec.module_bytes, now)
        module = Blob(
            wire_bytes=wire_bytes,
            size_bytes=spec.module_bytes,
            here=seen.info is not None,
            sources=self._sources(seen.holders, read),
        )
        code_bytes = seen.code_bytes or (facts.code_bytes if facts else 0) or spec.module_bytes
        return module, self._native(seen, module, code_bytes, read), code_bytes

    def _snapshot(
        self, stated: SnapshotStatement, read: Readings
    ) -> tuple[Blob, Blob | None, Blob]:
        """The snapshot, its delta against the module, and its native code."""
        seen, facts = self._scene.code(stated.snapshot), stated.facts
        if self._scene.unproven(stated):
            seen = seen._replace(info=None, holders=(), builders=())
        snapshot = Blob(
            wire_bytes=facts.wire_bytes,
            size_bytes=stated.size_bytes,
            here=seen.info is not None,
            sources=self._sources(seen.holders, read),
        )
        native = self._native(seen, snapshot, facts.code_bytes, read)
        if self._scene.unproven(stated):
            snapshot = msgspec.structs.replace(snapshot, lacks=UNPROVEN)
            native = msgspec.structs.replace(native, lacks=UNPROVEN)
        delta = None
        if facts.delta_wire_bytes:
            delta = msgspec.structs.replace(
                snapshot, wire_bytes=facts.delta_wire_bytes, size_bytes=0
            )
        return snapshot, delta, native

    def _native(self, seen: Seen, blob: Blob, code_bytes: int, read: Readings) -> Blob:
        """What a blob is compiled to: its data as they are, and its code, several times as long."""
        now, measures = trio.current_time(), self._measures
        code_bytes = max(1, min(code_bytes, blob.size_bytes))
        data_bytes = blob.size_bytes - code_bytes
        compiled_bytes = int(code_bytes * measures.artifact_size.value(now)) + NATIVE_FIXED_BYTES
        if seen.native_bytes is not None:
            compiled_bytes = max(seen.native_bytes - data_bytes, 0)
            measures.artifact_size.observe((compiled_bytes - NATIVE_FIXED_BYTES) / code_bytes, now)
        data_wire_bytes = data_bytes * blob.wire_bytes // blob.size_bytes
        compiled_wire_bytes = int(compiled_bytes * measures.artifact_wire.value(now))
        return Blob(
            wire_bytes=max(1, data_wire_bytes + compiled_wire_bytes),
            size_bytes=data_bytes + compiled_bytes,
            here=seen.near,
            sources=self._sources(seen.builders, read),
        )

    def _sources(self, peers: Sequence[Peer], read: Readings) -> Sources | None:
        found = []
        for peer in peers[:PEERS_MAX]:
            bandwidth = self._measures.source(peer.node_id)
            read.note("bandwidth", bandwidth)
            rtt_s = _rtt_s(peer)
            rate = bandwidth.value if rtt_s < NEAR_S else bandwidth.harmonic
            found.append(CostPeer(rtt_s, rate))
        return sources_of(found)

    def _forward(self, function: FunctionView, read: Readings, init_s: float) -> Forward | None:
        for peer, initialised in self._scene.answering(function):
            rtt_s = _rtt_s(peer)
            measured = self._measures.answer_s(peer.node_id, function.version)
            if measured is not None:
                read.note("forward", measured)
                return Forward(rtt_s=rtt_s, per_call_s=max(measured.value - rtt_s, 0.0))
            run = self._measures.code(function.spec.module).run.value(trio.current_time())
            there_s = run + INSTANTIATE_S + (0.0 if initialised else init_s)
            return Forward(rtt_s=rtt_s, per_call_s=there_s)
        return None


def _rtt_s(peer: Peer) -> float:
    return UNKNOWN_RTT_S if peer.rtt_s is None else peer.rtt_s


class Readings:
    """Where the values of one look came from."""

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}
        self._sources: dict[str, InputSource] = {}

    def note(self, name: str, reading: Reading, source: InputSource = "prior") -> None:
        """Of several of one name, the surest stands for them."""
        known = self._readings.get(name)
        if known is None or reading.confidence > known.confidence:
            self._readings[name] = reading
            self._sources[name] = "measured" if reading.samples else source

    def take(self, name: str, reading: Reading, has_word: bool = False) -> float:
        """Its value, noted. `has_word`: the prior is what a maker stated."""
        self.note(name, reading, "stated" if has_word else "prior")
        return reading.value

    def stated(self, name: str, reading: Reading | None, stated_s: float | None) -> float:
        """What was measured here, else what was stated, else what is usual."""
        if reading is not None and (reading.samples or stated_s is None):
            return self.take(name, reading)
        value = INSTANTIATE_S if stated_s is None else stated_s
        prior = Reading(
            value=value, samples=0, age_s=None, confidence=0.0, prior=value, harmonic=value
        )
        return self.take(name, prior, stated_s is not None)

    def least(self, *names: str) -> float:
        """Confidence of the least certain."""
        known = [self._readings[name].confidence for name in names if name in self._readings]
        return min(known, default=0.0)

    def show(self, inputs: Inputs) -> tuple[PlanInput, ...]:
        """For people."""
        rows = []
        for name, value in values_of(inputs).items():
            reading = self._readings.get(name)
            unit = UNITS[name]
            if reading is None:
                source: InputSource = "config" if name in ("horizon", "price") else "known"
                rows.append(PlanInput(name, value, unit, source, 1.0))
                continue
            age_s = None if reading.age_s is None else round(reading.age_s, DECIMALS)
            confidence = round(reading.confidence, DECIMALS)
            row = PlanInput(
                name, value, unit, self._sources[name], confidence, age_s, reading.samples
            )
            rows.append(row)
        return tuple(rows)
