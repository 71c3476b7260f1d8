"""The picture of `snapshots`: time to the first answer by bandwidth, one column per function, and
below it what wins where, for each question.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Final

from _snapshot_facts import Facts
from _snapshot_links import FORMS, LINKS_MBIT, QUESTIONS, SWEEP_MBIT, answered_s, flips, rows
from _snapshot_links import winner as winner_of
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
MBIT_MIN, MBIT_MAX = min(LINKS_MBIT), max(LINKS_MBIT)
HEIGHT_IN = 5.0
CURVES, STRIPS = 3.2, 1.0
"""Shares of the height."""
STRIP = 0.72
"""Of the distance between two."""
LABEL_TIMES = 1.6
"""A bar that spans less has no room for where it ends."""
PNG_DPI = 130


def draw(found: list[Facts], measured: Measured, out: Path) -> None:
    """Raises ConfigError: matplotlib is not installed."""
    with style.drawing():
        from matplotlib.lines import Line2D

        made = style.figure(HEIGHT_IN)
        ratios = [CURVES, STRIPS]
        panels = made.subplots(2, len(found), squeeze=False, sharex=True, height_ratios=ratios)
        for (curves, strips), facts in zip(panels.T, found, strict=True):
            _curves(curves, facts)
            for mbit, answers in measured.get(facts.case.name, {}).items():
                for form, told in answers.items():
                    curves.plot(
                        mbit, told.own_s, "o", ms=4, mfc="none", mec=COLOURS[form], clip_on=False
                    )
            _strips(strips, facts)
        panels[0][0].set_ylabel("first answer, s")
        titles = [title.replace(", ", ",\n") for title, _forms, _calls in QUESTIONS]
        panels[1][0].set_yticks(range(len(titles)), titles, fontsize=8)
        panels[1][0].set_title(
            "soonest, and up to how many Mbit/s", fontsize=8, fontweight="normal"
        )
        for strips in panels[1][1:]:
            strips.set_yticks([])
        shown = [Line2D([], [], color=COLOURS[form], lw=3, label=form) for form in FORMS]
        if measured:
            shown.append(Line2D([], [], ls="", marker="o", ms=4, mfc="none", mec=style.INK))
            shown[-1].set_label("measured")
        made.legend(handles=shown, loc="outside lower center", ncols=len(shown))
        out.parent.mkdir(parents=True, exist_ok=True)
        none = {"Date": None} if out.suffix == ".svg" else {"Software": None}
        made.savefig(out, dpi=PNG_DPI, facecolor=style.PAPER, metadata=none)


def _curves(axes: Axes, facts: Facts) -> None:
    sweep = [mbit for mbit in SWEEP_MBIT[::2] if MBIT_MIN <= mbit <= MBIT_MAX]
    tables = [rows(facts, mbit) for mbit in sweep]
    for form in (form for form in FORMS if form in tables[0]):
        axes.plot(sweep, [answered_s(table[form]) for table in tables], color=COLOURS[form])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(MBIT_MIN, MBIT_MAX)
    before, after = facts.module.blob.size_bytes, facts.snapshot.blob.size_bytes
    sizes = f"{before / 1e6:.{_digits(before)}f} → {after / 1e6:.1f} MB"
    axes.set_title(f"{facts.case.name}: {sizes},\nstarts {facts.faster:.0f} × as fast")
    axes.yaxis.set_major_formatter("{x:g}")


def _digits(size_bytes: int) -> int:
    return 1 if size_bytes >= 1e6 else 2


def _strips(axes: Axes, facts: Facts) -> None:
    """One for each question: the winner's colour, and the bandwidth where it changes."""
    for at, (_title, forms, calls) in enumerate(QUESTIONS):
        changes = [
            flip for flip in flips(facts, forms, calls=calls) if MBIT_MIN < flip.mbit < MBIT_MAX
        ]
        edges = [MBIT_MIN, *[flip.mbit for flip in changes], MBIT_MAX]
        won = [winner_of(facts, MBIT_MIN, forms, calls=calls), *[flip.to for flip in changes]]
        for (low, high), form in zip(itertools.pairwise(edges), won, strict=True):
            axes.barh(at, high - low, STRIP, low, color=COLOURS[form], lw=0)
            if high < MBIT_MAX and high / low > LABEL_TIMES:
                axes.text(
                    high * 0.96, at, f"{high:.0f}", ha="right", va="center", fontsize=7,
                    color=style.PAPER, fontweight="bold",
                )  # fmt: skip
    axes.set_ylim(len(QUESTIONS) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Mbit/s")
    axes.xaxis.set_major_formatter("{x:g}")
