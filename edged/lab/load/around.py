"""What surrounds the clients: which gateways there are, and the links to them. Changed live.

A way is what lies between the clients of a region and one node: a pipe there and a pipe back,
made of the links document that the nodes shape their own traffic by (edged.links). Waiting on a way
is what makes a request take its time; across a cut it waits until the cut is gone, as TCP would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Final, NamedTuple

import trio

from edged.errors import ConfigError
from edged.links import Document, Links
from edged.topology import End
from protocol.shaping import Link, Pipe

from .spec import NODE, LoadSpec

TARGETS_MAX: Final = 1024
SYN_BYTES: Final = 60
"""Headers of TCP and IP with the usual options."""


class Target(NamedTuple):
    """A node's gateway."""

    name: str
    region: str
    host: str
    port: int


class Severed(Exception):
    """The way refuses, and resets what is on it."""


class Way:
    """Between one client region and one target."""

    def __init__(self, there: Link, back: Link, rng: Random) -> None:
        self._there = Pipe(there, rng)
        self._back = Pipe(back, rng)

    @property
    def links(self) -> tuple[Link, Link]:
        return self._there.link, self._back.link

    @property
    def rtt_s(self) -> float:
        return self._there.link.latency_s + self._back.link.latency_s

    @property
    def cut(self) -> str | None:
        """The handshake and all that follows need both directions."""
        return self._there.link.cut or self._back.link.cut

    def change(self, there: Link, back: Link, now: float) -> None:
        self._there.change(there, now)
        self._back.change(back, now)

    def there_at(self, size: int, now: float) -> float:
        """When what the client sends now has arrived whole."""
        return self._there.pass_piece(size, now, self.rtt_s)

    def back_at(self, size: int, now: float) -> float:
        return self._back.pass_piece(size, now, self.rtt_s)


class Around:
    """Targets and links as they are now. One task at a time changes them."""

    def __init__(self, targets: Sequence[Target], document: Document, rng: Random) -> None:
        """Raises ConfigError."""
        self._rng = rng
        self._targets: tuple[Target, ...] = ()
        self._links = Links(document)
        self._ways: dict[tuple[str, Target], Way] = {}
        self._nearest: dict[str, tuple[Target, ...]] = {}
        self._changed = trio.Event()
        self.set_targets(targets)

    @property
    def targets(self) -> tuple[Target, ...]:
        return self._targets

    @property
    def regions(self) -> dict[str, float]:
        """Of the targets, with equal weights: where clients are unless somebody says otherwise."""
        return dict.fromkeys((target.region for target in self._targets), 1.0)

    def check_clients(self, regions: Iterable[str]) -> None:
        """Raises ConfigError for a region that the links do not know: clients there would be next
        to every node."""
        topology = self._links.document.topology
        if topology is None:
            return
        for region in regions:
            if region not in topology.regions:
                raise ConfigError(
                    f"clients in {region!r}: no region of the topology; there are"
                    f" {', '.join(topology.regions)}"
                )

    def set_targets(self, targets: Sequence[Target]) -> None:
        """Nodes that came, went, or start again elsewhere. Raises ConfigError: too many."""
        if len(targets) > TARGETS_MAX:
            raise ConfigError(f"{len(targets)} targets; at most {TARGETS_MAX}")
        self._targets = tuple(targets)
        gone = [key for key in self._ways if key[1] not in self._targets]
        for key in gone:
            del self._ways[key]
        self._nearest.clear()

    def set_document(self, document: Document) -> None:
        """What waits at a cut that is gone goes on."""
        self._links = Links(document)
        now = trio.current_time()
        for (region, target), way in self._ways.items():
            way.change(*self._both(region, target), now)
        self._nearest.clear()
        self._changed.set()
        self._changed = trio.Event()

    def way(self, region: str, target: Target) -> Way:
        found = self._ways.get((region, target))
        if found is None:
            found = self._ways[region, target] = Way(*self._both(region, target), self._rng)
        return found

    def route(self, spec: LoadSpec, region: str, luck: float) -> Target | None:
        """None: there is no such node now."""
        if spec.routing == "nearest":
            choice = self.nearest(region)
        elif spec.routing == "random":
            choice = self._targets
        else:
            name = spec.routing.removeprefix(NODE)
            choice = tuple(target for target in self._targets if target.name == name)
        return choice[int(luck * len(choice))] if choice else None

    def nearest(self, region: str) -> tuple[Target, ...]:
        """All that are equally near, by RTT."""
        found = self._nearest.get(region)
        if found is None:
            rtts = [sum(link.latency_s for link in self._both(region, t)) for t in self._targets]
            least = min(rtts, default=0.0)
            near = zip(self._targets, rtts, strict=True)
            found = tuple(target for target, rtt_s in near if rtt_s == least)
            self._nearest[region] = found
        return found

    def _both(self, region: str, target: Target) -> tuple[Link, Link]:
        client, node = End("", region), End(target.name, target.region)
        return self._links.link(client, node), self._links.link(node, client)

    # ------------------------------------------------------------ taking time
    async def handshake(self, way: Way) -> None:
        """One round trip. Raises Severed."""
        await self._passage(way)
        arrival = way.there_at(SYN_BYTES, trio.current_time())
        await _until(way.back_at(SYN_BYTES, arrival))

    async def there(self, way: Way, size: int) -> None:
        await self._passage(way)
        await _until(way.there_at(size, trio.current_time()))
        await self._passage(way)

    async def back(self, way: Way, size: int) -> None:
        await self._passage(way)
        await _until(way.back_at(size, trio.current_time()))
        await self._passage(way)

    async def _passage(self, way: Way) -> None:
        while (cut := way.cut) is not None:
            if cut == "reset":
                raise Severed
            await self._changed.wait()


async def _until(at: float) -> None:
    if at > trio.current_time():
        await trio.sleep_until(at)
