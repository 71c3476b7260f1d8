"""Faults of links: partitions and other properties, proven by what the nodes' shapers counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from edged.lab.history import Planned
from edged.links import partition, with_rules, without
from edged.topology import End, Rule

from ..control import LinkPeer, Links
from ..field import Field, on_each
from ..plan import BETWEEN_GROUPS, TOWARDS
from .base import Fault, until


class LinkFault(Fault):
    """The document's rules with this fault's label are this fault's, and go when it ends."""

    def __init__(self, field: Field, planned: Planned) -> None:
        super().__init__(field, planned)
        self._before: dict[tuple[str, str], LinkPeer] = {}

    @property
    def label(self) -> str:
        return f"fault {self.planned.id}"

    async def end(self) -> str:
        await self.field.change_links(lambda document: without(document, self.label))
        return "links as before"

    async def counted(self) -> dict[tuple[str, str], LinkPeer]:
        """What each node that answers counted, by (from, to)."""
        found: dict[tuple[str, str], LinkPeer] = {}

        async def one(name: str) -> None:
            links = await self.field.ask(name, "/v1/links", Links)
            if links is not None:
                found.update({(name, peer.name): peer for peer in links.peers})

        await on_each(self.field.running(), one)
        return dict(sorted(found.items()))

    def members(self, selectors: tuple[str, ...]) -> frozenset[str]:
        """Names of nodes."""
        return frozenset(
            node.name for node in self.field.nodes if End(node.name, node.region).fits(selectors)
        )

    async def knock(self, sources: frozenset[str], targets: frozenset[str]) -> None:
        """Something to lose: gossip alone may leave a link unused for a second or two."""
        running = self.field.running()
        source = next((name for name in running if name in sources), None)
        target = next((name for name in running if name in targets and name != source), None)
        if source is not None and target is not None:
            body = msgspec.json.encode({"seeds": [self.field.node(target).gossip]})
            await self.field.call(source, "POST", "/v1/join", body)


class Partition(LinkFault):
    """Also of a region from all others: `groups` may come from elsewhere."""

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        return tuple(split(self.targets, BETWEEN_GROUPS))

    async def begin(self) -> None:
        self._before = await self.counted()
        cut: Any = self.planned.settings.get("cut", "drop")
        both = not self.planned.settings.get("one_way", False)
        await self.field.change_links(
            lambda document: partition(document, self.groups, cut=cut, both=both, label=self.label)
        )

    async def prove(self) -> str:
        """Each pair of groups lost something, in each direction that is cut."""
        wanted = list(self._directions())
        for sources, targets in wanted:
            await self.knock(sources, targets)

        async def lost() -> str | None:
            now = await self.counted()
            told: list[str] = []
            for sources, targets in wanted:
                gone = sum(
                    lost_of(peer) - lost_of(self._before.get(way))
                    for way, peer in now.items()
                    if way[0] in sources and way[1] in targets
                )
                if gone <= 0:
                    return None
                told.append(f"{gone} from {named(sources)} to {named(targets)}")
            return f"dropped: {', '.join(told)}"

        return await until(lost, lambda: f"nothing was dropped between {self.groups}")

    def _directions(self) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
        groups = [self.members(group) for group in self.groups]
        one_way = bool(self.planned.settings.get("one_way", False))
        for at, one in enumerate(groups[:1] if one_way else groups):
            for other in groups[at + 1 :]:
                yield one, other
                if not one_way:
                    yield other, one


def lost_of(peer: LinkPeer | None) -> int:
    if peer is None:
        return 0
    cut = peer.datagrams_dropped.get("cut", 0)
    return cut + peer.streams_reset + peer.connects_held + peer.connects_refused


def named(nodes: frozenset[str]) -> str:
    return "+".join(sorted(nodes))


class LinkChange(LinkFault):
    async def begin(self) -> None:
        self._before = await self.counted()
        settings = {key: value for key, value in self.planned.settings.items() if key != "both"}
        sources, targets = split(self.targets, TOWARDS)
        rule = msgspec.convert(
            {
                "from": sources,
                "to": targets,
                "both": self.planned.settings["both"],
                "label": self.label,
                **settings,
            },
            Rule,
        )
        await self.field.change_links(lambda document: with_rules(document, [rule]))

    async def prove(self) -> str:
        """A node on one end has the new link in force, and sent something over it."""
        sources, targets = (self.members(ends) for ends in split(self.targets, TOWARDS))
        await self.knock(sources, targets)

        async def passed() -> str | None:
            for way, peer in (await self.counted()).items():
                before = self._before.get(way)
                inside = way[0] in sources and way[1] in targets
                if not inside or before is None or peer.link == before.link:
                    continue
                sent = peer.datagrams - before.datagrams
                if sent > 0:
                    link = msgspec.json.encode(peer.link).decode()
                    return f"{way[0]} sent {sent} datagrams to {way[1]} over {link}"
            return None

        return await until(passed, lambda: "no link of it has changed and was used")


def split(targets: tuple[str, ...], mark: str) -> list[tuple[str, ...]]:
    groups: list[list[str]] = [[]]
    for target in targets:
        if target == mark:
            groups.append([])
        else:
            groups[-1].append(target)
    return [tuple(group) for group in groups]
