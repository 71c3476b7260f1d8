"""Deploys with an init: run once; the snapshot is kept if wished for or worth it. SPEC §14."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from protocol_support import make_catalog, tell
from snapshot_bench import INIT, MODULE, Bench, opened

from edged.errors import CannotSnapshot, Conflict, Draining, InitTrapped, Overloaded
from edged.inits import worth_keeping
from edged.interfaces import RESEED, SnapshotWish
from edged.making import FLIGHTS_MAX
from protocol.costs import Prices
from protocol.function import InitCall, InitSpec, init_digest
from protocol.ids import digest_of
from protocol.snapshots import SnapshotFacts

MODULE_DIGEST = digest_of(MODULE)


@pytest.fixture
async def bench(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Bench]:
    async with opened(tmp_path) as store:
        made = Bench(store, make_catalog("n0"), "n0")
        await nursery.start(made.making.run)
        yield made


async def test_what_is_worth_it_is_kept_and_stated(bench: Bench) -> None:
    spec = await bench.spec()
    prepared = await bench.deploy(spec)
    stated, view = prepared.statement, prepared.view
    assert stated is not None
    assert view is not None
    assert (stated.module, stated.init) == (spec.module, init_digest(INIT))
    assert bench.modules() == {spec.module, stated.snapshot}
    info = bench.store.info(stated.snapshot)
    assert info is not None
    assert (stated.size_bytes, stated.manifest) == (info.size_bytes, info.manifest)
    assert stated.facts == SnapshotFacts(info.wire_bytes or 0, 77, 0, 0.25)
    assert bench.worth[0][:2] == (stated.facts, info.size_bytes)
    assert bench.held == [stated.snapshot]
    assert (view.snapshot, view.made, view.why) == (stated.snapshot, True, "as the test says")
    assert view.warnings == ()
    ((kind, name, detail),) = bench.noted
    assert (kind, name) == ("snapshot-made", "f")
    assert stated.snapshot[:12] in detail


async def test_nothing_of_the_function_but_its_init_reaches_the_maker(bench: Bench) -> None:
    init = InitSpec((InitCall("a", (1, "x")),), {"LANG": "C"}, 1234)
    await bench.deploy(await bench.spec(init))
    ((plan, policy),) = bench.maker.plans
    assert [(call.export, call.args) for call in plan.calls] == [("a", (1, "x"))]
    assert (plan.env, plan.files, plan.args, plan.stdin) == ({"LANG": "C"}, False, (), b"")
    assert plan.deterministic
    assert (policy.timeout_ms, policy.env, policy.mounts, policy.tmp_bytes) == (1234, {}, (), 0)


@pytest.mark.parametrize("wish", ["never", "auto"])
async def test_what_is_not_kept_leaves_nothing_behind(bench: Bench, wish: SnapshotWish) -> None:
    bench.is_worth = False
    spec = await bench.spec()
    prepared = await bench.deploy(spec, wish)
    assert prepared.statement is None
    assert prepared.view is not None
    assert (prepared.view.snapshot, prepared.view.init_s) == (None, 0.25)
    assert bench.modules() == {spec.module}
    assert (bench.held, bench.noted) == ([], [])
    assert bench.maker.made == 1, "an init that traps is to be refused in any case"


async def test_always_asks_nobody_whether_it_is_worth_it(bench: Bench) -> None:
    bench.is_worth = False
    prepared = await bench.deploy(await bench.spec(), "always")
    assert prepared.statement is not None
    assert bench.worth == []


async def test_many_deploys_of_one_module_and_init_make_it_once(bench: Bench) -> None:
    spec = await bench.spec()
    bench.maker.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(lambda name: bench.deploy(spec, name=name), f"f{number}")
        await trio.testing.wait_all_tasks_blocked()
        bench.maker.gate.set()
    again = await bench.deploy(spec, name="later")
    assert bench.maker.made == 1
    assert again.view is not None
    assert (again.view.made, again.view.snapshot) == (False, bench.statement("f0").snapshot)
    assert bench.statement("later") == bench.statement("f0")
    assert bench.catalog.snapshots.functions(bench.statement("f0").snapshot)[0] == "f0"


async def test_one_deploy_that_keeps_nothing_takes_nothing_from_another(bench: Bench) -> None:
    spec = await bench.spec()
    bench.maker.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: bench.deploy(spec, "never", name="one"))
        nursery.start_soon(lambda: bench.deploy(spec, "always", name="two"))
        nursery.start_soon(lambda: bench.deploy(spec, "never", name="three"))
        await trio.testing.wait_all_tasks_blocked()
        bench.maker.gate.set()
    assert bench.statement("two").snapshot in bench.modules()
    await bench.deploy(spec, "never", name="two")
    assert bench.modules() == {spec.module}, "the last that named it has gone"


async def test_a_snapshot_that_was_lost_is_made_again(bench: Bench) -> None:
    spec = await bench.spec()
    first = await bench.deploy(spec)
    assert first.statement is not None
    await bench.store.delete(first.statement.snapshot)
    again = await bench.deploy(spec)
    assert bench.maker.made == 2
    assert again.statement is not None
    assert again.statement.snapshot == first.statement.snapshot
    assert first.statement.snapshot in bench.modules()


async def test_another_nodes_word_that_holds_here_stands(
    bench: Bench, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Else deploys from two nodes would sign anew, and what is worth it could come and go."""
    spec = await bench.spec()
    first = await bench.deploy(spec)
    async with opened(tmp_path / "n1") as store:
        other = Bench(store, make_catalog("n1", roles=("serve", "control")), "n1",
                      roles=("serve", "control"))  # fmt: skip
        tell(bench.catalog, other.catalog)
        await nursery.start(other.making.run)
        other.is_worth = False
        again = await other.deploy(await other.spec())
        assert again.statement == first.statement
        assert again.view is not None
        assert (again.view.made, again.view.snapshot) == (True, bench.statement().snapshot)
        assert other.noted == []
        assert (await other.deploy(spec, "never")).statement is None
        other.making.drain()


async def test_random_numbers_that_all_invocations_share_are_told_of(bench: Bench) -> None:
    bench.maker.random_bytes = 32
    first = await bench.deploy(await bench.spec())
    bench.exports = ("_start", RESEED)
    second = await bench.deploy(await bench.spec(InitSpec((InitCall("other"),))))
    assert first.view is not None
    assert second.view is not None
    assert (len(first.view.warnings), second.view.warnings) == (1, ())
    assert RESEED in first.view.warnings[0]


async def test_an_init_that_fails_refuses_the_deploy_and_is_told(bench: Bench) -> None:
    spec = await bench.spec()
    bench.maker.error = InitTrapped("init trapped", stderr=b"oh\n", private="unreachable at f")
    with pytest.raises(InitTrapped) as caught:
        await bench.deploy(spec)
    assert caught.value.extra == {"stderr": "oh\n", "trace": "unreachable at f"}
    with pytest.raises(InitTrapped):
        await bench.deploy(spec, "never")
    bench.maker.error = CannotSnapshot("table-mutated", "table 0: it changed", thing="table 0")
    for wish in ("auto", "always"):
        with pytest.raises(CannotSnapshot, match="table 0"):
            await bench.deploy(spec, wish)  # type: ignore[arg-type]
    bench.maker.error = CannotSnapshot("missing-export", "export f: no such function")
    with pytest.raises(CannotSnapshot, match="no such function"):
        await bench.deploy(spec, "never")
    bench.maker.error = CannotSnapshot("table-mutated", "table 0: it changed", thing="table 0")
    assert bench.catalog.lookup("f") is None
    prepared = await bench.deploy(spec, "never")
    assert prepared.view is not None
    assert (prepared.view.init_s, "table 0" in prepared.view.why) == (None, True)
    assert bench.modules() == {spec.module}
    results = {labels[0][1] for labels, _ in bench.metrics.snapshots.children()}
    assert results == {"init-trapped", "cannot-snapshot"}


async def test_an_init_that_changes_nothing_needs_no_snapshot(bench: Bench) -> None:
    bench.maker.idle = True
    spec = await bench.spec()
    prepared = await bench.deploy(spec, "always")
    assert prepared.statement is None
    assert prepared.view is not None
    assert prepared.view.why == "init changes nothing"
    assert bench.modules() == {spec.module}


async def test_a_node_without_the_build_role_states_nothing(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with opened(tmp_path) as store:
        bench = Bench(store, make_catalog("n1"), "n1", roles=("serve", "control"))
        await nursery.start(bench.making.run)
        spec = await bench.spec()
        with pytest.raises(Conflict, match="build role"):
            await bench.deploy(spec, "always")
        assert bench.maker.made == 0
        prepared = await bench.deploy(spec)
        assert prepared.statement is None
        assert prepared.view is not None
        assert "build role" in prepared.view.why
        assert bench.modules() == {spec.module}
        nursery.cancel_scope.cancel()


async def test_draining_ends_what_is_made_and_says_so(bench: Bench) -> None:
    spec = await bench.spec()
    bench.maker.gate = trio.Event()
    async with trio.open_nursery() as nursery:

        async def deploy() -> None:
            with pytest.raises(Draining):
                await bench.deploy(spec)

        nursery.start_soon(deploy)
        await trio.testing.wait_all_tasks_blocked()
        bench.making.drain()
    with pytest.raises(Draining):
        await bench.deploy(spec)


async def test_only_so_many_are_waited_for(bench: Bench) -> None:
    bench.maker.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(FLIGHTS_MAX):
            spec = await bench.spec(InitSpec((InitCall(f"i{number}"),)))
            nursery.start_soon(bench.deploy, spec)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await bench.deploy(await bench.spec())
        assert bench.maker.made == 1, "one at a time"
        bench.maker.gate.set()


async def test_without_an_init_there_is_nothing_of_all_this(bench: Bench) -> None:
    prepared = await bench.deploy(await bench.spec(None))
    assert (prepared.statement, prepared.view, bench.maker.made) == (None, None, 0)


@pytest.mark.parametrize(
    ("init_s", "wire", "delta", "kept"),
    [(0.001, 50_000, 0, True), (0.001, 60_000_000, 0, False), (0.001, 60_000_000, 10_000, True),
     (0.0, 50_000, 0, False), (5.0, 400_000_000, 0, True)],
)  # fmt: skip
def test_init_time_is_weighed_against_bytes(
    init_s: float, wire: int, delta: int, kept: bool
) -> None:
    facts = SnapshotFacts(wire, delta, 1000, init_s)
    found, why = worth_keeping(
        facts, wire * 2, 40_000, nodes=3, link_bytes_s=12.5e6, prices=Prices()
    )
    assert (found, bool(why)) == (kept, True)
