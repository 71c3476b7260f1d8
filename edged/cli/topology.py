"""`edged topology`: what a topology file says, drawn and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from .common import EdgedCommand, json_option, print_json

if TYPE_CHECKING:
    from edged.topology import Link, Topology

WHAT: Final = ("rtt", "latency", "jitter", "loss", "bandwidth")
_UNITS: Final = {
    "rtt": "Round trips in ms, there and back",
    "latency": "Latency in ms, from the row to the column",
    "jitter": "Jitter in ms, from the row to the column",
    "loss": "Datagrams lost, from the row to the column",
    "bandwidth": "Mbit/s, from the row to the column",
}


@click.group()
def topology() -> None:
    """Regions, and what lies between them: the files of configs/topologies, and your own."""


@topology.command(cls=EdgedCommand)
@click.argument("file", metavar="FILE|NAME")
@click.option(
    "--what", type=click.Choice(WHAT), default="rtt", show_default=True, help="What to draw."
)
@json_option
def show(file: str, what: str, as_json: bool) -> None:
    """Draw the matrix of a topology: a file, or the name of one in configs/topologies. Of a
    cluster's links.json, what holds between its regions now."""
    found = _load(file)
    if as_json:
        print_json(described(found))
    else:
        draw(found, what)


def _load(file: str) -> Topology:
    """Raises ConfigError."""
    from edged.links import as_topology, load_document
    from edged.topology import find_topology, load_topology

    path = find_topology(file)
    if path.suffix == ".json":
        return as_topology(load_document(path), name=str(path))
    return load_topology(path)


@topology.command(cls=EdgedCommand)
@click.argument("file", metavar="FILE|NAME")
@json_option
def check(file: str, as_json: bool) -> None:
    """Say what is wrong with a topology file, or that nothing is."""
    found = _load(file)
    regions, ways = len(found.regions), len(found.links)
    if as_json:
        print_json({"name": found.name, "regions": regions, "links": ways})
    else:
        click.echo(f"{found.name}: {regions} regions, {ways} links, nothing wrong")


def draw(found: Topology, what: str) -> None:
    from .render import fields, table

    cell = _cell(found, what)
    said = (("topology", found.name), ("about", found.about), ("source", found.source))
    fields(pair for pair in (*said, ("date", found.date)) if pair[1])
    click.echo(f"\n{_UNITS[what]}:")
    rows = [
        [source, f"{share:.0%}", *(cell(source, target) for target in found.regions)]
        for source, share in zip(found.regions, found.shares, strict=True)
    ]
    table(("from \\ to", "share", *found.regions), rows, empty="no regions")


def _cell(found: Topology, what: str) -> Callable[[str, str], str]:
    def of(source: str, target: str) -> str:
        link = found.link(source, target)
        if link.cut is not None:
            return "cut"
        match what:
            case "rtt":
                return f"{(link.latency_s + found.link(target, source).latency_s) * 1000:.4g}"
            case "latency":
                return f"{link.latency_s * 1000:.4g}"
            case "jitter":
                return f"{link.jitter_s * 1000:.4g}"
            case "loss":
                return f"{link.loss:.3g}"
            case _:
                return _mbit(link)

    return of


def _mbit(link: Link) -> str:
    return "∞" if link.bandwidth_bytes_s is None else f"{link.bandwidth_bytes_s / 125_000:.4g}"


def described(found: Topology) -> dict[str, Any]:
    import msgspec

    return {
        "name": found.name,
        "about": found.about,
        "source": found.source,
        "date": found.date,
        "regions": dict(zip(found.regions, found.shares, strict=True)),
        "links": [
            {"from": source, "to": target} | msgspec.structs.asdict(link)
            for (source, target), link in found.links.items()
        ],
    }
