"""A cluster that is not there, for the engine: it obeys at once, or as it is told not to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from edged.cluster.process import Process, started_ticks
from edged.cluster.state import NodeState
from edged.errors import ClusterFailed
from edged.lab.chaos import control
from edged.lab.chaos.control import Answer
from edged.lab.chaos.field import Field
from edged.links import EMPTY, Document


class Machine:
    def __init__(self, name: str) -> None:
        self.name = name
        self.runs = True
        self.comes_back = True
        self.catalog = "c0"
        self.under_replicated = 0


class FakeField(Field):
    """Members see the truth `delay_s` after it changed."""

    def __init__(self, names: list[str], *, delay_s: float = 1.0) -> None:
        self.machines = {name: Machine(name) for name in names}
        self.paused = set()
        self.delay_s = delay_s
        self.deployed: dict[str, str] = {}
        self.refuse_deploys = False
        self.log: list[tuple[float, str, str]] = []
        self.nodes = tuple(
            NodeState(name, f"r{at}", "native", "h:1", "h:2", "h:3")
            for at, name in enumerate(names, 1)
        )
        self._addresses = {node.name: node for node in self.nodes}
        self.document = EMPTY
        self.counted: dict[tuple[str, str], control.LinkPeer] = {}
        """What (from, to) says of its link."""
        self.puts: list[tuple[str, str, Any]] = []
        """All that is not only asked: node, path, body."""
        self.answers: dict[tuple[str, str], Answer] = {}
        """By node and path, in place of what is right."""
        self._wishes = {}
        self._changed_s = -1e9
        self._seen_before = list(names)

    @property
    def names(self) -> list[str]:
        return list(self.machines)

    async def thread(self, act: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return act(*args)

    def processes(self) -> dict[str, Process | None]:
        own = Process(os.getpid(), started_ticks(os.getpid()) or 0)
        return {name: own if m.runs else None for name, m in self.machines.items()}

    def running(self) -> list[str]:
        return [name for name, m in self.machines.items() if m.runs and name not in self.paused]

    def _change(self, act: str, name: str) -> None:
        if trio.current_time() - self._changed_s >= self.delay_s:
            self._seen_before = self.running()
        self._changed_s = trio.current_time()
        self.log.append((round(trio.current_time(), 3), act, name))

    async def change_links(self, change: Callable[[Document], Document]) -> None:
        self.document = change(self.document)

    async def kill(self, name: str) -> Process:
        self._change("kill", name)
        self.machines[name].runs = False
        return Process(1, 1)

    async def restart(self, name: str) -> None:
        self._change("restart", name)
        await trio.sleep(0.4)
        if not self.machines[name].comes_back:
            raise ClusterFailed(f"node {name!r} ended while starting")
        self.machines[name].runs = True

    async def call(
        self,
        name: str,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout_s: float = 2.0,
    ) -> Answer | None:
        await trio.sleep(0.001)
        machine = self.machines[name]
        if not machine.runs or name in self.paused:
            return None
        if method != "GET":
            self.puts.append((name, path, body))
        if (name, path) in self.answers:
            return self.answers[name, path]
        if method == "POST":
            return Answer(202, b"")
        if method == "PUT" and path == "/v1/lab":
            return Answer(200, b"{}")
        if method == "PUT" and path == "/v1/modules":
            return Answer(201, msgspec.json.encode(control.Stored(module="ab" * 32)))
        if method == "PUT":
            if self.refuse_deploys:
                return Answer(503, b'{"detail": "too few holders"}')
            function = path.rpartition("/")[2]
            self.deployed[function] = f"v{len(self.log)}"
            deployed = control.Deployed(version="v", replicas=(name,), wanted=3)
            return Answer(201, msgspec.json.encode(deployed))
        found = self._get(machine, path)
        return Answer(404, b"") if found is None else Answer(200, msgspec.json.encode(found))

    def _get(self, machine: Machine, path: str) -> Any:
        late = trio.current_time() - self._changed_s < self.delay_s
        alive = self._seen_before if late else self.running()
        functions = [
            control.Summary(name=name, version=version, module="ab" * 32, deployed_by="n1")
            for name, version in self.deployed.items()
        ]
        match path.split("/")[2:]:
            case ["status"]:
                return control.Status(
                    state="ready",
                    catalog=machine.catalog,
                    replication=control.Replication(machine.under_replicated),
                )
            case ["members"]:
                return control.Members(tuple(control.Member(name, "alive") for name in alive))
            case ["health"]:
                return {}
            case ["links"]:
                peers = [peer for way, peer in self.counted.items() if way[0] == machine.name]
                return control.Links(tuple(peers))
            case ["functions"]:
                return control.Functions(tuple(functions))
            case ["functions", _]:
                holders = tuple(control.Holder(name) for name in ("n1", "n2", "n3"))
                return control.Detail(functions[0], holders, control.Replicas(3, 3))
            case ["functions", _, "versions"]:
                return control.Versions((control.VersionRow("v"),))
            case _:
                return None
