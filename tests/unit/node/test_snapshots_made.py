"""Which snapshots a node uses and keeps; made again and compared; makers that lie. SPEC §14.4."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from protocol_support import WALL_MS, init_spec_bytes, make_catalog, node_id, statement_of, tell
from snapshot_bench import Bench, opened

from edged.errors import CannotSnapshot, InitTrapped, SnapshotMismatch
from edged.snapshots import COALESCE_S, PROVEN
from protocol.function import InitCall, InitSpec, decode_spec, encode_spec
from protocol.snapshots import SnapshotStatement


class Two:
    """n0, which deploys, and n1, which hears of it."""

    def __init__(self, origin: Bench, peer: Bench) -> None:
        self.origin, self.peer = origin, peer

    async def deploy(self, name: str = "f") -> SnapshotStatement:
        await self.origin.deploy(await self.origin.spec(), "always", name=name)
        tell(self.origin.catalog, self.peer.catalog)
        return self.peer.statement(name)

    async def deploy_again(self, name: str) -> SnapshotStatement:
        """Another init."""
        spec = await self.origin.spec(InitSpec((InitCall("again"),)))
        await self.origin.deploy(spec, "always", name=name)
        tell(self.origin.catalog, self.peer.catalog)
        return self.peer.statement(name)

    async def fetched(self, snapshot: str) -> None:
        """By the peer, as it stands."""
        data = await self.origin.store.read(snapshot)  # type: ignore[arg-type]
        await self.peer.store.put(data, kind="module")

    def results(self) -> dict[str, float]:
        children = self.peer.metrics.snapshots.children()
        return {labels[0][1]: child.value for labels, child in children}


@pytest.fixture(params=["signed"])
async def two(
    tmp_path: Path, nursery: trio.Nursery, request: pytest.FixtureRequest
) -> AsyncIterator[Two]:
    async with opened(tmp_path / "n0") as here, opened(tmp_path / "n1") as there:
        origin = Bench(here, make_catalog("n0"), "n0")
        peer = Bench(there, make_catalog("n1"), "n1", accept=request.param)
        await nursery.start(origin.making.run)
        await nursery.start(peer.making.run)
        yield Two(origin, peer)


async def test_anyone_can_make_it_again_and_sees_that_it_is_the_same(two: Two) -> None:
    stated = await two.deploy()
    current = two.peer.catalog.lookup("f")
    assert current is not None
    assert two.peer.service.judge(stated) == "use"
    await two.peer.service.rebuild(current.spec, stated)
    assert stated.snapshot in two.peer.modules()
    assert two.peer.held == [stated.snapshot]
    await two.peer.service.rebuild(current.spec, stated)
    assert two.peer.maker.made == 1, "it is known by now"
    assert two.peer.distrust.caught == []


@pytest.mark.parametrize("two", ["none", "quorum=2"], indirect=True)
async def test_where_one_builder_is_not_enough_it_must_be_made_here(two: Two) -> None:
    stated = await two.deploy()
    current = two.peer.catalog.lookup("f")
    assert current is not None
    assert two.origin.service.judge(stated) == "use", "its own word"
    assert two.peer.service.judge(stated) == "make"
    await two.peer.service.rebuild(current.spec, stated)
    assert two.peer.service.judge(stated) == "use"
    unknown = msgspec.structs.replace(stated, format=2, snapshot=stated.module, signature=b"")
    assert two.peer.service.judge(unknown) == "refuse"
    assert "format" in two.peer.service.view(unknown).refused


@pytest.mark.parametrize("two", ["none"], indirect=True)
async def test_what_was_made_here_is_known_after_a_restart(
    two: Two, autojump_clock: trio.testing.MockClock
) -> None:
    stated = await two.deploy()
    current = two.peer.catalog.lookup("f")
    assert current is not None
    async with trio.open_nursery() as nursery:
        await nursery.start(two.peer.service.run)
        await two.peer.service.rebuild(current.spec, stated)
        await trio.sleep(COALESCE_S + 1)
        nursery.cancel_scope.cancel()
    assert two.peer.started().judge(stated) == "use"
    await two.peer.store.set_meta(PROVEN, b"damaged")
    assert two.peer.started().judge(stated) == "make"


async def test_a_maker_that_lies_is_caught_loudly(two: Two) -> None:
    two.origin.maker.salt = b"a lie"
    stated = await two.deploy()
    current = two.peer.catalog.lookup("f")
    assert current is not None
    await two.fetched(stated.snapshot)
    assert two.peer.service.keeps(stated.snapshot)
    with pytest.raises(SnapshotMismatch):
        await two.peer.service.rebuild(current.spec, stated)
    assert two.peer.distrust.caught == [([node_id("n0")], [stated.snapshot])]
    assert two.peer.service.judge(stated) == "refuse"
    assert two.peer.service.view(stated).refused == "its module gives another one here"
    assert not two.peer.service.keeps(stated.snapshot)
    ((kind, name, detail),) = two.peer.noted
    assert (kind, name) == ("snapshot-mismatch", "n0")
    assert stated.snapshot[:12] in detail
    assert two.results() == {"made": 1, "mismatch": 1}
    assert "trusted no more" in two.peer.output.getvalue()
    two.peer.service.begin_anew()
    assert two.peer.service.judge(stated) == "use"


async def test_a_machine_that_contradicts_itself_does_not_distrust_itself(two: Two) -> None:
    stated = await two.deploy()
    current = two.origin.catalog.lookup("f")
    assert current is not None
    two.origin.maker.salt = b"a broken core"
    with pytest.raises(SnapshotMismatch):
        await two.origin.service.rebuild(current.spec, stated)
    assert two.origin.distrust.caught == [([], [stated.snapshot])]
    assert two.origin.service.judge(stated) == "refuse"


async def test_an_audit_makes_again_what_others_made_once(two: Two) -> None:
    stated = await two.deploy()
    assert not await two.peer.service.audit(), "it is not here"
    await two.fetched(stated.snapshot)
    assert not await two.peer.service.audit(), "its module is not here"
    await two.fetched(stated.module)
    assert await two.peer.service.audit()
    assert not await two.peer.service.audit()
    assert not await two.origin.service.audit(), "its own"
    assert (two.peer.maker.made, two.peer.distrust.caught) == (1, [])


async def test_an_audit_catches_a_lie_and_gives_up_where_init_fails(two: Two) -> None:
    two.origin.maker.salt = b"a lie"
    stated = await two.deploy()
    await two.fetched(stated.snapshot)
    await two.fetched(stated.module)
    two.peer.maker.error = InitTrapped("no")
    assert await two.peer.service.audit()
    assert two.peer.service.judge(stated) == "use", "that init fails here proves nothing"
    two.peer.maker.error = None
    assert not await two.peer.service.audit(), "each is audited once"
    two.peer.service.begin_anew()
    assert await two.peer.service.audit()
    assert two.peer.distrust.caught == [([node_id("n0")], [stated.snapshot])]
    audits = {labels[0][1]: one.value for labels, one in two.peer.metrics.audits.children()}
    assert audits == {"failed": 1, "mismatch": 1}


async def test_one_that_was_lost_is_made_again_unless_it_is_refused(two: Two) -> None:
    stated = await two.deploy()
    assert await two.peer.service.remake(stated.snapshot)
    assert stated.snapshot in two.peer.modules()
    assert not await two.peer.service.remake(stated.module), "no snapshot"
    two.peer.service.begin_anew()
    two.origin.maker.salt = b"a lie"
    lie = await two.deploy_again("g")
    two.peer.acceptance.distrust([node_id("n0")])
    assert not await two.peer.service.remake(lie.snapshot)


async def test_distrusted_makers_and_unknown_formats(two: Two) -> None:
    stated = await two.deploy()
    two.peer.acceptance.distrust([node_id("n0")])
    assert two.peer.service.judge(stated) == "refuse"
    assert two.peer.service.view(stated).refused == "its maker is distrusted here"
    current = two.peer.catalog.lookup("f")
    assert current is not None
    newer = msgspec.structs.replace(stated, format=2)
    with pytest.raises(CannotSnapshot, match="format 1"):
        await two.peer.service.rebuild(current.spec, newer)


async def test_kept_is_what_is_current_anywhere_and_what_was_made_here(two: Two) -> None:
    stated = await two.deploy()
    assert two.peer.service.keeps(stated.snapshot)
    for catalog in (two.origin.catalog, two.peer.catalog):
        other = encode_spec(decode_spec(init_spec_bytes("two")))
        catalog.apply(catalog.prepare_deploy("f", other, wall_ms=WALL_MS + 1))
    assert not two.peer.service.keeps(stated.snapshot), "an old version's, made elsewhere"
    assert two.origin.service.keeps(stated.snapshot), "it made it, and a live version names it"
    catalog = two.origin.catalog
    catalog.apply(catalog.prepare_remove("f", wall_ms=WALL_MS + 2))
    assert not two.origin.service.keeps(stated.snapshot)
    assert not two.origin.service.keeps(statement_of(init_spec_bytes("x")).snapshot)
