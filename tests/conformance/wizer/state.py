"""What a snapshot holds: every byte of every memory, every global, everything else it declares.

`differences` is the judge: it lists what two snapshots of one module do not have in common. How
memory is cut into segments is each implementation's own business; what comes out of them is not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from .binary import CODE, ELEMENT, TABLE, TYPE, Constant, Global, Module, decode

PAGE_BYTES = 65536
ZEROES = bytes(PAGE_BYTES)
SHOWN = 16


@dataclass(frozen=True)
class Image:
    """A memory's content: pages that are not all zero, by number."""

    pages: dict[int, bytes]

    def first_difference(self, other: Image) -> str:
        for number in sorted(self.pages.keys() | other.pages.keys()):
            left, right = self.pages.get(number, ZEROES), other.pages.get(number, ZEROES)
            if left != right:
                at = next(place for place in range(PAGE_BYTES) if left[place] != right[place])
                shown = slice(at, at + SHOWN)
                return f"at {number * PAGE_BYTES + at}: {left[shown].hex()} {right[shown].hex()}"
        return ""


def image_of(chunks: list[tuple[int, bytes]], bytes_max: int) -> Image:
    pages: dict[int, bytearray] = {}
    for offset, data in chunks:
        assert offset + len(data) <= bytes_max, f"{offset} + {len(data)} is outside {bytes_max}"
        at = 0
        while at < len(data):
            number, inside = divmod(offset + at, PAGE_BYTES)
            part = data[at : at + PAGE_BYTES - inside]
            pages.setdefault(number, bytearray(PAGE_BYTES))[inside : inside + len(part)] = part
            at += len(part)
    return Image({number: bytes(page) for number, page in pages.items() if page != ZEROES})


def image_of_memory(data: bytes) -> Image:
    pages = (
        (at // PAGE_BYTES, data[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES)
    )
    return Image({number: page for number, page in pages if page != ZEROES})


def evaluated(constant: Constant) -> object:
    """A number as its bits; what is none as its instructions."""
    stack: list[int] = []
    for op, *operands in constant:
        if op in (0x41, 0x42):
            assert isinstance(operands[0], int)
            stack.append(operands[0])
        elif op in ARITHMETIC:
            bits, compute = ARITHMETIC[op]
            right, left = stack.pop(), stack.pop()
            stack.append(compute(left, right) % (1 << bits))
        else:
            return constant
    return stack


ARITHMETIC: dict[object, tuple[int, Callable[[int, int], int]]] = {
    0x6A: (32, operator.add), 0x6B: (32, operator.sub), 0x6C: (32, operator.mul),
    0x7C: (64, operator.add), 0x7D: (64, operator.sub), 0x7E: (64, operator.mul),
}  # fmt: skip


def images(module: Module) -> list[Image]:
    """The own memories' content after instantiation, where offsets are plain numbers."""
    found = []
    for number, memory in enumerate(module.memories):
        chunks = []
        for segment in module.data:
            if segment.memory == number:
                found_at = evaluated(segment.offset)
                assert isinstance(found_at, list), segment.offset
                (offset,) = found_at
                chunks.append((offset, segment.data))
        found.append(image_of(chunks, memory.minimum * PAGE_BYTES))
    return found


def initialisers(module: Module) -> list[bytes]:
    """What memory.init of each segment finds after instantiation: an active one is dropped."""
    found = [segment.data if segment.memory is None else b"" for segment in module.data]
    while found and not found[-1]:
        found.pop()
    return found


def differences(left: bytes, right: bytes, *, code: bool = True) -> list[str]:
    """Between two snapshots, in words; empty: none. Without `code` functions may differ."""
    one, other = decode(left), decode(right)
    found = [
        f"{name}: {mine!r} {theirs!r}"[:600]
        for name, mine, theirs in (
            ("types", one.raw.get(TYPE), other.raw.get(TYPE)),
            ("imports", one.imports, other.imports),
            ("tables", one.raw.get(TABLE), other.raw.get(TABLE)),
            ("elements", one.raw.get(ELEMENT), other.raw.get(ELEMENT)),
            ("start", one.start, other.start),
            ("exports", one.exports, other.exports),
            ("customs", one.customs, other.customs),
        )
        if mine != theirs
    ]
    if one.names_data and other.names_data and initialisers(one) != initialisers(other):
        found.append(f"segments' data: {initialisers(one)} {initialisers(other)}"[:600])
    if code and (one.functions, one.code) != (other.functions, other.code):
        found.append(f"code, section {CODE}")
    found += _memories(one, other)
    found += _globals(one.globals, other.globals)
    return found


def differing_places(left: bytes, right: bytes) -> list[tuple[int, int]]:
    """Memory and address of each byte that is not the same."""
    found = []
    pairs = zip(images(decode(left)), images(decode(right)), strict=True)
    for memory, (one, other) in enumerate(pairs):
        for number in sorted(one.pages.keys() | other.pages.keys()):
            mine, theirs = one.pages.get(number, ZEROES), other.pages.get(number, ZEROES)
            if mine != theirs:
                found += [
                    (memory, number * PAGE_BYTES + at)
                    for at in range(PAGE_BYTES)
                    if mine[at] != theirs[at]
                ]
    return found


def _memories(one: Module, other: Module) -> list[str]:
    if one.memories != other.memories:
        return [f"memories: {one.memories} {other.memories}"]
    found = []
    for number, (left, right) in enumerate(zip(images(one), images(other), strict=True)):
        if text := left.first_difference(right):
            found.append(f"memory {number} {text}")
    return found


def _globals(one: list[Global], other: list[Global]) -> list[str]:
    if len(one) != len(other):
        return [f"globals: {len(one)} {len(other)}"]
    return [
        f"global {number}: {left} {right}"
        for number, (left, right) in enumerate(zip(one, other, strict=True))
        if left[:2] != right[:2] or evaluated(left.value) != evaluated(right.value)
    ]
