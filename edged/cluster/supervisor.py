"""What `edged cluster` does: up, down, status, kill, pause, resume, restart, add, remove.

Each call changes a cluster under its lock, and waits for nodes without it, so that faults can be
dealt to several nodes at once. It leaves the state on disk true, whatever happens: an `up` that
fails or is interrupted ends what it started and removes what it wrote. Threads may share one.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from edged.errors import ClusterFailed, ClusterNotFound, ConfigError, Conflict

from . import process
from .ports import HOST, free_ports
from .process import Process
from .spec import ClusterSpec, NodeSpec, check_node_name, check_region, next_region
from .starting import PortTaken, Starting, is_paused, process_of, runs, silent, spawn
from .state import ROLES, ClusterState, Home, NodeState, Role, Target
from .status import cluster_status
from .views import ClusterStatus, Report, Stopped

START_ATTEMPTS: Final = 3
"""Free ports may be taken between choosing and binding; thrice in a row is no accident."""
STOP_TIMEOUT_S: Final = 15.0
"""Above the drain timeout of local nodes (layout.LOCAL_DEFAULTS)."""
KILL_TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 30.0
"""For another command that works on the cluster; no change to a single node takes so long."""


class Supervisor:
    def __init__(self, home: Home, *, patience_s: float = PATIENCE_S) -> None:
        self.home = home
        self._patience_s = patience_s

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

    def _with_ports(self, specs: Sequence[NodeSpec]) -> tuple[NodeState, ...]:
        """The port lock is held until they are saved. Raises ConfigError."""
        others = self.home.load_all()
        taken = {port for other in others for node in other.nodes for port in node.ports}
        ports = iter(free_ports(3 * len(specs), taken=taken))
        return tuple(
            NodeState(
                name=node.name,
                region=node.region,
                target=node.target,
                roles=node.roles,
                gateway=f"{HOST}:{next(ports)}",
                control=f"{HOST}:{next(ports)}",
                gossip=f"{HOST}:{next(ports)}",
            )
            for node in specs
        )

    def _start(self, state: ClusterState, timeout_s: float, report: Report) -> ClusterState:
        names = [node.name for node in state.nodes]
        starting = Starting(self.home, count=len(names), timeout_s=timeout_s, report=report)
        state = starting.start_all(state)
        starting.until_joined(state, names, names)
        return state

    @contextmanager
    def _undone_on_error(self, name: str, *, remove: bool) -> Iterator[None]:
        try:
            yield
        except BaseException:
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
            stopped, killed = self._end_all(name, timeout_s=timeout_s)
            if keep_data:
                state = self.load(name)
                for node in state.nodes:
                    state = state.with_node(_stopped(node))
                self.home.save(state)
            else:
                self._remove(self.home.directory(name))
            return Stopped(name, stopped, killed, removed=not keep_data)

    def _end_all(self, name: str, *, timeout_s: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(nodes that stopped when asked, nodes and strays that were killed)."""
        try:
            state = self.load(name)
            nodes = {node.name: p for node in state.nodes if (p := process_of(node))}
        except (ClusterNotFound, ConfigError):
            nodes = {}
        running = {node: p for node, p in nodes.items() if process.is_running(p)}
        for p in running.values():
            _ask_to_end(p)
        stubborn = set(process.wait_gone(running.values(), timeout_s=timeout_s))
        leftovers = stubborn | set(process.strays(self.home.directory(name), nodes.values()))
        survivors = process.kill_all(leftovers, timeout_s=KILL_TIMEOUT_S)
        if survivors:
            pids = ", ".join(str(p.pid) for p in survivors)
            raise ClusterFailed(f"processes {pids} of cluster {name!r} survive SIGKILL")
        names = {p: node for node, p in running.items()}
        stopped = tuple(node for node, p in running.items() if p not in stubborn)
        killed = tuple(sorted(names.get(p, f"pid {p.pid}") for p in leftovers))
        return stopped, killed

    def _remove(self, directory: Path) -> None:
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ClusterFailed(f"{error.filename}: cannot be removed: {error.strerror}") from error

    # ------------------------------------------------------------ one node
    def kill(self, name: str, node_name: str) -> Process:
        """SIGKILL, to the node and whatever it started; its data stay as they are.

        Raises ClusterNotFound, Conflict (it does not run), ClusterFailed."""
        with self._locked(name):
            state, node, running = self._running(name, node_name)
            self._kill(state, node, running)
            return running

    def pause(self, name: str, node_name: str) -> list[Process]:
        """SIGSTOP, to the node and whatever it started: to the others it is a host that hangs.

        Raises as `kill`."""
        with self._locked(name):
            _, _, running = self._running(name, node_name)
            return process.pause_all(self.home.node_directory(name, node_name), running)

    def resume(self, name: str, node_name: str) -> list[Process]:
        """SIGCONT to the same; nothing happens to a node that is not paused. Raises as `kill`."""
        with self._locked(name):
            _, _, running = self._running(name, node_name)
            return process.resume_all(self.home.node_directory(name, node_name), running)

    def _running(self, name: str, node_name: str) -> tuple[ClusterState, NodeState, Process]:
        """Raises ClusterNotFound, Conflict."""
        state = self.load(name)
        node = state.node(node_name)
        running = process_of(node)
        if running is None or not process.is_running(running):
            raise Conflict(f"node {node_name!r} does not run", node=node_name)
        return state, node, running

    def _kill(self, state: ClusterState, node: NodeState, running: Process | None) -> None:
        directory = self.home.node_directory(state.name, node.name)
        # The node first: what it started must not outlive it by a respawn.
        first = [] if running is None else [running]
        left = process.kill_all(first, timeout_s=KILL_TIMEOUT_S)
        left += process.kill_all(process.strays(directory, first), timeout_s=KILL_TIMEOUT_S)
        if left:
            raise ClusterFailed(f"process {left[0].pid} survives SIGKILL", node=node.name)

    def restart(
        self, name: str, node_name: str, *, timeout_s: float, report: Report = silent
    ) -> NodeState:
        """Stops the node if it runs, starts it with the same configuration, data and addresses, and
        waits until it is ready and sees all others that run and that it can reach.

        Raises ClusterNotFound, Conflict, ClusterFailed."""
        before = self._drain(name, node_name)
        with self._locked(name):
            state = self.load(name)
            node = state.node(node_name)
            if process_of(node) not in (None, before) and runs(node):
                raise Conflict(f"node {node_name!r} was started meanwhile", node=node_name)
            self._kill(state, node, before)
            state = spawn(self.home, state, node)
        self._await(state, node_name, timeout_s, report)
        return state.node(node_name)

    def _drain(self, name: str, node_name: str) -> Process | None:
        """Its process, asked to end, and given the time."""
        with self._locked(name):
            known = process_of(self.load(name).node(node_name))
            if known is not None:
                _ask_to_end(known)
        if known is not None:
            process.wait_gone([known], timeout_s=STOP_TIMEOUT_S)
        return known

    def _await(self, state: ClusterState, node: str, timeout_s: float, report: Report) -> None:
        """Until one node is ready, and sees those of the others that it can."""
        starting = Starting(self.home, count=1, timeout_s=timeout_s, report=report)
        try:
            starting.until_ready(state, node)
        except PortTaken as error:
            raise ClusterFailed(f"a port is taken: {error}", node=node) from error
        others = [each.name for each in state.nodes if runs(each) and not is_paused(each)]
        starting.until_joined(state, [node], [node, *others])

    # ------------------------------------------------------------ growing and shrinking
    def plan(
        self,
        name: str,
        *,
        node: str | None = None,
        region: str | None = None,
        target: Target = "native",
        roles: tuple[Role, ...] = (),
    ) -> NodeSpec:
        """What `add` takes: by default the next number, and the region that lacks one most.

        Raises ClusterNotFound, ConfigError."""
        from .shaping import topology

        state = self.load(name)
        given, file = [each.region for each in state.nodes], topology(self.home, state)
        fewest = min(dict.fromkeys(given), key=given.count)
        chosen = region or (next_region(file, given) if file else fewest)
        check_region(chosen, file, f"cluster {name!r}")
        check_node_name(chosen_name := node or _next_name(state), "edged cluster add")
        return NodeSpec(chosen_name, chosen, target, roles or ROLES)

    def add(
        self, name: str, spec: NodeSpec, *, timeout_s: float, report: Report = silent
    ) -> NodeState:
        """A new node for a cluster that runs, until it is ready and sees all others. If it fails,
        nothing of it stays.

        Raises ClusterNotFound, Conflict (no node runs, or one has that name), ConfigError,
        ClusterFailed."""
        with self._locked(name):
            state = self._join(name, spec)
        try:
            process.compile_ahead()
            with self._locked(name):
                state = spawn(self.home, self.load(name), state.node(spec.name))
            self._await(state, spec.name, timeout_s, report)
        except BaseException:
            self._forget(name, spec.name)
            raise
        return state.node(spec.name)

    def _join(self, name: str, spec: NodeSpec) -> ClusterState:
        """Writes a node's files and takes it into the state. The lock is held."""
        from .layout import SEEDS_MAX, write_node

        state = self.load(name)
        if any(node.name == spec.name for node in state.nodes):
            raise Conflict(f"cluster {name!r} has a node {spec.name!r} already", node=spec.name)
        seeds = [node.gossip for node in state.nodes if runs(node)][:SEEDS_MAX]
        if not seeds:
            raise Conflict(f"no node of cluster {name!r} runs, so nothing can be joined")
        with self.home.port_lock():
            fresh = self._with_ports([spec])
            state = msgspec.structs.replace(state, nodes=(*state.nodes, *fresh))
            self.home.save(state)
        try:
            write_node(self.home, state, fresh[0], seeds)
        except BaseException:
            self._take_out(state, spec.name)
            raise
        return state

    def remove(self, name: str, node_name: str) -> bool:
        """The node leaves gracefully, if it runs, and its files go with it. Its copies are made
        elsewhere by the others; a deploy that nobody else has is lost.

        Returns whether it ended by itself. Raises ClusterNotFound, Conflict, ClusterFailed."""
        state = self.load(name)
        state.node(node_name)
        if len(state.nodes) == 1:
            raise Conflict(f"node {node_name!r} is the last one: edged cluster down {name}")
        known = self._drain(name, node_name)
        graceful = known is not None and not process.is_running(known)
        self._forget(name, node_name)
        return graceful

    def _forget(self, name: str, node_name: str) -> None:
        with self._locked(name):
            state = self.load(name)
            node = state.node(node_name)
            self._kill(state, node, process_of(node))
            self._take_out(state, node_name)

    def _take_out(self, state: ClusterState, node_name: str) -> None:
        left = tuple(node for node in state.nodes if node.name != node_name)
        self.home.save(msgspec.structs.replace(state, nodes=left))
        self._remove(self.home.node_directory(state.name, node_name))

    # ------------------------------------------------------------ looking
    def status(self, name: str) -> ClusterStatus:
        """Raises ClusterNotFound, ConfigError."""
        return cluster_status(self.home, self.load(name))

    def load(self, name: str) -> ClusterState:
        """After a reboot, without the processes of before.

        Raises ClusterNotFound, ConfigError."""
        state = self.home.load(name)
        if state.boot_id == process.boot_id():
            return state
        nodes = tuple(_stopped(node) for node in state.nodes)
        return msgspec.structs.replace(state, boot_id=process.boot_id(), nodes=nodes)

    def running_nodes(self, state: ClusterState) -> list[NodeState]:
        """Paused ones too."""
        return [node for node in state.nodes if runs(node)]

    def strays(self, name: str) -> int:
        """How many processes run of a cluster, also of one whose cluster.json is gone."""
        return len(process.strays(self.home.directory(name)))

    def token(self, state: ClusterState, node: NodeState) -> str:
        """Raises ConfigError."""
        return self.home.token(state.name, node.name)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Raises Conflict."""
        with self.home.lock(name, patience_s=self._patience_s):
            yield


def _stopped(node: NodeState) -> NodeState:
    return msgspec.structs.replace(node, pid=None, started_ticks=None)


def _next_name(state: ClusterState) -> str:
    taken = {node.name for node in state.nodes}
    return next(name for at in count(1) if (name := f"n{at}") not in taken)


def _ask_to_end(known: Process) -> None:
    """Also one that is paused."""
    process.send_signal(known, signal.SIGTERM)
    process.send_signal(known, signal.SIGCONT)
