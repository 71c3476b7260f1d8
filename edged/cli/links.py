"""`edged links`: what nodes do to what they send each other, seen from one, set on one or all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import EdgedCommand, print_json, target_options

if TYPE_CHECKING:
    from edged.interfaces import LinksView, LinkView
    from edged.links import Document

    from .client import Client


@click.group()
def links() -> None:
    """Latency, loss, bandwidth and cuts between nodes (links.enabled in node.toml). edged cluster
    partition, heal and slow change single things; edged cluster links shows all nodes."""


@links.command(cls=EdgedCommand)
@target_options
def show(as_json: bool, **where: Any) -> None:
    """Show what holds between one node and each peer, and what came of it since its start."""
    import msgspec

    from .target import find_target

    answer = find_target(**where).control().call("GET", "/v1/links")
    if as_json:
        print_json(msgspec.Raw(answer))
        return
    from edged.interfaces import LinksView

    _draw(msgspec.json.decode(answer, type=LinksView))


@links.command(name="set", cls=EdgedCommand)
@click.argument("file", metavar="FILE|NAME")
@target_options
def set_(file: str, as_json: bool, **where: Any) -> None:
    """Put a links document (.json) or a topology (.toml, or the name of one) in force.

    On all nodes of the local cluster at one instant, or with --node or --control on one alone.
    For all, a topology that lacks the region of a node that runs is refused."""
    from edged.links import document_of, load_document
    from edged.topology import find_topology

    path = find_topology(file)
    document = load_document(path) if path.suffix == ".json" else document_of(path)
    _put(document, str(path), as_json=as_json, **where)


@links.command(cls=EdgedCommand)
@target_options
def clear(as_json: bool, **where: Any) -> None:
    """Put nothing in force: everything passes at once. On all nodes, or on one as with set."""
    from edged.links import EMPTY

    _put(EMPTY, "nothing", as_json=as_json, **where)


def _put(document: Document, what: str, *, as_json: bool, **where: Any) -> None:
    from .target import find_target

    if where["node"] is None and where["control"] is None:
        _put_all(where["cluster"], document, what, as_json=as_json)
        return
    target = find_target(**where)
    at_ms = _put_one(target.control(), document, what)
    if as_json:
        print_json({"node": target.name, "at_ms": at_ms})
    else:
        click.echo(f"{what} is in force on {target.name}")


def _put_one(client: Client, document: Document, what: str) -> int:
    """Who is where stays as the node knows it."""
    import msgspec

    from edged.interfaces import LinksChange, LinksView
    from edged.links import encode_document

    view = msgspec.json.decode(client.call("GET", "/v1/links"), type=LinksView)
    if strangers := _strangers(document, {view.node: view.region}):
        click.echo(f"warning: {what}: {strangers}: all its links are clear now", err=True)
    before = view.document
    whole = msgspec.structs.replace(document, nodes=document.nodes or before.nodes)
    answer = client.call("PUT", "/v1/links", body=encode_document(whole))
    return msgspec.json.decode(answer, type=LinksChange).at_ms


def _strangers(document: Document, regions: dict[str, str]) -> str:
    """Nodes for which the topology has no place: nothing of it would hold for what they send. ""
    if all have one."""
    if document.topology is None:
        return ""
    known = document.topology.regions
    strange = [f"{name} in {region}" for name, region in regions.items() if region not in known]
    if not strange:
        return ""
    return f"the topology has no region for {', '.join(strange)}; there are {', '.join(known)}"


def _put_all(cluster: str | None, document: Document, what: str, *, as_json: bool) -> None:
    """Leaves with 1 if a node that runs did not take it."""
    from edged.errors import ConfigError

    from .cluster_common import chosen_cluster

    boss, chosen = chosen_cluster(cluster)
    nodes = boss.running_nodes(boss.load(chosen))
    if strangers := _strangers(document, {node.name: node.region for node in nodes}):
        raise ConfigError(f"{what}: {strangers}")
    done = boss.set_links(chosen, document)
    if as_json:
        print_json({"cluster": chosen, "at_ms": done.at_ms, "nodes": done.nodes})
    else:
        took = len(done.nodes) - len(done.missed)
        click.echo(f"{what} is in force on {took} of {len(done.nodes)} nodes of {chosen}")
    for each in done.missed:
        click.echo(f"error: {each.node} did not take it: {each.why}", err=True)
    if done.missed:
        click.get_current_context().exit(1)


def _draw(view: LinksView) -> None:
    from .render import fields, size, table

    topology = view.document.topology
    pairs = [
        ("node", f"{view.node} in {view.region}"),
        ("topology", topology.name if topology is not None else "none"),
        ("rules", len(view.document.rules)),
    ]
    fields(pairs)
    rows = [
        [
            peer.name,
            peer.region,
            *_said(peer.link),
            peer.datagrams,
            peer.datagrams_delayed,
            sum(peer.datagrams_dropped.values()),
            size(peer.stream_bytes),
            peer.streams,
            peer.streams_reset + peer.connects_refused,
            size(peer.queue_bytes),
        ]
        for peer in view.peers
    ]
    link = ("to", "region", "latency", "jitter", "loss", "Mbit/s")
    counts = ("datagrams", "delayed", "dropped", "sent", "streams", "reset", "queue")
    table((*link, *counts), rows, empty="no peers yet")


def _said(link: LinkView) -> tuple[str, str, str, str]:
    from .render import NONE, milliseconds

    latency = milliseconds(link.latency_ms) if link.cut is None else f"cut ({link.cut})"
    jitter = f"± {milliseconds(link.jitter_ms)}" if link.jitter_ms else NONE
    loss = f"{link.loss:.2%}" if link.loss else NONE
    mbit = NONE if link.bandwidth_mbit is None else f"{link.bandwidth_mbit:g}"
    return latency, jitter, loss, mbit
