"""The links document of a cluster: kept in links.json, which nodes read when they start.

Imported where it is needed: most commands have nothing to do with links.
"""

from __future__ import annotations

import msgspec

from edged.errors import Conflict
from edged.files import write_file
from edged.links import Document, NodeAt, encode_document, load_document
from edged.topology import Topology, topology_of

from .state import ClusterState, Home


def read_links(home: Home, state: ClusterState) -> Document:
    """Raises Conflict (its nodes do not shape their traffic), ConfigError."""
    if not state.lab:
        raise Conflict(
            f"the nodes of cluster {state.name!r} do not shape their traffic: make a cluster with"
            " edged cluster up --topology FILE, or --lab"
        )
    return load_document(home.links_file(state.name))


def write_links(home: Home, state: ClusterState, document: Document) -> Document:
    """With the nodes of `state`, which it returns. Raises ConfigError."""
    nodes = {node.name: NodeAt(node.region, node.gossip) for node in state.nodes}
    whole = msgspec.structs.replace(document, nodes=nodes)
    write_file(home.links_file(state.name), encode_document(whole), secret=False)
    return whole


def topology(home: Home, state: ClusterState) -> Topology | None:
    """The cluster's, if it has one. Raises ConfigError."""
    if not state.lab:
        return None
    file = read_links(home, state).topology
    return None if file is None else topology_of(file, name=state.name)
