"""Imports, exports and minimum sizes of a wasm binary that the validator already accepted.

Runs in the worker process on hostile bytes, so every read is bounds-checked all the same. Source:
WebAssembly core specification §5.5 (binary format of modules).
"""

from __future__ import annotations

from typing import Final, NamedTuple

_TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _EXPORT = 1, 2, 3, 4, 5, 7
_KINDS: Final = ("func", "table", "memory", "global", "tag")
_PAGE_BITS_DEFAULT: Final = 16
_ABSTRACT_REFERENCES: Final = frozenset(range(0x69, 0x78))
"""Value types that are one byte: funcref, externref, exnref … (0x63 and 0x64 have a heap type)."""
_NUMBERS: Final = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"}


class Malformed(Exception):
    """The bytes are not what a validated module has."""


class Import(NamedTuple):
    module: str
    name: str
    kind: str
    type_index: int
    """Of a function; 0 for others."""


class Export(NamedTuple):
    name: str
    kind: str
    position: int
    """Among the module's things of that kind, imports first."""


class Summary(NamedTuple):
    types: list[tuple[tuple[str, ...], tuple[str, ...]] | None]
    """Function types by index; None for types that are no plain functions."""
    imports: list[Import]
    functions: list[int]
    """Type index of each function, imports first."""
    exports: list[Export]
    memory_bytes_min: int
    """Of all memories together."""
    memories: int
    table_elements_min: int
    tables: int


class Reader:
    """Bounds-checked reads of `data` from `at` to `end`. Raises Malformed."""

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end

    def byte(self) -> int:
        if self.at >= self.end:
            raise Malformed("truncated")
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """Unsigned LEB128 of at most 64 bits."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise Malformed("LEB128 too long")

    def take(self, length: int) -> bytes:
        self.skip(length)
        return self.data[self.at - length : self.at]

    def skip(self, length: int) -> None:
        if length > self.end - self.at:
            raise Malformed("truncated")
        self.at += length

    def name(self) -> str:
        try:
            return self.take(self.number()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed("name is not UTF-8") from error

    def value_type(self) -> str:
        byte = self.byte()
        if byte in _NUMBERS:
            return _NUMBERS[byte]
        if byte in (0x63, 0x64):
            self.number()  # heap type: signed LEB128 has the same length
        elif byte not in _ABSTRACT_REFERENCES:
            raise Malformed(f"value type {byte:#x}")
        return "ref"

    def limits(self) -> tuple[int, int]:
        """(minimum, log2 of the page size)."""
        flags = self.byte()
        minimum = self.number()
        if flags & 1:
            self.number()
        return minimum, self.number() if flags & 8 else _PAGE_BITS_DEFAULT


def summarize(wasm: bytes) -> Summary:
    """Raises Malformed."""
    reader = Reader(wasm)
    reader.take(8)
    summary = Summary([], [], [], [], 0, 0, 0, 0)
    while reader.at < len(wasm):
        section = reader.byte()
        body = Reader(reader.take(reader.number()))
        if section == _TYPE:
            summary.types.extend(_types(body))
        elif section == _IMPORT:
            summary.imports.extend(_import(body) for _ in range(body.number()))
            summary.functions.extend(
                item.type_index for item in summary.imports if item.kind == "func"
            )
        elif section == _FUNCTION:
            summary.functions.extend(body.number() for _ in range(body.number()))
        elif section == _EXPORT:
            summary.exports.extend(_export(body) for _ in range(body.number()))
        elif section == _MEMORY:
            sizes = [minimum << bits for minimum, bits in
                     (body.limits() for _ in range(body.number()))]  # fmt: skip
            summary = summary._replace(memory_bytes_min=sum(sizes), memories=len(sizes))
        elif section == _TABLE:
            elements = _tables(body)
            summary = summary._replace(table_elements_min=sum(elements), tables=len(elements))
    return summary


def _types(body: Reader) -> list[tuple[tuple[str, ...], tuple[str, ...]] | None]:
    """Stops at the first type that is not a plain function: GC is off, so there is none in a valid
    module; what follows would be looked up as None and refused."""
    found: list[tuple[tuple[str, ...], tuple[str, ...]] | None] = []
    count = body.number()
    for _ in range(count):
        if body.byte() != 0x60:
            return [*found, *([None] * (count - len(found)))]
        params = tuple(body.value_type() for _ in range(body.number()))
        found.append((params, tuple(body.value_type() for _ in range(body.number()))))
    return found


def _import(body: Reader) -> Import:
    module, name, kind = body.name(), body.name(), body.byte()
    if kind >= len(_KINDS):
        raise Malformed(f"import kind {kind}")
    index = 0
    match _KINDS[kind]:
        case "func":
            index = body.number()
        case "table":
            body.value_type()
            body.limits()
        case "memory":
            body.limits()
        case "global":
            body.value_type()
            body.byte()
        case "tag":
            body.byte()
            body.number()
    return Import(module, name, _KINDS[kind], index)


def _export(body: Reader) -> Export:
    name, kind, position = body.name(), body.byte(), body.number()
    if kind >= len(_KINDS):
        raise Malformed(f"export kind {kind}")
    return Export(name, _KINDS[kind], position)


def entry_points(summary: Summary) -> list[str]:
    """Exported functions without parameters: what `raw` and `cgi` can call."""
    found = []
    for export in summary.exports:
        if export.kind != "func" or export.position >= len(summary.functions):
            continue
        index = summary.functions[export.position]
        signature = summary.types[index] if index < len(summary.types) else None
        if signature is not None and not signature[0]:
            found.append(export.name)
    return found


def _tables(body: Reader) -> list[int]:
    """Minimum elements of each table, up to the first with an initialiser expression (0x40): its
    length is not given, and the store's limits hold for it anyway."""
    elements: list[int] = []
    for _ in range(body.number()):
        if body.at < len(body.data) and body.data[body.at] == 0x40:
            break
        body.value_type()
        elements.append(body.limits()[0])
    return elements
