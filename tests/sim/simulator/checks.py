"""All checkers of one simulation, fed with what its machines say in plain terms.

Those that must hold at any time (accuracy, completeness, no resurrection, bounds) are looked at
every virtual second and fail at once; those that hold when all is quiet are asked by the stories.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from protocol.gossip import Gossip
from protocol.records import decode_record, record_key

from .bounds import detection_s, heal_s
from .checkers.accuracy import Accuracy, Death
from .checkers.agreement import Agreement
from .checkers.catalog import Ledger, Order, Shown, equal, order_of
from .checkers.completeness import Completeness
from .checkers.holdings import holdings_wrong
from .checkers.limits import Limits
from .gauges import gauges
from .node import Node
from .world import START_S

if TYPE_CHECKING:
    from .simulation import Simulation

SAMPLE = 200
"""Nodes of a larger cluster whose whole tables are compared."""


class Checks:
    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self.ledger = Ledger()
        self.accuracy = Accuracy(sim.log, sim.knobs, lambda: [node.index for node in sim.up()])
        self.completeness = Completeness(sim.log, detection_s(sim.knobs, len(sim.nodes)))
        self.agreement = Agreement(len(sim.nodes))
        self.limits = Limits()
        self.peaks: Counter[str] = Counter()
        self.suspected: Counter[tuple[int, int]] = Counter()
        """(observer, subject) to how often."""
        self.first_suspected_s: dict[int, float] = {}
        """By subject, since it last started or died."""
        self.downs: dict[int, dict[int, float]] = {}
        """By victim: observer to when it declared this."""
        self.strict = True
        """Fail at an unexplained death; a measurement counts them instead."""
        self._turn = 0

    # ------------------------------------------------------------ what happens
    def died(self, node: Node) -> None:
        self.agreement.touch(node.index)
        self.first_suspected_s.pop(node.index, None)
        self.completeness.died(node.index, node.disk.generation, self._sim.now)

    def declared_down(self, observer: Node, victim: Node, generation: int) -> None:
        now = self._sim.now
        self.agreement.touch(victim.index)
        self.downs.setdefault(victim.index, {})[observer.index] = now
        self.accuracy.declared(observer.index, victim.index, generation, now)

    def heard(self, observer: Node, subject: Node, kind: str) -> None:
        self.agreement.touch(subject.index)
        if kind == "MemberSuspect":
            self.suspected[observer.index, subject.index] += 1
            self.first_suspected_s.setdefault(subject.index, self._sim.now)
        elif kind == "MemberUp":
            self.downs.get(subject.index, {}).pop(observer.index, None)

    # ------------------------------------------------------------ members
    def reachable(self, observer: int, subject: int) -> int | None:
        gossip = self._sim.nodes[observer].gossip
        member = gossip.member(self._sim.nodes[subject].node_id) if gossip is not None else None
        return member.generation if member is not None and member.reachable else None

    def truth(self, observer: int, subject: int) -> int | None:
        node, other = self._sim.nodes[observer], self._sim.nodes[subject]
        if other.gossip is None or other.leaving or node.group != other.group:
            return None
        return other.disk.generation

    def _steady(self) -> list[int]:
        return [node.index for node in self._sim.up() if not node.leaving]

    def members_agree(self) -> bool:
        """Every node sees exactly those that run in its partition, in their generation."""
        return not self.agreement.wrong(self._steady(), self.truth, self.reachable)

    def strangers(self) -> list[str]:
        """Nodes that see somebody twice or somebody who never was, in a sample of whole tables."""
        wrong = []
        for index in self._sample():
            gossip = self._sim.nodes[index].gossip
            assert gossip is not None
            seen = Counter(member.node_id for member in gossip.members())
            known = {node.node_id for node in self._sim.nodes}
            if any(count > 1 for count in seen.values()) or not set(seen) <= known:
                wrong.append(self._sim.nodes[index].name)
        return wrong

    def _sample(self) -> list[int]:
        steady = self._steady()
        if len(steady) <= SAMPLE:
            return steady
        return steady[:: len(steady) // SAMPLE + 1]

    # ------------------------------------------------------------ catalog, holdings
    def shown(self, gossip: Gossip) -> dict[str, Order]:
        """The live records, by content."""
        catalog = gossip.catalog
        rows: dict[str, Order] = {}
        for name, current in catalog.functions():
            rows[current.alias.key] = order_of(current.alias.record())
            for row in catalog.versions(name):
                rows[record_key(row.record)] = order_of(row.record)
        return rows

    def _views(self) -> dict[int, dict[str, Order]]:
        views = {}
        for index in self._sample():
            gossip = self._sim.nodes[index].gossip
            assert gossip is not None
            views[index] = self.shown(gossip)
        return views

    def catalogs_agree(self) -> bool:
        return not equal(self._views())

    def catalog_wrong(self) -> list[str]:
        """Of a cluster that has agreed, whole."""
        views = self._views()
        if not views:
            return []
        first = next(iter(views))
        # A version without its alias is there, but no name shows it.
        gossip = self._sim.nodes[first].gossip
        assert gossip is not None
        shown = dict(views[first])
        for key in self.ledger.kept():
            encoded = gossip.catalog.encoded(key)
            if key not in shown and encoded is not None:
                record = decode_record(encoded)
                if not record.tombstone:
                    shown[key] = order_of(record)
        return self.ledger.lost(shown)

    def holdings_agree(self) -> bool:
        nodes = self._sim.nodes
        disks = {index: set(nodes[index].disk.held) for index in self._steady()}

        def shown(observer: int, owner: int) -> set[str]:
            gossip = nodes[observer].gossip
            assert gossip is not None
            return set(gossip.holdings.held(nodes[owner].node_id))

        sample = self._sample()
        return not holdings_wrong(
            sample, disks, shown, lambda one, other: nodes[one].group == nodes[other].group
        )

    def digests_agree(self) -> bool:
        """Not a check but a hint: machines whose digests differ go on syncing."""
        up = [node.gossip.state_digest() for node in self._sim.up() if node.gossip is not None]
        return len(set(up)) < 2

    def converged(self) -> bool:
        return (
            self.members_agree()
            and self.catalogs_agree()
            and self.holdings_agree()
            and self.digests_agree()
        )

    # ------------------------------------------------------------ at any time
    def watch(self) -> None:
        sim = self._sim
        self.completeness.bound_s = detection_s(sim.knobs, len(sim.nodes), min(sim.loss(), 0.5))
        missed = self.completeness.check(self._steady(), self.reachable, sim.now)
        if missed and not sim.network.cuts.oneway:
            one = missed[0]
            sim.fail(
                f"completeness: {sim.nodes[one.observer].name} has not noticed for "
                f"{one.after_s:.1f} s that {sim.nodes[one.victim].name} died"
            )
        self._watch_limits()
        self._watch_resurrection()
        self.check_accuracy()

    def _watch_limits(self) -> None:
        sim = self._sim
        shared = {"datagram": sim.network.largest_bytes, "events": sim.processes.events_max}
        for node in sim.up():
            assert node.gossip is not None
            now = gauges(node.gossip) | shared | {"members": len(sim.nodes)}
            for name, value in now.items():
                if value > self.peaks[name]:
                    self.peaks[name] = value
            if broken := self.limits.broken(now):
                sim.fail(f"bounds: {node.name} has {'; '.join(broken)}")

    def _watch_resurrection(self) -> None:
        """One node a second, in turn."""
        sim = self._sim
        steady = self._steady()
        if not steady:
            return
        self._turn += 1
        node = sim.nodes[steady[self._turn % len(steady)]]
        assert node.gossip is not None
        rows = [Shown(key, order) for key, order in self.shown(node.gossip).items()]
        if back := self.ledger.resurrected(node.index, rows):
            sim.fail(f"resurrection: {node.name} shows {back[0]}, which it knew to be removed")

    def check_accuracy(self) -> None:
        if self.strict and (unexplained := self.accuracy.unexplained):
            lines = "\n".join(map(self.tell, unexplained[:10]))
            self._sim.fail(f"accuracy: healthy nodes were declared down:\n{lines}")

    def tell(self, death: Death) -> str:
        nodes = self._sim.nodes
        why = death.why or "nothing explains it"
        at_s = death.at_s - START_S
        names = f"{nodes[death.observer].name} declared {nodes[death.victim].name} down"
        return f"{at_s:.2f} s: {names}: {why}"

    # ------------------------------------------------------------ when all is quiet
    def settle(self, what: str, *, extra_s: float = 0.0) -> float:
        """Runs until all agree, at most the bound; then that it is the right thing they agree on.
        Seconds it took."""
        sim = self._sim
        bound_s = heal_s(sim.knobs, len(sim.nodes), min(sim.loss(), 0.5)) + extra_s
        took_s = sim.run_until(self.converged, limit_s=bound_s, what=what)
        if wrong := self.catalog_wrong():
            sim.fail("catalog: " + "; ".join(wrong[:5]))
        if wrong := self.strangers():
            sim.fail(f"members: {wrong[0]} sees somebody twice, or nobody's identity")
        return took_s

    def describe(self) -> str:
        sim = self._sim
        lines = []
        for observer, subject in self.agreement.wrong(
            self._steady(), self.truth, self.reachable, limit=8
        ):
            gossip = sim.nodes[observer].gossip
            member = gossip.member(sim.nodes[subject].node_id) if gossip else None
            seen = f"{member.state} in {member.generation}" if member else "unknown"
            truth = self.truth(observer, subject)
            lines.append(
                f"{sim.nodes[observer].name} sees {sim.nodes[subject].name} {seen}; "
                f"truth: {'gone' if truth is None else f'runs in {truth}'}"
            )
        views = self._views()
        if different := equal(views):
            first, other = next(iter(views)), different[0]
            keys = sorted(set(views[first].items()) ^ set(views[other].items()))[:4]
            names = f"{sim.nodes[first].name} and {sim.nodes[other].name}"
            lines.append(f"catalogs of {names} differ: {[key for key, _ in keys]}")
        if not self.holdings_agree():
            lines.append("holdings differ from the disks")
        if not self.digests_agree():
            lines.append("state digests differ")
        return "\n".join(lines) or "nothing is wrong"
