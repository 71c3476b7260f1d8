"""Numbers, times and tables for people."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

import click

from .common import clean, console

NONE: Final = "–"
_STYLES: Final = {
    "alive": "green",
    "ready": "green",
    "mapped": "green",
    "suspect": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "paused": "yellow",
    "down": "red",
    "dead": "red",
    "unreachable": "red",
    "left": "dim",
    "stopped": "dim",
}


def size(count: int | None) -> str:
    """Bytes in binary units: 0.7 MB of QuickJS prints as 712 KiB."""
    if count is None:
        return NONE
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            if unit == "B":
                return f"{count} B"
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def ago(unix_s: float) -> str:
    return f"{duration(max(0.0, time.time() - unix_s))} ago"


def milliseconds(value: float | None) -> str:
    return NONE if value is None else duration(value / 1000)


def percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"


def measured(item: tuple[str, float]) -> str:
    """("compile_cpu_s", 0.95) as "compile_cpu 950 ms": the unit is the last part of the name."""
    key, value = item
    name, _, unit = key.rpartition("_")
    if unit == "s":
        return f"{name} {duration(value)}"
    return f"{name} {size(int(value))}" if unit == "bytes" else f"{key} {value:.4g}"


def short(identifier: str | None, length: int = 12) -> str:
    return NONE if identifier is None else identifier[:length]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """One line per row; words like alive and dead in their colours."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        cells = [clean(str(cell)) for cell in row]
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
    if drawn.row_count:
        console().print(drawn)
    else:
        click.echo(empty)


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Label and value, one pair a line."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2))
    for label, value in pairs:
        text = clean(str(value))
        drawn.add_row(Text(label, style="bold"), Text(text, style=_STYLES.get(text, "")))
    console().print(drawn)
