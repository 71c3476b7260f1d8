"""`edged cluster partition`, `heal`, `slow`, `links`: what nodes do to what they send."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from .cluster_common import chosen_cluster, name_option
from .common import EdgedCommand, clean, json_option, print_json

if TYPE_CHECKING:
    from edged.cluster.supervisor import Supervisor
    from edged.cluster.views import LinksChanged
    from edged.interfaces import LinksView
    from edged.links import Document
    from edged.topology import Rule

PARTITION: Final = "partition"
SLOW: Final = "slow"


# ---------------------------------------------------------------- changing
@click.command(cls=EdgedCommand)
@click.argument("groups", metavar="A [B]...", nargs=-1, required=True)
@click.option(
    "--reset",
    is_flag=True,
    help="Connections are refused and reset; default: silence, they hang.",
)
@name_option
@json_option
def partition(groups: tuple[str, ...], reset: bool, name: str | None, as_json: bool) -> None:
    """Let nothing pass between groups of nodes: each argument is one, of regions and nodes, as in
    eu-west-1,n3 us-east-1 (or in one word, 'eu-west-1,n3|us-east-1'). One group alone is cut off
    from all others; 'A>B' cuts only the way from A to B."""
    from edged.cluster.shaping import groups_of
    from edged.links import partition as parted

    boss, chosen = chosen_cluster(name)
    one_way = len(groups) == 1 and ">" in groups[0]
    words = groups[0].split(">", 1) if one_way else groups
    selectors = groups_of(boss.load(chosen), words)
    cut: Any = "reset" if reset else "drop"
    _change(
        boss,
        chosen,
        lambda before: parted(before, selectors, cut=cut, both=not one_way, label=PARTITION),
        " ".join(("cut", (" → " if one_way else " | ").join(",".join(g) for g in selectors))),
        as_json=as_json,
    )


@click.command(cls=EdgedCommand)
@click.option("--all", "everything", is_flag=True, help="Take back slow links too.")
@name_option
@json_option
def heal(everything: bool, name: str | None, as_json: bool) -> None:
    """Let everything pass again; what slow did stays, but for --all."""
    import msgspec

    from edged.links import heal as healed

    def change(before: Document) -> Document:
        return msgspec.structs.replace(before, rules=()) if everything else healed(before)

    boss, chosen = chosen_cluster(name)
    _change(boss, chosen, change, "healed", as_json=as_json)


@click.command(cls=EdgedCommand)
@click.argument("who", metavar="NODE|REGION...", nargs=-1, required=True)
@click.option(
    "--to", multiple=True, metavar="NODE|REGION", help="Those between these and WHO only."
)
@click.option("--extra-ms", type=float, help="Latency on top, each way.")
@click.option("--jitter-ms", type=float, help="How far delays stray.")
@click.option("--loss", type=float, help="Of datagrams, 0 to 1; streams pay in time.")
@click.option("--bandwidth-mbit", type=float, help="Of all that goes over a link.")
@click.option("--off", is_flag=True, help="No longer.")
@name_option
@json_option
def slow(
    who: tuple[str, ...],
    to: tuple[str, ...],
    off: bool,
    name: str | None,
    as_json: bool,
    **values: float | None,
) -> None:
    """Make all ways to and from nodes or regions worse, or better than they were. Said again, it
    takes the place of what was said of the same ones before."""
    from edged.cluster.shaping import selector
    from edged.errors import ConfigError
    from edged.links import slow as slowed
    from edged.links import without

    given: Any = {key: value for key, value in values.items() if value is not None}
    told = ", ".join(f"{key} {value:g}" for key, value in given.items())
    for key, value in given.items():
        if math.isnan(value):
            raise ConfigError(f"--{key.replace('_', '-')} {value}: write a number")
    if off == bool(given):
        raise ConfigError("say what: --extra-ms, --jitter-ms, --loss, --bandwidth-mbit; or --off")
    boss, chosen = chosen_cluster(name)
    state = boss.load(chosen)
    selectors, ends = (
        [selector(state, each.strip()) for word in words for each in word.split(",")]
        for words in (who, to)
    )
    if ends:
        given["to"] = ends
    way = f" to {', '.join(ends)}" if ends else ""

    def change(before: Document) -> Document:
        for each in selectors:
            label = f"{SLOW} {each}{way}"
            before = without(before, label)
            before = before if off else _checked(slowed(before, [each], **given, label=label))
        return before

    names = ", ".join(selectors) + way
    what = f"{names}: as before" if off else f"{names}: {told}"
    _change(boss, chosen, change, what, as_json=as_json)


def _checked(document: Document) -> Document:
    """Raises ConfigError: a value out of its range."""
    from edged.links import encode_document, parse_document

    return parse_document(encode_document(document))


def _change(
    boss: Supervisor,
    chosen: str,
    change: Callable[[Document], Document],
    what: str,
    *,
    as_json: bool,
) -> None:
    """Leaves with 1 if a node that runs did not take it."""
    import msgspec

    done = boss.change_links(chosen, change)
    missed = done.missed
    if as_json:
        rules = boss.links(chosen).rules
        print_json(msgspec.to_builtins(done) | {"rules": msgspec.to_builtins(rules)})
    else:
        _tell(done, what)
    for each in missed:
        click.echo(f"error: {each.node} did not take it: {clean(each.why)}", err=True)
    if missed:
        click.get_current_context().exit(1)


def _tell(done: LinksChanged, what: str) -> None:
    took = len(done.nodes) - len(done.missed)
    click.echo(f"{what}; {took} of {len(done.nodes)} nodes since {_clock(done.at_ms)}")
    if done.paused:
        click.echo(f"{', '.join(done.paused)} will take it when resumed")
    for each in done.late:
        assert each.at_ms is not None
        click.echo(f"{each.node} was {each.at_ms - done.at_ms} ms late", err=True)


# ---------------------------------------------------------------- looking
@click.command(cls=EdgedCommand)
@name_option
@json_option
def links(name: str | None, as_json: bool) -> None:
    """Show the rules in force, and what each node's links did since its start. edged topology show
    draws the matrix of the links.json that is named."""
    boss, chosen = chosen_cluster(name)
    document = boss.links(chosen)
    views = [(node, _view(answer)) for node, answer in boss.link_views(chosen)]
    path = str(boss.home.links_file(chosen))
    if as_json:
        print_json({"cluster": chosen, "file": path, "rules": document.rules, "nodes": dict(views)})
        return
    file = document.topology
    click.echo(f"cluster {chosen}, topology {file.name if file else 'none'}: {path}")
    for rule in document.rules:
        click.echo(f"  {_rule(rule)}")
    _table(document, views)


def _view(answer: bytes | None) -> LinksView | None:
    import msgspec

    from edged.interfaces import LinksView

    return None if answer is None else msgspec.json.decode(answer, type=LinksView)


def _rule(rule: Rule) -> str:
    """from → to: key value …"""
    from msgspec import UNSET

    from edged.topology import LinkRow

    arrow = "↔" if rule.both else "→"
    said = [
        f"{key} {value}"
        for key in LinkRow.__struct_fields__
        if (value := getattr(rule, key)) is not UNSET
    ]
    return f"{','.join(rule.sources)} {arrow} {','.join(rule.targets)}: {', '.join(said)}"


def _table(document: Document, views: Sequence[tuple[str, LinksView | None]]) -> None:
    from .render import NONE, size, table

    rows: list[tuple[object, ...]] = []
    for node, view in views:
        if view is None:
            rows.append((node, "no answer", *[NONE] * 8))
            continue
        peers = view.peers
        dropped = [
            sum(peer.datagrams_dropped.get(kind, 0) for peer in peers)
            for kind in ("cut", "loss", "queue")
        ]
        rows.append(
            (
                node,
                "in force" if view.document == document else "another",
                _clock(view.changed_at_ms),
                sum(1 for peer in peers if peer.link.cut),
                sum(peer.datagrams for peer in peers),
                *dropped,
                size(sum(peer.stream_bytes for peer in peers)),
                sum(peer.streams_reset for peer in peers),
            )
        )
    columns = ("node", "document", "since", "cut off", "datagrams", "cut", "lost", "queue full")
    table((*columns, "streams", "reset"), rows, empty="no nodes")


def _clock(at_ms: int) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(at_ms / 1000))
    return f"{at}.{at_ms % 1000:03d}"
