"""Finding others: seeds when alone, members held down ever and again. SPEC §5.1, §5.5.

Owned by Membership. Bounds: SEEDS_MAX seeds, KNOWN_MAX former members, and the knocks remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .events import Event, SeedsSilent
from .member import Address
from .messages import Ping
from .presets import Knobs
from .probing import Prober, Send
from .rng import Rng
from .table import Peer, Table
from .timers import Timers

SEEDS_MAX: Final = 64
KNOWN_MAX: Final = 1024
KNOWN_AT_ONCE: Final = 8
"""Former members knocked at per retry, beside the seeds."""
SILENT_S: Final = 3.0
"""A seed that is there, and hears this node, has answered one of several knocks."""
ASKED_AT_ONCE: Final = 4
"""Seeds asked over a stream at a time, in turn."""


class Contacts:
    def __init__(
        self,
        *,
        own: Peer,
        table: Table,
        prober: Prober,
        knobs: Knobs,
        rng: Rng,
        timers: Timers,
        sends: list[Send],
        events: list[Event],
        now: float,
    ) -> None:
        self._own = own
        self._table = table
        self._prober = prober
        self._knobs = knobs
        self._rng = rng
        self._timers = timers
        self._sends = sends
        self._events = events
        self._seeds: tuple[Address, ...] = ()
        self._known: list[Address] = []
        self._tries = 0
        self._silent_since_s: float | None = None
        self._asked = 0
        self._joining: dict[int, None] = {}
        timers.set(("reconnect", 0), now + (0.5 + rng.random()) * knobs.reconnect_s)

    def join(self, seeds: Sequence[Address], known: Sequence[Address], now: float) -> None:
        self._seeds = tuple(seeds[:SEEDS_MAX])
        if known:
            self._known = list(known[:KNOWN_MAX])
            self._rng.shuffle(self._known)
        self._tries = 0
        self.knock(now, asked=True)

    def knock(self, now: float, *, asked: bool = False) -> None:
        """At every seed, and again until somebody answers; a seed may be this node itself. From the
        second time on at some former members too: the seeds may be gone for good. Who knows
        others knocks only when asked to, so that two clusters can become one."""
        if self._table.reachable:
            self._silent_since_s = None
        if not (self._seeds or self._known) or (self._table.reachable and not asked):
            return
        targets = dict.fromkeys(self._seeds)
        if self._tries or not self._seeds:
            for _ in range(min(KNOWN_AT_ONCE, len(self._known))):
                address = self._known.pop(0)
                self._known.append(address)
                targets[address] = None
        self._tries += 1
        for address in targets:
            if address != self._own.address:
                self._knock_at(address)
        self._timers.set(("join", 0), now + self._knobs.join_retry_s)
        if not self._table.reachable:
            self._note_silence(now)

    def _note_silence(self, now: float) -> None:
        """Members that know a later generation of this node answer none of its datagrams."""
        if self._silent_since_s is None:
            self._silent_since_s = now
        seeds = [address for address in self._seeds if address != self._own.address]
        if not seeds or now - self._silent_since_s < SILENT_S:
            return
        self._silent_since_s = now
        count = min(len(seeds), ASKED_AT_ONCE)
        turn = tuple(seeds[(self._asked + each) % len(seeds)] for each in range(count))
        self._asked += count
        self._events.append(SeedsSilent(turn))

    def answered(self, seq: int) -> bool:
        """Whether this ack is a seed's: then the knocking ends."""
        if seq not in self._joining:
            return False
        self._joining = {}
        self._tries = 0
        self._silent_since_s = None
        self._timers.cancel(("join", 0))
        return True

    def reconnect(self, now: float) -> None:
        """Keeps knocking at members believed down, so that healed partitions meet."""
        knobs = self._knobs
        self._timers.set(("reconnect", 0), now + knobs.reconnect_s)
        gone = [peer for peer in self._table.gone() if peer.state == "down"]
        side = 1 + self._table.reachable
        chance = max(
            len(gone) / len(self._table), knobs.reconnect_s * knobs.reconnect_rate_hz / side
        )
        if gone and self._rng.random() < chance:
            peer = self._rng.sample(gone, 1)[0]
            ping = self._prober.ping_message()
            self._sends.append(Send(peer.address, peer.node_id, (ping,)))
        self.knock(now)
        self._knock_at_stranger(knobs.reconnect_s * knobs.reconnect_rate_hz / side)

    def _knock_at_stranger(self, chance: float) -> None:
        """At a seed whose address is no reachable member's. Nodes that start at once under loss
        may form islands, each round a seed of its own and content; so may a partition that
        outlasts the memory of the dead."""
        strangers = [
            address
            for address in self._seeds
            if address != self._own.address
            and ((peer := self._table.at_address(address)) is None or not peer.reachable)
        ]
        if strangers and self._table.reachable and self._rng.random() < chance:
            self._knock_at(self._rng.sample(strangers, 1)[0])

    def _knock_at(self, address: Address) -> None:
        if len(self._joining) > 4 * (SEEDS_MAX + KNOWN_AT_ONCE):
            self._joining = {}
        seq = self._rng.getrandbits(32)
        self._joining[seq] = None
        self._sends.append(Send(address, None, (Ping(seq),)))
