"""Phase 4: writes the module anew, with its state in it.

Rewritten are the minimum of each memory, the globals that changed, the exports, the data segments;
the start function goes. All else is taken over byte for byte, so that no index changes: functions
keep their names and debug information. Where code can name data segments (there is a data count),
each keeps its index: what was copied or dropped becomes an empty passive one, which is the same.
"""

from __future__ import annotations

from typing import Final

from . import parse
from .binary import (
    END,
    F32,
    F32_CONST,
    F64,
    F64_CONST,
    I32,
    I32_CONST,
    I64,
    I64_CONST,
    NUMBERS,
    V128,
    V128_CONST,
    const_address,
    encode_limits,
    encode_name,
    leb,
    sleb,
)
from .examine import Resolved
from .instrument import Parts
from .parse import CUSTOM, HEADER_BYTES, Module, Section
from .snapshot import Snapshot

_FLOATS: Final = {F32: F32_CONST, F64: F64_CONST, V128: V128_CONST}
_EMPTY_PASSIVE: Final = b"\x01\x00"
_TYPE_OF: Final = {name: code for code, name in NUMBERS.items()}


def rewrite(
    module: Module, taken: Snapshot, resolved: Resolved, *, keep_custom_sections: bool
) -> Parts:
    """The snapshot's bytes. Valid while `taken` is."""
    out = Parts(module.data)
    out.keep(0, HEADER_BYTES)
    last = max((each.start for each in module.sections if each.id != CUSTOM), default=-1)
    for section in module.sections:
        if section.id != CUSTOM or keep_custom_sections:
            _rewrite(out, module, taken, resolved, section)
        if section.start == last:
            _data(out, module, taken)  # in the place of the old one, or first after the code
    return out


def _rewrite(
    out: Parts, module: Module, taken: Snapshot, resolved: Resolved, section: Section
) -> None:
    match section.id:
        case parse.MEMORY:
            out.section(section.id, _memories(module, taken))
        case parse.GLOBAL if taken.globals:
            out.section(section.id, *_globals(module, taken))
        case parse.EXPORT:
            out.section(section.id, *_exports(module, resolved))
        case parse.ELEMENT if taken.dropped_elements:
            out.section(section.id, *_elements(module, taken))
        case parse.DATA_COUNT:
            out.section(section.id, leb(len(module.segments) + taken.segments))
        case parse.START | parse.DATA:
            pass
        case _:
            out.keep(section.start, section.end)


def _memories(module: Module, taken: Snapshot) -> bytes:
    grown = (
        limits._replace(minimum=len(memory) >> limits.page_bits)
        for limits, memory in zip(module.memories, taken.memories, strict=True)
    )
    return leb(len(module.memories)) + b"".join(map(encode_limits, grown))


def _globals(module: Module, taken: Snapshot) -> tuple[bytes, Parts]:
    items = Parts(module.data)
    for index, each in enumerate(module.globals):
        items.keep(*each.type)
        if index in taken.globals:
            items.add(_constant(each.kind, taken.globals[index]))
        else:
            items.keep(*each.value)
    return leb(len(module.globals)), items


def _constant(kind: str, bits: bytes) -> bytes:
    """The expression that gives a number of these bits."""
    code = _TYPE_OF[kind]
    if code in (I32, I64):
        integer = sleb(int.from_bytes(bits, "little", signed=True))
        return bytes([I32_CONST if code == I32 else I64_CONST]) + integer + bytes([END])
    return _FLOATS[code] + bits + bytes([END])


def _exports(module: Module, resolved: Resolved) -> tuple[bytes, Parts]:
    items = Parts(module.data)
    count = 0
    taken_over = set(resolved.renamed.values())
    for name, export in module.exports.items():
        new = resolved.renamed.get(name)
        if name in resolved.dropped or (new is None and name in taken_over):
            continue
        count += 1
        if new is None:
            items.keep(*export.whole)
        else:
            items.add(encode_name(new))
            items.keep(export.after_name, export.whole.end)
    return leb(count), items


def _elements(module: Module, taken: Snapshot) -> tuple[bytes, Parts]:
    items = Parts(module.data)
    for index, segment in enumerate(module.elements):
        if index in taken.dropped_elements:
            items.add(b"\x05" + segment.type + b"\x00")  # passive, no expressions
        else:
            items.keep(*segment.whole)
    return leb(len(module.elements)), items


def _data(out: Parts, module: Module, taken: Snapshot) -> None:
    items = Parts(module.data)
    kept = module.segments if module.data_count is not None else []
    for index, segment in enumerate(kept):
        if segment.memory is None and index not in taken.dropped_data:
            items.keep(*segment.whole)
        else:
            items.add(_EMPTY_PASSIVE)
    for index, (memory, layout) in enumerate(zip(taken.memories, taken.layouts, strict=True)):
        head = b"\x00" if index == 0 else b"\x02" + leb(index)
        is_64 = module.memories[index].is_64
        for start, end in layout.spans:
            items.add(head + const_address(start, is_64=is_64) + leb(end - start))
            items.add(memory[start:end])
    count = len(kept) + taken.segments
    if count:
        out.section(parse.DATA, leb(count), items)
