"""`edged catalog`: the way out for a node that signed records when its clock was ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from .common import (
    EXIT_FAILED,
    EdgedCommand,
    check_can_ask,
    print_json,
    target_options,
    yes_option,
)

if TYPE_CHECKING:
    from edged.interfaces import FutureRecord

PATH: Final = "/v1/records/future"


@click.group()
def catalog() -> None:
    """What a wrong clock left in a node's catalog."""


@catalog.command(cls=EdgedCommand)
@target_options
def future(as_json: bool, **where: Any) -> None:
    """List the records that a node signed when its clock was ahead. No other node takes them, and
    until their time has come it signs nothing else."""
    import msgspec

    from .target import find_target

    data = find_target(**where).control().call("GET", PATH)
    if as_json:
        print_json(msgspec.Raw(data))
    else:
        _show(data)


@catalog.command("discard-future", cls=EdgedCommand)
@yes_option
@target_options
def discard_future(yes: bool, as_json: bool, **where: Any) -> None:
    """Drop those records: what they changed is undone, and the node can sign again. Set its clock
    right first."""
    import msgspec

    from .target import find_target

    check_can_ask(yes=yes, as_json=as_json)
    target = find_target(**where)
    client = target.control()
    if not yes:
        rows = _show(client.call("GET", PATH), err=True)
        if rows and not click.confirm(f"Discard these at {target.name}?", err=True):
            click.echo("nothing discarded", err=True)
            raise SystemExit(EXIT_FAILED)
    data = client.call("DELETE", PATH)
    if as_json:
        print_json(msgspec.Raw(data))
    else:
        click.echo(f"{len(_rows(data))} records discarded")


def _rows(data: bytes) -> list[FutureRecord]:
    import msgspec

    from edged.interfaces import FutureRecord

    return msgspec.json.decode(data, type=dict[str, list[FutureRecord]])["records"]


def _show(data: bytes, *, err: bool = False) -> list[FutureRecord]:
    """A line each; they are few, and to be read."""
    import time

    from .render import duration

    rows, now_s = _rows(data), time.time()
    for row in rows:
        what = f"version {row.version[:12]}" if row.kind == "version" else "current version"
        deed = "removal" if row.removal else "change"
        ahead = duration(row.signed_at_s - now_s)
        click.echo(f"{row.name}: {deed} of {what}, {ahead} ahead, by {row.signed_by}", err=err)
    if not rows:
        click.echo("nothing here is from the future", err=err)
    return rows
