"""What `edged cluster` does: up, down, status, kill, restart.

Each call acts under the cluster's lock and leaves the state on disk true, whatever happens: an `up`
that fails or is interrupted ends what it started and removes what it wrote.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from edged.errors import ClusterFailed, ClusterNotFound, ConfigError, Conflict

from . import probe, process
from .ports import HOST, free_ports
from .process import Process
from .spec import ClusterSpec
from .state import ClusterState, Home, NodeState, read_token
from .views import ClusterStatus, NodeCondition, NodeStatus, Progress, Report, Stopped

POLL_S: Final = 0.05
START_ATTEMPTS: Final = 3
"""Free ports may be taken between choosing and binding; thrice in a row is no accident."""
STOP_TIMEOUT_S: Final = 15.0
"""Above the drain timeout of local nodes (layout.LOCAL_DEFAULTS)."""
KILL_TIMEOUT_S: Final = 5.0
LOG_TAIL_BYTES: Final = 8 * 1024
LOG_TAIL_LINES: Final = 20
_PORT_TAKEN: Final = ("address already in use", "EADDRINUSE", "Errno 98")


def _silent(_: Progress) -> None:
    return None


class _PortTaken(Exception):
    """A node could not bind; other ports may do."""


class Supervisor:
    def __init__(self, home: Home) -> None:
        self.home = home

    # ------------------------------------------------------------ up
    def up(
        self, name: str, spec: ClusterSpec | None, *, timeout_s: float, report: Report = _silent
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
                except _PortTaken as error:
                    if attempt == START_ATTEMPTS:
                        raise ClusterFailed(f"ports were taken {attempt} times: {error}") from error
            raise AssertionError("unreachable")

    def _up_again(
        self, name: str, spec: ClusterSpec | None, timeout_s: float, report: Report
    ) -> ClusterState:
        state = self.load(name)
        if any(_runs(node) for node in state.nodes):
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
            except _PortTaken as error:
                raise ClusterFailed(f"a port of cluster {name!r} is taken: {error}") from error

    def _create(self, name: str, spec: ClusterSpec) -> ClusterState:
        # Here, as it needs cryptography, which takes longer to load than most commands to run.
        from .layout import write_cluster

        with self.home.port_lock():
            taken = {
                port
                for other in self.home.load_all()
                for node in other.nodes
                for port in node.ports
            }
            ports = iter(free_ports(3 * len(spec.nodes), taken=taken))
            nodes = tuple(
                NodeState(
                    name=node.name,
                    region=node.region,
                    target=node.target,
                    gateway=f"{HOST}:{next(ports)}",
                    control=f"{HOST}:{next(ports)}",
                    gossip=f"{HOST}:{next(ports)}",
                )
                for node in spec.nodes
            )
            state = ClusterState(1, name, time.time(), process.boot_id(), nodes)
            try:
                self.home.directory(name).mkdir(mode=0o700, parents=True)
            except OSError as error:
                raise ConfigError(f"{error.filename}: cannot be made: {error.strerror}") from error
            self.home.save(state)
        write_cluster(self.home, state, spec)
        return state

    def _start(self, state: ClusterState, timeout_s: float, report: Report) -> ClusterState:
        for node in state.nodes:
            state = self._spawn(state, node)
        names = [node.name for node in state.nodes]
        self._wait(state, names, names, timeout_s, report)
        return state

    def _spawn(self, state: ClusterState, node: NodeState) -> ClusterState:
        directory = self.home.node_directory(state.name, node.name)
        log_file = self.home.log_file(state.name, node.name)
        log_start = log_file.stat().st_size if log_file.exists() else 0
        started = process.start_node(directory / "node.toml", directory, log_file)
        state = state.with_node(
            msgspec.structs.replace(
                node, pid=started.pid, started_ticks=started.started_ticks, log_start=log_start
            )
        )
        self.home.save(state)
        return state

    def _wait(
        self,
        state: ClusterState,
        wait_for: list[str],
        see: list[str],
        timeout_s: float,
        report: Report,
    ) -> None:
        """Until each of `wait_for` is ready and believes all of `see` alive.

        Raises ClusterFailed (a node ended, or the time is over), _PortTaken."""
        deadline = time.monotonic() + timeout_s
        waiting = dict.fromkeys(wait_for, "no answer yet")
        ready: set[str] = set()
        while True:
            for name in list(waiting):
                node = state.node(name)
                if not _runs(node):
                    raise self._ended(state, node)
                missing = self._missing(state, node, see)
                if missing is not None:
                    ready.add(name)
                if missing == frozenset():
                    del waiting[name]
                else:
                    waiting[name] = _why(missing)
            report(Progress(len(wait_for), len(ready), len(wait_for) - len(waiting)))
            if not waiting:
                return
            if time.monotonic() >= deadline:
                slow = next(iter(waiting))
                raise ClusterFailed(
                    f"after {timeout_s:g} s, node {slow!r}: {waiting[slow]}\n"
                    + self._log_tail(state, state.node(slow)),
                    node=slow,
                    waiting=waiting,
                )
            time.sleep(POLL_S)

    def _missing(
        self, state: ClusterState, node: NodeState, see: list[str]
    ) -> frozenset[str] | None:
        """Whom the node does not see alive; None if it is not ready."""
        if probe.health(node.control) != "ready":
            return None
        alive = probe.alive_members(node.control, self.token(state, node))
        return None if alive is None else frozenset(see) - alive

    def _ended(self, state: ClusterState, node: NodeState) -> Exception:
        tail = self._log_tail(state, node)
        if any(sign.lower() in tail.lower() for sign in _PORT_TAKEN):
            return _PortTaken(f"node {node.name!r}: {tail}")
        return ClusterFailed(
            f"node {node.name!r} ended while starting; its log ends with\n{tail}", node=node.name
        )

    def _log_tail(self, state: ClusterState, node: NodeState) -> str:
        """The last lines of a node's log; none of a run before this one."""
        path = self.home.log_file(state.name, node.name)
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                begin = node.log_start if node.log_start <= size else 0  # a new file since
                file.seek(max(begin, size - LOG_TAIL_BYTES))
                lines = file.read(LOG_TAIL_BYTES).decode(errors="replace").splitlines()
        except OSError as error:
            return f"(no log: {error.strerror})"
        return "\n".join(lines[-LOG_TAIL_LINES:]) or "(it wrote nothing to its log)"

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
        with self.home.lock(name):
            stopped, killed = self._end_all(name, timeout_s=timeout_s)
            if keep_data:
                state = self.load(name)
                for node in state.nodes:
                    state = state.with_node(
                        msgspec.structs.replace(node, pid=None, started_ticks=None)
                    )
                self.home.save(state)
            else:
                self._remove(self.home.directory(name))
            return Stopped(name, stopped, killed, removed=not keep_data)

    def _end_all(self, name: str, *, timeout_s: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(nodes that stopped when asked, nodes and strays that were killed)."""
        try:
            state = self.load(name)
            nodes = {node.name: p for node in state.nodes if (p := _process(node))}
        except (ClusterNotFound, ConfigError):
            nodes = {}
        running = {node: p for node, p in nodes.items() if process.is_running(p)}
        for p in running.values():
            process.send_signal(p, signal.SIGTERM)
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
        except OSError as error:
            raise ClusterFailed(f"{error.filename}: cannot be removed: {error.strerror}") from error

    # ------------------------------------------------------------ one node
    def kill(self, name: str, node_name: str) -> Process:
        """SIGKILL, to the node and whatever it started; its data stay as they are.

        Raises ClusterNotFound, Conflict (it does not run), ClusterFailed."""
        with self.home.lock(name):
            state = self.load(name)
            node = state.node(node_name)
            running = _process(node)
            if running is None or not process.is_running(running):
                raise Conflict(f"node {node_name!r} does not run", node=node_name)
            self._kill(state, node, running)
            return running

    def _kill(self, state: ClusterState, node: NodeState, running: Process | None) -> None:
        directory = self.home.node_directory(state.name, node.name)
        # The node first: what it started must not outlive it by a respawn.
        first = [] if running is None else [running]
        left = process.kill_all(first, timeout_s=KILL_TIMEOUT_S)
        left += process.kill_all(process.strays(directory, first), timeout_s=KILL_TIMEOUT_S)
        if left:
            raise ClusterFailed(f"process {left[0].pid} survives SIGKILL", node=node.name)

    def restart(
        self, name: str, node_name: str, *, timeout_s: float, report: Report = _silent
    ) -> NodeState:
        """Stops the node if it runs, starts it with the same configuration, data and addresses, and
        waits until it is ready and sees all others that run.

        Raises ClusterNotFound, Conflict, ClusterFailed."""
        with self.home.lock(name):
            state = self.load(name)
            node = state.node(node_name)
            running = _process(node)
            if running is not None and process.send_signal(running, signal.SIGTERM):
                process.wait_gone([running], timeout_s=STOP_TIMEOUT_S)
            self._kill(state, node, running)
            others = [other.name for other in state.nodes if _runs(other)]
            state = self._spawn(state, state.node(node_name))
            try:
                self._wait(state, [node_name], [*others, node_name], timeout_s, report)
            except _PortTaken as error:
                raise ClusterFailed(f"a port is taken: {error}", node=node_name) from error
            return state.node(node_name)

    # ------------------------------------------------------------ looking
    def status(self, name: str) -> ClusterStatus:
        """Raises ClusterNotFound, ConfigError."""
        state = self.load(name)
        nodes = tuple(self._node_status(state, node) for node in state.nodes)
        return ClusterStatus(state.name, state.created_at_s, nodes)

    def _node_status(self, state: ClusterState, node: NodeState) -> NodeStatus:
        alive: frozenset[str] | None = None
        condition: NodeCondition
        if node.pid is None:
            condition = "stopped"
        elif not _runs(node):
            condition = "dead"
        else:
            condition = probe.health(node.control)
            if condition == "ready":
                alive = probe.alive_members(node.control, self.token(state, node))
        return NodeStatus(
            name=node.name,
            region=node.region,
            target=node.target,
            condition=condition,
            pid=node.pid if condition not in ("dead", "stopped") else None,
            gateway_url=node.gateway_url,
            control_url=node.control_url,
            gossip=node.gossip,
            alive=None if alive is None else tuple(sorted(alive)),
            directory=str(self.home.node_directory(state.name, node.name)),
            log=str(self.home.log_file(state.name, node.name)),
        )

    def load(self, name: str) -> ClusterState:
        """After a reboot, without the processes of before.

        Raises ClusterNotFound, ConfigError."""
        state = self.home.load(name)
        if state.boot_id == process.boot_id():
            return state
        nodes = tuple(
            msgspec.structs.replace(node, pid=None, started_ticks=None) for node in state.nodes
        )
        return msgspec.structs.replace(state, boot_id=process.boot_id(), nodes=nodes)

    def running_nodes(self, state: ClusterState) -> list[NodeState]:
        return [node for node in state.nodes if _runs(node)]

    def strays(self, name: str) -> int:
        """How many processes run of a cluster, also of one whose cluster.json is gone."""
        return len(process.strays(self.home.directory(name)))

    def token(self, state: ClusterState, node: NodeState) -> str:
        """Raises ConfigError."""
        return read_token(self.home.token_file(state.name, node.name))


def _process(node: NodeState) -> Process | None:
    if node.pid is None or node.started_ticks is None:
        return None
    return Process(node.pid, node.started_ticks)


def _runs(node: NodeState) -> bool:
    known = _process(node)
    return known is not None and process.is_running(known)


def _why(missing: frozenset[str] | None) -> str:
    if missing is None:
        return "is not ready"
    return f"does not see {', '.join(sorted(missing))}"
