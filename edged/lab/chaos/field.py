"""The cluster of a run, for those who break and watch it: operations on nodes as awaitables.

Everything that blocks (signals that wait, HTTP, files of the cluster) runs in threads, of bounded
number. Nothing here decides anything; `Field` belongs to the run's event loop.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import trio

from edged.cluster import process
from edged.cluster.process import Process
from edged.cluster.shaping import read_links, tell_links, write_links
from edged.cluster.state import ClusterState, Home, NodeState
from edged.errors import Conflict, EdgedError, Unreachable
from edged.links import Document

from . import control
from .control import Answer, call

OPERATIONS_MAX: Final = 32
ASKING_MAX: Final = 24
"""Threads. Two limits, so that no fault waits behind questions to nodes that do not answer."""
RESTART_TIMEOUT_S: Final = 60.0
"""Ready, and sees all others. A node needs 1 s; the machine may be busy with its neighbours."""

KILL_PATIENCE_S: Final = 10.0
"""A busy machine starts a node later than the timeline kills it again."""
LINKS_PATIENCE_S: Final = 20.0
RETRY_S: Final = 0.1

T = TypeVar("T")


class Boss(Protocol):
    """What is used of edged.cluster's supervisor. Blocking; threads may share it. All raise kinds
    of EdgedError."""

    home: Home

    def load(self, name: str) -> ClusterState: ...
    def kill(self, name: str, node_name: str) -> Process: ...
    def pause(self, name: str, node_name: str) -> object: ...
    def resume(self, name: str, node_name: str) -> object: ...
    def restart(self, name: str, node_name: str, *, timeout_s: float) -> NodeState: ...


class Field:
    def __init__(self, boss: Boss, name: str) -> None:
        self.boss = boss
        self.name = name
        self.nodes: Final = boss.load(name).nodes
        """With their addresses, which they keep; not their processes."""
        self._operations = trio.CapacityLimiter(OPERATIONS_MAX)
        self._asking = trio.CapacityLimiter(ASKING_MAX)
        self._addresses = {node.name: node for node in self.nodes}
        self._tokens = {node.name: boss.home.token(name, node.name) for node in self.nodes}
        self._links_lock = trio.Lock()
        self._links = read_links(boss.home, boss.load(name))
        self._heeders: list[Callable[[Document], None]] = []
        self.paused: set[str] = set()
        """On purpose, and until they are resumed."""
        self._kills: Counter[str] = Counter()
        self._wishes: dict[str, dict[str, Any]] = {}

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.nodes]

    def node(self, name: str) -> NodeState:
        return self._addresses[name]

    async def thread(self, act: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(act, *args, limiter=self._operations)

    # ------------------------------------------------------------ processes
    def processes(self) -> dict[str, Process | None]:
        """Of each node, as it was started last; None: it was stopped. Running or not."""
        found: dict[str, Process | None] = {}
        for node in self.boss.load(self.name).nodes:
            known = node.pid is not None and node.started_ticks is not None
            found[node.name] = Process(node.pid or 0, node.started_ticks or 0) if known else None
        return found

    def process(self, name: str) -> Process | None:
        """Only if it runs."""
        known = self.processes().get(name)
        return known if known is not None and process.is_running(known) else None

    def running(self) -> list[str]:
        """Nodes whose process runs, and is not paused: who should answer. One that is slowed down,
        stopped for moments, is among them."""
        found = self.processes().items()
        return [
            name
            for name, known in found
            if known is not None and process.is_running(known) and name not in self.paused
        ]

    async def kill(self, name: str) -> Process:
        """Also one that another fault is about to start again. Raises Conflict: it does not run."""
        self._kills[name] += 1
        patience_s = trio.current_time() + KILL_PATIENCE_S
        while True:
            try:
                killed = await self.thread(self.boss.kill, self.name, name)
            except Conflict:
                if trio.current_time() >= patience_s:
                    raise
            else:
                self.paused.discard(name)
                return killed
            await trio.sleep(RETRY_S)

    async def restart(self, name: str) -> bool:
        """Also starts one that does not run. False: another fault killed it meanwhile, and has to
        bring it back."""
        kills = self._kills[name]
        try:
            await self.thread(
                lambda: self.boss.restart(self.name, name, timeout_s=RESTART_TIMEOUT_S)
            )
        except EdgedError:
            if self._kills[name] == kills:
                raise
            return False
        return True

    async def pause(self, name: str) -> None:
        self.paused.add(name)
        try:
            await self.thread(self.boss.pause, self.name, name)
        except EdgedError:
            self.paused.discard(name)
            raise

    async def resume(self, name: str) -> None:
        await self.thread(self.boss.resume, self.name, name)
        self.paused.discard(name)
        await self._tell_late(name)

    def directory(self, name: str) -> Path:
        return self.boss.home.node_directory(self.name, name)

    def log_file(self, name: str) -> Path:
        return self.boss.home.log_file(self.name, name)

    # ------------------------------------------------------------ the control API
    async def call(
        self,
        name: str,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout_s: float = control.ASK_TIMEOUT_S,
    ) -> Answer | None:
        address, token = self.node(name).control, self._tokens[name]
        return await trio.to_thread.run_sync(
            lambda: call(address, method, path, token=token, body=body, timeout_s=timeout_s),
            limiter=self._asking,
        )

    async def ask(self, name: str, path: str, kind: type[T]) -> T | None:
        """None: it does not answer, or not with that."""
        return control.understood(await self.call(name, "GET", path), kind)

    # ------------------------------------------------------------ links and switches
    @property
    def links(self) -> Document:
        """In force, or about to be."""
        return self._links

    def on_links(self, heed: Callable[[Document], None]) -> None:
        """Called with every change: clients shape their own traffic."""
        self._heeders.append(heed)

    async def change_links(self, change: Callable[[Document], Document]) -> None:
        """One change after the other: on disk first, for nodes that start, then in force on all
        that run, at one instant. Raises Unreachable: one that runs does not take it."""
        async with self._links_lock:
            home, state = self.boss.home, self.boss.load(self.name)
            self._links = await self.thread(write_links, home, state, change(self._links))
            running = [state.node(name) for name in self.running()]
            changed = await self.thread(tell_links, home, state, running, self._links, None)
            for heed in self._heeders:
                heed(self._links)
        silent = [told.node for told in changed.nodes if told.at_ms is None]
        await on_each(silent, self._tell_late)

    async def _tell_late(self, name: str) -> None:
        """The newest document, to a node that may have read the file before it was written, and not
        have answered yet. Raises Unreachable."""
        patience_s = trio.current_time() + LINKS_PATIENCE_S
        while self.process(name) is not None and name not in self.paused:
            home, state = self.boss.home, self.boss.load(self.name)
            now_ms = int(time.time() * 1000)
            changed = await self.thread(
                tell_links, home, state, [state.node(name)], self._links, now_ms
            )
            told = changed.nodes[0]
            if told.at_ms is not None:
                return
            if trio.current_time() >= patience_s:
                raise Unreachable(f"{name}: links: {told.why}")
            await trio.sleep(RETRY_S)

    def wish(self, name: str, **switches: Any) -> dict[str, Any]:
        """All the lab switches that are wanted of a node, these among them."""
        wanted = self._wishes.setdefault(name, {})
        wanted.update(switches)
        return wanted


def is_stopped(known: Process) -> bool:
    """By SIGSTOP: state T in /proc."""
    return process_state(known) == "T"


def process_state(known: Process) -> str:
    """The letter of /proc/PID/stat; "" if it is gone."""
    try:
        text = Path(f"/proc/{known.pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return fields[0] if int(fields[19]) == known.started_ticks else ""


def cpu_s(known: Process) -> float | None:
    """User and system time of the process; None: it is gone."""
    try:
        text = Path(f"/proc/{known.pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def on_each(targets: Sequence[str], act: Callable[[str], Awaitable[T]]) -> list[T]:
    """At once, results in the order of `targets`. Of several failures one is raised."""
    results: dict[str, T] = {}
    failures: list[Exception] = []

    async def one(target: str) -> None:
        try:
            results[target] = await act(target)
        except Exception as error:  # noqa: BLE001 - raised below, when the others are done
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for target in targets:
            nursery.start_soon(one, target)
    if failures:
        raise failures[0]
    return [results[target] for target in targets]
