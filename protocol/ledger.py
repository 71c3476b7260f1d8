"""Which segments a fetch lacks, who is asked for them and how rare they are. SPEC §10.5.

Plain state of protocol.exchange.Fetch, which alone changes it. Invariants: `assigned` are the keys
of `_asked_of`; `available` counts each segment once per active source that has not everything.
"""

from __future__ import annotations

from .bitsets import Counts, bits_of, first_from, indices_of
from .exchange_events import FetchConfig
from .exchange_sources import Ask, Kind, Source
from .ids import Digest
from .streams import HAVE_INDICES_MAX, Have


class Ledger:
    def __init__(self) -> None:
        self.missing = 0
        """Not verified yet."""
        self.stored = 0
        """On disk: what others may be told of."""
        self.assigned = 0
        """Asked for by index."""
        self.any_asked = 0
        """Requests under way for whichever segment the source chooses."""
        self.inflight = 0
        """Requests under way for a segment."""
        self.available = Counts()
        self._asked_of: dict[int, list[Source]] = {}

    @property
    def free(self) -> int:
        return self.missing & ~self.assigned

    def begin(self, segments: int, present: list[int]) -> None:
        self.stored = bits_of(present)
        self.missing = ((1 << segments) - 1) & ~self.stored

    # ------------------------------------------------------------ requests
    def note(self, source: Source, ask: Ask) -> None:
        """A segment is asked for."""
        if ask.kind is Kind.ANY:
            self.any_asked += 1
        else:
            self._asked_of.setdefault(ask.index, []).append(source)
            self.assigned |= 1 << ask.index
        source.segments_asked += 1
        self.inflight += 1

    def release(self, source: Source, ask: Ask) -> None:
        """Nothing is due for this request for a segment any more."""
        if ask.cancelled:
            return
        source.segments_asked -= 1
        self.inflight -= 1
        if ask.kind is Kind.ANY:
            self.any_asked -= 1
            return
        asked_of = self._asked_of.get(ask.index, [])
        if source in asked_of:
            asked_of.remove(source)
            if not asked_of:
                del self._asked_of[ask.index]
                self.assigned &= ~(1 << ask.index)

    def arrived(self, index: int) -> list[tuple[Source, int]]:
        """It verified. The requests for it that are to be cancelled, by source and id."""
        self.missing &= ~(1 << index)
        self.assigned &= ~(1 << index)
        needless = []
        for source in self._asked_of.pop(index, ()):
            for request_id, ask in source.asked.items():
                if ask.kind is Kind.SEGMENT and ask.index == index and not ask.cancelled:
                    ask.cancelled = True
                    source.segments_asked -= 1
                    self.inflight -= 1
                    needless.append((source, request_id))
        return needless

    # ------------------------------------------------------------ what sources have
    def learn(self, source: Source, has: int) -> bool:
        """An incomplete source has exactly this. Whether something missing is new among it."""
        new = has & ~source.has
        self.available.remove(source.has & ~has)
        self.available.add(new)
        source.has = has
        return bool(new & self.missing)

    def forget(self, source: Source) -> None:
        """It is no source any more."""
        if not source.complete:
            self.available.remove(source.has)
        source.has = 0

    # ------------------------------------------------------------ choice
    def rarest(self, source: Source, start: int) -> int | None:
        """Of what the source has and nobody is asked for, one that fewest have; `start`, an index
        by chance, decides between those. None: there is none."""
        mine = source.has & self.free
        return first_from(self.available.least(mine), start) if mine else None

    def late(self, source: Source, before: float) -> int | None:
        """One that the source has and that others were asked for before that time, all of them."""
        own = {ask.index for ask in source.asked.values() if ask.kind is Kind.SEGMENT}
        for index in indices_of(self.missing & source.has):
            others = self._asked_of.get(index, ())
            if index not in own and all(_asked_at(other, index) <= before for other in others):
                return index
        return None


def _asked_at(source: Source, index: int) -> float:
    return max(
        ask.sent_at
        for ask in source.asked.values()
        if ask.kind is Kind.SEGMENT and ask.index == index and not ask.cancelled
    )


class News:
    """When to look whom to tell of stored segments: they are collected for a moment."""

    def __init__(self, config: FetchConfig, now: float) -> None:
        self.due: float | None = None
        self._config = config
        self._begun = now

    def note(self, now: float) -> None:
        """There is some."""
        if self.due is None:
            self.due = now + self._delay_s(now)

    def settled(self, now: float) -> float:
        """A look. Seconds after which news is to be told."""
        self.due = None
        return 0.5 * self._delay_s(now)

    def _delay_s(self, now: float) -> float:
        config = self._config
        delay_s = max(config.announce_share * (now - self._begun), config.announce_delay_s)
        return min(delay_s, config.announce_delay_max_s)


def notices(blob: Digest, bits: int) -> list[Have]:
    indices = tuple(indices_of(bits))
    return [
        Have(blob, indices[start : start + HAVE_INDICES_MAX])
        for start in range(0, len(indices), HAVE_INDICES_MAX)
    ]
