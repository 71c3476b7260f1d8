"""How code becomes ready: once for a herd, verified before it is mapped, bounded in memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest
import trio

from edged.artifacts import Artifacts
from edged.store import open_store
from edged.telemetry import make_log
from edged.trust import load_trust
from protocol.artifact import attest, encode_attestations

from .cluster import Lab, Running, artifacts, damage, lab, says

MEBIBYTE = 1024 * 1024


async def mapped(node: Running, name: str) -> None:
    while (await node.ask("GET", f"/v1/functions/{name}"))["summary"]["state"] != "mapped":
        await trio.sleep(0.02)


async def holders_show(node: Running, *forms: str) -> None:
    """Until `node` knows holders of f that show these forms."""
    while [h["form"] for h in (await node.ask("GET", "/v1/functions/f"))["holders"]] != [*forms]:
        await trio.sleep(0.02)


async def restart(cluster: Lab, name: str, **sections: dict[str, object]) -> Running:
    await cluster.stop(name)
    return await cluster.start(name, **sections)


async def test_a_herd_on_a_cold_function_makes_one_fetch_and_one_compile(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        # Nothing is compiled before somebody asks for it.
        a = await cluster.start("a", artifacts={"eager": False})
        b = await cluster.start("b", artifacts={"eager": False}, gateway={"forward": False})
        await cluster.agree()
        deployed = await a.deploy("f", says("herd"))
        wire = (await a.ask("GET", "/v1/functions/f/explain"))["forms"][1]["size_bytes"]
        await cluster.agree()
        bodies: list[bytes] = []

        async def call() -> None:
            bodies.append((await b.get("/f")).content)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(call)
        assert bodies == [b"herd"] * 20
        assert await b.metric("edged_compiles_total") == 1
        assert await b.metric("edged_fetched_wire_bytes_total") == wire
        assert deployed["created"]


async def test_artifact_altered_on_disk_is_refused_and_compiled_again(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("f", says("true"))
        await mapped(a, "f")
        await cluster.stop("a")
        (artifact,) = artifacts(a)
        damage(artifact)
        a = await cluster.start("a")
        answer = await a.get("/f")
        assert (answer.content, answer.headers["x-edged-start"]) == (b"true", "compiled")
        assert "artifact refused" in a.log.getvalue()


async def test_artifact_that_another_node_attested_is_refused_if_none_may(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        cluster.prepare("other")
        await a.deploy("f", says("mine"))
        await mapped(a, "f")
        await cluster.stop("a")
        other = load_trust(tmp_path / "other" / "trust")
        store = await open_store(
            a.config.data_dir, zstd_level=3, min_free_bytes=0, log=make_log("t", stream=a.log)
        )
        (row,) = store.artifacts()
        forged = attest(
            other.private_key,
            other.credential,
            module=row.module,
            key=row.key,
            artifact=row.digest,
            manifest=row.digest,
        )
        await store.put_artifact(
            msgspec.structs.replace(row, attestations=encode_attestations([forged]))
        )
        await store.close()
        a = await cluster.start("a", artifacts={"accept": "none"})
        assert (await a.get("/f")).headers["x-edged-start"] == "compiled"
        assert 'artifacts.accept is \\"none\\"' in a.log.getvalue()


async def test_mapped_code_is_bounded_and_comes_back_from_disk(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a", runtime={"loaded_bytes_max": MEBIBYTE})
        for index in range(2):
            # 0.6 MiB of data each: the artifact holds it too.
            padding = f'(data (i32.const 65536) "{"x" * 600_000}")'
            module = says(str(index)).decode().replace('"memory") 1)', '"memory") 16)' + padding)
            await a.deploy(f"f{index}", module.encode())
            await a.get(f"/f{index}")
        states = [row["state"] for row in (await a.ask("GET", "/v1/functions"))["functions"]]
        assert sorted(states) == ["artifact", "mapped"]
        again = await a.get("/f0")
        assert (again.content, again.headers["x-edged-start"]) == (b"0", "loaded")


async def test_module_that_cannot_be_compiled_does_not_occupy_the_compiler(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("f", says("never"))
        await mapped(a, "f")
        await cluster.stop("a")
        artifacts(a)[0].unlink()
        a = await cluster.start("a", runtime={"compile_timeout_s": 0.001})
        answers = [await a.get("/f") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [500, 500, 500]
        assert answers[0].json()["type"] == "urn:edged:error:compile-failed"
        assert answers[0].json()["reason"] == "timeout"
        assert await a.metric("edged_compiles_total") == 1
        a = await restart(cluster, "a")
        assert (await a.get("/f")).content == b"never"


async def test_request_gives_up_waiting_but_the_work_goes_on(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a", gateway={"ready_timeout_s": 0.001})
        await a.deploy("f", says("late"))
        answer = await a.get("/f")
        if answer.status_code != 200:  # else the compile won the race
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:edged:error:not-ready"
            assert "retry-after" in answer.headers
        assert (await cluster.knows(a, "/f")).content == b"late"


async def test_only_holder_with_a_damaged_wire_form_makes_it_again(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        b = await cluster.start("b")
        await cluster.agree()
        await a.deploy("f", says("whole"))
        await cluster.agree()
        for wire in (a.config.data_dir / "wire").rglob("*.*"):
            data = bytearray(wire.read_bytes())
            data[len(data) // 2] ^= 0xFF
            wire.chmod(0o644)
            wire.write_bytes(data)
        assert (await cluster.knows(b, "/f")).content == b"whole"


async def test_sole_holder_rebuilds_a_flipped_module_and_says_meanwhile_that_it_lacks_it(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        deployed = await a.deploy("f", says("rebuilt"))
        await mapped(a, "f")
        await cluster.stop("a")
        b = await cluster.start("b")
        artifacts(a)[0].unlink()
        (module,) = (a.config.data_dir / "blobs").rglob(f"{deployed['module']}.module")
        data = bytearray(module.read_bytes())
        data[len(data) // 2] ^= 1
        module.chmod(0o644)
        module.write_bytes(data)
        a = await cluster.start("a", gossip={"seeds": cluster.seeds()})
        assert deployed["module"] in (await a.ask("GET", "/v1/status"))["repair"]["corrupt"]
        assert (await a.get("/f")).content == b"rebuilt"
        assert "rebuilt from its wire form" in a.log.getvalue()
        assert (await cluster.knows(b, "/f")).content == b"rebuilt"


async def test_a_lost_module_is_no_longer_announced(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        deployed = await a.deploy("f", says("gone"))
        # Which would rather compile what is shown to be there.
        b = await cluster.start("b", gateway={"forward": False}, planner={"form": "module"})
        await cluster.agree()
        await holders_show(b, "ready")
        for path in a.config.data_dir.rglob(f"{deployed['module']}*"):
            path.unlink()
        answer = await b.get("/f")
        assert (answer.content, answer.headers["x-edged-start"]) == (b"gone", "artifact")
        p = await cluster.start("p", runtime={"target": "pulley64"}, gateway={"forward": False})
        await cluster.agree()
        while (await p.get("/f")).status_code != 503:
            await trio.sleep(0.05)
        await holders_show(p, "artifact", "artifact")


async def test_damaged_artifact_shared_with_another_module_is_never_mapped(tmp_path: Path) -> None:
    """Modules that differ in a custom section have one artifact: the second deploy finds the copy
    that the first one left, with a bit flipped that the index cannot see."""
    plain = (
        '(module (func (export "seven") (result i32)'
        " (i32.add (i32.const 7) (i32.const 1997024411))))"
    )
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        stored = await a.ask("PUT", "/v1/modules", content=plain.encode())
        (path,) = (a.config.data_dir / "blobs").rglob(f"{stored['module']}.module")
        binary = path.read_bytes()
        await a.deploy("first", binary, abi="export")
        assert (await a.get("/first/seven")).text == "1997024418\n"
        (artifact,) = artifacts(a)
        at = artifact.read_bytes().index((1997024418).to_bytes(4, "little"))
        damage(artifact, at=at, byte=0xE0)
        await a.deploy("second", binary + b"\x00\x0b\x04notesecond", abi="export")
        answer = await a.get("/second/seven")
        assert answer.text == "1997024418\n"


async def test_lost_artifact_is_announced_and_a_restart_tells_what_is_there(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")
        await a.deploy("f", says("here"))
        b = await cluster.start("b")
        await cluster.agree()
        await holders_show(b, "ready")
        a = await restart(cluster, "a")
        await holders_show(b, "ready")
        (artifact,) = artifacts(a)
        artifact.unlink()
        await cluster.stop("a")
        a = await cluster.start("a")
        await holders_show(b, "module")
        assert (await a.get("/f")).headers["x-edged-start"] == "compiled"
        await holders_show(b, "ready")


async def test_number_of_mapped_modules_is_bounded(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a", runtime={"loaded_max": 2})
        for index in range(4):
            await a.deploy(f"f{index}", says(str(index)))
            assert (await a.get(f"/f{index}")).text == str(index)
        states = [row["state"] for row in (await a.ask("GET", "/v1/functions"))["functions"]]
        assert states.count("mapped") == 2


async def test_a_system_without_resources_fails_the_request_not_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(tmp_path) as cluster:
        a = await cluster.start("a")

        async def exhausted(*_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(Artifacts, "make", exhausted)
            await a.deploy("f", says("later"))
            assert (await a.get("/f")).status_code == 503
        assert (await a.get("/f")).content == b"later"
