"""Draws what `figures` computed. Every axis has its unit; nothing is told by colour alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from edged.lab.history import Bounds, Decided, History

from . import figures, style
from .figures import Course, Matrix, Settled, Span, Window, counted, plain
from .style import BLUE, GREEN, GREY, LINES, ORANGE, PURPLE, RED, SKY, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LANES_MAX: Final = 8
LABELLED_MAX: Final = 14
"""More faults than these have their number only; the page's table says what they are."""
CHARACTER_SHARE: Final = 0.0075
"""Of the width of the timeline that a character of a fault's label takes, about."""
MARKS: Final = {"membership": ("o", BLUE), "catalog": ("s", ORANGE), "replicas": ("^", GREEN)}
QUANTILE_LOOKS: Final = {"p50": (BLUE, "-"), "p90": (ORANGE, "-"), "p99": (RED, "-")}
START_COLOURS: Final = {"warm": SKY, "forwarded": PURPLE, "compiled": RED, "artifact": GREEN}
LINES_OF: Final = ("-", "--", ":")
PER_ROW_IN: Final = 0.32


def draw(history: History) -> list[Picture]:
    """Those that there is something to show of. Raises ConfigError: matplotlib is missing."""
    found: list[Picture] = []
    with style.drawing():
        spans, windows = figures.spans(history), figures.windows(history)
        course = figures.course(history)
        if history.requests:
            found.append(timeline(course, spans, windows, history))
        if matrix := figures.by_answerer(history):
            found.append(
                heat(
                    matrix, "answerers", "Median latency by region",
                    ("region of the clients", "region that answered"), _ms,
                )
            )  # fmt: skip
        if matrix := figures.by_phase(history):
            found.append(
                heat(
                    matrix, "phases", "99th percentile of latency by phase",
                    ("region of the clients", "phase"), _ms,
                )
            )  # fmt: skip
        if rows := figures.settled(history):
            found.append(convergence(rows, history.run.bounds))
        if rows_of := figures.starts(course):
            found.append(start_types(rows_of, course))
        if matrix := figures.link_bytes(history):
            found.append(
                heat(
                    matrix, "links", "Bytes sent between regions",
                    ("from", "to"), bytes_words,
                )
            )  # fmt: skip
        if tracks := figures.tracks(history):
            found.append(resources(tracks, history.end_s))
    return found


# ---------------------------------------------------------------- over time
def timeline(
    course: Course, spans: Sequence[Span], windows: Sequence[Window], history: History
) -> Picture:
    end_s, decided = history.end_s, [row.t_s for row in history.of(Decided)]
    lanes = packed(spans, end_s)
    rows = max((lane.number for lane in lanes), default=0) + 1
    heights = [1.5, 1.0, 2.0]
    if spans:
        made = style.figure(5.6 + 0.22 * rows)
        panels = made.subplots(4, 1, sharex=True, height_ratios=[0.3 + 0.2 * rows, *heights])
        _faults(panels[0], spans, lanes, end_s)
    else:
        made = style.figure(5.2)
        panels = made.subplots(3, 1, sharex=True, height_ratios=heights)
    rate, errors, latency = panels[-3:]
    _phase_names(rate, windows, end_s)
    edges = course.edges()
    for axes in (rate, errors, latency):
        for span in spans:
            axes.axvspan(span.begin_s, span.end_s, color=GREY, alpha=0.10, linewidth=0)
        for window in windows[1:]:
            axes.axvline(window.begin_s, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    per_s = [bucket.requests / course.width_s for bucket in course.buckets]
    rate.stairs(per_s, edges, color=BLUE, linewidth=1.3)
    rate.stairs(per_s, edges, fill=True, color=BLUE, alpha=0.15)
    rate.set_ylabel("requests/s")
    rate.set_ylim(0, max(per_s, default=1.0) * 1.12 or 1.0)
    if decided:
        rate.plot(
            decided, [0.0] * len(decided), linestyle="", marker="v", markersize=5, color=PURPLE,
            clip_on=False, zorder=5,
        )  # fmt: skip
    errors_per_s = [bucket.errors / course.width_s for bucket in course.buckets]
    errors.stairs(errors_per_s, edges, fill=True, color=RED)
    errors.set_ylabel("errors/s")
    errors.set_ylim(0, max(1.0, max(errors_per_s, default=0.0) * 1.12))
    _latency(latency, course)
    latency.set_xlabel("seconds since the start of the run")
    latency.set_xlim(0, max(end_s, edges[-1]))
    made.align_ylabels()
    total = sum(bucket.requests for bucket in course.buckets)
    failed = sum(bucket.errors for bucket in course.buckets)
    about = (
        f"Request rate, errors and latency quantiles of {counted(total, 'request')}, {failed} of"
        " which failed, each at the instant it was intended; dashed lines are phases' beginnings"
    )
    if decided:
        about += f"; ▼: {counted(len(decided), 'change')} of a function's form on a node"
    if not spans:
        return style.picture("timeline", "What clients saw", about, made)
    faults = "hatched ones are not proven to have taken effect"
    about = f"{counted(len(spans), 'fault')}, {faults}. {about}"
    return style.picture("timeline", "What was broken, and what clients saw", about, made)


def _faults(axes: Axes, spans: Sequence[Span], lanes: Sequence[Lane], end_s: float) -> None:
    style.bare(axes)
    axes.set_ylim(max((lane.number for lane in lanes), default=0) + 0.6, -0.6)
    axes.set_yticks([])
    axes.set_ylabel("faults")
    axes.tick_params(labelbottom=False)
    gap_s = end_s * 0.004
    for span, lane in zip(spans, lanes, strict=True):
        proven = span.proof == "proven"
        width_s = max(end_s * 0.003, span.end_s - span.begin_s)
        axes.barh(
            lane.number, width_s, left=span.begin_s, height=0.62,
            color=ORANGE if proven else "none", edgecolor=ORANGE if proven else RED,
            hatch="" if proven else "////", linewidth=0.8,
        )  # fmt: skip
        # Beside its bar, where it has the page's own ground, light or dark.
        at_s = span.begin_s - gap_s if lane.before else span.begin_s + width_s + gap_s
        side = "right" if lane.before else "left"
        axes.text(at_s, lane.number, lane.label, va="center", ha=side, fontsize=7.5)


class Lane(NamedTuple):
    """Where a fault is drawn."""

    number: int
    label: str
    before: bool
    """The label is on the left of the bar."""


def packed(spans: Sequence[Span], end_s: float) -> list[Lane]:
    """Each in the first lane where bar and label have room; the last lane takes what has none,
    without a label."""
    free_from = [0.0] * LANES_MAX
    found: list[Lane] = []
    for span in spans:
        label = fault_label(span, short=len(spans) > LABELLED_MAX)
        need_s = (len(label) + 1) * CHARACTER_SHARE * end_s
        before = span.end_s + need_s > end_s and span.begin_s > need_s
        begin_s = span.begin_s - need_s if before else span.begin_s
        number = next((n for n, at in enumerate(free_from) if at <= begin_s), LANES_MAX - 1)
        if free_from[number] > begin_s:
            label = ""
        reach_s = span.end_s + (0.01 * end_s if before else need_s)
        free_from[number] = max(free_from[number], reach_s)
        found.append(Lane(number, label, before))
    return found


def _phase_names(axes: Axes, windows: Sequence[Window], end_s: float) -> None:
    """Above the axes, each from where it begins, cut to where the next does."""
    for window in windows:
        room = int((window.end_s - window.begin_s) / (CHARACTER_SHARE * end_s)) - 1
        if room >= 3:
            axes.text(
                window.begin_s, 1.04, plain(window.name, room), va="bottom", fontsize=7.5,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def fault_label(span: Span, *, short: bool) -> str:
    if short:
        return plain(span.fault.id)
    targets = " ".join(span.fault.targets[:3]) + (" …" if len(span.fault.targets) > 3 else "")
    return plain(f"{span.fault.id} {span.fault.action} {targets}".strip())


def _latency(axes: Axes, course: Course) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    middles = [(number + 0.5) * course.width_s for number in range(len(course.buckets))]
    for name, (colour, line) in QUANTILE_LOOKS.items():
        values = [bucket.latency_ms[name] for bucket in course.buckets]
        shown = [float("nan") if value is None else max(value, 0.01) for value in values]
        axes.plot(middles, shown, color=colour, linestyle=line, label=name, linewidth=1.4)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _ms(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high / low < 20:  # at least one labelled line is within
        axes.set_ylim(10 ** _floor_log(low), 10 ** (_floor_log(high) + 1))
    axes.set_ylabel("latency (log)")
    axes.legend(loc="upper left", ncols=3, bbox_to_anchor=(0, 1.16), borderaxespad=0)


def start_types(rows: dict[str, list[int]], course: Course) -> Picture:
    made = style.figure(0.7 + 0.55 * len(rows))
    panels = made.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    edges = course.edges()
    for panel, (name, counts) in zip(panels, rows.items(), strict=True):
        per_s = [count / course.width_s for count in counts]
        panel.stairs(per_s, edges, fill=True, color=START_COLOURS.get(name, GREY))
        style.bare(panel)
        peak = max(per_s)
        panel.set_ylim(0, peak * 1.05)
        panel.set_yticks([])
        panel.set_ylabel(plain(name, 16), rotation=0, ha="right", va="center")
        panel.text(
            1.01, 0.5, f"{sum(counts)} in all\npeak {peak:.3g}/s", transform=panel.transAxes,
            va="center", fontsize=7.5,
        )  # fmt: skip
        panel.axhline(0, color=LINES, linewidth=1)
    panels[-1].set_xlabel("seconds since the start of the run")
    panels[-1].set_xlim(0, edges[-1])
    about = "Requests over time by start type: " + ", ".join(
        f"{sum(counts)} {plain(name)}" for name, counts in rows.items()
    )
    return style.picture("starts", "Start types over time, each to its own scale", about, made)


def resources(tracks: Sequence[figures.Track], end_s: float) -> Picture:
    made = style.figure(3.6)
    cpu, memory = made.subplots(2, 1, sharex=True)
    for number, track in enumerate(tracks):
        colour = style.CYCLE[number % len(style.CYCLE)]
        line = LINES_OF[number // len(style.CYCLE) % len(LINES_OF)]
        for axes, points in ((cpu, track.cpu), (memory, track.memory)):
            if points:
                xs, ys = zip(*points, strict=True)
                name = plain(track.node, 16)
                axes.plot(xs, ys, line, color=colour, linewidth=1.0, alpha=0.8, label=name)
    cpu.set_ylabel("CPU (cores)")
    memory.set_ylabel("memory (MiB)")
    for axes in (cpu, memory):
        axes.set_ylim(bottom=0)
    memory.set_xlabel("seconds since the start of the run")
    memory.set_xlim(0, end_s)
    made.align_ylabels()
    if len(tracks) <= figures.NAMES_MAX:
        handles, labels = memory.get_legend_handles_labels()
        made.legend(handles, labels, loc="outside right upper", fontsize=7.5)
    about = f"CPU and resident memory of {counted(len(tracks), 'node')} over time"
    return style.picture("nodes", "What the nodes used", about, made)


# ---------------------------------------------------------------- matrices and events
def heat(
    matrix: Matrix,
    name: str,
    title: str,
    axes_names: tuple[str, str],
    told: Callable[[float], str],
) -> Picture:
    """Colour on a logarithmic scale, and each cell's value in it."""
    from matplotlib.colors import LogNorm

    made = style.figure(1.75 + PER_ROW_IN * len(matrix.rows), 2.6 + 0.85 * len(matrix.columns))
    axes = made.add_subplot()
    values = [value for value in matrix.cells.values() if value > 0] or [1.0]
    low = min(values)
    # A scale of at least a factor of two: what hardly differs looks alike.
    norm = LogNorm(low, max(2 * low, *values))
    grid = [
        [max(matrix.cells.get((row, column), float("nan")), low) for column in matrix.columns]
        for row in matrix.rows
    ]
    edges_x = [at - 0.5 for at in range(len(matrix.columns) + 1)]
    edges_y = [at - 0.5 for at in range(len(matrix.rows) + 1)]
    axes.pcolormesh(edges_x, edges_y, grid, norm=norm, cmap="cividis", edgecolors="face")
    axes.invert_yaxis()
    style.bare(axes)
    axes.set_xticks(range(len(matrix.columns)), [plain(c, 14) for c in matrix.columns])
    if max(map(len, matrix.columns)) > 9:
        axes.tick_params(axis="x", rotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(len(matrix.rows)), [plain(r, 18) for r in matrix.rows])
    axes.set_ylabel(axes_names[0])
    axes.set_xlabel(axes_names[1])
    axes.set_title(title, fontsize=8.5, loc="left")  # a picture by itself says what it shows
    for y, row in enumerate(matrix.rows):
        for x, column in enumerate(matrix.columns):
            value = matrix.cells.get((row, column))
            if value is not None:
                ink = "#ffffff" if norm(max(value, low)) < 0.55 else "#000000"
                axes.text(x, y, told(value), ha="center", va="center", fontsize=8, color=ink)
    left_out = f"; {matrix.left_out} names are left out" if matrix.left_out else ""
    worst = max(matrix.cells, key=lambda key: matrix.cells[key])
    about = (
        f"Rows: {axes_names[0]}; columns: {axes_names[1]}. The most is"
        f" {told(matrix.cells[worst])}: {plain(worst[0])}, {plain(worst[1])}{left_out}"
    )
    return style.picture(name, title, about, made)


def convergence(rows: Sequence[Settled], bounds: Bounds) -> Picture:
    shown = rows[: 3 * figures.NAMES_MAX]
    made = style.figure(1.4 + 0.3 * len(shown))
    axes = made.add_subplot()
    allowed = {
        "membership": bounds.membership_s,
        "catalog": bounds.catalog_s,
        "replicas": bounds.replicas_s,
    }
    reach = max((row.seconds or row.waited_s for event in shown for row in event.rows), default=1.0)
    never_count = overtaken_count = 0
    for number, (what, (mark, colour)) in enumerate(MARKS.items()):
        done, never, overtaken = [], [], []
        for at, event in enumerate(shown):
            y = at + 0.2 * (number - 1)  # so that equal times are seen
            for row in event.rows:
                if row.what == what and row.seconds is not None:
                    done.append((row.seconds, y))
                elif row.what == what and row.waited_s < allowed[what]:
                    overtaken.append((row.waited_s, y))
                elif row.what == what:
                    never.append((row.waited_s, y))
        label = f"{what} (bound {allowed[what]:g} s)"
        axes.scatter(*_columns(done), marker=mark, color=colour, s=26, label=label, zorder=3)
        axes.scatter(*_columns(never), marker="x", color=colour, s=36, zorder=4)
        axes.scatter(
            *_columns(overtaken), marker=">", edgecolors=colour, facecolors="none", s=30, zorder=4
        )
        never_count += len(never)
        overtaken_count += len(overtaken)
        if allowed[what] <= reach * 1.2:
            axes.axvline(allowed[what], color=colour, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(shown)), [f"after {plain(event.event, 24)}" for event in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, max(reach * 1.1, 0.1))
    axes.set_xlabel("seconds until all agreed (×: not in time; ▷: overtaken by the next event)")
    axes.grid(visible=False, axis="y")
    made.legend(loc="outside upper left", ncols=3)
    about = (
        f"Convergence after {counted(len(shown), 'event')}; {never_count} did not converge,"
        f" {overtaken_count} were overtaken by the next event"
    )
    if len(rows) > len(shown):
        about += f"; {counted(len(rows) - len(shown), 'later event')} left out"
    return style.picture("convergence", "Convergence after each event", about, made)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


# ---------------------------------------------------------------- numbers
def _ms(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms" if value < 99.5 else f"{value:.0f} ms"


def bytes_words(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def _floor_log(value: float) -> int:
    from math import floor, log10

    return floor(log10(value))
