"""What is done to a whole local cluster: up, down, status. Its nodes are nodes.py's.

An `up` that fails or is interrupted ends what it started and removes what it wrote; `down` ends all
there is, also where the state on disk is damaged or was never written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from edged.errors import ClusterFailed, ClusterNotFound, ConfigError, Conflict

from . import process
from .nodes import KILL_TIMEOUT_S, STOP_TIMEOUT_S, Nodes, ask_to_end, stopped
from .signals import undisturbed
from .spec import ClusterSpec
from .starting import PortTaken, Starting, process_of, runs, silent
from .state import ClusterState
from .status import cluster_status
from .views import ClusterStatus, Report, Stopped

START_ATTEMPTS: Final = 3
"""Free ports may be taken between choosing and binding; thrice in a row is no accident."""


class Supervisor(Nodes):
    # ------------------------------------------------------------ up
    def up(
        self, name: str, spec: ClusterSpec | None, *, timeout_s: float, report: Report = silent
    ) -> ClusterState:
        """Makes and starts a cluster, until all see all. With no `spec`, starts again one that
        `down(keep_data=True)` or crashes have left.

        Raises Conflict (runs already, or exists and a spec was given), ClusterNotFound,
        ConfigError, ClusterFailed with the tail of the failing node's log."""
        with self.home.lock(name):
            if self.home.exists(name):
                return self._up_again(name, spec, timeout_s, report)
            if spec is None:
                raise ClusterNotFound(f"no local cluster {name!r} to start again", cluster=name)
            for attempt in range(1, START_ATTEMPTS + 1):
                try:
                    with self._undone_on_error(name, remove=True):
                        return self._start(self._create(name, spec), timeout_s, report)
                except PortTaken as error:
                    if attempt == START_ATTEMPTS:
                        raise ClusterFailed(f"ports were taken {attempt} times: {error}") from error
            raise AssertionError("unreachable")

    def _up_again(
        self, name: str, spec: ClusterSpec | None, timeout_s: float, report: Report
    ) -> ClusterState:
        state = self.load(name)
        if any(runs(node) for node in state.nodes):
            raise Conflict(
                f"cluster {name!r} runs already: edged cluster down {name}, or another --name"
            )
        if spec is not None:
            raise Conflict(
                f"cluster {name!r} exists, stopped: edged cluster up --name {name} without other"
                f" options starts it again, edged cluster down {name} removes it"
            )
        process.kill_all(process.strays(self.home.directory(name)), timeout_s=KILL_TIMEOUT_S)
        with self._undone_on_error(name, remove=False):
            try:
                return self._start(state, timeout_s, report)
            except PortTaken as error:
                raise ClusterFailed(f"a port of cluster {name!r} is taken: {error}") from error

    def _create(self, name: str, spec: ClusterSpec) -> ClusterState:
        # Here, as it needs cryptography, which takes longer to load than most commands to run.
        from .layout import write_cluster

        with self.home.port_lock():
            nodes = self._with_ports(spec.nodes)
            state = ClusterState(
                1, name, time.time(), process.boot_id(), nodes, lab=spec.lab, config=spec.config
            )
            try:
                self.home.directory(name).mkdir(mode=0o700, parents=True)
            except OSError as error:
                raise ConfigError(f"{error.filename}: cannot be made: {error.strerror}") from error
            self.home.save(state)
        write_cluster(self.home, state, spec)
        return state

    def _start(self, state: ClusterState, timeout_s: float, report: Report) -> ClusterState:
        starting = Starting(self.home, count=len(state.nodes), timeout_s=timeout_s, report=report)
        state = starting.start_all(state)
        names = [node.name for node in state.nodes]
        starting.until_joined(state, names, self._reachable(state, names).__getitem__)
        return state

    @contextmanager
    def _undone_on_error(self, name: str, *, remove: bool) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with undisturbed():
                self._end_all(name, timeout_s=0.0)
                if remove:
                    shutil.rmtree(self.home.directory(name), ignore_errors=True)
            raise

    # ------------------------------------------------------------ down
    def down(
        self, name: str, *, keep_data: bool = False, timeout_s: float = STOP_TIMEOUT_S
    ) -> Stopped:
        """Ends all nodes, gracefully where they can, and removes the cluster.

        Works on a damaged state file too: processes are found by their environment.
        Raises ClusterNotFound, Conflict, ClusterFailed (a process survives SIGKILL)."""
        try:
            return self._down(name, keep_data=keep_data, timeout_s=timeout_s)
        finally:
            self.home.tidy()

    def _down(self, name: str, *, keep_data: bool, timeout_s: float) -> Stopped:
        if not self.home.exists(name):
            self.home.load(name)  # raises ClusterNotFound, naming those there are
        with self._locked(name):
            ended, killed = self._end_all(name, timeout_s=timeout_s)
            if keep_data:
                state = self.load(name)
                for node in state.nodes:
                    state = state.with_node(stopped(node))
                self.home.save(state)
            else:
                self._remove(self.home.directory(name))
            return Stopped(name, ended, killed, removed=not keep_data)

    def _end_all(self, name: str, *, timeout_s: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(nodes that stopped when asked, nodes and strays that were killed)."""
        try:
            state = self.load(name)
            nodes = {node.name: p for node in state.nodes if (p := process_of(node))}
        except (ClusterNotFound, ConfigError):
            nodes = {}
        running = {node: p for node, p in nodes.items() if process.is_running(p)}
        for p in running.values():
            ask_to_end(p)
        stubborn = set(process.wait_gone(running.values(), timeout_s=timeout_s))
        leftovers = stubborn | set(process.strays(self.home.directory(name), nodes.values()))
        survivors = process.kill_all(leftovers, timeout_s=KILL_TIMEOUT_S)
        if survivors:
            pids = ", ".join(str(p.pid) for p in survivors)
            raise ClusterFailed(f"processes {pids} of cluster {name!r} survive SIGKILL")
        names = {p: node for node, p in running.items()}
        ended = tuple(node for node, p in running.items() if p not in stubborn)
        killed = tuple(sorted(names.get(p, f"pid {p.pid}") for p in leftovers))
        return ended, killed

    # ------------------------------------------------------------ looking
    def status(self, name: str) -> ClusterStatus:
        """Raises ClusterNotFound, ConfigError."""
        return cluster_status(self.home, self.load(name))

    def strays(self, name: str) -> int:
        """How many processes run of a cluster, also of one whose cluster.json is gone."""
        return len(process.strays(self.home.directory(name)))
