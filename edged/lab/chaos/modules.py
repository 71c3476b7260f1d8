"""Modules for functions under test: read from files, or made, so that the right answer is known.

A made module is a minimal WASI command in the binary format (core specification §5): `_start`
writes one constant text to stdout. What is added as code is never called; compilers and links have
work with it all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_I32: Final = b"\x7f"
_END: Final = b"\x0b"
_TEXT_AT: Final = 64
PAGE_BYTES: Final = 65_536
STEPS: Final = 150
"""Of arithmetic in one filler function, about 1 KiB."""


def module_that_says(text: str, *, code_kib: int = 0) -> bytes:
    """Answers `text` under the ABI raw."""
    said = text.encode()
    fillers = [_filler(number) for number in range(code_kib)]
    main = _body(
        [
            *_store(0, _TEXT_AT),
            *_store(4, len(said)),
            *(_const(value) for value in (1, 0, 1, 8)),
            b"\x10\x00",  # call fd_write
            b"\x1a",  # drop
        ]
    )
    types = [_function_type(4, 1), _function_type(0, 0), _function_type(1, 1)]
    fd_write = _name("wasi_snapshot_preview1") + _name("fd_write") + b"\x00\x00"
    pages = 1 + (_TEXT_AT + len(said)) // PAGE_BYTES
    exports = [_name("memory") + b"\x02\x00", _name("_start") + b"\x00\x01"]
    data = b"\x00" + _const(_TEXT_AT) + _END + unsigned(len(said)) + said
    return b"\0asm\x01\0\0\0" + b"".join(
        (
            _section(1, types),
            _section(2, [fd_write]),
            _section(3, [b"\x01", *(b"\x02" for _ in fillers)]),
            _section(5, [b"\x00" + unsigned(pages)]),
            _section(7, exports),
            _section(10, [main, *fillers]),
            _section(11, [data]),
        )
    )


def _filler(number: int) -> bytes:
    """Its own function, as equal ones might be compiled once."""
    steps: list[bytes] = []
    for step in range(STEPS):
        operation = (b"\x6a", b"\x73", b"\x6c")[step % 3]  # add, xor, mul
        steps += [b"\x20\x00", _const(number * STEPS + step + 1), operation, b"\x21\x00"]
    return _body([*steps, b"\x20\x00"])


def _body(code: Iterable[bytes]) -> bytes:
    inside = b"\x00" + b"".join(code) + _END  # no locals
    return unsigned(len(inside)) + inside


def _store(at: int, value: int) -> list[bytes]:
    return [_const(at), _const(value), b"\x36\x02\x00"]


def _const(value: int) -> bytes:
    return b"\x41" + signed(value)


def _function_type(parameters: int, results: int) -> bytes:
    return b"\x60" + unsigned(parameters) + _I32 * parameters + unsigned(results) + _I32 * results


def _section(number: int, items: list[bytes]) -> bytes:
    inside = unsigned(len(items)) + b"".join(items)
    return bytes((number,)) + unsigned(len(inside)) + inside


def _name(text: str) -> bytes:
    return unsigned(len(text)) + text.encode()


def unsigned(value: int) -> bytes:
    """LEB128."""
    return _leb128(value, 0, 0x80)


def signed(value: int) -> bytes:
    """LEB128."""
    return _leb128(value, -0x40, 0x40)


def _leb128(value: int, least: int, end: int) -> bytes:
    """Seven bits a byte, until the rest is one of `least` to `end` - 1."""
    out = bytearray()
    while not least <= value < end:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)
