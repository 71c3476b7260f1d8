"""Catalogs against a model: records in any order, twice or never, syncs, restarts from disk, wrong
clocks, days away. Those who agree show the same; once all have met they agree, on the latest
acknowledged change of each name."""

from __future__ import annotations

import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from protocol_support import (
    WALL_MS,
    carry_sync,
    make_catalog,
    make_gossip,
    saved_records,
    spec_bytes,
    tell,
)

from protocol import catalog as catalog_module
from protocol.errors import RemoteProtocolError
from protocol.events import RecordsAccepted, RecordsPurged
from protocol.function import version_of
from protocol.gossip import Gossip
from protocol.records import Record, encoded_records

NODES = 3
SPECS = [spec_bytes(str(number)) for number in range(3)]
NAMES = ["f", "g"]
nodes = st.integers(0, NODES - 1)


class Host:
    """A machine and its disk; what was accepted is saved a little later than it is in force."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.generation = 0
        self.disk: dict[str, bytes] = {}
        self.unsaved: dict[str, bytes] = {}
        self.skew_ms = 0
        self.gossip: Gossip | None = None

    def start(self, now: float) -> None:
        self.generation += 1
        self.unsaved = {}
        self.gossip = make_gossip(self.index, generation=self.generation, now=now)
        assert self.gossip.catalog.load(saved_records(self.disk.items())) == ((), ())

    def drain(self) -> None:
        assert self.gossip is not None
        while self.gossip.poll_transmit() is not None:
            pass
        while (event := self.gossip.poll_event()) is not None:
            if isinstance(event, RecordsAccepted):
                self.unsaved.update(event.records)
            elif isinstance(event, RecordsPurged):
                for key in event.keys:
                    if self.gossip.catalog.encoded(key) is None:
                        self.disk.pop(key, None)
                        self.unsaved.pop(key, None)

    def save(self) -> None:
        if self.gossip is not None:
            self.disk.update(
                (key, encoded)
                for key, encoded in self.unsaved.items()
                if self.gossip.catalog.encoded(key) == encoded
            )
            self.unsaved = {}


class Catalogs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.hosts = [Host(index) for index in range(NODES)]
        self.flying: list[bytes] = []
        self.latest: dict[str, tuple[int, str, str]] = {}
        """By name: order of the latest acknowledged alias, and what it says."""

    def wall_ms(self, host: Host) -> int:
        return WALL_MS + int(self.now * 1000) + host.skew_ms

    def up(self) -> list[tuple[Host, Gossip]]:
        return [(host, host.gossip) for host in self.hosts if host.gossip is not None]

    @initialize()
    def begin(self) -> None:
        for host in self.hosts:
            host.start(self.now)
        for _ in range(2):
            self._meet()

    # ------------------------------------------------------------ operators
    @rule(at=nodes, name=st.sampled_from(NAMES), spec=st.sampled_from(SPECS))
    def deploy(self, at: int, name: str, spec: bytes) -> None:
        self._change(at, name, spec, "deploy")

    @rule(at=nodes, name=st.sampled_from(NAMES), spec=st.sampled_from(SPECS))
    def roll_back(self, at: int, name: str, spec: bytes) -> None:
        self._change(at, name, spec, "roll back")

    @rule(at=nodes, name=st.sampled_from(NAMES))
    def remove(self, at: int, name: str) -> None:
        self._change(at, name, b"", "remove")

    def _change(self, at: int, name: str, spec: bytes, deed: str) -> None:
        host = self.hosts[at]
        if host.gossip is None:
            return
        catalog, wall_ms = host.gossip.catalog, self.wall_ms(host)
        try:
            records: list[Record] = []
            if deed == "deploy":
                records = catalog.prepare_deploy(name, spec, wall_ms=wall_ms)
            elif deed == "remove":
                records = catalog.prepare_remove(name, wall_ms=wall_ms)
            elif catalog.spec(name, version_of(spec)) is not None:
                records = catalog.prepare_alias(name, version_of(spec), wall_ms=wall_ms)
        except RemoteProtocolError as error:
            if error.code != "record-future":
                raise
            return  # its clock was ahead once
        host.disk.update(encoded_records(records))
        host.gossip.publish(records, self.now)
        host.drain()
        self.flying += [encoded for _, encoded in encoded_records(records)]
        if records and records[-1].kind == "alias":
            meant = "" if deed == "remove" else version_of(spec)
            order = records[-1].hlc, records[-1].signer, meant
            self.latest[name] = max(self.latest.get(name, order), order)

    # ------------------------------------------------------------ the network
    @rule(to=nodes, which=st.integers(0, 99), seed=st.integers(0, 99))
    def hear(self, to: int, which: int, seed: int) -> None:
        """Some of what was ever said, in any order, perhaps again."""
        host = self.hosts[to]
        if host.gossip is None or not self.flying:
            return
        several = random.Random(seed).sample(self.flying, min(len(self.flying), 1 + which % 4))
        for encoded in several:
            try:
                verified = host.gossip.catalog.check(encoded, wall_ms=self.wall_ms(host))
            except RemoteProtocolError as error:
                if error.code != "record-future":
                    raise
                continue
            if verified is not None and host.gossip.catalog.merge(verified):
                host.unsaved[verified.key] = verified.encoded

    @rule(one=nodes, two=nodes)
    def sync(self, one: int, two: int) -> None:
        a, b = self.hosts[one], self.hosts[two]
        if one != two and a.gossip is not None and b.gossip is not None:
            self._sync(a, a.gossip, b, b.gossip)

    def _sync(self, a: Host, asker: Gossip, b: Host, answerer: Gossip) -> None:
        carry_sync(asker, answerer, self.now, self.wall_ms(a))
        for host, gossip, peer in ((a, asker, answerer), (b, answerer, asker)):
            pair = gossip.catalog.state_digest(), peer.catalog.state_digest()
            gossip._wishes.compare(pair, peer.node_id, self.now)
            host.drain()

    # ------------------------------------------------------------ hosts
    @rule(at=nodes)
    def save(self, at: int) -> None:
        self.hosts[at].save()

    @rule(at=nodes)
    def restart(self, at: int) -> None:
        """What was not saved is lost here; somebody else has it."""
        host = self.hosts[at]
        host.start(self.now)

    @precondition(lambda self: len(self.up()) > 1)
    @rule(at=nodes)
    def stop(self, at: int) -> None:
        self.hosts[at].save()
        self.hosts[at].gossip = None

    @rule(at=nodes, skew_s=st.sampled_from([-20, 0, 0, 20, 400]))
    def set_clock(self, at: int, skew_s: int) -> None:
        self.hosts[at].skew_ms = skew_s * 1000

    @rule(for_s=st.sampled_from([0.001, 1.0, 100.0]))
    def wait(self, for_s: float) -> None:
        self._wait(for_s)

    @rule()
    def be_away_for_days(self) -> None:
        """Whoever is down stays so, and whoever runs says nothing."""
        self._wait(100 * 3600.0)

    @rule(
        gone=st.lists(nodes, min_size=1, max_size=2, unique=True),
        before=st.sampled_from(["deploy", "remove", ""]),
        meanwhile=st.sampled_from(["deploy", "remove", ""]),
        name=st.sampled_from(NAMES),
        spec=st.sampled_from(SPECS),
    )
    def leave_and_come_back(
        self, gone: list[int], before: str, meanwhile: str, name: str, spec: bytes
    ) -> None:
        """What random steps seldom make whole: all agree, some go, perhaps with work of their own
        that nobody heard of; the others change something, forget it, and meet them again."""
        (stays, *_) = (index for index in range(NODES) if index not in gone)
        other = NAMES[1] if name == NAMES[0] else NAMES[0]
        self._start_all()
        self._change(stays, other, SPECS[0], "deploy")
        self._meet()
        if before:
            self._change(gone[0], name, spec, before)
        for index in gone:
            self.stop(index)
        if meanwhile:
            self.now += 1.0
            self._change(stays, other, spec, meanwhile)
        self.be_away_for_days()
        self._start_all()
        self._meet()

    def _start_all(self) -> None:
        for host in self.hosts:
            if host.gossip is None:
                host.start(self.now)

    def _wait(self, for_s: float) -> None:
        self.now += for_s
        for host, gossip in self.up():
            host.save()
            gossip._housekeeping(self.now)
            host.drain()

    def _meet(self) -> None:
        """All that run sync until nothing moves."""
        for host in self.hosts:
            host.skew_ms = 0
        self.now += 500.0
        self._settle_all()
        for host, _ in self.up():
            host.save()

    def _settle_all(self) -> None:
        pairs = [(a, b) for a in self.up() for b in self.up() if a[0] is not b[0]]
        for _ in range(NODES):
            for a, b in pairs:
                self._sync(*a, *b)
            if len({gossip.catalog.state_digest() for _, gossip in self.up()}) == 1:
                break

    # ------------------------------------------------------------ the verdict
    @invariant()
    def equal_digests_mean_the_same(self) -> None:
        meanings: dict[int, object] = {}
        for _, gossip in self.up():
            catalog = gossip.catalog
            meant = [(name, now.version, now.alias.hlc) for name, now in catalog.functions()]
            assert meanings.setdefault(catalog.state_digest(), meant) == meant

    def teardown(self) -> None:
        if not self.up():
            return
        self._start_all()
        self._meet()
        gossips = [gossip for _, gossip in self.up()]
        assert len({gossip.catalog.state_digest() for gossip in gossips}) == 1
        for name in NAMES:
            current = gossips[0].catalog.lookup(name)
            meant = self.latest.get(name, (0, "", ""))[2]
            assert meant == (current.version if current is not None else "")
        for host in self.hosts:
            assert set(host.disk) == {entry.key for entry in gossips[0].catalog.entries()}


UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking takes longer than a test may: a failure is printed as it was found, and replays."""
Catalogs.TestCase.settings = settings(max_examples=30, stateful_step_count=25, phases=UNSHRUNK)
TestCatalogs = Catalogs.TestCase


steps = st.lists(
    st.tuples(nodes, st.sampled_from("dddrrt"), st.integers(0, 3), nodes), min_size=5, max_size=40
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_full_nodes_agree_however_many_removals_they_forgot(
    several: list[tuple[int, str, int, int]],
) -> None:
    """Beyond the room for tombstones a removal may be undone, but nodes do not teach each other in
    circles, and mean the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog_module, "TOMBSTONES_MAX", 3)
        catalogs = [make_catalog(f"n{index}") for index in range(NODES)]
        for at, (node, deed, name, other) in enumerate(several):
            if deed == "t":
                tell(catalogs[node], catalogs[other], WALL_MS + at)
            elif deed == "d":
                prepare = catalogs[node].prepare_deploy
                catalogs[node].apply(prepare(f"f{name}", SPECS[0], wall_ms=WALL_MS + at))
            else:
                prepare_remove = catalogs[node].prepare_remove
                catalogs[node].apply(prepare_remove(f"f{name}", wall_ms=WALL_MS + at))
        for _ in range(NODES + 1):
            news = [
                tell(one, two, WALL_MS + 1000) for one in catalogs for two in catalogs if one != two
            ]
        assert not any(news)
        assert len({catalog.state_digest() for catalog in catalogs}) == 1
        assert all(catalog.functions() == catalogs[0].functions() for catalog in catalogs)


@pytest.mark.long
class TestCatalogsForLonger(Catalogs.TestCase):
    settings = settings(max_examples=500, stateful_step_count=40, phases=UNSHRUNK)
