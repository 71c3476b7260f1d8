"""What this node has measured: its peers' links, its own speed, what each code costs to run.

Everything is a protocol.estimates.Estimate, so that its age and confidence are known; until
something is measured a prior speaks. Bounded: of each table what was used least lately goes first.
All state belongs to the node's event loop; nothing here is called for a request that finds its
code ready, but once in a while for many of them together.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from protocol.estimates import Demand, Estimate, Reading, mean_per_s
from protocol.ids import Digest, NodeId, VersionId

PEERS_MAX: Final = 1024
CODES_MAX: Final = 4096
FUNCTIONS_MAX: Final = 4096
MEAN_S: Final = 10.0
"""Between looks at the demand of all functions together: 3 ms for the most there may be."""
SOURCE_SAMPLE_BYTES: Final = 64 * 1024
"""Less from one source says more of round trips than of its rate."""
DECOMPRESS_BYTES_S: Final = 400e6
"""Raw bytes, on one core, stored too; zstd alone gives 720 to 1,000 MB/s."""
DECOMPRESS_SAMPLE_BYTES: Final = 1024 * 1024
LOAD_S: Final = 0.003
INSTANTIATE_S: Final = 50e-6
RUN_S: Final = 0.005
INIT_S: Final = 0.1
"""Where nobody has stated what it takes."""
FORWARD_S: Final = 0.01
"""A usual call there, its queue included; the round trip comes on top."""
MODULE_WIRE: Final = 0.35
ARTIFACT_WIRE: Final = 0.35
"""Wire bytes per byte of modules and of native code."""
ARTIFACT_SIZE: Final = 2.9
"""Bytes of native code per byte of a code section: 2.8 of QuickJS, 4.0 of b3sum."""

Key = TypeVar("Key")
Kept = TypeVar("Kept")


class Table(Generic[Key, Kept]):
    """Made when first asked for; the one not asked for longest is forgotten."""

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self._rows: OrderedDict[Key, Kept] = OrderedDict()

    def of(self, key: Key, make: Callable[[], Kept]) -> Kept:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = make()
            if len(self._rows) > self._rows_max:
                self._rows.popitem(last=False)
        else:
            self._rows.move_to_end(key)
        return row

    def get(self, key: Key) -> Kept | None:
        return self._rows.get(key)

    def values(self) -> list[Kept]:
        return list(self._rows.values())


class Ran:
    """Of one code."""

    __slots__ = ("instantiate", "last", "load", "run")

    def __init__(self) -> None:
        self.load = Estimate(LOAD_S)
        self.instantiate = Estimate(INSTANTIATE_S)
        self.run = Estimate(RUN_S)
        self.last: tuple[float, float, float] | None = None
        """The newest invocation's that was counted."""


class LinkPrior(NamedTuple):
    """Of a peer's bytes per second, until something was fetched from it."""

    bytes_s: float
    off: float
    """By how much that may be wrong (protocol.estimates.Estimate)."""


class _Source:
    """Of blobs: a peer."""

    __slots__ = ("bytes_s", "told")

    def __init__(self, prior: LinkPrior) -> None:
        self.bytes_s = Estimate(prior.bytes_s, off=prior.off)
        self.told = (0, 0.0)
        """What was noted last: the same again is no news."""


class Measures:
    def __init__(self, *, link: Callable[[NodeId], LinkPrior]) -> None:
        """`link`: what may be expected of a peer nothing was fetched from."""
        self._link = link
        self._sources: Table[NodeId, _Source] = Table(PEERS_MAX)
        self._answers: Table[tuple[NodeId, VersionId], Estimate] = Table(CODES_MAX)
        self._codes: Table[Digest, Ran] = Table(CODES_MAX)
        self._inits: Table[Digest, Estimate] = Table(CODES_MAX)
        self._demands: Table[VersionId, Demand] = Table(FUNCTIONS_MAX)
        self._mean_per_s: float | None = None
        self._mean_until_s = -math.inf
        self.together = Estimate(1.0)
        """Bytes per second of several sources at once: this node's own link, if that is the
        bound. Says nothing until it was measured."""
        self.decompress = Estimate(DECOMPRESS_BYTES_S)
        self.speed = Estimate(1.0)
        """Time that initialising takes here by the time that its maker stated."""
        self.module_wire = Estimate(MODULE_WIRE)
        self.artifact_wire = Estimate(ARTIFACT_WIRE)
        self.artifact_size = Estimate(ARTIFACT_SIZE)

    # ------------------------------------------------------------ peers
    def fetched(self, sources: dict[NodeId, tuple[int, float]]) -> None:
        """Wire bytes, and bytes per second while it owed some, of each source of one blob; so far,
        or at its end."""
        now, total, news = trio.current_time(), 0.0, False
        for peer, told in sources.items():
            wire_bytes, bytes_s = told
            total += bytes_s
            source = self._sources.of(peer, partial(_Source, self._link(peer)))
            if wire_bytes >= SOURCE_SAMPLE_BYTES and bytes_s > 0 and source.told != told:
                source.told, news = told, True
                source.bytes_s.observe(bytes_s, now)
        if news and len(sources) > 1:
            self.together.observe(total, now)

    def source(self, peer: NodeId) -> Reading:
        """Bytes per second."""
        known = self._sources.get(peer)
        now = trio.current_time()
        if known is None or not known.bytes_s.samples:
            prior = self._link(peer)
            return Estimate(prior.bytes_s, off=prior.off).read(now)
        return known.bytes_s.read(now)

    def answered(self, peer: NodeId, version: VersionId, took_s: float) -> None:
        """A forwarded request, from its last byte to the answer's first."""
        made = self._answers.of((peer, version), lambda: Estimate(FORWARD_S))
        made.observe(took_s, trio.current_time())

    def answer_s(self, peer: NodeId, version: VersionId) -> Reading | None:
        known = self._answers.get((peer, version))
        return None if known is None else known.read(trio.current_time())

    # ------------------------------------------------------------ this node
    def finished(self, size_bytes: int, took_s: float) -> None:
        """A fetched blob was decompressed, hashed and stored."""
        if size_bytes >= DECOMPRESS_SAMPLE_BYTES and took_s > 0:
            self.decompress.observe(size_bytes / took_s, trio.current_time())

    def code(self, digest: Digest) -> Ran:
        return self._codes.of(digest, Ran)

    def init(self, init: Digest, *, stated_s: float | None) -> Estimate:
        """Of a module's init: `init` names both."""
        scaled = None if stated_s is None else stated_s * self.speed.value(trio.current_time())
        return self._inits.of(init, lambda: Estimate(max(scaled or INIT_S, 1e-6)))

    def initialised(self, init: Digest, took_s: float, *, stated_s: float | None) -> None:
        now = trio.current_time()
        self.init(init, stated_s=stated_s).observe(took_s, now)
        if stated_s:
            self.speed.observe(took_s / stated_s, now)

    def demand(self, version: VersionId) -> Demand:
        return self._demands.of(version, lambda: Demand(trio.current_time()))

    def mean_per_s(self) -> float | None:
        """Calls of one function, on average over those in use; as of MEAN_S ago at most."""
        now = trio.current_time()
        if now >= self._mean_until_s:
            self._mean_per_s = mean_per_s(self._demands.values(), now)
            self._mean_until_s = now + MEAN_S
        return self._mean_per_s
