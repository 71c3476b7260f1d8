"""Phase 1: makes a module's inner state visible, without changing what it does.

Added are exports under names the module does not use: every memory and table, each mutable global,
the start function (which is taken out, so that the tables can be looked at before it runs), and one
probe for each passive segment. A probe traps if its segment was dropped and does nothing if not:
`memory.init` of no bytes from the segment's end, which is out of bounds only of a dropped one.
Functions and types are appended, so that no index changes.
"""

from __future__ import annotations

from typing import Final

from .binary import END, I32_CONST, Budget, Reader, Span, const_address, encode_name, leb, sleb
from .errors import refuse
from .parse import CODE, EXPORT, FUNCTION, RANK, START, TYPE, Module, Section

PROBES_MAX: Final = 10_000
_PREFIX: Final = "edged-snapshot-"
_EXPORT_KIND: Final = {"func": 0, "table": 1, "memory": 2, "global": 3}
_NOTHING_TYPE: Final = b"\x60\x00\x00"
_MEMORY_INIT: Final = b"\xfc\x08"
_TABLE_INIT: Final = b"\xfc\x0c"


class Names:
    """The exports that were added."""

    def __init__(self, module: Module) -> None:
        taken = {
            name[len(_PREFIX) :].partition(":")[0]
            for name in module.exports
            if name.startswith(_PREFIX)
        }
        free = next(index for index in range(len(taken) + 1) if str(index) not in taken)
        self._prefix = f"{_PREFIX}{free}:"
        self.start = f"{self._prefix}start"

    def of(self, kind: str, index: int) -> str:
        """`kind`: memory, table, global, data (a probe) or element (a probe)."""
        return f"{self._prefix}{kind}:{index}"


class Parts:
    """A binary as a list of slices of the module and new bytes; neighbours are joined."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._spans: list[Span | bytes | memoryview] = []

    def keep(self, start: int, end: int) -> None:
        last = self._spans[-1] if self._spans else None
        if isinstance(last, Span) and last.end == start:
            self._spans[-1] = Span(last.start, end)
        elif end > start:
            self._spans.append(Span(start, end))

    def add(self, data: bytes | memoryview) -> None:
        self._spans.append(data)

    def extend(self, parts: Parts) -> None:
        for part in parts._spans:
            if isinstance(part, Span):
                self.keep(*part)
            else:
                self._spans.append(part)

    def section(self, section_id: int, *content: Parts | bytes) -> None:
        size = sum(part.size if isinstance(part, Parts) else len(part) for part in content)
        self.add(bytes([section_id]) + leb(size))
        for part in content:
            if isinstance(part, Parts):
                self.extend(part)
            else:
                self.add(part)

    @property
    def size(self) -> int:
        return sum(
            part.end - part.start if isinstance(part, Span) else len(part) for part in self._spans
        )

    def buffers(self) -> list[bytes | memoryview]:
        return [
            self._data[part.start : part.end] if isinstance(part, Span) else part
            for part in self._spans
        ]


def passive_data(module: Module) -> list[int]:
    """Segments that code may drop, and that a drop would change."""
    if module.data_count is None or not module.memories:
        return []
    return [
        index
        for index, segment in enumerate(module.segments)
        if segment.memory is None and segment.payload.end > segment.payload.start
    ]


def passive_elements(module: Module) -> list[tuple[int, int]]:
    """Likewise, each with a table it fits. Raises CannotSnapshot("passive-elements")."""
    tables = {table.type: index for index, table in reversed(list(enumerate(module.tables)))}
    found = []
    for index, segment in enumerate(module.elements):
        if segment.mode != "passive" or not segment.size:
            continue
        if segment.type not in tables:
            raise refuse("passive-elements", f"element segment {index}", "fits no table")
        found.append((index, tables[segment.type]))
    return found


def instrument(module: Module, names: Names) -> list[bytes | memoryview]:
    """The instrumented binary in pieces. Raises CannotSnapshot ("passive-elements", "limits")."""
    probes = _probes(module, names)
    out = Parts(module.data)
    out.keep(0, 8)
    done = {section.id for section in module.sections}
    missing = sorted({EXPORT} - done, key=RANK.__getitem__)
    for section in module.sections:
        while missing and RANK.get(section.id, -1) > RANK[missing[0]]:
            _rewrite(out, module, Section(missing.pop(0), 0, 0, 0), names, probes)
        if section.id != START:
            _rewrite(out, module, section, names, probes)
    for section_id in missing:
        _rewrite(out, module, Section(section_id, 0, 0, 0), names, probes)
    return out.buffers()


def _rewrite(
    out: Parts, module: Module, section: Section, names: Names, probes: list[tuple[str, bytes]]
) -> None:
    """`section` with what it gets in addition; an empty one is new."""
    added: list[bytes] = []
    if section.id == EXPORT:
        added = _exports(module, names, probes)
    elif probes and section.id == TYPE:
        added = [_NOTHING_TYPE]
    elif probes and section.id == FUNCTION:
        added = [leb(len(module.types))] * len(probes)
    elif probes and section.id == CODE:
        added = [leb(len(body)) + body for _name, body in probes]
    if not added:
        out.keep(section.start, section.end)
        return
    begin, count = section.body, 0
    if section.end:
        begin, count = _skip_count(module.data, section)
    kept = Parts(module.data)
    kept.keep(begin, section.end)
    out.section(section.id, leb(count + len(added)), kept, b"".join(added))


def _skip_count(data: memoryview, section: Section) -> tuple[int, int]:
    """Where a section's items begin, and how many there are. Parsed before, except for code's."""
    reader = Reader(data, section.body, section.end, Budget())
    count = reader.u32()
    return reader.at, count


def _exports(module: Module, names: Names, probes: list[tuple[str, bytes]]) -> list[bytes]:
    wanted = [("memory", index) for index in range(len(module.memories))]
    wanted += [("table", index) for index in range(len(module.tables))]
    wanted += [("global", index) for index, each in enumerate(module.globals) if each.mutable]
    added = [_export(names.of(kind, index), kind, index) for kind, index in wanted]
    if module.start is not None:
        added.append(_export(names.start, "func", module.start))
    first = len(module.function_types)
    added += [_export(name, "func", first + index) for index, (name, _body) in enumerate(probes)]
    return added


def _export(name: str, kind: str, index: int) -> bytes:
    return encode_name(name) + bytes([_EXPORT_KIND[kind]]) + leb(index)


def _probes(module: Module, names: Names) -> list[tuple[str, bytes]]:
    """Exported name and body of each. Raises CannotSnapshot."""
    if module.section(CODE) is None or module.section(FUNCTION) is None:
        return []  # no code, no drops
    data, elements = passive_data(module), passive_elements(module)
    if len(data) + len(elements) > PROBES_MAX:
        raise refuse("limits", "module", f"has more than {PROBES_MAX} passive segments")
    probes = []
    for index in data:
        span = module.segments[index].payload
        body = _body(span.end - span.start, is_64=module.memories[0].is_64)
        probes.append((names.of("data", index), body + _MEMORY_INIT + leb(index) + b"\0"))
    for index, table in elements:
        body = _body(module.elements[index].size, is_64=module.tables[table].limits.is_64)
        probes.append((names.of("element", index), body + _TABLE_INIT + leb(index) + leb(table)))
    return [(name, body + bytes([END])) for name, body in probes]


def _body(length: int, *, is_64: bool) -> bytes:
    """No locals; to address 0, from the segment's end, no items."""
    target = const_address(0, is_64=is_64)[:-1]
    return b"\0" + target + bytes([I32_CONST]) + sleb(length) + bytes([I32_CONST]) + sleb(0)
