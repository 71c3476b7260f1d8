"""All sources of one fetch, and which of them to connect to next. SPEC §10.5.

Plain state of protocol.exchange.Fetch, which alone changes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .exchange_events import FetchConfig
from .exchange_sources import Source, State
from .ids import NodeId

SOURCES_MAX: Final = 256
"""Nodes one fetch considers; a blob everyone holds is not searched for on everyone."""


class Circle:
    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._sources: dict[NodeId, Source] = {}

    def __iter__(self) -> Iterator[Source]:
        """As they became known; sources may become known meanwhile."""
        return iter(list(self._sources.values()))

    def __len__(self) -> int:
        return len(self._sources)

    def get(self, peer: NodeId) -> Source | None:
        return self._sources.get(peer)

    def add(self, peer: NodeId, rank: float, now: float) -> None:
        if peer not in self._sources and len(self._sources) < SOURCES_MAX:
            self._sources[peer] = Source(peer, rank, ready_at=now)

    def active(self) -> list[Source]:
        return [source for source in self._sources.values() if source.state is State.ACTIVE]

    def offering(self) -> list[Source]:
        """Those that said what they have."""
        return [source for source in self.active() if source.offered]

    def is_dry(self, source: Source, now: float) -> bool:
        """It has just sent the last of what it had sent to nobody: all of it is with others now,
        and to ask those costs the one everybody depends on nothing."""
        if not source.complete or source.seeds or now >= source.dry_at + self._config.dry_s:
            return False
        return not all(other.complete for other in self.offering())

    @property
    def untried(self) -> bool:
        """Somebody is left to connect to, or just being connected to."""
        return any(s.state in (State.IDLE, State.DIALING) for s in self._sources.values())

    @property
    def idle(self) -> bool:
        """Somebody is left to connect to."""
        return any(source.state is State.IDLE for source in self._sources.values())

    def room(self, missing: int) -> int:
        """How many more to connect to; more the more there is to get."""
        by_work = missing // self._config.source_segments
        wanted = min(self._config.sources_max, self._config.dials_first + by_work)
        busy = sum(s.state in (State.DIALING, State.ACTIVE) for s in self._sources.values())
        return wanted - busy

    def next(self, room: int, now: float) -> list[Source]:
        """Those to connect to now: least tried, then nearest."""
        if room <= 0:
            return []
        ready = [
            source
            for source in self._sources.values()
            if source.state is State.IDLE and source.ready_at <= now
        ]
        ready.sort(key=lambda source: (source.attempts, source.rank))
        return ready[:room]
