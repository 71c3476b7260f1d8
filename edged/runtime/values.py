"""Wasm numbers from and to the texts and Python numbers of an export call."""

from __future__ import annotations

import math
import re
import struct
from typing import Final

from edged.errors import BadRequest

from .ffi import VAL_RAW_BYTES

PARAMS_MAX: Final = 64
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}\Z")
_FLOAT: Final = re.compile(
    r"[+-]?(?:inf|nan|(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:e[+-]?[0-9]{1,4})?)\Z",
    re.IGNORECASE,
)
_FORMATS: Final = {"i32": "<i12x", "i64": "<q8x", "f32": "<f12x", "f64": "<d8x"}
_BITS: Final = {"i32": 32, "i64": 64}


def pack_params(types: tuple[str, ...], texts: tuple[str, ...], results: int) -> bytearray:
    """Untagged values for `wasmtime_func_call_unchecked`: room for parameters and results alike.

    Raises BadRequest naming the parameter (from 1) and what is wrong with it."""
    if len(texts) != len(types):
        raise BadRequest(f"takes {len(types)} parameters ({', '.join(types)}), got {len(texts)}")
    values = bytearray(VAL_RAW_BYTES * max(len(types), results, 1))
    for index, (kind, text) in enumerate(zip(types, texts, strict=True)):
        value: int | float
        if kind in _BITS:
            value = _integer(index, kind, text)
        elif kind in _FORMATS:
            value = _float(index, kind, text)
        else:
            raise BadRequest(f"parameter {index + 1} is a {kind} value; only numbers can be passed")
        struct.pack_into(_FORMATS[kind], values, VAL_RAW_BYTES * index, value)
    return values


def unpack_results(types: tuple[str, ...], values: bytes) -> tuple[int | float, ...]:
    """Integers come out signed."""
    return tuple(
        struct.unpack_from(_FORMATS[kind], values, VAL_RAW_BYTES * index)[0]
        for index, kind in enumerate(types)
    )


def _integer(index: int, kind: str, text: str) -> int:
    """Decimal; the signed and the unsigned range are both accepted (-1 is 2^32 - 1)."""
    bits = _BITS[kind]
    if not _INTEGER.match(text):
        raise BadRequest(f"parameter {index + 1}: {text[:40]!r} is not a decimal integer")
    value = int(text)
    if not -(1 << (bits - 1)) <= value < 1 << bits:
        raise BadRequest(f"parameter {index + 1}: {text[:40]!r} does not fit {kind}")
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def _float(index: int, kind: str, text: str) -> float:
    if not _FLOAT.match(text):
        raise BadRequest(f"parameter {index + 1}: {text[:40]!r} is not a number")
    value = float(text)
    if kind == "f32" and math.isfinite(value):
        try:
            struct.pack("<f", value)
        except OverflowError:
            raise BadRequest(f"parameter {index + 1}: {text[:40]!r} does not fit f32") from None
    return value
