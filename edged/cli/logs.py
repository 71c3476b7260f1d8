"""`edged logs`: a function's stderr and what edged says about its invocations."""

from __future__ import annotations

import time
from typing import Any

import click

from .common import EdgedCommand, clean, target_options


@click.command(cls=EdgedCommand)
@click.argument("name")
@click.option("--tail", default=100, show_default=True, help="Lines of the past.")
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@target_options
def logs(name: str, tail: int, follow: bool, as_json: bool, **where: Any) -> None:
    """Print a function's log on one node; with --json, one JSON document per line.

    A node keeps the last 1,000 lines of a function. --follow ends by itself when the function is
    removed or the node drains."""
    import msgspec

    from edged.interfaces import LogLine

    from .show import function_path
    from .target import find_target

    path = function_path(name, f"/logs?tail={tail}&follow={int(follow)}")
    try:
        for line in find_target(**where).control().lines(path):
            if as_json:
                click.echo(line.rstrip(b"\n"))
                continue
            entry = msgspec.json.decode(line, type=LogLine)
            at = time.strftime("%H:%M:%S", time.localtime(entry.at_s))
            at += f".{int(entry.at_s % 1 * 1000):03d}"
            head = click.style(f"{at} {entry.version[:8]} {entry.stream:6}", dim=True)
            click.echo(f"{head} {clean(entry.text)}")
    except KeyboardInterrupt:
        if not follow:
            raise
