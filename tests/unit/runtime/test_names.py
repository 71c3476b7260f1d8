from __future__ import annotations

import contextlib

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from edged.runtime import names
from edged.runtime.names import NAME_BYTES_MAX, NamesRefused, check_names

HEADER = b"\0asm\1\0\0\0"


def leb(value: int) -> bytes:
    out = b""
    while True:
        value, low = value >> 7, value & 0x7F
        out += bytes([low | (0x80 if value else 0)])
        if not value:
            return out


def sized(content: bytes) -> bytes:
    return leb(len(content)) + content


def custom(*parts: bytes, title: bytes = b"name") -> bytes:
    return b"\0" + sized(sized(title) + b"".join(parts))


def functions(*named: bytes) -> bytes:
    entries = b"".join(leb(index) + sized(name) for index, name in enumerate(named))
    return b"\1" + sized(leb(len(named)) + entries)


LONG = b"x" * (NAME_BYTES_MAX + 1)


@pytest.mark.parametrize(
    "sections",
    [
        custom(functions(b"short", LONG)),
        custom(b"\0" + sized(sized(LONG))),
        custom(functions(b"short")) + custom(functions(LONG)),
        custom(functions(b"short"), functions(LONG)),
        custom(b"\7" + sized(LONG), functions(LONG)),
        b"\1" + sized(b"\0") + custom(functions(LONG)),
        custom(functions(LONG), b"\1\xff"),  # wasmtime keeps what comes before the flaw
        custom(b"\1\xff" + b"\xff" * 20 + functions(LONG)),  # who knows what it reads here
        custom(b"\1" + leb(1 << 31) + leb(2) + leb(0) + sized(b"a") + leb(1) + sized(LONG)),
    ],
)
def test_long_names_are_refused(sections: bytes) -> None:
    with pytest.raises(NamesRefused):
        check_names(HEADER + sections)


@pytest.mark.parametrize(
    "sections",
    [
        custom(functions(b"short", LONG[1:])),
        custom(functions(LONG), title=b"nome"),
        custom(b"\2" + sized(LONG)),  # names of locals, which wasmtime does not keep
        custom(b"\1\xff"),
        custom(),
        b"\1",
        b"",
    ],
)
def test_other_modules_are_not(sections: bytes) -> None:
    check_names(HEADER + sections)


def test_too_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "NAMES_MAX", 5)
    check_names(HEADER + custom(functions(*[b"f"] * 5)))
    for sections in (custom(functions(*[b"f"] * 6)), custom(functions(b"f", b"g", b"h")) * 2):
        with pytest.raises(NamesRefused):
            check_names(HEADER + sections)


def test_what_a_toolchain_writes() -> None:
    check_names(bytes(wasmtime.wat2wasm("(module $m (func $a (local $l i32)) (func $b))")))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_the_refusal(data: bytes) -> None:
    for sections in (data, custom(data)):
        with contextlib.suppress(NamesRefused):
            check_names(HEADER + sections)
