"""Nodes that plan: what each gets of one function, by its links, and what becomes of it when they
change or a holder is lost. Real clock, as sockets and guests are real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from edged import evicting, obtaining
from edged.links import Document, encode_document
from edged.topology import Rule

from .cluster import Lab, Running, lab

LEARNT = """(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") {pages})
  (global $x (mut i64) (i64.const 88172645463325252))
  (func $next (result i64)
    (global.set $x (i64.xor (global.get $x) (i64.shl (global.get $x) (i64.const 13))))
    (global.set $x (i64.xor (global.get $x) (i64.shr_u (global.get $x) (i64.const 7))))
    (global.set $x (i64.xor (global.get $x) (i64.shl (global.get $x) (i64.const 17))))
    (global.get $x))
  (func (export "wizer.initialize") (local $round i32) (local $at i32)
    (loop $rounds
      (local.set $at (i32.const 64))
      (loop $fill
        (i64.store (local.get $at) (call $next))
        (local.set $at (i32.add (local.get $at) (i32.const 8)))
        (br_if $fill (i32.lt_u (local.get $at) (i32.const {end}))))
      (local.set $round (i32.add (local.get $round) (i32.const 1)))
      (br_if $rounds (i32.lt_u (local.get $round) (i32.const {rounds}))))
    (i32.store8 (i32.const 32) (i32.add (i32.const 65)
      (i32.and (i32.load (i32.const 128)) (i32.const 15)))))
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 32))
    (i32.store (i32.const 4) (i32.const 1))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""
ALWAYS: dict[str, Any] = {"init": {}, "snapshot": "always", "replicas": 1}
ALONE = {"forward": False}


def learns(*, pages: int, rounds: int) -> bytes:
    """Fills so much of its memory with what does not compress, so many times."""
    end = pages * 65536
    return LEARNT.format(pages=pages, end=end, rounds=rounds).encode()


async def start(made: Lab, name: str, document: Document | None = None, **more: Any) -> Running:
    links: dict[str, Any] = {"enabled": True}
    if document is not None:
        file = made.root / "links.json"
        file.write_bytes(encode_document(document))
        links["file"] = str(file)
    return await made.start(
        name,
        node={"name": name, "region": f"r-{name}"},
        links=links,
        gateway=ALONE,
        artifacts={"accept": "signed", "eager": False},
        **more,
    )


def forms(node: Running) -> list[str]:
    """That it got, in order."""
    rows = [json.loads(line) for line in node.log.getvalue().splitlines()]
    return [row["form"] for row in rows if row["event"] == "form ready"]


async def changes(node: Running) -> list[str]:
    events = (await node.ask("GET", "/v1/events"))["events"]
    return [one["detail"] for one in events if one["kind"] == "plan-changed"]


async def fetched_bytes(node: Running) -> int:
    transfers = (await node.ask("GET", "/v1/transfers"))["transfers"]
    return sum(one["done_bytes"] for one in transfers)


async def answered(node: Running) -> httpx.Response:
    answer = await node.get("/f")
    assert answer.status_code == 200, answer.text
    return answer


def to(name: str, mbit: float) -> Document:
    return Document(rules=(Rule(sources=("*",), targets=(f"r-{name}",), bandwidth_mbit=mbit),))


@pytest.mark.slow
async def test_nodes_with_different_links_get_different_forms(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        document = to("c", 1)
        a, b = await start(made, "a", document), await start(made, "b", document)
        c = await start(made, "c", document)
        await made.agree()
        await a.deploy("f", learns(pages=16, rounds=1000), **ALWAYS)
        await made.agree()
        texts = [(await answered(node)).text for node in (a, b, c)]
        assert len(set(texts)) == 1
        assert forms(b)[0] in ("snapshot", "snapshot-artifact"), "fetched"
        assert forms(c) == ["snapshot-here"]
        warm = await answered(c)
        assert warm.headers["x-edged-start"] == "warm"
        assert "init;" not in warm.headers["server-timing"]


@pytest.mark.slow
async def test_a_link_that_collapses_changes_what_is_being_got(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        document = to("b", 20)
        a, b = await start(made, "a", document), await start(made, "b", document)
        await made.agree()
        await a.deploy("f", learns(pages=48, rounds=1000), **ALWAYS)
        await made.agree()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answered, b)
            while not await fetched_bytes(b):
                await trio.sleep(0.02)
            changed = json.loads(encode_document(to("b", 0.5)))
            for node in (a, b):
                await node.ask("PUT", "/v1/links", json=changed)
        assert forms(b) == ["snapshot-here"]
        (change,) = await changes(b)
        assert change.startswith("snapshot → snapshot-here (drift): bandwidth")


async def test_who_reaches_no_holder_makes_the_snapshot_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtaining, "HOLDERLESS_S", 0.0)
    async with lab(tmp_path) as made:
        a, b = await start(made, "a"), await start(made, "b")
        await made.agree()
        await a.deploy("f", learns(pages=4, rounds=2000), **ALWAYS | {"replicas": 2})
        await made.agree()
        await made.kill("a")
        while (await b.ask("GET", "/v1/status"))["members"]["alive"] > 1:
            await trio.sleep(0.1)
        await answered(b)
        assert forms(b) == ["snapshot-here"]


async def test_what_fails_gives_way_to_the_next_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtaining, "HOLDERLESS_S", 0.0)
    async with lab(tmp_path) as made:
        a = await start(made, "a")
        b = await start(made, "b", planner={"form": "snapshot"})
        await made.agree()
        deployed = await a.deploy("f", learns(pages=4, rounds=2), **ALWAYS)
        await made.agree()
        snapshot = deployed["init"]["snapshot"]
        for file in (a.config.data_dir / "blobs").rglob(f"{snapshot}*"):
            file.unlink()
        for file in (a.config.data_dir / "wire").rglob(f"{snapshot}*"):
            file.unlink()
        await answered(b)
        assert forms(b)[-1] != "snapshot"
        rows = [json.loads(line) for line in b.log.getvalue().splitlines()]
        failed = [row["form"] for row in rows if row["event"] == "form not to be had"]
        assert "snapshot" in failed


async def test_each_form_gives_the_same_answer(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        a = await start(made, "a", planner={"form": "snapshot"})
        others = ("module", "snapshot", "snapshot-here")
        nodes = {form: await start(made, form, planner={"form": form}) for form in others}
        await made.agree()
        await a.deploy("f", learns(pages=4, rounds=2), **ALWAYS)
        await made.agree()
        told = (await answered(a)).text
        for form, node in nodes.items():
            assert (await answered(node)).text == told
            assert forms(node) == [form]
            second = await answered(node)
            assert second.text == told
            assert ("init;" in second.headers["server-timing"]) == (form == "module")


async def test_a_store_above_its_bound_lets_go_what_can_be_had_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evicting, "RECENT_S", 0.0)
    monkeypatch.setattr(evicting, "LOOK_S", 0.1)
    async with lab(tmp_path) as made:
        a = await start(made, "a", store={"min_free_bytes": 0, "bytes_max": 1})
        deployed = await a.deploy("f", learns(pages=4, rounds=2), **ALWAYS)
        await answered(a)
        while True:
            blobs = (await a.ask("GET", "/v1/blobs"))["blobs"]
            kinds = {blob["kind"] for blob in blobs}
            if kinds == {"module", "manifest"}:
                break
            await trio.sleep(0.1)
        assert deployed["module"] in [blob["digest"] for blob in blobs], "it is no cache"
        assert (await answered(a)).text
        events = (await a.ask("GET", "/v1/events"))["events"]
        assert "blobs-evicted" in [one["kind"] for one in events]
        assert await a.metric("edged_evicted_total") >= 2
