"""The picture of `snapshots`: time to the first answer by bandwidth, one panel per function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from _snapshot_facts import Facts
from _snapshot_links import FORMS, SWEEP_MBIT, answered_s, flips, rows, winner
from _snapshot_measured import Measured

from edged.lab.report import style
from protocol.costs import PlanForm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final[dict[PlanForm, str]] = {
    "module": style.GREY,
    "artifact": style.ORANGE,
    "snapshot": style.BLUE,
    "snapshot-delta": style.SKY,
    "snapshot-here": style.PURPLE,
    "snapshot-artifact": style.GREEN,
}
MBIT_MIN, MBIT_MAX = 1.0, 1000.0
STRIP = 0.035
"""Height of the strip that shows the winner, of the panel's."""
HEIGHT_IN = 3.6
PNG_DPI = 110


def draw(found: list[Facts], measured: Measured, out: Path) -> list[Path]:
    """Writes snapshots.png and snapshots.svg. Raises ConfigError: matplotlib is not installed."""
    with style.drawing():
        from matplotlib.lines import Line2D

        made = style.figure(HEIGHT_IN)
        panels = made.subplots(1, len(found), squeeze=False)[0]
        for axes, facts in zip(panels, found, strict=True):
            _panel(axes, facts, measured.get(facts.case.name, {}))
        panels[0].set_ylabel("first answer, s")
        handles: dict[str, object] = {}
        for axes in panels:
            lines, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, lines, strict=True))
        if measured:
            handles["measured"] = Line2D(
                [], [], ls="", marker="o", markersize=4, color=style.INK, fillstyle="none"
            )
        made.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles)
        )
        out.mkdir(parents=True, exist_ok=True)
        paths = [out / f"snapshots.{kind}" for kind in ("png", "svg")]
        none = {"png": {"Software": None}, "svg": {"Date": None}}
        for path in paths:
            kind = path.suffix[1:]
            made.savefig(path, dpi=PNG_DPI, facecolor=style.PAPER, metadata=none[kind])
    return paths


def _panel(axes: Axes, facts: Facts, measured: dict[str, dict[str, float]]) -> None:
    sweep = [mbit for mbit in SWEEP_MBIT if MBIT_MIN <= mbit <= MBIT_MAX]
    tables = [rows(facts, mbit) for mbit in sweep]
    present = [form for form in FORMS if form in tables[0]]
    for form in present:
        axes.plot(
            sweep, [answered_s(table[form]) for table in tables], color=COLOURS[form], label=form
        )
    for key, told in measured.items():
        form, _, mbit = key.partition(" @ ")
        colour = COLOURS[form]  # type: ignore[index]
        axes.plot(float(mbit), told["own_s"], "o", markersize=4, color=colour, fillstyle="none")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(MBIT_MIN, MBIT_MAX)
    _winners(axes, facts)
    before, after = facts.module.blob.size_bytes, facts.snapshot.blob.size_bytes
    axes.set_title(
        f"{facts.case.name}: {before / 1e6:.1f} → {after / 1e6:.1f} MB,\n"
        f"starts {facts.faster:.0f} × as fast"
    )
    axes.set_xlabel("Mbit/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")


def _winners(axes: Axes, facts: Facts) -> None:
    """A strip along the bottom, and a line where its colour changes."""
    shown = [flip for flip in flips(facts) if MBIT_MIN < flip.mbit < MBIT_MAX]
    edges = [MBIT_MIN, *[flip.mbit for flip in shown], MBIT_MAX]
    forms = [winner(facts, MBIT_MIN), *[flip.to for flip in shown]]
    for low, high, form in zip(edges, edges[1:], forms, strict=False):
        axes.axvspan(low, high, ymax=STRIP, color=COLOURS[form], lw=0)
    for flip in shown:
        axes.axvline(flip.mbit, color=style.INK, lw=0.8, ls=":")
        axes.annotate(
            f"{flip.mbit:.0f}", (flip.mbit, STRIP), (-2, 3), ha="right", rotation=90, fontsize=7,
            xycoords=("data", "axes fraction"), textcoords="offset points",
        )  # fmt: skip
