"""`edged events`: what happened to the cluster, as one node saw it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from .common import EdgedCommand, clean, target_options

if TYPE_CHECKING:
    from edged.interfaces import EventRow

    from .client import Client

WAIT_S: Final = 25
"""Of one long poll; under the client's timeout between two bytes."""
LIMIT_MAX: Final = 4096
_COLOURS: Final = {
    "member-up": "green",
    "member-refuted": "green",
    "member-suspect": "yellow",
    "accused": "yellow",
    "plan-changed": "cyan",
    "member-down": "red",
    "identity-clash": "red",
}


@click.command(cls=EdgedCommand)
@click.option(
    "--tail",
    default=100,
    show_default=True,
    type=click.IntRange(0, LIMIT_MAX),
    help="Rows of the past.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@target_options
def events(tail: int, follow: bool, as_json: bool, **where: Any) -> None:
    """Print what one node saw happen: members, why they were suspected, records, changes of
    functions' forms.

    With --json, one JSON document per line. A node keeps its last 4,096 events until it stops."""
    import msgspec

    from .target import find_target

    client = find_target(**where).control()
    try:
        for row in _rows(client, tail, follow=follow):
            click.echo(msgspec.json.encode(row) if as_json else _line(row))
    except KeyboardInterrupt:
        if not follow:
            raise


def _rows(client: Client, tail: int, *, follow: bool) -> Iterator[EventRow]:
    import msgspec

    from edged.interfaces import EventsView

    def ask(query: str) -> EventsView:
        return msgspec.json.decode(client.call("GET", f"/v1/events?{query}"), type=EventsView)

    view = ask(f"limit={tail}")
    yield from view.events
    while follow:
        generation = view.generation
        view = ask(f"after={view.next_after}&limit={LIMIT_MAX}&wait_s={WAIT_S}")
        if view.generation != generation:
            click.echo(f"{view.node} has restarted", err=True)
        if view.missed:
            click.echo(f"{view.missed} events were dropped before they were read", err=True)
        yield from view.events


def _line(row: EventRow) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(row.at_ms / 1000))
    head = click.style(f"{at}.{int(row.at_ms % 1000):03d} {row.node}", dim=True)
    kind = click.style(f"{row.kind:16}", fg=_COLOURS.get(row.kind))
    return f"{head} {kind} {clean(row.name)}  {clean(row.detail)}".rstrip()
