"""Which node a command talks to.

--control URL (or EDGED_CONTROL) names any node; its token comes from --token-file, EDGED_TOKEN or
the file EDGED_TOKEN_FILE, the first of these that is given.
Otherwise a node of a local cluster: --node of --cluster, where the default cluster is the newest
one that runs and the default node the first of it that runs and has the role control.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from edged.errors import ClusterNotFound, ConfigError

from .client import UPLOAD_TIMEOUT_S, Client
from .common import NodeProblem

if TYPE_CHECKING:
    from edged.cluster.state import ClusterState, NodeState
    from edged.cluster.supervisor import Supervisor


ASKED_MAX: Final = 16
"""Nodes at a time."""


class Target(NamedTuple):
    name: str
    """The node's name, or its URL where that is all that is known."""
    control_url: str
    token: str
    gateway_url: str
    """"" where only the node itself knows it."""

    def control(self, *, patience_s: float = UPLOAD_TIMEOUT_S) -> Client:
        """`patience_s`: between two bytes of an answer."""
        return Client(
            self.control_url,
            name=self.name,
            token=self.token,
            what="--control",
            timeout_s=patience_s,
        )

    def gateway(self) -> Client:
        """Asks the node for its gateway's address if need be. Raises NodeProblem, Unreachable."""
        url = self.gateway_url
        if not url:
            import msgspec

            from edged.interfaces import StatusView

            data = self.control().call("GET", "/v1/status")
            url = msgspec.json.decode(data, type=StatusView).gateway_url
        return Client(url, name=self.name, what="--gateway", timeout_s=UPLOAD_TIMEOUT_S)


def supervisor() -> Supervisor:
    from edged.cluster.state import Home, state_root
    from edged.cluster.supervisor import Supervisor

    return Supervisor(Home(state_root()))


def find_target(
    *, node: str | None, cluster: str | None, control: str | None, token_file: str | None
) -> Target:
    """Raises ConfigError, ClusterNotFound."""
    if control and (node is None and cluster is None):
        # EDGED_CONTROL is a default, and a node that is named beats it; two names are a mistake.
        return Target(control, control.rstrip("/"), read_token(token_file), "")
    if control and control != os.environ.get("EDGED_CONTROL"):
        raise ConfigError("--control names a node already: leave out --node and --cluster")
    boss = supervisor()
    state = boss.load(cluster) if cluster else newest_running(boss)
    found = state.node(node) if node else _first_running(boss, state)
    return Target(found.name, found.control_url, boss.token(state, found), found.gateway_url)


def names_all(
    *, node: str | None, cluster: str | None, control: str | None, token_file: str | None
) -> bool:
    """Whether a local cluster is meant, and none of its nodes more than others."""
    return node is None and (control is None or cluster is not None) and token_file is None


def ask_all(cluster: str | None, path: str) -> list[tuple[NodeState, bytes | Exception]]:
    """Every running node's answer to a GET, or why there is none. Raises ClusterNotFound."""
    from concurrent.futures import ThreadPoolExecutor

    from edged.errors import EdgedError

    boss = supervisor()
    state = boss.load(cluster) if cluster else newest_running(boss)

    def ask(node: NodeState) -> tuple[NodeState, bytes | Exception]:
        target = Target(node.name, node.control_url, boss.token(state, node), node.gateway_url)
        try:
            return node, target.control().call("GET", path)
        except (EdgedError, NodeProblem) as error:
            return node, error

    with ThreadPoolExecutor(ASKED_MAX) as threads:
        return list(threads.map(ask, boss.running_nodes(state)))


def existing(boss: Supervisor, name: str | None) -> str:
    """The cluster meant where none is named. Raises ClusterNotFound."""
    if name:
        return name
    from edged.cluster.state import check_cluster_name

    states = boss.home.load_all()
    running = [state for state in states if boss.running_nodes(boss.load(state.name))]
    for found in (*(state.name for state in (*running, *states)), *boss.home.damaged()):
        return check_cluster_name(found)
    raise ClusterNotFound("there is no local cluster: edged cluster up makes one")


def newest_running(boss: Supervisor) -> ClusterState:
    """Raises ClusterNotFound."""
    for state in boss.home.load_all():
        if boss.running_nodes(boss.load(state.name)):
            return boss.load(state.name)
    raise ClusterNotFound(
        "no local cluster is running: start one with edged cluster up,"
        " or name a node with --control URL --token-file FILE"
    )


def _first_running(boss: Supervisor, state: ClusterState) -> NodeState:
    """One that answers, and can sign a deploy, if there is such a one."""
    from edged.cluster.starting import is_paused

    running = boss.running_nodes(state)
    if not running:
        raise ClusterNotFound(
            f"no node of cluster {state.name!r} is running:"
            f" edged cluster up --name {state.name} starts it again"
        )
    fit = [node for node in running if "control" in node.roles and not is_paused(node)]
    return (fit or running)[0]


def read_token(token_file: str | None) -> str:
    token = "" if token_file else os.environ.get("EDGED_TOKEN", "").strip()
    source = "EDGED_TOKEN"
    if not token:
        source = "--token-file" if token_file else "EDGED_TOKEN_FILE"
        path = token_file or os.environ.get("EDGED_TOKEN_FILE", "")
        if not path:
            raise ConfigError(
                "no control token: give --token-file FILE, or set EDGED_TOKEN (the token itself)"
                " or EDGED_TOKEN_FILE"
            )
        try:
            token = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} {path}: cannot be read: {error}") from error
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"{source} holds no control token: one line of printable ASCII; --token-file FILE"
            " names another"
        )
    return token
