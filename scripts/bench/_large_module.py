"""A module whose native code is large, made from a seed: some thousand functions of arithmetic,
loads, stores, branches and calls, no two alike, so that neither form compresses to nothing.

`probe(x)` runs a few of them; calls between functions are behind comparisons that hold once in
2**32, so that it ends. Kept in the cache, as making it takes seconds.
"""

from __future__ import annotations

import random
from pathlib import Path

from _common import REPOSITORY

from edged.lab.chaos.modules import signed, unsigned

CACHE = REPOSITORY / ".cache" / "bench"
STATEMENTS = 400
"""Of each function: 6 KB of module, 14 KB of native code on x86-64, half of it on the wire."""
PROBED = 64
SEED = 1

LOCAL_GET, LOCAL_SET, CALL, END = 0x20, 0x21, 0x10, 0x0B
I32_ARITHMETIC = bytes([0x6A, 0x6B, 0x6C, 0x71, 0x72, 0x73, 0x77, 0x78])
"""add sub mul and or xor rotl rotr"""
I64_ARITHMETIC = bytes([0x7C, 0x7D, 0x7E, 0x85, 0x89])
I32_LOCALS, I64_LOCALS = range(6), range(6, 8)
ADDRESS_MASK = 0x7FF8
OFFSETS = 0x7FF8
"""Address and offset together stay within the one page of memory."""


def large_module(functions: int) -> Path:
    path = CACHE / f"large-{functions}x{STATEMENTS}-{SEED}.wasm"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(make_module(functions, STATEMENTS, SEED))
        fresh.replace(path)
    return path


def make_module(functions: int, statements: int, seed: int) -> bytes:
    writer = _Writer(random.Random(seed), functions)
    bodies = [writer.function(statements) for _ in range(functions)]
    types = b"\x02\x60\x02\x7f\x7f\x01\x7f\x60\x01\x7f\x01\x7f"
    declared = unsigned(functions + 1) + b"\x00" * functions + b"\x01"
    exports = b"\x01\x05probe\x00" + unsigned(functions)
    code = unsigned(functions + 1) + b"".join([*bodies, _probe(functions)])
    sections = ((1, types), (3, declared), (5, b"\x01\x00\x01"), (7, exports), (10, code))
    return b"\0asm\1\0\0\0" + b"".join(
        bytes([number]) + unsigned(len(section)) + section for number, section in sections
    )


def _probe(functions: int) -> bytes:
    body = bytearray([0, LOCAL_GET, 0])
    for index in range(0, functions, max(1, functions // PROBED)):
        body += bytes([LOCAL_GET, 0, CALL]) + unsigned(index)
    body.append(END)
    return unsigned(len(body)) + bytes(body)


class _Writer:
    """Functions (i32, i32) -> i32 with four i32 locals and two i64 beside."""

    def __init__(self, rng: random.Random, functions: int) -> None:
        self._rng = rng
        self._functions = functions
        self._kinds = (
            *[self._arithmetic] * 3, *[self._load] * 2, self._store, *[self._call] * 2,
            self._wide, self._branch,
        )  # fmt: skip

    def function(self, statements: int) -> bytes:
        body = bytearray(b"\x02\x04\x7f\x02\x7e")
        for _ in range(statements):
            body += self._rng.choice(self._kinds)()
        body += self._get() + bytes([LOCAL_GET, I64_LOCALS[0], 0xA7, 0x6A, END])
        return unsigned(len(body)) + bytes(body)

    def _get(self) -> bytes:
        return bytes([LOCAL_GET, self._rng.choice(I32_LOCALS)])

    def _set(self) -> bytes:
        return bytes([LOCAL_SET, self._rng.choice(I32_LOCALS)])

    def _constant(self) -> bytes:
        return b"\x41" + signed(self._rng.getrandbits(32) - 2**31)

    def _operator(self) -> bytes:
        return bytes([self._rng.choice(I32_ARITHMETIC)])

    def _address(self) -> bytes:
        return self._get() + b"\x41" + signed(ADDRESS_MASK) + b"\x71"

    def _offset(self) -> bytes:
        return b"\x02" + unsigned(self._rng.randrange(OFFSETS))

    def _arithmetic(self) -> bytes:
        left = self._get() + self._constant() + self._operator()
        return left + self._get() + self._operator() + self._set()

    def _load(self) -> bytes:
        return self._address() + b"\x28" + self._offset() + self._set()

    def _store(self) -> bytes:
        return self._address() + self._get() + b"\x36" + self._offset()

    def _call(self) -> bytes:
        """if (local == constant) local = callee(local, local)"""
        condition = self._get() + self._constant() + b"\x46\x04\x40"
        callee = unsigned(self._rng.randrange(self._functions))
        called = self._get() + self._get() + bytes([CALL]) + callee
        return condition + called + self._set() + bytes([END])

    def _wide(self) -> bytes:
        operator = bytes([self._rng.choice(I64_ARITHMETIC)])
        left = bytes([LOCAL_GET, self._rng.choice(I64_LOCALS)])
        target = bytes([LOCAL_SET, self._rng.choice(I64_LOCALS)])
        return left + self._get() + b"\xad" + operator + target

    def _branch(self) -> bytes:
        """block: leave if local < constant; else local ^= the low half of a wide one"""
        leave = b"\x02\x40" + self._get() + self._constant() + b"\x49\x0d\x00"
        wide = bytes([LOCAL_GET, self._rng.choice(I64_LOCALS), 0xA7])
        return leave + self._get() + wide + b"\x73" + self._set() + bytes([END])
