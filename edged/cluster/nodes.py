"""What is done to single nodes of a cluster, and to the links between them.

Each call changes the cluster under its lock, and waits for nodes without it, so that faults can be
dealt to several nodes at once. Threads may share one.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edged.errors import ClusterFailed, Conflict

from . import process
from .ports import HOST, free_ports
from .process import Process
from .signals import undisturbed
from .spec import NodeSpec, check_node_name, check_region, next_region
from .starting import PortTaken, Starting, is_paused, process_of, runs, silent, spawn
from .state import ROLES, ClusterState, Home, NodeState, Role, Target
from .views import LinksChanged, Report

if TYPE_CHECKING:
    from edged.links import Document

STOP_TIMEOUT_S: Final = 15.0
"""Above the drain timeout of local nodes (layout.LOCAL_DEFAULTS)."""
KILL_TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 30.0
"""For another command that works on the cluster; no change to a single node takes so long."""


LOOKS_S: Final = (0.023, 0.037, 0.051, 0.019)
"""Between looks at a node that is stopped, of no common period."""


class Nodes:
    def __init__(self, home: Home, *, patience_s: float = PATIENCE_S) -> None:
        self.home = home
        self._patience_s = patience_s

    def load(self, name: str) -> ClusterState:
        """After a reboot, without the processes of before.

        Raises ClusterNotFound, ConfigError."""
        state = self.home.load(name)
        if state.boot_id == process.boot_id():
            return state
        nodes = tuple(stopped(node) for node in state.nodes)
        return msgspec.structs.replace(state, boot_id=process.boot_id(), nodes=nodes)

    def running_nodes(self, state: ClusterState) -> list[NodeState]:
        """Paused ones too."""
        return [node for node in state.nodes if runs(node)]

    def token(self, state: ClusterState, node: NodeState) -> str:
        """Raises ConfigError."""
        return self.home.token(state.name, node.name)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Raises Conflict."""
        with self.home.lock(name, patience_s=self._patience_s):
            yield

    # ------------------------------------------------------------ signals
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
        """SIGCONT to the same, and the links document that it may have missed; nothing happens to
        a node that is not paused. Raises as `kill`."""
        with self._locked(name):
            state, node, running = self._running(name, node_name)
            resumed = process.resume_all(self.home.node_directory(name, node_name), running)
            self._tell_links(state, [node])
            return resumed

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
                ask_to_end(known)
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
        with self._locked(state.name):  # or a change of links could be overtaken by the one before
            self._tell_links(state, [state.node(node)])

        def others(_: str) -> Collection[str]:
            """Those of now: faults go on while this one starts."""
            now = self.load(state.name)
            names = dict.fromkeys((node, *(each.name for each in _attentive(now))))
            return self._reachable(now, list(names))[node]

        starting.until_joined(state, [node], others)

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
            with undisturbed():
                self._forget(name, spec.name)
            raise
        return state.node(spec.name)

    def _join(self, name: str, spec: NodeSpec) -> ClusterState:
        """Writes a node's files and takes it into the state. The lock is held."""
        from .layout import SEEDS_MAX, node_toml, write_node
        from .shaping import read_links, write_links

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
            if state.lab:
                write_links(self.home, state, read_links(self.home, state))
            write_node(self.home, state, fresh[0], node_toml(self.home, state, fresh[0], seeds))
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

    def _remove(self, directory: Path) -> None:
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ClusterFailed(f"{error.filename}: cannot be removed: {error.strerror}") from error

    def _reachable(
        self, state: ClusterState, names: Sequence[str]
    ) -> Mapping[str, Collection[str]]:
        """For each of these nodes those it can be expected to see."""
        if not state.lab:
            return dict.fromkeys(names, names)
        from .shaping import reachable

        return reachable(self.home, state, names)

    # ------------------------------------------------------------ links
    def links(self, name: str) -> Document:
        """Raises ClusterNotFound, Conflict (its nodes do not shape their traffic), ConfigError."""
        from .shaping import read_links

        return read_links(self.home, self.load(name))

    def set_links(self, name: str, document: Document, at_ms: int | None = None) -> LinksChanged:
        """As `change_links`, whatever was there before: a file that cannot be read is mended so."""
        return self._put_links(name, lambda _: document, at_ms)

    def change_links(
        self, name: str, change: Callable[[Document], Document], at_ms: int | None = None
    ) -> LinksChanged:
        """Puts into links.json what `change` makes of the document, and has all nodes that run
        take it at one instant: `at_ms` of Unix time, else a moment from now, which it waits for.
        The answer tells who did not.

        Raises ClusterNotFound, Conflict, ConfigError."""
        from .shaping import read_links

        return self._put_links(name, lambda state: change(read_links(self.home, state)), at_ms)

    def _put_links(
        self, name: str, make: Callable[[ClusterState], Document], at_ms: int | None
    ) -> LinksChanged:
        from .shaping import check_shaping, tell_links, write_links

        with self._locked(name):
            state = self.load(name)
            check_shaping(state)
            whole = write_links(self.home, state, make(state))
            nodes = _attentive(state)
            # Under the lock, so that nodes and file agree on which change was the last.
            done = tell_links(self.home, state, nodes, whole, at_ms)
            paused = (each.name for each in state.nodes if runs(each) and each not in nodes)
            return msgspec.structs.replace(done, paused=tuple(paused))

    def link_views(self, name: str) -> list[tuple[str, bytes | None]]:
        """What each node that runs says of its links (GET /v1/links); None: it does not.

        Raises ClusterNotFound, ConfigError."""
        from .shaping import link_views

        state = self.load(name)
        return link_views(self.home, state, _attentive(state))

    def _tell_links(self, state: ClusterState, nodes: Sequence[NodeState]) -> None:
        """What is in links.json, to nodes that may have missed it while they were not to be asked;
        one that does not answer is found out by whoever waits for it."""
        if state.lab:
            from .shaping import read_links, tell_links

            tell_links(self.home, state, nodes, read_links(self.home, state), at_ms=0)


def _attentive(state: ClusterState) -> list[NodeState]:
    """Those that run and can be asked. One that is stopped and let go on by turns, to seem slow, is
    not taken for paused: it is looked at again."""
    running = [node for node in state.nodes if runs(node)]
    paused = [node for node in running if is_paused(node)]
    for wait_s in LOOKS_S:
        if paused:
            time.sleep(wait_s)
            paused = [node for node in paused if is_paused(node)]
    return [node for node in running if node not in paused]


def stopped(node: NodeState) -> NodeState:
    return msgspec.structs.replace(node, pid=None, started_ticks=None)


def _next_name(state: ClusterState) -> str:
    taken = {node.name for node in state.nodes}
    return next(name for at in count(1) if (name := f"n{at}") not in taken)


def ask_to_end(known: Process) -> None:
    """Also one that is paused."""
    process.send_signal(known, signal.SIGTERM)
    process.send_signal(known, signal.SIGCONT)
