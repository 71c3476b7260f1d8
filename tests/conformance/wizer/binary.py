"""What a wasm binary says, read without edged: an oracle shares no code with what it judges.

Reads modules that wasmtime accepts. Encoding choices disappear (LEB128 lengths, how a flag with a
default is written); everything a module can mean stays. Source: WebAssembly core specification §5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

HEADER = b"\0asm\1\0\0\0"
KINDS = ("func", "table", "memory", "global", "tag")
CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT = range(10)
CODE, DATA, DATA_COUNT = 10, 11, 12

Constant = tuple[tuple[object, ...], ...]
"""A constant expression: its instructions, numbers as their bits."""


class Memory(NamedTuple):
    flags: int
    """1 bounded, 2 shared, 4 addressed with 64 bits, 8 another page size."""
    minimum: int
    maximum: int | None


class Global(NamedTuple):
    type: bytes
    mutable: bool
    value: Constant


class Export(NamedTuple):
    name: str
    kind: str
    index: int


class Segment(NamedTuple):
    memory: int | None
    """None: passive."""
    offset: Constant
    data: bytes


class Module:
    """Indices count imports first, as the format does; the lists hold the own things."""

    def __init__(self) -> None:
        self.customs: list[tuple[str, bytes]] = []
        self.raw: dict[int, bytes] = {}
        """Types, tables and elements: both sides are expected to copy them."""
        self.imports: list[tuple[str, str, str, bytes]] = []
        self.functions: list[int] = []
        self.tables = 0
        self.memories: list[Memory] = []
        self.globals: list[Global] = []
        self.exports: list[Export] = []
        self.start: int | None = None
        self.code: list[bytes] = []
        self.data: list[Segment] = []
        self.names_data = False
        """Has a data count, without which no code can name a segment."""

    def imported(self, kind: str) -> int:
        return sum(1 for _module, _name, what, _type in self.imports if what == kind)


class Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def take(self, length: int) -> bytes:
        found = self.data[self.at : self.at + length]
        assert len(found) == length, "truncated"
        self.at += length
        return found

    def unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def signed(self, bits: int) -> int:
        """As its bits, that is, modulo 2 ** bits."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                value -= (byte >> 6 & 1) << shift
                return value % (1 << bits)

    def string(self) -> str:
        return self.take(self.unsigned()).decode()

    def many(self, read: Callable[[], object]) -> Iterator[object]:
        for _ in range(self.unsigned()):
            yield read()

    def value_type(self) -> bytes:
        start = self.at
        if self.byte() in (0x63, 0x64):
            self.signed(64)
        return self.data[start : self.at]

    def limits(self) -> Memory:
        flags = self.byte()
        minimum = self.unsigned()
        found = Memory(flags, minimum, self.unsigned() if flags & 1 else None)
        assert not flags & 8, "other page sizes are a proposal nobody here runs"
        return found

    def constant(self) -> Constant:
        found: list[tuple[object, ...]] = []
        while True:
            op = self.byte()
            if op == 0x0B:
                return tuple(found)
            if op == 0xFD:
                assert self.unsigned() == 12
                found.append(("v128", self.take(16)))
            else:
                found.append((op, *(read(self) for read in OPERANDS[op])))

    def global_type(self) -> tuple[bytes, bool]:
        return self.value_type(), self.byte() == 1


OPERANDS: dict[int, tuple[Callable[[Cursor], object], ...]] = {
    0x41: (lambda cursor: cursor.signed(32),),
    0x42: (lambda cursor: cursor.signed(64),),
    0x43: (lambda cursor: cursor.take(4),),
    0x44: (lambda cursor: cursor.take(8),),
    0x23: (Cursor.unsigned,),
    0xD0: (lambda cursor: cursor.signed(33),),
    0xD2: (Cursor.unsigned,),
    **dict.fromkeys((0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E), ()),
}


def sections(wasm: bytes) -> Iterator[tuple[int, bytes]]:
    assert wasm.startswith(HEADER)
    cursor = Cursor(wasm)
    cursor.take(8)
    while cursor.at < len(wasm):
        number = cursor.byte()
        yield number, cursor.take(cursor.unsigned())


def decode(wasm: bytes) -> Module:
    module = Module()
    wasm = bytes(wasm)
    for number, payload in sections(wasm):
        cursor = Cursor(payload)
        if number == CUSTOM:
            module.customs.append((cursor.string(), payload[cursor.at :]))
        elif number in (TYPE, TABLE, ELEMENT):
            module.raw[number] = payload
            if number == TABLE:
                module.tables = cursor.unsigned()
        elif number == START:
            module.start = cursor.unsigned()
        elif number in READERS:
            name, read = READERS[number]
            getattr(module, name).extend(cursor.many(lambda c=cursor, r=read: r(c)))  # type: ignore[misc]
            assert cursor.at == len(payload), f"section {number} has more than its items"
        else:
            assert number in (DATA_COUNT, TAG)
            module.names_data |= number == DATA_COUNT
    return module


def _import(cursor: Cursor) -> tuple[str, str, str, bytes]:
    module, name, kind = cursor.string(), cursor.string(), KINDS[cursor.byte()]
    start = cursor.at
    match kind:
        case "func":
            cursor.unsigned()
        case "table":
            cursor.value_type()
            cursor.limits()
        case "memory":
            cursor.limits()
        case "global":
            cursor.global_type()
        case _:
            raise AssertionError(kind)
    return module, name, kind, cursor.data[start : cursor.at]


def _export(cursor: Cursor) -> Export:
    return Export(cursor.string(), KINDS[cursor.byte()], cursor.unsigned())


def _segment(cursor: Cursor) -> Segment:
    mode = cursor.unsigned()
    memory = None if mode == 1 else cursor.unsigned() if mode == 2 else 0
    offset = () if mode == 1 else cursor.constant()
    return Segment(memory, offset, cursor.take(cursor.unsigned()))


READERS: dict[int, tuple[str, Callable[[Cursor], object]]] = {
    IMPORT: ("imports", _import),
    FUNCTION: ("functions", Cursor.unsigned),
    MEMORY: ("memories", Cursor.limits),
    GLOBAL: ("globals", lambda cursor: Global(*cursor.global_type(), cursor.constant())),
    EXPORT: ("exports", _export),
    CODE: ("code", lambda cursor: cursor.take(cursor.unsigned())),
    DATA: ("data", _segment),
}


def leb128(value: int, *, padding: int = 0) -> bytes:
    """`padding` more bytes than needed, which is valid up to the type's width."""
    found = bytearray((value & 0x7F,))
    while value := value >> 7:
        found[-1] |= 0x80
        found.append(value & 0x7F)
    for _ in range(padding):
        found[-1] |= 0x80
        found.append(0)
    return bytes(found)


def section(number: int, payload: bytes) -> bytes:
    return bytes((number,)) + leb128(len(payload)) + payload


def custom(name: str, payload: bytes) -> bytes:
    return section(CUSTOM, leb128(len(name.encode())) + name.encode() + payload)


def vector(items: list[bytes]) -> bytes:
    return leb128(len(items)) + b"".join(items)


def with_much_code(wasm: bytes) -> bytes:
    """With one more function, that nobody calls, so large that the fast compiler is worth it."""
    # It ends unreachable, so that it is of any type, the first one that comes.
    body = b"\0" + b"\1" * MUCH_CODE_BYTES + b"\0\x0b"
    added = {FUNCTION: leb128(0), CODE: leb128(len(body)) + body}
    parts = []
    for number, payload in sections(wasm):
        if number in added:
            cursor = Cursor(payload)
            count = cursor.unsigned()
            payload = leb128(count + 1) + payload[cursor.at :] + added[number]
        parts.append(section(number, payload))
    return HEADER + b"".join(parts)


MUCH_CODE_BYTES = 25_000
STATE = "state:"
"""What `expose` puts before the kind and index of what it exports."""


def expose(wasm: bytes) -> bytes:
    """`wasm` with all memories, tables and globals of its own exported by index."""
    module = decode(wasm)
    wanted = [("memory", number) for number in range(len(module.memories))]
    wanted += [("table", number) for number in range(module.tables)]
    wanted += [("global", number) for number in range(len(module.globals))]
    items = [(export.name, export.kind, export.index) for export in module.exports]
    items += [
        (f"{STATE}{kind}:{number}", kind, number + module.imported(kind)) for kind, number in wanted
    ]
    encoded = section(
        EXPORT,
        vector(
            [
                leb128(len(name.encode())) + name.encode()
                + bytes((KINDS.index(kind),)) + leb128(index)
                for name, kind, index in items
            ]
        ),
    )  # fmt: skip
    return replaced(wasm, EXPORT, encoded)


TAG = 13
ORDER = (TYPE, IMPORT, FUNCTION, TABLE, MEMORY, TAG, GLOBAL, EXPORT, START, ELEMENT, DATA_COUNT,
         CODE, DATA)  # fmt: skip


def replaced(wasm: bytes, number: int, encoded: bytes) -> bytes:
    """`encoded` in place of section `number`, or where it belongs; b"" removes it."""
    parts: list[tuple[int, bytes]] = [
        (found, section(found, payload)) for found, payload in sections(wasm) if found != number
    ]
    position = len(parts)
    for place, (found, _payload) in enumerate(parts):
        if found != CUSTOM and ORDER.index(found) > ORDER.index(number):
            position = place
            break
    parts.insert(position, (number, encoded))
    return HEADER + b"".join(payload for _found, payload in parts)
