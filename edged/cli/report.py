"""`edged report`: a run's folder as a page and pictures."""

from __future__ import annotations

from pathlib import Path

import click

from .common import EdgedCommand, clean, json_option, print_json


@click.command(cls=EdgedCommand)
@click.argument("directory", metavar="RUN_DIR", type=click.Path(file_okay=False))
@json_option
def report(directory: str, as_json: bool) -> None:
    """Draw a run of edged chaos or edged load: RUN_DIR/report.html, and plots/*.png beside it.

    The page is one file, asks for nothing from anywhere, and has what was found, what was broken
    and what clients saw. Needs matplotlib: pip install 'edged[report]'."""
    from edged.lab.report.building import build_report

    built = build_report(Path(directory))
    if as_json:
        print_json({"page": str(built.page), "plots": [str(path) for path in built.plots]})
        return
    click.echo(clean(str(built.page)))
    for path in built.plots:
        click.echo(clean(str(path)))
