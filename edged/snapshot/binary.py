"""Reading and writing WebAssembly's binary format (core specification, chapter 5), strictly.

A reader never leaves its bounds, never reads a count that its bytes cannot hold, and raises
Malformed with the offset for everything else. Nothing is copied but names: what is read is told as
spans of the module. Every item read counts against a budget (ITEMS_MAX), so that no module keeps
its reader busy for more than seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from .errors import Malformed, refuse

ITEMS_MAX: Final = 1_000_000
"""Of one module, of all kinds: a second of reading. Yosys (69 MB) has 58,000."""
NAME_BYTES_MAX: Final = 100_000
"""wasmparser's limit on any string."""

I32: Final = 0x7F
I64: Final = 0x7E
F32: Final = 0x7D
F64: Final = 0x7C
V128: Final = 0x7B
FUNCREF: Final = b"\x70"
NUMBERS: Final = {I32: "i32", I64: "i64", F32: "f32", F64: "f64", V128: "v128"}
_TYPED_REFERENCES: Final = frozenset((0x63, 0x64))
_ABSTRACT_REFERENCES: Final = frozenset(range(0x69, 0x78))
"""funcref, externref, exnref, those of GC …: one byte each."""

END: Final = 0x0B
I32_CONST: Final = 0x41
I64_CONST: Final = 0x42
F32_CONST: Final = b"\x43"
F64_CONST: Final = b"\x44"
V128_CONST: Final = b"\xfd\x0c"
_GLOBAL_GET: Final = 0x23
_REF_NULL: Final = 0xD0
_REF_FUNC: Final = 0xD2
_ARITHMETIC: Final = frozenset((0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E))
"""Of constant expressions: add, sub, mul of both integer types."""
_GC: Final = 0xFB


class Span(NamedTuple):
    """Bytes of the module from `start` up to `end`."""

    start: int
    end: int


class Limits(NamedTuple):
    minimum: int
    maximum: int | None
    shared: bool
    is_64: bool
    page_bits: int
    """log2 of a memory's page size."""


class Budget:
    """What may still be read of one module."""

    __slots__ = ("left",)

    def __init__(self, items: int = ITEMS_MAX) -> None:
        self.left = items

    def take(self, items: int) -> None:
        """Raises CannotSnapshot("limits")."""
        self.left -= items
        if self.left < 0:
            raise refuse("limits", "module", f"has more than {ITEMS_MAX} items")


class Reader:
    """Reads `data` from `at` up to `end`. Raises Malformed, and what its budget raises."""

    __slots__ = ("at", "budget", "data", "end")

    def __init__(self, data: memoryview, at: int, end: int, budget: Budget) -> None:
        self.data = data
        self.at = at
        self.end = end
        self.budget = budget

    def fail(self, detail: str, at: int | None = None) -> Malformed:
        return Malformed(self.at if at is None else at, detail)

    def byte(self) -> int:
        at = self.at
        if at >= self.end:
            raise self.fail("unexpected end")
        self.at = at + 1
        return self.data[at]

    def u32(self) -> int:
        at = self.at
        if at < self.end and self.data[at] < 0x80:
            self.at = at + 1
            return self.data[at]
        return self._unsigned(32)

    def u64(self) -> int:
        return self._unsigned(64)

    def _unsigned(self, bits: int) -> int:
        """LEB128 of at most ceil(bits / 7) bytes, the last without bits beyond `bits`."""
        begin = self.at
        value = shift = 0
        while True:
            byte = self.byte()
            left = bits - shift
            if left < 7 and byte >> left:
                raise self.fail(f"integer of more than {bits} bits", begin)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def signed(self, bits: int) -> int:
        """LEB128 of at most ceil(bits / 7) bytes, the last with a proper sign."""
        begin = self.at
        value = shift = 0
        while True:
            byte = self.byte()
            left = bits - shift
            if left < 7:
                # What is beyond `bits` repeats the sign, which is the last bit of `bits`.
                sign = (byte & 0x7F) >> (left - 1)
                if byte >= 0x80 or sign not in (0, (1 << (8 - left)) - 1):
                    raise self.fail(f"integer of more than {bits} bits", begin)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if byte & 0x40 else value

    def skip(self, length: int) -> Span:
        at = self.at
        if length > self.end - at:
            raise self.fail(f"{length} bytes do not fit")
        self.at = at + length
        return Span(at, self.at)

    def count(self, item_bytes_min: int = 1) -> int:
        """How many items follow, each of at least so many bytes."""
        begin = self.at
        count = self.u32()
        if count * item_bytes_min > self.end - self.at:
            raise self.fail(f"{count} items do not fit", begin)
        self.budget.take(count)
        return count

    def counted(self, item_bytes_min: int = 1) -> Iterator[int]:
        """The index of each item that follows, to the end of the reader, which it must reach."""
        yield from range(self.count(item_bytes_min))
        self.finish()

    def finish(self) -> None:
        if self.at != self.end:
            raise self.fail("section goes on after its last item")

    def name(self) -> str:
        begin = self.at
        length = self.u32()
        if length > NAME_BYTES_MAX:
            raise self.fail(f"name of {length} bytes", begin)
        span = self.skip(length)
        try:
            return str(self.data[span.start : span.end], "utf-8")
        except UnicodeDecodeError:
            raise self.fail("name is not UTF-8", begin) from None

    # ------------------------------------------------------------ types
    def value_type(self) -> str:
        """A number's name, or "ref"."""
        byte = self.byte()
        if byte in NUMBERS:
            return NUMBERS[byte]
        self.at -= 1
        self.reference_type()
        return "ref"

    def reference_type(self) -> bytes:
        """Its encoding."""
        begin = self.at
        byte = self.byte()
        if byte in _TYPED_REFERENCES:
            self.signed(33)
        elif byte not in _ABSTRACT_REFERENCES:
            raise self.fail(f"unknown type {byte:#04x}", begin)
        return bytes(self.data[begin : self.at])

    def limits(self, *, memory: bool) -> Limits:
        begin = self.at
        flags = self.byte()
        # 1: maximum, 2: shared, 4: 64-bit, 8: page size.
        if flags > (15 if memory else 7):
            raise self.fail(f"unknown limits {flags:#04x}", begin)
        read = self.u64 if flags & 4 else self.u32
        minimum = read()
        maximum = read() if flags & 1 else None
        page_bits = self.u32() if flags & 8 else 16
        if page_bits > 16:
            raise self.fail(f"page size 2^{page_bits}", begin)
        return Limits(minimum, maximum, bool(flags & 2), bool(flags & 4), page_bits)

    # ------------------------------------------------------------ expressions
    def expression(self) -> Span:
        """A constant expression with its end. Raises CannotSnapshot("gc") for those of GC."""
        begin = self.at
        while True:
            self.budget.take(1)
            at = self.at
            opcode = self.byte()
            if opcode == END:
                return Span(begin, self.at)
            if opcode == I32_CONST:
                self.signed(32)
            elif opcode == I64_CONST:
                self.signed(64)
            elif opcode == F32_CONST[0]:
                self.skip(4)
            elif opcode == F64_CONST[0]:
                self.skip(8)
            elif opcode in (_GLOBAL_GET, _REF_FUNC):
                self.u32()
            elif opcode == _REF_NULL:
                self.signed(33)
            elif opcode == V128_CONST[0] and self.u32() == V128_CONST[1]:
                self.skip(16)
            elif opcode == _GC:
                raise refuse("gc", f"byte {at}", "makes an object that is garbage-collected")
            elif opcode not in _ARITHMETIC:
                raise self.fail(f"instruction {opcode:#04x} in a constant expression", at)


def leb(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sleb(value: int) -> bytes:
    """Signed LEB128."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def signed(value: int, bits: int) -> int:
    """The number whose two's complement in so many bits is `value`'s."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def const_address(address: int, *, is_64: bool) -> bytes:
    """The expression that gives an address."""
    if is_64:
        return bytes([I64_CONST]) + sleb(signed(address, 64)) + bytes([END])
    return bytes([I32_CONST]) + sleb(signed(address, 32)) + bytes([END])


def encode_limits(limits: Limits) -> bytes:
    flags = (limits.maximum is not None) | limits.shared << 1 | limits.is_64 << 2
    sized = limits.page_bits != 16
    out = bytes([flags | sized << 3]) + leb(limits.minimum)
    if limits.maximum is not None:
        out += leb(limits.maximum)
    return out + leb(limits.page_bits) if sized else out


def encode_name(text: str) -> bytes:
    data = text.encode()
    return leb(len(data)) + data
