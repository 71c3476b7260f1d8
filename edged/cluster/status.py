"""How the nodes of a cluster are, asked of all at once: one that hangs costs the others no time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from . import probe
from .starting import is_paused, runs
from .state import ClusterState, Home, NodeState
from .views import ClusterStatus, NodeCondition, NodeStatus

PROBES_MAX: Final = 16


def cluster_status(home: Home, state: ClusterState) -> ClusterStatus:
    """Raises ConfigError."""
    with ThreadPoolExecutor(min(len(state.nodes), PROBES_MAX)) as pool:
        nodes = tuple(pool.map(lambda node: node_status(home, state, node), state.nodes))
    return ClusterStatus(state.name, state.created_at_s, state.lab, nodes)


def node_status(home: Home, state: ClusterState, node: NodeState) -> NodeStatus:
    alive: frozenset[str] | None = None
    condition = _condition(node)
    if condition == "ready":
        alive = probe.alive_members(node.control, home.token(state.name, node.name))
    return NodeStatus(
        name=node.name,
        region=node.region,
        target=node.target,
        roles=node.roles,
        condition=condition,
        pid=node.pid if condition not in ("dead", "stopped") else None,
        gateway_url=node.gateway_url,
        control_url=node.control_url,
        gossip=node.gossip,
        alive=None if alive is None else tuple(sorted(alive)),
        directory=str(home.node_directory(state.name, node.name)),
        log=str(home.log_file(state.name, node.name)),
    )


def _condition(node: NodeState) -> NodeCondition:
    if node.pid is None:
        return "stopped"
    if not runs(node):
        return "dead"
    return "paused" if is_paused(node) else probe.health(node.control)
