"""The cluster as awaitables: faults that meet, and links that reach whoever can be reached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from edged.cluster.process import Process, boot_id, started_ticks
from edged.cluster.shaping import write_links
from edged.cluster.state import ClusterState, Home, NodeState
from edged.cluster.views import LinksChanged, LinksTold
from edged.errors import ClusterFailed, ConfigError, Conflict, Unreachable
from edged.lab.chaos import field as fields
from edged.lab.chaos.faults import fault_of
from edged.lab.chaos.faults.processes import RollingRestart
from edged.lab.chaos.field import Field
from edged.lab.history import Planned
from edged.links import Document, load_document, partition

OWN = Process(os.getpid(), started_ticks(os.getpid()) or 0)


class Boss:
    """A supervisor of nodes that are all this very process, but for n3, which is dead."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.refusals = 0
        self.on_restart: Callable[[], None] = lambda: None
        nodes = tuple(
            NodeState(
                name,
                "r",
                "native",
                *("127.0.0.1:1",) * 3,
                pid=OWN.pid if name != "n3" else 2**22 + 1,
                started_ticks=OWN.started_ticks,
            )
            for name in ("n1", "n2", "n3")
        )
        self.state = ClusterState(1, "c", 0.0, boot_id(), nodes, lab=True)
        for node in nodes:
            self.home.node_directory("c", node.name).mkdir(parents=True)
            self.home.token_file("c", node.name).write_text("t\n")
        write_links(self.home, self.state, Document())

    def load(self, _name: str) -> ClusterState:
        return self.state

    def kill(self, _name: str, node_name: str) -> Process:
        if self.refusals:
            self.refusals -= 1
            raise Conflict(f"node {node_name!r} does not run")
        return OWN

    def pause(self, _name: str, _node: str) -> None:
        raise Conflict("it does not run")

    def resume(self, _name: str, _node: str) -> None:
        return None

    def restart(self, _name: str, node_name: str, *, timeout_s: float) -> NodeState:
        assert timeout_s > 0
        self.on_restart()
        raise ClusterFailed(f"node {node_name!r} ended while starting")


@pytest.fixture
def boss(tmp_path: Path) -> Boss:
    return Boss(tmp_path)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], int]]:
    """Whom the links were told, and how many rules; n2 takes them at the third time."""
    asked: list[tuple[tuple[str, ...], int]] = []

    def tell(_home: Any, _state: Any, nodes: Any, document: Document, at_ms: Any) -> LinksChanged:
        asked.append((tuple(node.name for node in nodes), len(document.rules)))
        late = len(asked) < 3
        answers = (
            LinksTold(node.name, None if node.name == "n2" and late else 5, "no answer")
            for node in nodes
        )
        return LinksChanged("c", at_ms or 5, tuple(answers))

    monkeypatch.setattr(fields, "tell_links", tell)
    return asked


def cut(document: Document) -> Document:
    return partition(document, [["node:n1"], ["node:n2"]], label="fault 1")


async def test_a_kill_waits_for_a_node_that_is_about_to_run(boss: Boss) -> None:
    boss.refusals = 2
    assert await Field(boss, "c").kill("n1") == OWN
    assert boss.refusals == 0


async def test_a_kill_does_not_wait_for_ever(boss: Boss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "KILL_PATIENCE_S", 0.2)
    boss.refusals = 1000
    with pytest.raises(Conflict):
        await Field(boss, "c").kill("n1")


async def test_a_restart_that_another_fault_ends_is_that_one_s(boss: Boss) -> None:
    field = Field(boss, "c")
    with pytest.raises(ClusterFailed):
        await field.restart("n1")
    boss.on_restart = lambda: trio.from_thread.run(field.kill, "n1")
    assert await field.restart("n1") is False


async def test_links_reach_the_disk_the_nodes_and_the_clients(
    boss: Boss, told: list[tuple[tuple[str, ...], int]]
) -> None:
    field = Field(boss, "c")
    heard: list[Document] = []
    field.on_links(heard.append)
    await field.change_links(cut)
    assert told[0] == (("n1", "n2"), 1), "n3 is dead, and reads the file when it starts"
    assert told[1:] == [(("n2",), 1), (("n2",), 1)], "until it takes it"
    assert load_document(boss.home.links_file("c")).rules == field.links.rules
    assert [len(document.rules) for document in heard] == [1]


async def test_a_node_that_never_takes_links_is_told(
    boss: Boss, told: list[tuple[tuple[str, ...], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "LINKS_PATIENCE_S", 0.0)
    with pytest.raises(Unreachable, match="n2: links: no answer"):
        await Field(boss, "c").change_links(cut)


async def test_a_paused_node_gets_its_links_when_it_goes_on(
    boss: Boss, told: list[tuple[tuple[str, ...], int]]
) -> None:
    field = Field(boss, "c")
    field.paused.add("n2")
    assert field.running() == ["n1"]
    await field.change_links(cut)
    assert told == [(("n1",), 1)]
    await field.resume("n2")
    assert told[1:] == [(("n2",), 1), (("n2",), 1)]
    assert field.running() == ["n1", "n2"]


async def test_what_could_not_be_paused_is_not_paused(boss: Boss) -> None:
    field = Field(boss, "c")
    with pytest.raises(Conflict):
        await field.pause("n1")
    assert field.running() == ["n1", "n2"]


def test_an_upgrade_is_laid_over_the_configuration(boss: Boss) -> None:
    path = boss.home.node_directory("c", "n1") / "node.toml"
    path.write_text('[node]\nname = "n1"\n[runtime]\ntarget = "pulley64"\n')
    settings = {"gap_s": 0.0, "config": "{}"}
    planned = Planned(t_s=1.0, id="1", action="rolling-restart", targets=("n1",), settings=settings)
    rolling = fault_of(Field(boss, "c"), planned)
    assert isinstance(rolling, RollingRestart)
    rolling._configure("n1", {"runtime": {"tiers": "optimised"}})
    after = path.read_text()
    assert 'target = "pulley64"' in after
    assert 'tiers = "optimised"' in after
    with pytest.raises(ConfigError, match="tires"):
        rolling._configure("n1", {"runtime": {"tires": "optimised"}})
    assert path.read_text() == after
