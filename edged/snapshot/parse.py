"""What a module consists of, as far as a snapshot has to know it.

Functions' bodies are never looked at: they are the same before and after. The validator reads the
module too (before anything runs), so what is not checked here is checked there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .binary import FUNCREF, Budget, Limits, Reader, Span
from .errors import Malformed, refuse

MAGIC: Final = b"\0asm"
CORE: Final = b"\x01\x00\x00\x00"
HEADER_BYTES: Final = 8

CUSTOM: Final = 0
TYPE: Final = 1
IMPORT: Final = 2
FUNCTION: Final = 3
TABLE: Final = 4
MEMORY: Final = 5
GLOBAL: Final = 6
EXPORT: Final = 7
START: Final = 8
ELEMENT: Final = 9
CODE: Final = 10
DATA: Final = 11
DATA_COUNT: Final = 12
TAG: Final = 13
ORDER: Final = (TYPE, IMPORT, FUNCTION, TABLE, MEMORY, TAG, GLOBAL, EXPORT, START, ELEMENT,
                DATA_COUNT, CODE, DATA)  # fmt: skip
RANK: Final = {section: rank for rank, section in enumerate(ORDER)}

KINDS: Final = ("func", "table", "memory", "global", "tag")
SIGNATURE_VALUES_MAX: Final = 1000
"""wasmparser's limit on parameters, and on results."""
MEMORIES_MAX: Final = 100
TABLES_MAX: Final = 100
SEGMENTS_MAX: Final = 100_000
"""wasmparser's limits."""
_FUNCTION_TYPE: Final = 0x60
_GC_TYPES: Final = frozenset((0x4E, 0x4F, 0x50, 0x5E, 0x5F))


class Section(NamedTuple):
    id: int
    start: int
    """Of its id."""
    body: int
    end: int


class Signature(NamedTuple):
    params: tuple[str, ...]
    results: tuple[str, ...]


class Import(NamedTuple):
    module: str
    name: str
    kind: str
    type_index: int
    """Of a function; 0 for others."""


class Table(NamedTuple):
    type: bytes
    """Encoding of its elements' type."""
    limits: Limits


class Global(NamedTuple):
    kind: str
    """A number's name, or "ref"."""
    mutable: bool
    type: Span
    """Of value type and mutability."""
    value: Span
    """Of the expression it starts with."""


class Export(NamedTuple):
    name: str
    kind: str
    position: int
    """Among all things of its kind."""
    whole: Span
    after_name: int
    """Where its kind stands."""


class Data(NamedTuple):
    memory: int | None
    """None: passive."""
    whole: Span
    payload: Span


class Element(NamedTuple):
    mode: str
    """active, passive or declared."""
    type: bytes
    whole: Span
    size: int
    """In elements."""


@dataclass
class Module:
    """Indices are of all things of a kind, imported first; the lists hold those defined here."""

    data: memoryview
    sections: list[Section] = field(default_factory=list)
    types: list[Signature] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    imported: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    function_types: list[int] = field(default_factory=list)
    """Of all functions."""
    tables: list[Table] = field(default_factory=list)
    memories: list[Limits] = field(default_factory=list)
    globals: list[Global] = field(default_factory=list)
    exports: dict[str, Export] = field(default_factory=dict)
    start: int | None = None
    elements: list[Element] = field(default_factory=list)
    data_count: int | None = None
    segments: list[Data] = field(default_factory=list)

    def signature(self, function: int) -> Signature | None:
        """None if there is no such function, or no such type."""
        if function >= len(self.function_types):
            return None
        index = self.function_types[function]
        return self.types[index] if index < len(self.types) else None

    def exported_signature(self, name: str) -> Signature | None:
        export = self.exports.get(name)
        if export is None or export.kind != "func":
            return None
        return self.signature(export.position)

    def section(self, section_id: int) -> Section | None:
        return next((each for each in self.sections if each.id == section_id), None)


def parse(data: memoryview) -> Module:
    """Raises Malformed, or CannotSnapshot: "component", "gc", "limits"."""
    if len(data) < HEADER_BYTES:
        raise Malformed(len(data), "shorter than its header")
    header = bytes(data[:HEADER_BYTES])
    if not header.startswith(MAGIC):
        raise Malformed(0, "no WebAssembly binary")
    if header[6:] == b"\x01\x00":
        raise refuse("component", "", "a component, not a core module")
    if header[4:] != CORE:
        raise Malformed(4, "unknown version")
    module, budget = Module(data), Budget()
    reader = Reader(data, HEADER_BYTES, len(data), budget)
    rank = -1
    while reader.at < reader.end:
        budget.take(1)
        start = reader.at
        section = reader.byte()
        body = reader.skip(reader.u32())
        module.sections.append(Section(section, start, *body))
        part = Reader(data, *body, budget)
        if section == CUSTOM:
            part.name()
            continue
        if section not in RANK:
            raise Malformed(start, f"unknown section {section}")
        if RANK[section] <= rank:
            raise Malformed(start, f"section {section} out of order")
        rank = RANK[section]
        read = _READERS.get(section)
        if read is not None:
            read(part, module)
    if module.data_count is not None and module.data_count != len(module.segments):
        raise Malformed(len(data), "data count differs from the number of data segments")
    return module


def _types(part: Reader, module: Module) -> None:
    for _ in part.counted(3):
        at = part.at
        form = part.byte()
        if form in _GC_TYPES:
            raise refuse("gc", f"type {len(module.types)}", "is a garbage-collected one")
        if form != _FUNCTION_TYPE:
            raise Malformed(at, f"unknown type {form:#04x}")
        module.types.append(Signature(_values(part), _values(part)))


def _values(part: Reader) -> tuple[str, ...]:
    at = part.at
    count = part.count()
    if count > SIGNATURE_VALUES_MAX:
        raise Malformed(at, f"function type of {count} values")
    return tuple(part.value_type() for _ in range(count))


def _imports(part: Reader, module: Module) -> None:
    for _ in part.counted(3):
        name, field_name = part.name(), part.name()
        at = part.at
        code = part.byte()
        if code >= len(KINDS):
            raise Malformed(at, f"unknown import {code:#04x}")
        kind, index = KINDS[code], 0
        if kind == "func":
            index = part.u32()
            module.function_types.append(index)
        elif kind == "table":
            part.reference_type()
            part.limits(memory=False)
        elif kind == "memory":
            part.limits(memory=True)
        elif kind == "global":
            part.value_type()
            part.byte()
        else:
            part.byte()
            part.u32()
        module.imports.append(Import(name, field_name, kind, index))
        module.imported[kind] += 1


def _functions(part: Reader, module: Module) -> None:
    module.function_types.extend(part.u32() for _ in part.counted())


def _tables(part: Reader, module: Module) -> None:
    for index in part.counted(2):
        if index >= TABLES_MAX:
            raise refuse("limits", "module", f"has more than {TABLES_MAX} tables")
        initialised = part.at < part.end and part.data[part.at] == 0x40
        if initialised:
            part.skip(1)
            if part.byte() != 0:
                raise part.fail("unknown table", part.at - 1)
        module.tables.append(Table(part.reference_type(), part.limits(memory=False)))
        if initialised:
            part.expression()


def _memories(part: Reader, module: Module) -> None:
    for index in part.counted(2):
        if index >= MEMORIES_MAX:
            raise refuse("limits", "module", f"has more than {MEMORIES_MAX} memories")
        module.memories.append(part.limits(memory=True))


def _globals(part: Reader, module: Module) -> None:
    for _ in part.counted(4):
        begin = part.at
        kind = part.value_type()
        mutable = part.byte()
        if mutable > 1:
            raise part.fail(f"mutability {mutable}", part.at - 1)
        kind_span = Span(begin, part.at)
        module.globals.append(Global(kind, bool(mutable), kind_span, part.expression()))


def _exports(part: Reader, module: Module) -> None:
    for _ in part.counted(3):
        begin = part.at
        name = part.name()
        at = part.at
        code = part.byte()
        if code >= len(KINDS):
            raise Malformed(at, f"unknown export {code:#04x}")
        if name in module.exports:
            raise Malformed(begin, "two exports of one name")
        index = part.u32()
        module.exports[name] = Export(name, KINDS[code], index, Span(begin, part.at), at)


def _start(part: Reader, module: Module) -> None:
    module.start = part.u32()
    part.finish()


def _elements(part: Reader, module: Module) -> None:
    for index in part.counted(2):
        if index >= SEGMENTS_MAX:
            raise refuse("limits", "module", f"has more than {SEGMENTS_MAX} element segments")
        begin = part.at
        # Bit 0: not active; 1: declared, or with a table's index; 2: expressions, not indices.
        flags = part.u32()
        if flags > 7:
            raise part.fail(f"unknown element segment {flags:#x}", begin)
        mode = ("declared" if flags & 2 else "passive") if flags & 1 else "active"
        if mode == "active":
            if flags & 2:
                part.u32()
            part.expression()
        kind = FUNCREF
        if flags & 3 and flags & 4:
            kind = part.reference_type()
        elif flags & 3 and part.byte() != 0:
            raise part.fail("unknown kind of elements", part.at - 1)
        count = part.count()
        read = part.expression if flags & 4 else part.u32
        for _ in range(count):
            read()
        module.elements.append(Element(mode, kind, Span(begin, part.at), count))


def _data_count(part: Reader, module: Module) -> None:
    module.data_count = part.u32()
    part.finish()


def _data(part: Reader, module: Module) -> None:
    for index in part.counted(2):
        if index >= SEGMENTS_MAX:
            raise refuse("limits", "module", f"has more than {SEGMENTS_MAX} data segments")
        begin = part.at
        flags = part.u32()
        if flags > 2:
            raise part.fail(f"unknown data segment {flags:#x}", begin)
        memory = None if flags == 1 else part.u32() if flags == 2 else 0
        if memory is not None:
            part.expression()
        payload = part.skip(part.u32())
        module.segments.append(Data(memory, Span(begin, part.at), payload))


_READERS: Final = {
    TYPE: _types,
    IMPORT: _imports,
    FUNCTION: _functions,
    TABLE: _tables,
    MEMORY: _memories,
    GLOBAL: _globals,
    EXPORT: _exports,
    START: _start,
    ELEMENT: _elements,
    DATA: _data,
    DATA_COUNT: _data_count,
}
