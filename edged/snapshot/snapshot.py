"""Phase 3: reads the state of an initialised instance, or says why it cannot be written down."""

from __future__ import annotations

from dataclasses import dataclass

from edged.interfaces import MemoryReport, SnapshotLimits

from .binary import Span
from .errors import refuse
from .guest import Guest
from .initialize import State
from .instrument import passive_data, passive_elements
from .parse import CODE, FUNCTION, Module
from .parse import SEGMENTS_MAX as ENGINE_SEGMENTS_MAX
from .segments import SEGMENT_HEAD_BYTES, SEGMENTS_MAX, Layout, find_spans, lay_out


@dataclass
class Snapshot:
    """Valid while its instance lives: memories are not copied."""

    memories: list[memoryview]
    layouts: list[Layout]
    globals: dict[int, bytes]
    """Values that changed, little-endian."""
    dropped_data: frozenset[int]
    """Passive segments that are no longer there."""
    dropped_elements: frozenset[int]

    @property
    def segments(self) -> int:
        return sum(len(layout.spans) for layout in self.layouts)

    def reports(self, module: Module) -> tuple[MemoryReport, ...]:
        return tuple(
            MemoryReport(
                bytes_before=limits.minimum << limits.page_bits,
                bytes_after=len(memory),
                captured_bytes=layout.captured_bytes,
                padding_bytes=layout.padding_bytes,
                data_segments=len(layout.spans),
                mapped=layout.mapped,
            )
            for limits, memory, layout in zip(
                module.memories, self.memories, self.layouts, strict=True
            )
        )


def snapshot(guest: Guest, before: State, limits: SnapshotLimits) -> Snapshot:
    """Raises CannotSnapshot: "table-mutated", "table-grown", "reference-global"."""
    module = guest.module
    _check_tables(guest, before)
    changed = _changed_globals(guest, before)
    memories = [guest.memory(index) for index in range(len(module.memories))]
    kept = len(module.segments) if module.data_count is not None else 0
    found = [find_spans(memory) for memory in memories]
    layouts = lay_out(
        found,
        [each.page_bits for each in module.memories],
        segments_max=min(SEGMENTS_MAX, ENGINE_SEGMENTS_MAX - kept),
        padding_bytes_max=_padding_bytes_max(module, found, limits),
    )
    data, elements = _dropped(guest)
    return Snapshot(memories, layouts, changed, data, elements)


def _padding_bytes_max(module: Module, found: list[list[Span]], limits: SnapshotLimits) -> int:
    """By the ratio; and a snapshot that fits is not to be made too large. It is larger than the
    module by its data and their heads, at most."""
    data_bytes = sum(span.end - span.start for spans in found for span in spans)
    heads_bytes = SEGMENTS_MAX * SEGMENT_HEAD_BYTES
    room = limits.snapshot_bytes - len(module.data) - data_bytes - heads_bytes
    return min(limits.padding_ratio * data_bytes, room)


def _check_tables(guest: Guest, before: State) -> None:
    for index, old in enumerate(before.tables):
        thing = f"table {index}"
        new = guest.table(index)
        if len(new) != len(old):
            raise refuse("table-grown", thing, f"grew from {len(old)} to {len(new)} elements")
        if new != old:
            at = next(
                at for at, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]
            )
            raise refuse("table-mutated", thing, f"the initialiser changed element {at}")


def _changed_globals(guest: Guest, before: State) -> dict[int, bytes]:
    changed = {}
    for index, old in before.globals.items():
        new = guest.global_bits(index)
        if new == old:
            continue
        if guest.module.globals[index].kind == "ref":
            raise refuse("reference-global", f"global {index}", "refers to another thing now")
        changed[index] = new
    return changed


def _dropped(guest: Guest) -> tuple[frozenset[int], frozenset[int]]:
    module, names = guest.module, guest.names
    if module.section(CODE) is None or module.section(FUNCTION) is None:
        return frozenset(), frozenset()
    return (
        frozenset(index for index in passive_data(module) if guest.traps(names.of("data", index))),
        frozenset(
            index
            for index, _table in passive_elements(module)
            if guest.traps(names.of("element", index))
        ),
    )
