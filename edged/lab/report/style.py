"""How a report looks: colours that the colour-blind tell apart (Okabe and Ito, 2008), one type, and
SVG that takes the page's foreground, so that it suits a light and a dark page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from edged.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE: Final = "#0072B2"
SKY: Final = "#56B4E9"
GREEN: Final = "#009E73"
ORANGE: Final = "#E69F00"
RED: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
GREY: Final = "#8A8F98"
CYCLE: Final = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY)

INK: Final = "#1b1f24"
LINES: Final = "#d9dde2"
PAPER: Final = "#ffffff"
_THEMED: Final = {INK: "var(--ink)", LINES: "var(--lines)"}
PNG_DPI: Final = 150
WIDTH_IN: Final = 9.6

_SETTINGS: Final[Mapping[str, object]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": LINES,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINES,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "edged",
    "hatch.linewidth": 0.6,
}


class Picture(NamedTuple):
    name: str
    """Of its file, without suffix."""
    title: str
    about: str
    """What is to be seen, for who does not."""
    png: bytes
    svg: str
    wide: bool
    """Made for the page's whole width."""


@contextmanager
def drawing() -> Iterator[None]:
    """Raises ConfigError: matplotlib is not installed."""
    try:
        from matplotlib.style import context
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'edged[report]'") from error
    with context(dict(_SETTINGS)), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the tables have it as text.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """On the Agg canvas, whatever display there is; `pyplot` would keep it in a global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(made)
    return made


def picture(name: str, title: str, about: str, made: Figure) -> Picture:
    png, svg = io.BytesIO(), io.StringIO()
    made.savefig(png, format="png", dpi=PNG_DPI, facecolor=PAPER, metadata={"Software": None})
    made.set_layout_engine("none")  # what the first made is kept: it is a third of the work
    made.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    wide = made.get_figwidth() >= WIDTH_IN
    return Picture(name, title, about, png.getvalue(), _inline(svg.getvalue(), name, about), wide)


def _inline(svg: str, name: str, about: str) -> str:
    """To stand in a page: no prologue, no comments (they repeat each text), ids of its own."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _THEMED.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    head = svg[: svg.index(">")]
    label = escape(about, quote=True)
    return f'{head} role="img" aria-label="{label}"{svg[svg.index(">") :]}'


def bare(axes: Axes) -> None:
    """Without a frame, ticks or a grid."""
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
