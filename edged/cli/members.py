"""`edged members`: the members as one node sees them, once or live."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from .common import EdgedCommand, clean, is_terminal, print_json, target_options, watch_options

if TYPE_CHECKING:
    from edged.interfaces import MemberView

    from .client import Client

HOME_AND_CLEAR: Final = "\x1b[H\x1b[J"
COLUMNS: Final = (
    *("name", "state", "region", "rtt", "health", "load"),
    *("incarnation", "since", "gossip", "why"),
)


@click.command(cls=EdgedCommand)
@watch_options(interval_s=1.0)
@target_options
def members(watch: bool, interval_s: float, as_json: bool, **where: Any) -> None:
    """List the members of the cluster, as one node sees them.

    --watch redraws a table on a terminal; elsewhere it prints a line for each change. With --json
    it prints each look as one line. Health is the asked node's own: others do not tell theirs."""
    import msgspec

    from .target import find_target

    client = find_target(**where).control()
    if not watch:
        if as_json:
            print_json(msgspec.Raw(client.call("GET", "/v1/members")))
        else:
            show(look(client))
        return
    before: dict[str, Any] = {}
    try:
        for at_s, rows in _looks(client, interval_s):
            if as_json:
                click.echo(msgspec.json.encode({"at_s": at_s, "members": rows}))
            elif is_terminal():
                _redraw(at_s, rows)
            else:
                before = print_changes(at_s, rows, before)
    except KeyboardInterrupt:
        return


def look(client: Client) -> list[MemberView]:
    import msgspec

    from edged.interfaces import MemberView

    data = client.call("GET", "/v1/members")
    return msgspec.json.decode(data, type=dict[str, list[MemberView]])["members"]


def _looks(client: Client, interval_s: float) -> Iterator[tuple[float, list[MemberView]]]:
    while True:
        yield time.time(), look(client)
        time.sleep(interval_s)


def show(rows: list[MemberView]) -> None:
    from .render import NONE, ago, milliseconds, percent, table

    table(
        COLUMNS,
        (
            (
                m.name + (" *" if m.is_self else ""),
                m.state,
                m.region,
                milliseconds(m.rtt_ms),
                NONE if m.health is None else m.health,
                percent(m.load),
                m.incarnation,
                ago(m.since_s),
                m.gossip_address,
                m.why,
            )
            for m in rows
        ),
        empty="no members",
    )


def _redraw(at_s: float, rows: list[MemberView]) -> None:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    at = time.strftime("%H:%M:%S", time.localtime(at_s))
    click.echo(HOME_AND_CLEAR, nl=False)
    click.echo(f"{at}  " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    show(rows)


def print_changes(at_s: float, rows: list[MemberView], before: dict[str, Any]) -> dict[str, Any]:
    """A line for each member whose state, generation or incarnation is not as `before`; returns
    what it is now."""
    now: dict[str, Any] = {
        m.node_id: (m.name, m.state, m.generation, m.incarnation, m.why) for m in rows
    }
    at = time.strftime("%H:%M:%S", time.localtime(at_s))
    for node_id, (name, state, _, incarnation, why) in now.items():
        if before.get(node_id) != now[node_id]:
            line = f"{at} {name} {state} incarnation {incarnation} {why}"
            click.echo(clean(line.rstrip()))
    for node_id in before:
        if node_id not in now:
            click.echo(f"{at} {clean(before[node_id][0])} forgotten")
    return now
