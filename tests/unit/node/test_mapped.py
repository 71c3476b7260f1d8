"""What stays in memory: what is used much, and takes long to be mapped again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from edged.interfaces import ArtifactRow, Phases
from edged.mapped import HALF_LIFE_S, Mapped, MappedTable
from protocol.ids import ArtifactKey, Digest, digest_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def code(name: str, *, size_bytes: int = 100, load_s: float | None = 0.01) -> Mapped:
    digest = digest_of(name.encode())
    row = ArtifactRow(digest, ArtifactKey("k"), digest, size_bytes, 0.0, b"")
    module: Any = SimpleNamespace(closed=0)
    module.close = lambda: setattr(module, "closed", module.closed + 1)
    return Mapped(module, "loaded", Phases(load_s=load_s), row)


def admitted(table: MappedTable, mapped: Mapped, *, uses: int = 0) -> Digest:
    table.admit(mapped.row.digest, mapped)
    mapped.uses += uses
    return mapped.row.digest


def closed(mapped: Mapped) -> int:
    return cast("Any", mapped.module).closed  # type: ignore[no-any-return]


def test_what_is_used_most_stays_though_others_were_used_later() -> None:
    table = MappedTable(bytes_max=1000, number_max=2, now=Clock())
    often, once = code("often"), code("once")
    hot, cold = admitted(table, often, uses=50), admitted(table, once, uses=1)
    new = admitted(table, code("new"))
    assert hot in table
    assert cold not in table
    assert new in table
    assert (closed(often), closed(once)) == (0, 1)


def test_uses_fade_so_that_fashions_may_change() -> None:
    clock = Clock()
    table = MappedTable(bytes_max=1000, number_max=2, now=clock)
    old = admitted(table, code("old"), uses=60)
    admitted(table, code("else"))
    table.unmap(digest_of(b"else"))
    table.settle()
    clock.now += 12 * HALF_LIFE_S
    late = admitted(table, code("late"), uses=5)
    admitted(table, code("new"))
    assert old not in table
    assert late in table


def test_what_takes_longer_per_byte_to_have_again_is_worth_more() -> None:
    table = MappedTable(bytes_max=1000, number_max=100, now=Clock())
    dear = admitted(table, code("dear", load_s=1.0), uses=3)
    cheap = admitted(table, code("cheap", load_s=0.005), uses=3)
    large = admitted(table, code("large", size_bytes=700, load_s=0.01), uses=3)
    new = admitted(table, code("new", size_bytes=300))
    assert dear in table
    assert new in table
    assert large not in table
    assert cheap in table, "with the large one there was enough"


def test_what_runs_stays_and_the_newest_too() -> None:
    table = MappedTable(bytes_max=150, number_max=10, now=Clock())
    busy = code("busy")
    busy.users = 1
    first = admitted(table, busy)
    second = admitted(table, code("second"))
    assert first in table
    assert second in table
    busy.users = 0
    third = admitted(table, code("third"))
    assert [third] == [one.row.digest for one in table.all()]


def test_better_code_is_used_as_what_it_replaces() -> None:
    table = MappedTable(bytes_max=1000, number_max=2, now=Clock())
    fast, better = code("f"), code("f", size_bytes=120)
    digest = admitted(table, fast, uses=40)
    table.replace(digest, fast, better)
    assert closed(fast) == 1
    admitted(table, code("other"), uses=2)
    admitted(table, code("new"))
    assert table.get(digest) is better
    assert better.uses == 41
    table.close()
    assert closed(better) == 1
    assert table.all() == []
