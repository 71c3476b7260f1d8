"""What the page is made of: escaped text, elements, tables.

`Html` is markup; every other string is a stranger's and gets escaped where it enters the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest
from typing import Final

from .figures import plain

ROWS_MAX: Final = 500
"""Of one table; the folder has all."""
TEXT_MAX: Final = 600
SHORT: Final = 16
"""Characters that stay on one line, so that long neighbours do not squeeze them."""


class Html(str):
    """Markup; what is of any other kind is escaped."""

    __slots__ = ()


def titled(title: str, content: Html) -> Html:
    return Html(f"<h2>{text(title)}</h2>{content}")


Cell = str | int | float | None


def text(value: Cell, limit: int = TEXT_MAX) -> Html:
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("–")
    if isinstance(value, float):
        return Html(f"{value:.2f}")
    return Html(escape(plain(str(value), limit), quote=True))


def element(name: str, value: Cell, kind: str = "", *, limit: int = TEXT_MAX) -> Html:
    attribute = f' class="{kind}"' if kind else ""
    return Html(f"<{name}{attribute}>{text(value, limit)}</{name}>")


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Html:
    lines: list[str] = []
    kinds: Sequence[str] = ()
    left_out = 0
    for number, row in enumerate(rows):
        if number >= ROWS_MAX:
            left_out += 1
            continue
        kinds = kinds or [kind_of(value) for value in row]
        cells = (element("td", value, kind_of(value)) for value in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    aligned = zip_longest(head, (kind if kind == "n" else "" for kind in kinds), fillvalue="")
    names = "".join(element("th", name, kind) for name, kind in aligned)
    more = f'<p class="dim">and {left_out} more in the folder</p>' if left_out else ""
    return Html(
        f'<div class="scroll"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{more}"
    )


def kind_of(value: Cell) -> str:
    """The cell's class: a number, or text that stays on one line."""
    if isinstance(value, int | float):
        return "n"
    return "s" if value is None or len(value) <= SHORT else ""
