"""Starting nodes: in waves, until each is ready and all see all.

A wave keeps the cores busy and no more: nodes that are up answer those that come, and none is
suspected because a hundred interpreters start at once. The run file that a node writes tells that
it is ready, which costs it nothing; its operator API tells whom it sees, and is asked seldom.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from typing import Final

import msgspec

from edged.errors import ClusterFailed

from . import probe, process
from .ports import Held
from .process import Process
from .state import ClusterState, Home, NodeState
from .views import Progress, Report

READY_POLL_S: Final = 0.03
ASK_FIRST_S: Final = 0.05
ASK_MAX_S: Final = 0.4
"""Between two questions to the same node, which doubles from the first."""
WAVE_EXTRA: Final = 2
"""Nodes that start at once beyond one for each core: they wait for disks and peers at times."""
RUN_FILE_BYTES_MAX: Final = 64 * 1024
LOG_TAIL_BYTES: Final = 8 * 1024
LOG_TAIL_LINES: Final = 20
_PORT_TAKEN: Final = ("address already in use", "EADDRINUSE", "Errno 98")


class PortTaken(Exception):
    """A node could not bind; other ports may do."""


class _RunFile(msgspec.Struct, frozen=True):
    pid: int


_decode_run_file: Final = msgspec.json.Decoder(_RunFile).decode
"""Made here, not at each use: threads may start nodes (probe.py says why)."""


def silent(_: Progress) -> None:
    return None


def spawn(home: Home, state: ClusterState, node: NodeState) -> ClusterState:
    """Starts its process and remembers it."""
    directory = home.node_directory(state.name, node.name)
    log_file = home.log_file(state.name, node.name)
    log_start = log_file.stat().st_size if log_file.exists() else 0
    home.run_file(state.name, node.name).unlink(missing_ok=True)  # of a node that was killed
    started = process.start_node(directory / "node.toml", directory, log_file)
    state = state.with_node(
        msgspec.structs.replace(
            node, pid=started.pid, started_ticks=started.started_ticks, log_start=log_start
        )
    )
    home.save(state)
    return state


def process_of(node: NodeState) -> Process | None:
    if node.pid is None or node.started_ticks is None:
        return None
    return Process(node.pid, node.started_ticks)


def runs(node: NodeState) -> bool:
    """Also while it is paused."""
    known = process_of(node)
    return known is not None and process.is_running(known)


def is_paused(node: NodeState) -> bool:
    known = process_of(node)
    return known is not None and process.is_paused(known)


class Starting:
    """One wait, with one deadline, for some nodes of a cluster."""

    def __init__(self, home: Home, *, count: int, timeout_s: float, report: Report) -> None:
        self._home = home
        self._count = count
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._report = report

    def start_all(self, state: ClusterState) -> ClusterState:
        """Every node of `state`, until all are ready. Raises as `until_ready`."""
        with closing(Held()) as held:
            for node in state.nodes:
                if (port := held.hold(node.ports)) is not None:
                    raise PortTaken(f"node {node.name!r}: port {port}")
            process.compile_ahead()
            return self._in_waves(state, held)

    def _in_waves(self, state: ClusterState, held: Held) -> ClusterState:
        size = len(os.sched_getaffinity(0)) + WAVE_EXTRA
        pending = deque(node.name for node in state.nodes)
        wave: list[str] = []
        while pending or wave:
            while pending and len(wave) < size:
                node = state.node(pending[0])
                held.release(node.ports)
                state = spawn(self._home, state, node)
                wave.append(pending.popleft())
            wave = self._still_starting(state, wave)
            self._tell(ready=self._count - len(wave) - len(pending))
            if wave:
                self._pause(READY_POLL_S, state, state.node(wave[0]), "is not ready")
        return state

    def until_ready(self, state: ClusterState, name: str) -> None:
        """Raises ClusterFailed (it ended, or the time is over), PortTaken."""
        while self._still_starting(state, [name]):
            self._tell()
            self._pause(READY_POLL_S, state, state.node(name), "is not ready")

    def until_joined(
        self, state: ClusterState, names: Sequence[str], others: Callable[[str], Collection[str]]
    ) -> None:
        """Each of `names` believes alive whom `others` then says. They converge at about the same
        time, so when the first does the others need hardly be asked twice.

        Raises as `until_ready`."""
        for joined, name in enumerate(names):
            node, wait_s = state.node(name), ASK_FIRST_S
            self._tell(ready=self._count, joined=joined)
            while missing := self._missing(state, node, frozenset(others(name))):
                for each in names:
                    self._check_runs(state, state.node(each))
                self._pause(wait_s, state, node, f"does not see {', '.join(sorted(missing))}")
                wait_s = min(2 * wait_s, ASK_MAX_S)
        self._tell(ready=self._count, joined=len(names))

    def _tell(self, *, ready: int = 0, joined: int = 0) -> None:
        self._report(Progress(self._count, ready, joined))

    def _still_starting(self, state: ClusterState, names: list[str]) -> list[str]:
        left: list[str] = []
        for name in names:
            node = state.node(name)
            self._check_runs(state, node)
            if not self._is_ready(state, node):
                left.append(name)
        return left

    def _is_ready(self, state: ClusterState, node: NodeState) -> bool:
        """Its run file is that of its process."""
        try:
            with self._home.run_file(state.name, node.name).open("rb") as file:
                found = _decode_run_file(file.read(RUN_FILE_BYTES_MAX))
        except (OSError, msgspec.MsgspecError):
            return False
        return found.pid == node.pid

    def _missing(
        self, state: ClusterState, node: NodeState, wanted: frozenset[str]
    ) -> frozenset[str]:
        """Whom the node does not see alive; all, if it does not answer."""
        alive = probe.alive_members(node.control, self._home.token(state.name, node.name))
        return wanted if alive is None else wanted - alive

    def _check_runs(self, state: ClusterState, node: NodeState) -> None:
        if runs(node):
            return
        tail = log_tail(self._home, state, node)
        if any(sign.lower() in tail.lower() for sign in _PORT_TAKEN):
            raise PortTaken(f"node {node.name!r}: {tail}")
        raise ClusterFailed(
            f"node {node.name!r} ended while starting; its log ends with\n{tail}", node=node.name
        )

    def _pause(self, seconds: float, state: ClusterState, node: NodeState, why: str) -> None:
        """Waits so long, if there is time left. `node` and `why`: whom the wait is for."""
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            tail = log_tail(self._home, state, node)
            raise ClusterFailed(
                f"after {self._timeout_s:g} s, node {node.name!r}: {why}\n{tail}", node=node.name
            )
        time.sleep(min(seconds, left_s))


def log_tail(home: Home, state: ClusterState, node: NodeState) -> str:
    """The last lines of a node's log; none of a run before this one."""
    path = home.log_file(state.name, node.name)
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = node.log_start if node.log_start <= size else 0  # a new file since
            file.seek(max(begin, size - LOG_TAIL_BYTES))
            lines = file.read(LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError as error:
        return f"(no log: {error.strerror})"
    return "\n".join(lines[-LOG_TAIL_LINES:]) or "(it wrote nothing to its log)"
