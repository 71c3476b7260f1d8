"""`edged chaos`: break a cluster on purpose, and judge what it did."""

from __future__ import annotations

from pathlib import Path

import click

from .common import EdgedCommand, clean, json_option, print_json


@click.group()
def chaos() -> None:
    """Scenarios of faults on a cluster of its own, with a verdict."""


@chaos.command(cls=EdgedCommand)
@click.argument("directory", metavar="RUN_DIR", type=click.Path(file_okay=False))
@json_option
def show(directory: str, as_json: bool) -> None:
    """What happened in a run, event by event."""
    from edged.lab.runfolder import read_history

    history = read_history(Path(directory))
    if as_json:
        print_json(history.rows)
        return
    from edged.lab.chaos.telling import told

    for row in history.rows:
        click.echo(clean(f"{row.t_s:8.2f} s  {told(row)}"))
