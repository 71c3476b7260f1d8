"""`edged transfers`: what a node fetches and uploads, once or live."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from .common import (
    EdgedCommand,
    clean,
    console,
    is_terminal,
    print_json,
    target_options,
    watch_options,
)

COLUMNS: Final = (
    *(("blob", 10), ("progress", 12), ("bytes", 20), ("rate", 10), ("left", 6)),
    *(("peers", 4), ("functions", 4)),
)
"""With the least widths that are of use: a narrow terminal cuts the last two short."""

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edged.interfaces import TransfersView, TransferView

    from .client import Client


@click.command(cls=EdgedCommand)
@watch_options(interval_s=0.5)
@target_options
def transfers(watch: bool, interval_s: float, as_json: bool, **where: Any) -> None:
    """Show what a node fetches and uploads now.

    --watch draws progress bars on a terminal; elsewhere it prints a line for each transfer and
    look. With --json it prints each look as one line."""
    import msgspec

    from .target import find_target

    client = find_target(**where).control()
    if not watch:
        if as_json:
            print_json(msgspec.Raw(client.call("GET", "/v1/transfers")))
        else:
            _show(look(client))
        return
    try:
        _watch(client, interval_s, as_json=as_json)
    except KeyboardInterrupt:
        return


def look(client: Client) -> TransfersView:
    import msgspec

    from edged.interfaces import TransfersView

    return msgspec.json.decode(client.call("GET", "/v1/transfers"), type=TransfersView)


def _show(view: TransfersView) -> None:
    if not view.transfers:
        click.echo(_idle(view))
        return
    console().print(_table(view.transfers))


def _idle(view: TransfersView) -> str:
    return f"{view.node} neither fetches nor sends anything now"


def _watch(client: Client, interval_s: float, *, as_json: bool) -> None:
    import msgspec

    if as_json or not is_terminal():
        idle = False
        while True:
            view = look(client)
            if as_json:
                looked = {"at_s": time.time(), "transfers": view.transfers}
                click.echo(msgspec.json.encode(looked))
            else:
                for row in view.transfers:
                    click.echo(clean(_line(row)))
                if not view.transfers and not idle:
                    click.echo(f"{time.strftime('%H:%M:%S')} {_idle(view)}")
                idle = not view.transfers
            time.sleep(interval_s)
    from rich.console import Console
    from rich.live import Live

    # Of the terminal's own width: lines that it wrapped could not be drawn over.
    with Live(console=Console(highlight=False), auto_refresh=False) as shown:
        while True:
            view = look(client)
            drawn = _table(view.transfers) if view.transfers else f"{_idle(view)}; Ctrl-C ends"
            shown.update(drawn, refresh=True)
            time.sleep(interval_s)


def _table(rows: tuple[TransferView, ...]) -> RenderableType:
    from rich import box
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from .render import NONE, short, size

    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for column, least in COLUMNS:
        drawn.add_column(column, no_wrap=True, overflow="ellipsis", min_width=least)
    for row in rows:
        arrow = "↓" if row.direction == "fetch" else "↑"
        bar = ProgressBar(
            total=row.total_bytes or 1,
            completed=row.done_bytes,
            width=12,
            pulse=not row.total_bytes,
        )
        queued = row.state == "queued"
        drawn.add_row(
            f"{arrow} {short(row.digest, 8)}",
            bar,
            f"{size(row.done_bytes)} of {size(row.total_bytes)}" if row.total_bytes else NONE,
            "queued" if queued else f"{size(int(row.rate_bytes_s))}/s",
            _left(row),
            Text(clean(" ".join(row.peers) or NONE)),
            Text(clean(" ".join(row.functions) or NONE)),
        )
    return drawn


def _line(row: TransferView) -> str:
    from .render import short, size

    at = time.strftime("%H:%M:%S")
    direction = "from" if row.direction == "fetch" else "to"
    of = f" ({' '.join(row.functions)})" if row.functions else ""
    ends = "" if _is_whole(row) else f", {direction} {' '.join(row.peers) or 'nobody yet'}"
    begins = f"{at} {row.direction} {short(row.digest)}{of} {row.state}"
    if row.total_bytes is None:  # no manifest yet: nothing to count
        return begins + ends
    if _is_whole(row):
        return f"{begins}, all {size(row.total_bytes)}, ending"
    return (
        f"{begins} {size(row.done_bytes)} of {size(row.total_bytes)}"
        f" at {size(int(row.rate_bytes_s))}/s, left: {_left(row)}{ends}"
    )


def _is_whole(row: TransferView) -> bool:
    return row.total_bytes is not None and row.done_bytes >= row.total_bytes


def _left(row: TransferView) -> str:
    from .render import duration

    if _is_whole(row):
        return "ending"
    return duration(None if row.eta_s is None else max(row.eta_s, 0.1))
