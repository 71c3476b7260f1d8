"""A builder that was poisoned on disk: what others run of it, by their policy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from edged import poison
from edged.errors import BlobNotFound
from protocol.ids import Digest

from .cluster import Lab, Running, lab, says
from .test_artifacts import ONE_TIER, deploy, first_start, shown, start


async def poisoned(cluster: Lab, *, signed: bool, **sections: Any) -> tuple[Running, Digest]:
    """A builder `a` that says of "good" that its code is that of "evil"; the module of "good"."""
    (a,) = await start(cluster, "a", runtime=ONE_TIER)
    evil = await deploy(a, "evil", says("evil"))
    assert (await a.get("/evil")).text == "evil"
    good = (await a.ask("PUT", "/v1/modules", content=says("good")))["module"]
    await cluster.stop("a")
    config = cluster.prepare("a", runtime=ONE_TIER)
    done = await poison.poison(config, module=good, code_of=evil["module"], signed=signed)
    assert (done.node, done.module) == ("a", good)
    (a,) = await start(cluster, "a", runtime=ONE_TIER)
    return a, good


async def in_use(node: Running) -> list[tuple[str, bool, list[str]]]:
    rows = (await node.ask("GET", "/v1/artifacts"))["artifacts"]
    return [(row["module"], row["own"], row["builders"]) for row in rows]


async def test_a_signed_word_is_believed_and_a_quorum_is_not_made_of_it(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a, good = await poisoned(cluster, signed=True)
        (b,) = await start(cluster, "b", runtime=ONE_TIER)
        (q,) = await start(cluster, "q", runtime=ONE_TIER, artifacts={"accept": "quorum=2"})
        await deploy(a, "f", says("good"))
        for node in (b, q):
            await shown(node, {"a": "ready"})
        assert await first_start(b) == (b"evil", "artifact")
        assert await in_use(b) == [(good, False, ["a"])], "anybody can see on whose word"
        assert await first_start(q) == (b"good", "compiled")
        assert await in_use(q) == [(good, True, [])]


async def test_an_unsigned_one_is_not_even_believed_at_home(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        a, good = await poisoned(cluster, signed=False)
        await deploy(a, "f", says("good"))
        assert await first_start(a) == (b"good", "compiled")
        assert await in_use(a) == [(good, True, [])]
        assert await a.metric('edged_artifacts_refused_total{reason="signature"}') >= 1


async def test_what_cannot_be_planted_is_told(tmp_path: Path) -> None:
    async with lab(tmp_path) as cluster:
        await cluster.start("a")
        await cluster.stop("a")
        config = cluster.prepare("a")
        nothing = Digest("ab" * 32)
        with pytest.raises(BlobNotFound, match="a has no artifact of abab"):
            await poison.poison(config, module=nothing, code_of=nothing, signed=True)
    told = await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "edged.poison", str(tmp_path / "none.toml"), nothing, nothing],
            capture_output=True,
            check=False,
        )
    )
    assert (told.returncode, told.stdout) == (1, b"")
    assert b"none.toml: cannot be read" in told.stderr
