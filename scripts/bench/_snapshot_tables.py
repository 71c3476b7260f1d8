"""What `snapshots` prints of each function: sizes of all forms, what making them takes, the start.

One line of heads over one of columns; a note below says what the columns mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from _snapshot_facts import Facts

LABEL_CHARS = 12
GAP = "   "
THESIS = "The thesis, user-agent parsing: 3.1 → 35.7 MB, 11.5 × as large, starts 14 × as fast."


class Group(NamedTuple):
    """Columns under one head."""

    head: str
    columns: Sequence[str]
    width: int = 8

    @property
    def chars(self) -> int:
        return len(self.columns) * self.width


def show(found: list[Facts]) -> None:
    for facts in found:
        print(f"{facts.case.name}: {facts.case.about}")
    _sizes(found)
    _making(found)
    _starts(found)
    print(f"\n{THESIS}")
    for facts in found:
        before, after = facts.module.blob, facts.snapshot.blob
        print(
            f"{facts.case.name}: {before.size_bytes / 1e6:.2f} → {after.size_bytes / 1e6:.2f} MB,"
            f" {after.size_bytes / before.size_bytes:.1f} × as large,"
            f" {after.wire_bytes / before.wire_bytes:.1f} × as much to send,"
            f" starts {facts.faster:.0f} × as fast."
        )


def table(title: str, groups: Sequence[Group], rows: dict[str, Sequence[Sequence[str]]]) -> None:
    """`rows`: by label, cells by group."""
    print(f"\n{title}")
    heads = GAP.join(f"{group.head:^{group.chars}}" for group in groups)
    print(f"{'':{LABEL_CHARS}}{GAP}{heads}".rstrip())
    names = GAP.join(_cells(group.columns, group.width) for group in groups)
    print(f"{'':{LABEL_CHARS}}{GAP}{names}")
    for label, cells in rows.items():
        texts = [
            _cells(each, group.width) if each else " " * group.chars
            for each, group in zip(cells, groups, strict=True)
        ]
        print(f"{label:{LABEL_CHARS}}{GAP}{GAP.join(texts)}".rstrip())


def _cells(texts: Sequence[str], width: int) -> str:
    return "".join(f"{text:>{width}}" for text in texts)


def _sizes(found: list[Facts]) -> None:
    rows = {}
    for facts in found:
        module, snapshot = facts.module, facts.snapshot
        share = facts.delta_bytes / snapshot.blob.wire_bytes
        delta = f"{share:.1%}{'' if facts.delta_offered else ' *'}"
        rows[facts.case.name] = [
            (_mb(module.blob.size_bytes), _mb(module.blob.wire_bytes)),
            (_mb(snapshot.blob.size_bytes), _mb(snapshot.blob.wire_bytes)),
            (_mb(facts.delta_bytes), delta),
            (_mb(module.artifact.size_bytes), _mb(module.artifact.wire_bytes)),
            (_mb(snapshot.artifact.size_bytes), _mb(snapshot.artifact.wire_bytes)),
        ]
    groups = [
        Group("module", ("raw", "sent")), Group("snapshot", ("raw", "sent")),
        Group("delta", ("sent", "of full"), 9), Group("module's artifact", ("raw", "sent"), 9),
        Group("snapshot's artifact", ("raw", "sent"), 10),
    ]  # fmt: skip
    table("Sizes, MB", groups, rows)
    print("sent: as peers send it, compressed by zstd. of full: of the whole snapshot, as sent.")
    print("delta: against the module. artifact: native code, optimised.")
    if not all(facts.delta_offered for facts in found):
        print("*: never sent: it saves less than half.")


def _making(found: list[Facts]) -> None:
    rows = {}
    for facts in found:
        module, snapshot, report = facts.module, facts.snapshot, facts.report
        beyond_s = report.cpu_s - report.init_cpu_s
        rows[facts.case.name] = [
            (f"{report.cpu_s:.2f}", f"{report.init_cpu_s:.2f}", f"{beyond_s:.2f}",
             f"{report.compile_cpu_s:.2f}"),
            (f"{report.peak_rss_bytes / 1e6:.0f}",),
            tuple(f"{made.cpu_s:.2f}" for made in (module.fast, module.optimised)),
            tuple(f"{made.cpu_s:.2f}" for made in (snapshot.fast, snapshot.optimised)),
            (_mb(module.code_bytes),),
        ]  # fmt: skip
    groups = [
        Group("making the snapshot", ("all", "init", "the rest", "compile"), 9),
        Group("peak", ("MB",), 5),
        Group("compiling module", ("fast", "opt.")), Group("… its snapshot", ("fast", "opt.")),
        Group("code", ("MB",)),
    ]  # fmt: skip
    table("Making them, CPU s", groups, rows)
    print("making: the cheapest of some. the rest: all but init, of which compile is most.")
    print("fast: Winch, for the first answers; opt.: Cranelift. code: the code section, of both.")


def _starts(found: list[Facts]) -> None:
    rows = {}
    for facts in found:
        before, after = facts.starts["module"], facts.starts["snapshot"]
        rows[facts.case.name] = [
            (_ms(before.cpu_s * 1e6), _ms(before.sample.wall_us)),
            (_ms(after.cpu_s * 1e6), _ms(after.sample.wall_us)),
            (f"{facts.faster:.1f} x", f"{before.sample.wall_us / after.sample.wall_us:.1f} x"),
            tuple(f"{start.instantiate_s * 1e6:.0f}" for start in (before, after)),
            (facts.report.form,),
        ]
    groups = [
        Group("module", ("CPU", "wall"), 9), Group("snapshot", ("CPU", "wall"), 9),
        Group("as fast", ("CPU", "wall"), 9), Group("instantiate, µs", ("module", "snapshot"), 10),
        Group("data", ("",)),
    ]  # fmt: skip
    table("Start: a fresh instance to the end of its first answer, ms", groups, rows)
    print("By optimised code. CPU and instantiate (part of it): the best; wall: the median. data:")
    print(
        "sparse, or padded with zeros, so that wasmtime maps it copy-on-write and copies nothing."
    )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.3f}"


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1e3:.2f}"
