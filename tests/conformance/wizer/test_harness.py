"""The judge is judged first: each way in which two snapshots can differ must be told as one, and
what is only written down in another way must not.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import wasmtime

from .binary import (
    CODE,
    DATA,
    DATA_COUNT,
    ELEMENT,
    EXPORT,
    GLOBAL,
    HEADER,
    IMPORT,
    MEMORY,
    START,
    TABLE,
    TYPE,
    Segment,
    custom,
    decode,
    leb128,
    replaced,
    section,
    sections,
    vector,
)
from .running import Failed, observe
from .state import differences

MODULE = bytes(
    wasmtime.wat2wasm(
        """(module
          (import "env" "f" (func $f (param i32)))
          (@custom "kept" (before first) "bytes")
          (memory (export "m") 2 9)
          (memory $second 1)
          (table 3 funcref)
          (global (export "g") (mut i32) (i32.const -3))
          (global (mut f64) (f64.const 1))
          (global (mut v128) (v128.const i64x2 1 2))
          (elem (i32.const 0) func $a)
          (func $a (export "a") (result i32)
            (memory.init $p (i32.const 0) (i32.const 0) (i32.const 2)) (i32.load (i32.const 0)))
          (func (export "b") (param i32) (result i32) (i32.load (local.get 0)))
          (func $s)
          (data (i32.const 100) "some text\\00")
          (data $p "pq")
          (data (i32.const 65530) "across the page")
          (data (memory $second) (i32.const 65535) "z"))"""
    )
)


def segment(item: Segment) -> bytes:
    if item.memory is None:
        return b"\1" + leb128(len(item.data)) + item.data
    ((_op, offset),) = item.offset
    assert isinstance(offset, int)
    assert offset < 1 << 27, "a signed number in as many bytes as an unsigned one"
    head = b"\2" + leb128(item.memory) + b"\x41" + leb128(offset, padding=1) + b"\x0b"
    return head + leb128(len(item.data)) + item.data


def with_data(*segments: Segment) -> bytes:
    counted = replaced(MODULE, DATA_COUNT, section(DATA_COUNT, leb128(len(segments))))
    return replaced(counted, DATA, section(DATA, vector([segment(item) for item in segments])))


def edited(number: int, old: bytes, new: bytes) -> bytes:
    """With the first `old` in section `number` replaced."""
    (payload,) = [payload for found, payload in sections(MODULE) if found == number]
    assert old in payload
    return replaced(MODULE, number, section(number, payload.replace(old, new, 1)))


def at(memory: int | None, offset: int, data: bytes) -> Segment:
    return Segment(memory, () if memory is None else ((0x41, offset),), data)


TEXT, P, ACROSS, Z = decode(MODULE).data
WRONG: dict[str, Callable[[], bytes]] = {
    "a byte of memory": lambda: with_data(at(0, 100, b"some tExt\0"), P, ACROSS, Z),
    "a byte too many": lambda: with_data(at(0, 100, b"some text\0!"), P, ACROSS, Z),
    "a segment elsewhere": lambda: with_data(at(0, 101, b"some text"), P, ACROSS, Z),
    "in another memory": lambda: with_data(at(1, 100, b"some text"), P, ACROSS, Z),
    "the last byte of a memory": lambda: with_data(TEXT, P, ACROSS, at(1, 65535, b"\0")),
    "a segment missing": lambda: with_data(TEXT, P, Z),
    "a later segment over another": lambda: with_data(TEXT, P, ACROSS, Z, at(0, 105, b"T")),
    "a passive segment's data": lambda: with_data(TEXT, at(None, 0, b"pQ"), ACROSS, Z),
    "a passive segment dropped": lambda: with_data(TEXT, at(None, 0, b""), ACROSS, Z),
    "a passive segment's index": lambda: with_data(P, TEXT, ACROSS, Z),
    "an active segment kept for later": lambda: with_data(
        TEXT, P, ACROSS, Z, at(None, 0, b"some text")
    ),
    "a memory's size": lambda: edited(MEMORY, b"\1\2\x09", b"\1\3\x09"),
    "a memory's maximum": lambda: edited(MEMORY, b"\1\2\x09", b"\1\2\x08"),
    "no maximum": lambda: edited(MEMORY, b"\1\2\x09", b"\0\2"),
    "a memory's addresses": lambda: edited(MEMORY, b"\1\2\x09", b"\5\2\x09"),
    "a global": lambda: edited(GLOBAL, b"\x41\x7d", b"\x41\x7c"),
    "the sign of a zero": lambda: edited(GLOBAL, b"\xf0\x3f\x0b", b"\xf0\xbf\x0b"),
    "a lane": lambda: edited(GLOBAL, b"\2" + bytes(7), bytes(8)),
    "a global's mutability": lambda: edited(GLOBAL, b"\x7f\1", b"\x7f\0"),
    "an export's name": lambda: edited(EXPORT, b"\1b\0", b"\1c\0"),
    "an export's index": lambda: edited(EXPORT, b"\1b\0\2", b"\1b\0\1"),
    "an export missing": lambda: edited(EXPORT, b"\4\1m\2\0", b"\3"),
    "an instruction": lambda: edited(CODE, b"\x20\0", b"\x41\0"),
    "a function's type": lambda: replaced(MODULE, 3, section(3, b"\3\1\1\1")),
    "a type": lambda: edited(TYPE, b"\x60\1\x7f\0", b"\x60\1\x7e\0"),
    "an import": lambda: edited(IMPORT, b"env", b"Env"),
    "a table's size": lambda: edited(TABLE, b"\x70\0\3", b"\x70\0\4"),
    "an element": lambda: edited(ELEMENT, b"\1\1", b"\1\3"),
    "a start function": lambda: replaced(MODULE, START, section(START, b"\3")),
    "a custom section's bytes": lambda: MODULE.replace(b"keptbytes", b"keptBytes"),
    "a custom section missing": lambda: (
        HEADER
        + b"".join(
            section(number, body) for number, body in sections(MODULE) if b"kept" not in body
        )
    ),
    "a custom section more": lambda: MODULE + custom("new", b""),
}
SAME: dict[str, Callable[[], bytes]] = {
    "itself": lambda: MODULE,
    "cut differently": lambda: with_data(
        at(0, 100, b"some"), P, at(0, 104, b" text"), at(0, 65530, b"across"),
        at(0, 65536, b" the page"), Z,
    ),
    "in another order": lambda: with_data(Z, P, ACROSS, TEXT),
    "padded with zeros": lambda: with_data(
        at(0, 0, bytes(100) + b"some text" + bytes(65421) + b"across the page" + bytes(9)), P, Z
    ),
    "overwritten": lambda: with_data(
        at(0, 99, b"?some?text"), P, ACROSS, Z, TEXT, at(0, 99, b"\0")
    ),
    "empty segments": lambda: with_data(TEXT, P, at(None, 0, b""), ACROSS, Z, at(0, 131072, b"")),
    "longer numbers": lambda: HEADER
    + b"".join(
        bytes((number,)) + leb128(len(body), padding=2) + body for number, body in sections(MODULE)
    ),
}  # fmt: skip

VISIBLE = (
    "a byte of memory", "a global", "a lane", "an instruction", "a memory's size", "a table's size",
    "a passive segment dropped", "the last byte of a memory",
)  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_difference_is_told(name: str) -> None:
    assert len(differences(MODULE, WRONG[name]())) in (1, 2)


@pytest.mark.parametrize("name", SAME)
def test_another_encoding_is_no_difference(name: str) -> None:
    assert differences(MODULE, SAME[name]()) == []
    wasmtime.Module(wasmtime.Engine(), SAME[name]())


def test_what_a_run_can_see() -> None:
    calls = [("a", ()), ("b", (100,)), ("b", (-1,))]
    truth = observe(MODULE, list(calls))
    assert [text.partition(":")[0] for text in truth.calls] == ["a", "b", "b"]
    assert truth.calls[2].endswith("MEMORY_OUT_OF_BOUNDS")
    for name in VISIBLE:
        assert observe(WRONG[name](), list(calls)) != truth, name
    for name, make in SAME.items():
        assert observe(make(), list(calls)) == truth, name


def test_an_initialiser_that_traps_is_no_observation() -> None:
    wasm = bytes(wasmtime.wat2wasm('(module (func (export "init") unreachable))'))
    with pytest.raises(Failed, match="unreachable"):
        observe(wasm, [], before=[("init", ())])
