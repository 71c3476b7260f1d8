"""Bytes that are almost right: each input follows from (seed, target, number) alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

EDGES: Final = (0x00, 0x01, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC4, 0xC6)
TYPES: Final = (0xCA, 0xCB, 0xCC, 0xCF, 0xD0, 0xD3, 0xD9, 0xDB, 0xDC, 0xDD, 0xDF, 0xE0, 0xFF)
"""First bytes of every kind of msgpack value."""
LENGTHS: Final = tuple(b"\xff" * size for size in (1, 2, 4, 8))
VALUES: Final[tuple[object, ...]] = (
    None, True, 0, -1, 255, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63), 1.5, float("inf"),
    "", "\x00", "x" * 300, "ü😀", "../..", "a\n", b"", b"\x00" * 15, b"\xff" * 33, [], [[]], {},
    {"": 1}, [0] * 200,
)  # fmt: skip
NOISE_MAX: Final = 1300


def make(corpus: Sequence[bytes], rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(NOISE_MAX))
    data = rng.choice(corpus)
    if rng.random() < 0.4:
        data = _restructured(data, rng)
    for _ in range(rng.choice((0, 1, 1, 2, 4, 16))):
        data = rng.choice(_MUTATIONS)(data, rng, corpus)
    return data


# ---------------------------------------------------------------- on bytes
def _at(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data) + 1)


def _flip(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _edge(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = _at(data, rng)
    return data[:at] + bytes([rng.choice(EDGES + TYPES)]) + data[at + 1 :]


def _length(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at, size = _at(data, rng), rng.choice(LENGTHS)
    return data[:at] + size + data[at + len(size) :]


def _insert(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = _at(data, rng)
    return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]


def _cut(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    one, other = sorted((_at(data, rng), _at(data, rng)))
    return data[:one] + data[other:]


def _end(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return data[: _at(data, rng)]


def _again(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    one, other = sorted((_at(data, rng), _at(data, rng)))
    return data[:other] + data[one:]


def _splice(data: bytes, rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    other = rng.choice(corpus)
    return data[: _at(data, rng)] + other[_at(other, rng) :]


_MUTATIONS: Final[tuple[Callable[[bytes, random.Random, Sequence[bytes]], bytes], ...]] = (
    _flip, _flip, _edge, _edge, _length, _insert, _cut, _end, _again, _splice,
)  # fmt: skip


# ---------------------------------------------------------------- on msgpack values
def _restructured(data: bytes, rng: random.Random) -> bytes:
    """One value in the tree replaced, repeated or left out; `data` if it is no msgpack."""
    try:
        return msgspec.msgpack.encode(_changed(msgspec.msgpack.decode(data), rng))
    except (msgspec.MsgspecError, UnicodeError, TypeError, ValueError, OverflowError):
        return data


def _changed(value: object, rng: random.Random) -> object:
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        deed = rng.random()
        if deed < 0.1:
            return value[:at] + value[at + 1 :]
        if deed < 0.2:
            return value[: at + 1] + value[at:]
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value, key=repr))
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, bytes) and len(value) > 2 and rng.random() < 0.4:
        return _restructured(value, rng)
    return rng.choice(VALUES)
