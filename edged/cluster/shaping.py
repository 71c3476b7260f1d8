"""The links document of a cluster: kept in links.json, and told to all its nodes at once.

Nodes read the file when they start, so one that was down, or is paused, has it when it is back.
Imported where it is needed: most commands have nothing to do with links.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from edged.errors import ClusterNotFound, ConfigError, Conflict
from edged.files import write_file
from edged.links import Document, Links, NodeAt, encode_document, load_document, node, others
from edged.topology import ANY, NODE, End, Topology, topology_of

from . import probe
from .state import ClusterState, Home, NodeState
from .views import LinksChanged, LinksTold

LEAD_MS: Final = 300
"""From now to the instant when all switch: more than asking a hundred busy nodes takes."""
PUTS_MAX: Final = 32


class _Answer(msgspec.Struct, frozen=True):
    at_ms: int


_decode_answer: Final = msgspec.json.Decoder(_Answer).decode
_PREPARED: Final = msgspec.json.Decoder(Document)
"""So that threads which restart nodes are not the first to read a document (probe.py says why)."""


# ---------------------------------------------------------------- the file
def read_links(home: Home, state: ClusterState) -> Document:
    """Raises Conflict (its nodes do not shape their traffic), ConfigError."""
    check_shaping(state)
    return load_document(home.links_file(state.name))


def check_shaping(state: ClusterState) -> None:
    """Raises Conflict."""
    if not state.lab:
        raise Conflict(
            f"the nodes of cluster {state.name!r} do not shape their traffic: make a cluster with"
            " edged cluster up --topology FILE, or --lab"
        )


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


# ---------------------------------------------------------------- telling
def tell_links(
    home: Home,
    state: ClusterState,
    nodes: Sequence[NodeState],
    document: Document,
    at_ms: int | None,
) -> LinksChanged:
    """Each of `nodes`, all at once, to switch at that instant of Unix time; default: LEAD_MS from
    now, and it returns when that is over."""
    instant_ms = int(time.time() * 1000) + LEAD_MS if at_ms is None else at_ms
    body = msgspec.json.encode(msgspec.to_builtins(document) | {"at_ms": instant_ms})

    def tell(each: NodeState) -> LinksTold:
        return _tell(each, home.token(state.name, each.name), body)

    with ThreadPoolExecutor(min(max(len(nodes), 1), PUTS_MAX)) as pool:
        told = tuple(pool.map(tell, nodes))
    if at_ms is None and nodes:
        time.sleep(max(0.0, instant_ms / 1000 - time.time()))
    return LinksChanged(state.name, instant_ms, told)


def _tell(each: NodeState, token: str, body: bytes) -> LinksTold:
    answer = probe.ask("PUT", each.control, "/v1/links", token=token, body=body)
    if answer is None:
        return LinksTold(each.name, None, "no answer")
    status, data = answer
    try:
        if status == 200:
            return LinksTold(each.name, _decode_answer(data).at_ms, "")
    except msgspec.MsgspecError:
        pass
    return LinksTold(each.name, None, f"HTTP {status}: {data[:300].decode(errors='replace')}")


def link_views(
    home: Home, state: ClusterState, nodes: Sequence[NodeState]
) -> list[tuple[str, bytes | None]]:
    """What each says of its links (GET /v1/links); None: it does not."""

    def look(each: NodeState) -> tuple[str, bytes | None]:
        token = home.token(state.name, each.name)
        answer = probe.ask("GET", each.control, "/v1/links", token=token)
        return each.name, answer[1] if answer is not None and answer[0] == 200 else None

    with ThreadPoolExecutor(min(max(len(nodes), 1), PUTS_MAX)) as pool:
        return list(pool.map(look, nodes))


# ---------------------------------------------------------------- who can reach whom
def reachable(
    home: Home, state: ClusterState, names: Iterable[str]
) -> Mapping[str, frozenset[str]]:
    """For each of these nodes those it can be expected to see: no way to or fro is cut."""
    listed = list(names)
    if not state.lab:
        return dict.fromkeys(listed, frozenset(listed))
    links = Links(read_links(home, state))
    ends = {name: End(name, state.node(name).region) for name in listed}

    def joined(one: str, other: str) -> bool:
        ways = ((ends[one], ends[other]), (ends[other], ends[one]))
        return one == other or all(links.link(*way).cut is None for way in ways)

    return {one: frozenset(each for each in listed if joined(one, each)) for one in listed}


# ---------------------------------------------------------------- groups in words
def groups_of(state: ClusterState, words: Sequence[str]) -> list[list[str]]:
    """["eu,n3|us"] or ["eu,n3", "us"] as selectors: [["eu", "node:n3"], ["us"]]. One group stands
    against all other nodes.

    Raises ConfigError (nodes in two groups, nothing to separate), ClusterNotFound."""
    groups = [
        [selector(state, name) for name in text.split(",")]
        for word in words
        for text in word.split("|")
    ]
    members = [set(_members(state, group)) for group in groups]
    if len(groups) == 1:
        members.append({each.name for each in state.nodes} - members[0])
        groups.append(list(others(groups[0])) if members[1] else [])
    seen: set[str] = set()
    for each in members:
        if twice := sorted(seen & each):
            raise ConfigError(f"{', '.join(twice)} would be on both sides")
        seen |= each
    if len(groups) < 2 or not groups[1]:
        raise ConfigError("nothing to separate: name two groups, as in eu-west-1,n3 us-east-1")
    return groups


def selector(state: ClusterState, name: str) -> str:
    """Of a node or a region. Raises ClusterNotFound."""
    name = name.strip()
    if name.removeprefix(NODE) in {each.name for each in state.nodes}:
        return node(name.removeprefix(NODE))
    regions = dict.fromkeys(each.region for each in state.nodes)
    if name == ANY or name in regions:
        return name
    names = ", ".join(each.name for each in state.nodes)
    raise ClusterNotFound(
        f"cluster {state.name!r} has neither a node nor a region {name!r}; nodes: {names}; "
        f"regions: {', '.join(regions)}"
    )


def _members(state: ClusterState, group: Sequence[str]) -> list[str]:
    return [each.name for each in state.nodes if End(each.name, each.region).fits(group)]
