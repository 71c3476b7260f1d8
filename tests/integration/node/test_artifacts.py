"""Native code between whole nodes: fetched instead of compiled, waited for, refused, audited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from edged import audit, supply
from edged.activation import Activation
from edged.artifacts import Artifacts
from edged.interfaces import CompileReport
from edged.runtime.runtime import WasmtimeRuntime
from edged.runtime.settings import has_fast_tier
from protocol import building
from protocol.artifact import Attested, attest, decode_attestations, encode_attested
from protocol.ids import ArtifactKey, Digest

from .cluster import Lab, Running, artifacts, damage, lab, says
from .test_node_tiers import LARGE, Gate, gate

__all__ = ["gate"]
ONE_TIER = {"tiers": "optimised"}


async def shown(node: Running, wanted: dict[str, str], name: str = "f") -> None:
    """Until `node` knows these forms, by holder; "|" between those that will do."""
    while True:
        answer = await node.control("GET", f"/v1/functions/{name}")
        holders = answer.json()["holders"] if answer.is_success else ()
        found = {holder["node"]: holder["form"] for holder in holders}
        if all(found.get(holder) in form.split("|") for holder, form in wanted.items()):
            return
        await trio.sleep(0.02)


async def gone(node: Running, name: str) -> None:
    """Until `node` does not count on that holder any more."""
    while True:
        holders = (await node.ask("GET", "/v1/functions/f"))["holders"]
        if name not in {holder["node"] for holder in holders}:
            return
        await trio.sleep(0.02)


async def start(cluster: Lab, *names: str, **sections: dict[str, Any]) -> list[Running]:
    """Nodes that get native code only when somebody asks, and answer for themselves."""
    sections["gateway"] = {"forward": False}
    sections["artifacts"] = {"eager": False} | sections.get("artifacts", {})
    nodes = [await cluster.start(name, **sections) for name in names]
    await cluster.agree()
    return nodes


async def deploy(node: Running, name: str, module: bytes) -> dict[str, Any]:
    """On this node, and on the one its copy belongs on."""
    return await node.deploy(name, module, replicas=1)


async def events(node: Running, kind: str) -> list[dict[str, Any]]:
    rows = (await node.ask("GET", "/v1/events?limit=1000"))["events"]
    return [row for row in rows if row["kind"] == kind]


async def first_start(node: Running) -> tuple[bytes, str]:
    answer = await node.get("/f")
    return answer.content, answer.headers["x-edged-start"]


def worth_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small modules are waited for as large ones are."""
    monkeypatch.setattr(building, "SMALL_S", 0.0)
    monkeypatch.setattr(supply, "SMALL_S", 0.0)
    monkeypatch.setattr(building, "PATIENCE", 1000.0)
    monkeypatch.setattr(building, "LEISURE", 1000.0)


async def test_one_compiles_and_the_others_fetch_also_from_each_other(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a, b, c = await start(cluster, "a", "b", "c", runtime=ONE_TIER)
        (p,) = await start(cluster, "p", runtime={"target": "pulley64"})
        await deploy(a, "f", LARGE)
        for node in (b, c, p):
            await shown(node, {"a": "ready"})
        # Whoever the module's one copy belongs on has it already.
        for node, starts in ((b, {"artifact"}), (p, {"fetch+compiled", "compiled"})):
            explained = await node.ask("GET", "/v1/functions/f/explain")
            assert explained["next_start"] in starts
        answer = await b.get("/f")
        assert (answer.content, answer.headers["x-edged-start"]) == (b"hello", "artifact")
        timing = answer.headers["server-timing"]
        assert "fetch;dur=" in timing
        assert "compile;" not in timing
        assert (await b.get("/f")).headers["x-edged-start"] == "warm"
        (made,), (taken,) = [
            (await node.ask("GET", "/v1/artifacts"))["artifacts"] for node in (a, b)
        ]
        assert made | {"own": False, "builders": ["a"]} == taken, "and it says whose word it has"
        assert (made["own"], made["builders"], made["tier"]) == (True, [], "optimised")
        assert await first_start(p) == (b"hello", "compiled"), "another key"
        await shown(c, {"a": "ready", "b": "artifact|ready", "p": "ready"})
        await cluster.stop("a")
        await gone(c, "a")
        assert await first_start(c) == (b"hello", "artifact")
        await shown(b, {"c": "artifact|ready"})
        rows = (await b.ask("GET", "/v1/blobs"))["blobs"]
        (held,) = [row["holders"] for row in rows if row["kind"] == "artifact"]
        assert held == 2, "c and b itself: a is gone, p's is for another key"
        for node, compiled in ((b, 0), (c, 0), (p, 1)):
            assert await node.metric("edged_compiles_total") == compiled
            assert await node.metric("edged_artifacts_fetched_total") == 1 - compiled
        await cluster.stop("c")
        (c,) = await start(cluster, "c", runtime=ONE_TIER)
        assert await first_start(c) == (b"hello", "loaded"), "accepted still, from disk"


@pytest.mark.skipif(not has_fast_tier("native"), reason="this machine has one tier")
async def test_fast_code_gives_way_to_a_peers_artifact(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have answered with fast code before there was an artifact: one compiles, one fetches."""
    worth_waiting(monkeypatch)
    async with lab(tmp_path) as cluster:
        a, b = await start(cluster, "a", "b")
        await deploy(a, "f", LARGE)
        await cluster.agree()
        for node in (a, b):
            body, start_type = await first_start(node)
            assert (body, start_type in ("compiled", "warm")) == (b"hello", True)
            assert (await node.ask("GET", "/v1/functions/f"))["summary"]["tier"] == "fast"
        while gate.begun == 0:
            await trio.sleep(0.02)
        gate.opened.set()
        for node in (a, b):
            while (await node.ask("GET", "/v1/functions/f"))["summary"]["tier"] == "fast":
                await trio.sleep(0.02)
            assert (await node.get("/f")).content == b"hello"
        built = [await n.metric('edged_optimisations_total{result="ok"}') for n in (a, b)]
        fetched = [await n.metric("edged_artifacts_fetched_total") for n in (a, b)]
        assert sorted(zip(built, fetched, strict=True)) == [(0, 1), (1, 0)]


@pytest.mark.skipif(not has_fast_tier("native"), reason="this machine has one tier")
async def test_asked_at_once_one_compiles_and_the_others_take_it(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy and requests at every node in one moment, and a slow builder."""
    worth_waiting(monkeypatch)
    monkeypatch.setattr(supply, "CLAIM_S", 2.0)  # news may be late on a busy machine
    async with lab(tmp_path) as cluster:
        nodes = [await cluster.start(name) for name in "abc"]
        await cluster.agree()
        await nodes[0].deploy("f", LARGE, replicas=3)
        await cluster.agree()
        assert (await first_start(nodes[0]))[0] == b"hello"
        await shown(nodes[1], {"a": "running|building"})
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.get, "/f")
        while gate.begun == 0:
            await trio.sleep(0.02)
        await trio.sleep(0.5)
        gate.opened.set()
        for node in nodes:
            await shown(node, dict.fromkeys("abc", "ready"))
        assert gate.begun == 1
        fetched = [await node.metric("edged_artifacts_fetched_total") for node in nodes]
        assert sorted(fetched) == [0, 1, 1]


async def test_with_one_tier_and_asked_at_once_one_compiles_and_the_other_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither knows of the other's compile when it begins its own."""
    real, step = WasmtimeRuntime.compile, building.next_step
    begun: list[WasmtimeRuntime] = []
    go_on = trio.Event()

    async def compile_late(runtime: WasmtimeRuntime, *files: Any) -> CompileReport:
        begun.append(runtime)
        await go_on.wait()
        return await real(runtime, *files)

    steps = iter(["build", "build"])
    monkeypatch.setattr(supply, "next_step", lambda *a, **k: next(steps, None) or step(*a, **k))
    monkeypatch.setattr(WasmtimeRuntime, "compile", compile_late)
    monkeypatch.setattr(Activation, "start", lambda *_, **__: None)
    monkeypatch.setattr(supply, "YIELD_S", 0.0)
    monkeypatch.setattr(supply, "CLAIM_S", 1.0)  # news may be late on a busy machine
    worth_waiting(monkeypatch)
    async with lab(tmp_path) as cluster:
        nodes = await start(cluster, "a", "b", runtime=ONE_TIER)
        await nodes[0].deploy("f", LARGE, replicas=2)
        await cluster.agree()
        answers: list[tuple[bytes, str]] = []

        async def ask(node: Running) -> None:
            answers.append(await first_start(node))

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(ask, node)
            while not any("left to a better" in node.log.getvalue() for node in nodes):
                await trio.sleep(0.02)
            go_on.set()
        assert len(begun) == 2
        assert sorted(answers) == [(b"hello", "artifact"), (b"hello", "compiled")]
        assert sum([await node.metric("edged_compiles_total") for node in nodes]) == 1


async def test_who_waits_for_a_builder_that_dies_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = WasmtimeRuntime.compile
    stuck: list[WasmtimeRuntime] = []

    async def compile_once(runtime: WasmtimeRuntime, *files: Any) -> CompileReport:
        if not stuck:
            stuck.append(runtime)
            await trio.sleep_forever()
        return await real(runtime, *files)

    monkeypatch.setattr(WasmtimeRuntime, "compile", compile_once)
    worth_waiting(monkeypatch)
    async with lab(tmp_path) as cluster:
        a, b = await start(cluster, "a", "b", runtime=ONE_TIER)
        await deploy(a, "f", LARGE)
        await shown(b, {"a": "building"})
        answers: list[tuple[bytes, str]] = []

        async def ask() -> None:
            answers.append(await first_start(b))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.5)
            assert answers == []
            assert await b.metric("edged_compiles_total") == 0, "it waits"
            # b needs the module then; who dies has told it before.
            stored = (a.config.data_dir / "blobs").rglob("*.module")
            await b.ask("PUT", "/v1/modules", content=next(stored).read_bytes())
            await cluster.stop("a")
        assert answers == [(b"hello", "compiled")]


@pytest.mark.slow
async def test_nodes_that_a_module_is_placed_on_are_ready_before_anybody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth_waiting(monkeypatch)
    async with lab(tmp_path) as cluster:
        nodes = await start(cluster, "a", "b", "c", artifacts={"eager": True})
        await nodes[0].deploy("f", LARGE, replicas=3)
        for node in nodes:
            await shown(node, dict.fromkeys("abc", "ready"))
        built = [await node.metric('edged_optimisations_total{result="ok"}') for node in nodes]
        assert sorted(built) == [0, 0, 1], "one compiled for all"
        assert await first_start(nodes[2]) == (b"hello", "loaded")


async def test_policy_none_compiles_and_a_quorum_needs_as_many(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a, n = await start(cluster, "a", "n", artifacts={"accept": "none"}, runtime=ONE_TIER)
        await deploy(a, "f", says("hello"))
        await shown(n, {"a": "ready"})
        assert await first_start(n) == (b"hello", "compiled")
        assert await n.metric("edged_artifacts_fetched_total") == 0
        (q,) = await start(cluster, "q", artifacts={"accept": "quorum=3"}, runtime=ONE_TIER)
        await shown(q, {"a": "ready", "n": "ready"})
        assert await first_start(q) == (b"hello", "compiled"), "two vouch for it, three must"
        (r,) = await start(cluster, "r", artifacts={"accept": "quorum=3"}, runtime=ONE_TIER)
        await shown(r, {"a": "ready", "n": "ready", "q": "ready"})
        assert await first_start(r) == (b"hello", "artifact"), "all three compiled the same"
        assert await events(r, "artifact-refused") == []


async def test_flipped_native_code_is_never_mapped_but_fetched_anew(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a, b = await start(cluster, "a", "b", runtime=ONE_TIER)
        await deploy(a, "f", LARGE)
        await shown(b, {"a": "ready"})
        assert await first_start(b) == (b"hello", "artifact")
        await cluster.stop("b")
        (path,) = artifacts(b)
        damage(path)
        (b,) = await start(cluster, "b", runtime=ONE_TIER)
        await shown(b, {"a": "ready"})
        assert (await first_start(b))[0] == b"hello"
        assert await b.metric('edged_artifacts_refused_total{reason="bytes"}') == 1
        (row,) = await events(b, "artifact-refused")
        assert row["name"] == "this node's disk"


async def test_another_modules_artifact_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a offers what it has for one module, attestation and all, as that of another."""
    async with lab(tmp_path) as cluster:
        a, b = await start(cluster, "a", "b", runtime=ONE_TIER)
        other = await deploy(a, "g", says("other"))
        await shown(b, {"a": "ready"}, "g")
        real = Artifacts.attested

        async def lies(self: Artifacts, module: Digest, key: ArtifactKey) -> bytes:
            return await real(self, Digest(other["module"]), key)

        monkeypatch.setattr(Artifacts, "attested", lies)
        await deploy(a, "f", says("hello"))
        await shown(b, {"a": "ready"})
        assert await first_start(b) == (b"hello", "compiled")
        (row,) = await events(b, "artifact-refused")
        assert (row["name"], row["detail"].rpartition(" ")[2]) == ("a", "attestation")
        assert await b.metric('edged_artifacts_refused_total{reason="attestation"}') == 1


def forger(builder: Running) -> Any:
    """Artifacts.attested of a builder that vouches for other code than its modules': whatever it
    compiled first."""
    real = Artifacts.attested
    first: list[Any] = []

    async def attested(self: Artifacts, module: Digest, key: ArtifactKey) -> bytes:
        rows = [row for row in self._store.artifacts() if row.key == key]
        mine = self._credential.name == builder.name
        if not mine or not rows:
            return await real(self, module, key)
        first[:] = first or rows[:1]
        (row,) = first
        (word,) = decode_attestations(row.attestations)
        forged = attest(
            self._private_key,
            self._credential,
            module=module,
            key=key,
            artifact=row.digest,
            manifest=word.manifest,
        )
        manifest = await self._store.make_manifest(row.digest)
        return encode_attested(
            Attested(row.digest, row.size_bytes, manifest.wire_bytes, word.manifest, (forged,))
        )

    return attested


@pytest.mark.slow
async def test_an_audit_catches_a_builder_that_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAUSE_S", 0.1)
    async with lab(tmp_path) as cluster:
        a, b = await start(cluster, "a", "b", artifacts={"audit": True}, runtime=ONE_TIER)
        await deploy(a, "evil", says("evil"))
        await shown(b, {"a": "ready"}, "evil")
        monkeypatch.setattr(Artifacts, "attested", forger(a))
        await deploy(a, "f", says("good"))
        await shown(b, {"a": "ready"})
        module = (await a.ask("GET", "/v1/functions/f"))["summary"]["module"]
        blob = next((a.config.data_dir / "blobs").rglob(f"{module}.module"))
        assert await first_start(b) == (b"evil", "artifact"), "a trusted builder said so"
        await b.ask("PUT", "/v1/modules", content=blob.read_bytes())
        while not await b.metric('edged_audits_total{result="mismatch"}'):
            await trio.sleep(0.05)
        assert await first_start(b) == (b"good", "loaded"), "what it compiled itself"
        (row,) = await events(b, "artifact-mismatch")
        assert row["name"] == "a"
        assert "AUDIT" in b.log.getvalue()
        assert await first_start_of(b, "evil") == (b"evil", "compiled"), "a is trusted no more"
        await cluster.stop("b")
        (b,) = await start(cluster, "b", runtime=ONE_TIER)
        await deploy(a, "late", says("late"))
        await shown(b, {"a": "ready"}, "late")
        assert await first_start_of(b, "late") == (b"late", "compiled"), "nor after a restart"
        monkeypatch.undo()  # a is mended
        await b.ask("DELETE", "/v1/builders/distrusted/a")
        await deploy(a, "mended", says("mended"))
        await shown(b, {"a": "ready"}, "mended")
        assert await first_start_of(b, "mended") == (b"mended", "artifact")


async def first_start_of(node: Running, name: str) -> tuple[bytes, str]:
    answer = await node.get(f"/{name}")
    return answer.content, answer.headers["x-edged-start"]


@pytest.mark.slow
async def test_an_audit_that_finds_the_same_adds_this_nodes_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAUSE_S", 0.1)
    async with lab(tmp_path) as cluster:
        a, b = await start(cluster, "a", "b", artifacts={"audit": True}, runtime=ONE_TIER)
        await deploy(a, "f", says("good"))
        await shown(b, {"a": "ready"})
        assert await first_start(b) == (b"good", "artifact")
        blob = next((a.config.data_dir / "blobs").rglob("*.module"))
        await b.ask("PUT", "/v1/modules", content=blob.read_bytes())
        while not await b.metric('edged_audits_total{result="ok"}'):
            await trio.sleep(0.05)
        assert await events(b, "artifact-mismatch") == []
        await cluster.stop("a")
        (q,) = await start(cluster, "q", artifacts={"accept": "quorum=2"}, runtime=ONE_TIER)
        await shown(q, {"b": "ready"})
        assert await first_start(q) == (b"good", "artifact"), "b hands on both words"
